//! Files that belong to no pack of the catalog: what writers have left that died between putting a pack
//! and naming it, or a collect between forgetting packs and removing them.
//!
//! **Invariant**: a file goes only if no row named it when the collect began and none does after every
//! lease has ended that had begun before the mark: whoever put it can name it no more.

use std::collections::HashSet;

use model::{Kind, Result};
use store::PackName;

use crate::repository::Repository;

/// A file that no row names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Orphan {
    name: PackName,
    is_unfinished: bool,
    pub(super) len: u64,
}

/// The files that no row names at the moment. Some may be those of writers at work.
pub(super) fn find(repository: &Repository) -> Result<Vec<Orphan>> {
    // Files first: what is named in between is no orphan.
    let files = repository.packs.list()?;
    let unfinished = repository.packs.unfinished()?;
    let named = names(repository)?;
    let mut orphans = Vec::new();
    for name in files.into_iter().filter(|name| !named.contains(name.as_str())) {
        match repository.packs.len(&name) {
            Ok(len) => orphans.push(Orphan { name, is_unfinished: false, len }),
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let unfinished = unfinished.into_iter();
    orphans.extend(unfinished.map(|(name, len)| Orphan { name, is_unfinished: true, len }));
    Ok(orphans)
}

/// Removes those that no row names still. Returns their bytes. Only after the wait.
pub(super) fn remove(repository: &Repository, orphans: &[Orphan]) -> Result<u64> {
    if orphans.is_empty() {
        return Ok(0);
    }
    let named = names(repository)?;
    let mut removed_len = 0;
    for orphan in orphans {
        if orphan.is_unfinished {
            repository.packs.discard_unfinished(&orphan.name)?;
        } else if !named.contains(orphan.name.as_str()) {
            repository.packs.remove(&orphan.name)?;
        } else {
            continue;
        }
        removed_len += orphan.len;
    }
    Ok(removed_len)
}

fn names(repository: &Repository) -> Result<HashSet<String>> {
    Ok(repository.catalog.packs()?.into_iter().map(|pack| pack.name).collect())
}
