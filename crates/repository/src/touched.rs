//! Which versions a damaged entry touches, as far as that is found quickly: for the error of the read
//! that met it.
//!
//! **Not here**: all of them, with addresses. That is what scrub is for.

use catalog::{Catalog, EntryDigest, Revision, Root};
use format::EntryKind;
use format::manifest::{decode_manifest, decode_manifest_root};
use format::segment_map::decode_segment_map;
use model::{Error, Kind, Result};

use crate::chunks::RepositoryChunks;
use crate::walk::{Seen, for_each_root};

/// How many entries are read for one answer.
const READS_MAX: usize = 2000;

/// How many versions are named.
const NAMED_MAX: usize = 5;

/// The error, with the versions that refer to the entry.
pub fn with_versions(
    catalog: &dyn Catalog,
    chunks: &RepositoryChunks,
    digest: EntryDigest,
    error: Error,
) -> Error {
    let mut search = Search { chunks, digest, found: Vec::new(), reads: 0, met: Seen::default() };
    let walked = for_each_root(catalog, Revision::default(), |root| search.root(root));
    let mut names = search.found;
    let is_all = walked.is_ok() && names.len() <= NAMED_MAX;
    names.truncate(NAMED_MAX);
    let touched = match (names.is_empty(), is_all) {
        (true, true) => return error.hint("`larder scrub` says what is damaged"),
        (true, false) => "versions not looked for".to_string(),
        (false, true) => names.join(", "),
        (false, false) => format!("{} and perhaps more", names.join(", ")),
    };
    Error::new(error.kind(), "read", touched)
        .because("it needs what is damaged")
        .hint("`larder scrub` names all that is damaged, `larder scrub --repair` restores it")
        .caused_by(error)
}

struct Search<'a> {
    chunks: &'a RepositoryChunks,
    digest: EntryDigest,
    found: Vec<String>,
    reads: usize,
    /// Maps that do not refer to the entry.
    met: Seen,
}

impl Search<'_> {
    /// Stops the walk with an error when enough was read or found.
    fn root(&mut self, root: &Root) -> Result<()> {
        if self.refers(root)? {
            let name = match &root.holder {
                None => root.version.to_string(),
                Some(holder) => format!("{} (held by {holder})", root.version),
            };
            self.found.push(name);
        }
        match self.found.len() > NAMED_MAX {
            true => Err(enough()),
            false => Ok(()),
        }
    }

    /// True where a root refers to the entry, as far as its own parts can be read.
    fn refers(&mut self, root: &Root) -> Result<bool> {
        if root.layout.0 == self.digest {
            return Ok(true);
        }
        let bytes = self.read(EntryKind::Manifest, root.layout.0)?;
        let Some(manifest) = bytes.and_then(|bytes| decode_manifest_root(&bytes).ok()) else {
            return Ok(false);
        };
        if manifest.leaves.iter().any(|(_, leaf)| *leaf == self.digest) {
            return Ok(true);
        }
        let mut leaves = Vec::new();
        for (_, leaf) in &manifest.leaves {
            let Some(leaf) = self.read(EntryKind::ManifestLeaf, *leaf)? else { return Ok(false) };
            leaves.push(leaf);
        }
        let Ok(manifest) = decode_manifest(&manifest, &leaves) else { return Ok(false) };
        for segment in manifest.segments() {
            if segment.map.0 == self.digest {
                return Ok(true);
            }
            if !self.met.is_new(&segment.map.0) {
                continue;
            }
            let bytes = self.read(EntryKind::SegmentMap, segment.map.0)?;
            let map = bytes.and_then(|bytes| decode_segment_map(&bytes).ok());
            if map.is_some_and(|map| map.runs().iter().any(|run| run.chunk.0 == self.digest)) {
                // Other roots that have this map refer to it, too.
                self.met.forget(&segment.map.0);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// An entry, unless it cannot be read either.
    fn read(&mut self, kind: EntryKind, digest: EntryDigest) -> Result<Option<Vec<u8>>> {
        self.reads += 1;
        match self.reads > READS_MAX {
            true => Err(enough()),
            false => Ok(self.chunks.entry_alone(kind, digest).ok()),
        }
    }
}

/// Ends a walk that has gone on for long enough.
fn enough() -> Error {
    Error::new(Kind::Cancelled, "look for", "versions")
}
