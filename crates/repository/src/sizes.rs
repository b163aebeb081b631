//! What all of a version takes: as a guest sees it, and as it is stored.

use std::collections::HashSet;

use catalog::{EntryDigest, VersionRecord};
use model::{BLOCK_LEN, Result};
use store::ChunkStore;

use crate::Repository;

/// Digests that are looked up with one query.
const LOOKED_UP_MAX: usize = 4096;

/// What a version's data takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VersionSizes {
    /// Blocks that are no hole.
    pub blocks: u64,
    /// Their bytes.
    pub plain_len: u64,
    /// Stored bytes of the chunks that hold them; other versions may need the same chunks.
    pub stored_len: u64,
}

impl Repository {
    /// Adds up what a version takes. Cost: reads its maps and looks all its chunks up.
    ///
    /// # Errors
    /// Those of reading the version's maps.
    pub fn version_sizes(&self, version: &VersionRecord) -> Result<VersionSizes> {
        let chunks = self.chunks();
        let mut sizes = VersionSizes::default();
        let mut seen: HashSet<EntryDigest> = HashSet::new();
        let mut unknown = Vec::new();
        for entry in chunks.manifest(version.facts.layout)?.segments() {
            let map = chunks.map_alone(entry.map)?;
            sizes.blocks += map.runs().iter().map(|run| u64::from(run.block_count)).sum::<u64>();
            unknown.extend(map.chunks().into_iter().map(|c| c.0).filter(|c| seen.insert(*c)));
            if unknown.len() >= LOOKED_UP_MAX {
                sizes.stored_len += self.stored_len(&std::mem::take(&mut unknown))?;
            }
        }
        sizes.stored_len += self.stored_len(&unknown)?;
        sizes.plain_len = sizes.blocks * BLOCK_LEN as u64;
        Ok(sizes)
    }

    fn stored_len(&self, digests: &[EntryDigest]) -> Result<u64> {
        let places = self.catalog.locate(&self.realm, digests)?;
        Ok(places.iter().flatten().map(|place| u64::from(place.entry.stored_len)).sum())
    }
}
