//! The walk over everything that versions and holds refer to.
//!
//! ```text
//! roots, page by page, by revision ─┬─► manifest ─► leaves
//!                                   │      └──────► segment maps ─► chunks
//!                                   └─► record; documents; working sets ─► their pieces
//! ```
//!
//! A layout or map that many versions share is read once, as far as memory for what was seen goes.
//!
//! **Invariant**: every root that exists when the walk ends was walked, or has a later revision than
//! the one that is returned, or was made from one that was walked.
//!
//! **Failure**: what cannot be read is an error that names it and the versions that need it: nothing
//! is ever taken for dead because it could not be read.

use std::collections::HashSet;
use std::ops::ControlFlow;

use catalog::{EntryDigest, Revision, Root};
use model::progress::Cancel;
use model::{Error, Kind, Manifest, MapDigest, Result, SegmentMap};
use rayon::prelude::*;

use crate::repository::Repository;

/// How many roots are asked for at a time.
const ROOTS_PER_PAGE: usize = 1000;

/// How many maps are read at a time: at most some 12 MB.
const MAPS_AT_ONCE: usize = 16;

/// How many layouts and maps are remembered: some 32 MB. Those beyond are read once more for each
/// version that has them.
const SEEN_MAX: usize = 1 << 20;

/// How many versions an error names.
const NAMED_MAX: usize = 5;

/// What a walk meets. Either method may stop it.
pub(super) trait Visitor {
    /// A manifest, a leaf of one, a map, a record, a document, a working set: something is referred to as a whole.
    fn entry(&mut self, digest: &EntryDigest) -> ControlFlow<()>;

    /// A map, with the segment that it is of.
    fn map(&mut self, segment: u32, digest: &MapDigest, map: &SegmentMap) -> ControlFlow<()>;
}

/// How a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Walked {
    /// All was met, up to this revision.
    To(Revision),
    /// The visitor stopped it.
    Stopped,
}

/// Walks all roots that came to be after a revision.
pub(super) fn walk(
    repository: &Repository,
    after: Revision,
    cancel: &Cancel,
    visitor: &mut dyn Visitor,
) -> Result<Walked> {
    let mut walk = Walk { repository, visitor, seen: Seen::default() };
    let mut last = after;
    loop {
        let roots = repository.catalog.roots(last, ROOTS_PER_PAGE)?;
        let Some(newest) = roots.last() else { return Ok(Walked::To(last)) };
        last = newest.revision;
        for root in &roots {
            cancel.check("collect", "the repository")?;
            if walk.root(root)?.is_break() {
                return Ok(Walked::Stopped);
            }
        }
    }
}

/// Digests that were met, as far as memory is spent on them.
#[derive(Default)]
pub(super) struct Seen(HashSet<u128>);

impl Seen {
    /// True where the digest was not met before, or may not have been.
    pub(super) fn is_new(&mut self, digest: &EntryDigest) -> bool {
        let mut prefix = [0; 16];
        prefix.copy_from_slice(&digest[..16]);
        let prefix = u128::from_le_bytes(prefix);
        match self.0.len() < SEEN_MAX {
            true => self.0.insert(prefix),
            false => !self.0.contains(&prefix),
        }
    }
}

struct Walk<'a> {
    repository: &'a Repository,
    visitor: &'a mut dyn Visitor,
    seen: Seen,
}

impl Walk<'_> {
    fn root(&mut self, root: &Root) -> Result<ControlFlow<()>> {
        let mut told = root.record.iter().chain(&root.documents);
        if told.try_for_each(|entry| self.visitor.entry(entry)).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        for set in &root.boot_sets {
            if self.boot_set(set)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        if !self.seen.is_new(&root.layout.0) {
            return Ok(ControlFlow::Continue(()));
        }
        let chunks = self.repository.chunks();
        let (manifest, leaves) = chunks
            .manifest_with_leaves(root.layout)
            .map_err(|error| unreadable(self.repository, error, |r, _| r.layout == root.layout))?;
        for digest in std::iter::once(&root.layout.0).chain(&leaves) {
            if self.visitor.entry(digest).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        self.maps(&manifest)
    }

    fn boot_set(&mut self, digest: &EntryDigest) -> Result<ControlFlow<()>> {
        if !self.seen.is_new(digest) {
            return Ok(ControlFlow::Continue(()));
        }
        let needs = |root: &Root, _: Option<&Manifest>| root.boot_sets.contains(digest);
        let set = self.repository.chunks().boot_set(*digest);
        let set = set.map_err(|error| unreadable(self.repository, error, needs))?;
        let pieces = set.pieces().iter().map(|piece| &piece.digest);
        Ok(std::iter::once(digest).chain(pieces).try_for_each(|entry| self.visitor.entry(entry)))
    }

    fn maps(&mut self, manifest: &Manifest) -> Result<ControlFlow<()>> {
        let mut unseen: Vec<(u32, MapDigest)> =
            manifest.segments().iter().map(|entry| (entry.segment, entry.map)).collect();
        unseen.retain(|(_, map)| self.seen.is_new(&map.0));
        let chunks = self.repository.chunks();
        for group in unseen.chunks(MAPS_AT_ONCE) {
            let maps: Vec<_> = group.par_iter().map(|(_, map)| chunks.map_alone(*map)).collect();
            for ((segment, digest), map) in group.iter().zip(maps) {
                let map = map.map_err(|error| unreadable_map(self.repository, error, digest))?;
                if self.visitor.entry(&digest.0).is_break()
                    || self.visitor.map(*segment, digest, &map).is_break()
                {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// The error for a map that cannot be read.
pub(super) fn unreadable_map(repository: &Repository, error: Error, map: &MapDigest) -> Error {
    unreadable(repository, error, |_, manifest| {
        manifest.is_some_and(|manifest| manifest.segments().iter().any(|entry| entry.map == *map))
    })
}

/// Adds to an error which versions need what could not be read.
fn unreadable(
    repository: &Repository,
    error: Error,
    needs: impl Fn(&Root, Option<&Manifest>) -> bool,
) -> Error {
    if !matches!(error.kind(), Kind::NotFound | Kind::Corrupt) {
        return error;
    }
    let mut named: Vec<String> = Vec::new();
    let mut more = 0;
    let mut last = Revision::default();
    while let Ok(roots) = repository.catalog.roots(last, ROOTS_PER_PAGE) {
        let Some(newest) = roots.last() else { break };
        last = newest.revision;
        for root in &roots {
            let manifest = repository.chunks().manifest_with_leaves(root.layout).ok();
            let manifest = manifest.as_ref().map(|(manifest, _)| manifest);
            let name = root.version.to_string();
            if needs(root, manifest) && !named.contains(&name) {
                match named.len() < NAMED_MAX {
                    true => named.push(name),
                    false => more += 1,
                }
            }
        }
    }
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Error::new(Kind::Corrupt, "collect", "the repository")
        .because(format!("{}{more} cannot be read, and nothing is removed", named.join(", ")))
        .hint("`larder scrub` names what is damaged; remove those versions or repair them")
        .caused_by(error)
}
