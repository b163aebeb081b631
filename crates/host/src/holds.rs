//! What keeps a mirror's version readable in the repository, also when it is removed there.
//!
//! A mirror reads its base for as long as it exists, attached or not. So each has a hold in the
//! catalog, and notes the holder's name in its folder:
//!
//! ```text
//! made:      mirror ─► note ─► hold          opened again: hold, unless it is there
//! discarded: release ─► mirror and note
//! ```
//!
//! **Failure**: a crash between two steps leaves a mirror without a hold, which gets one when it is
//! opened again, and never a hold without its mirror.

use catalog::Catalog;
use env::entropy::{Entropy, SystemEntropy};
use mirror::{Mirror, StateFolder};
use model::{Kind, MirrorName, Result, VersionId};
use repository::Repository;

/// Holds the version of a mirror that has just been made.
///
/// # Errors
/// `NotFound` where the version was removed meanwhile.
pub(crate) fn take(
    state: &StateFolder,
    name: &MirrorName,
    repository: &Repository,
    version: &VersionId,
) -> Result<()> {
    let holder = new_holder(state, name);
    let path = note(state, name);
    std::fs::write(&path, &holder)
        .map_err(|error| model::Error::io("note the hold of", name.as_str(), error))?;
    repository.catalog().hold(version, &holder, None)?;
    Ok(())
}

/// Makes sure that a mirror which is opened again has its hold.
pub(crate) fn ensure(state: &StateFolder, repository: &Repository, mirror: &Mirror) -> Result<()> {
    let catalog = repository.catalog();
    if let Some(holder) = holder(state, mirror.name())
        && catalog.holds()?.iter().any(|hold| hold.holder == holder)
    {
        return Ok(());
    }
    let base = mirror.base();
    match catalog.version(&base.clone().into()) {
        Ok(version) if version.facts.content == mirror.binding().content => {
            take(state, mirror.name(), repository, &base)
        }
        Err(error) if error.kind() != Kind::NotFound => Err(error),
        // Its version is gone. What is left of it can be read all the same.
        _ => {
            tracing::warn!(mirror = %mirror.name(), version = %base, "its version was removed");
            Ok(())
        }
    }
}

/// Ends the hold of a mirror that is about to be thrown away.
pub(crate) fn release(state: &StateFolder, name: &MirrorName, catalog: &dyn Catalog) -> Result<()> {
    match holder(state, name) {
        Some(holder) => catalog.release(&holder),
        None => Ok(()),
    }
}

fn note(state: &StateFolder, name: &MirrorName) -> std::path::PathBuf {
    state.mirror_folder(name).join("hold")
}

fn holder(state: &StateFolder, name: &MirrorName) -> Option<String> {
    std::fs::read_to_string(note(state, name)).ok().filter(|holder| !holder.is_empty())
}

/// Words that tell a person where to look, and a random end: two hosts may have one name.
fn new_holder(state: &StateFolder, name: &MirrorName) -> String {
    let folder = std::path::absolute(state.mirror_folder(name));
    let folder = folder.unwrap_or_else(|_| state.mirror_folder(name));
    let system = rustix::system::uname();
    let host = system.nodename().to_string_lossy();
    let random = SystemEntropy.name();
    format!("mirror {name} on {host} in {}, {}", folder.display(), &random[..8])
}
