//! Which blocks two versions share: from layouts and block lists, no data is read.
//!
//! ```text
//! digests   0................................ff
//! pass         |--- 1 ---|--- 2 ---|--- 3 ---|      each with its own share of all digests
//! ```
//!
//! **Invariant**: memory is bounded: a pass remembers at most some `DIGESTS_MAX` digests; larger
//! versions take more passes.

use std::collections::HashMap;

use model::{BLOCK_LEN, Result};
use store::ChunkStore;

use crate::blob::read::Reader;
use crate::rebuild::ListsOfSegment;
use crate::repository::Repository;

/// Digests that one pass remembers, more or less: some 130 MB; 16 GiB of data.
const DIGESTS_MAX: u64 = 1 << 22;

/// How much two versions share. Plain bytes of distinct blocks; holes are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockDifference {
    /// Only the second has them.
    pub new_len: u64,
    /// Both have them.
    pub shared_len: u64,
    /// Only the first has them.
    pub gone_len: u64,
}

impl Repository {
    /// Compares two versions of this repository block by block, wherever in them a block lies.
    ///
    /// Cost: their maps and the block lists of the packs that they need, once for each 16 GiB of data;
    /// no chunk is read.
    ///
    /// # Errors
    /// `Corrupt` where the repository is damaged.
    pub fn compare_blocks(&self, first: &Reader, second: &Reader) -> Result<BlockDifference> {
        let len = |reader: &Reader| reader.version().facts.data_len;
        let blocks = (len(first) + len(second)) / BLOCK_LEN as u64;
        let passes = blocks.div_ceil(DIGESTS_MAX).max(1);
        self.compare_in_passes(first, second, passes)
    }

    fn compare_in_passes(
        &self,
        first: &Reader,
        second: &Reader,
        passes: u64,
    ) -> Result<BlockDifference> {
        let mut difference = BlockDifference::default();
        for pass in 0..passes {
            let mut found: HashMap<u128, (bool, bool)> = HashMap::new();
            let is_of_pass = |digest: u128| digest as u64 % passes == pass;
            self.for_each_block(first, |digest| {
                if is_of_pass(digest) {
                    found.entry(digest).or_default().0 = true;
                }
            })?;
            self.for_each_block(second, |digest| {
                if is_of_pass(digest) {
                    found.entry(digest).or_default().1 = true;
                }
            })?;
            for which in found.into_values() {
                let len = match which {
                    (false, _) => &mut difference.new_len,
                    (true, true) => &mut difference.shared_len,
                    (true, false) => &mut difference.gone_len,
                };
                *len += BLOCK_LEN as u64;
            }
        }
        Ok(difference)
    }

    /// Calls `each` with half the digest of each block that is no hole: enough to tell blocks apart.
    fn for_each_block(&self, reader: &Reader, mut each: impl FnMut(u128)) -> Result<()> {
        let mut lists = ListsOfSegment::new(self);
        for entry in reader.manifest().segments() {
            let map = self.chunks().segment_map(entry.map)?;
            for run in map.runs() {
                let blocks = lists.blocks_of(&run.chunk)?;
                let first = run.first_in_chunk as usize;
                let inside = blocks.iter().skip(first).take(run.block_count as usize);
                for digest in inside {
                    let mut half = [0; 16];
                    half.copy_from_slice(&digest.0[..16]);
                    each(u128::from_ne_bytes(half));
                }
            }
        }
        Ok(())
    }
}
