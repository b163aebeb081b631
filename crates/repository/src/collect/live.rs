//! What is referred to: entries as a whole, and which blocks of each chunk.
//!
//! ```text
//! positions   first 8 bytes of a digest ─► position          one range of digests at a time
//! blocks      a bit for each block of the chunk              blocks.len() = uses * words
//! uses        where in the address space the chunk is used, and how closely
//! ```
//!
//! Two digests that begin alike share a position: then more is kept than must be, never less.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use catalog::EntryDigest;
use model::{Run, SegmentMap};

/// Blocks of a window of the address space, of which fragmentation is told: 1 MiB.
pub(super) const WINDOW_BLOCKS: u32 = 256;

/// What memory a position takes: its place in the table (half of which may be free), its use.
const POSITION_LEN: usize = 32 + size_of::<Use>();

/// What is referred to, of the entries whose digests begin in a range.
pub(super) struct Live {
    range: RangeInclusive<u64>,
    chunk_blocks: u32,
    words: usize,
    count_max: usize,
    positions: HashMap<u64, u32>,
    blocks: Vec<u64>,
    uses: Vec<Use>,
}

/// How a chunk is used by the maps that refer to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Use {
    /// A bit for each MiB of a segment in which some map uses the chunk.
    pub(super) windows: u64,
    /// Blocks for each MiB in which the chunk is used, in the map that uses it most closely.
    pub(super) density: u16,
    /// True where some map that is fragmented uses it.
    pub(super) in_fragmented: bool,
    /// True where it is referred to as a whole: it is no chunk.
    pub(super) is_whole: bool,
}

impl Use {
    /// True where the blocks lie far apart in every map that uses the chunk, and in all of them taken
    /// together: cutting them anew in the order of addresses can bring them closer.
    /// Far is where a MiB has less than a quarter of what a chunk can hold.
    pub(super) fn is_sparse(&self, live_blocks: u32, chunk_blocks: u32) -> bool {
        let near = chunk_blocks / 4;
        u32::from(self.density) < near && live_blocks < near * self.windows.count_ones()
    }
}

/// The first eight bytes of a digest, ordered as digests are.
pub(super) fn key(digest: &EntryDigest) -> u64 {
    let mut prefix = [0; 8];
    prefix.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(prefix)
}

impl Live {
    /// Nothing yet of a range of digests. Takes at most about `memory_len` bytes.
    pub(super) fn new(range: RangeInclusive<u64>, chunk_blocks: u32, memory_len: usize) -> Self {
        let words = (chunk_blocks as usize).div_ceil(64).max(1);
        let count_max = memory_len / (POSITION_LEN + words * size_of::<u64>());
        Live {
            range,
            chunk_blocks,
            words,
            count_max: count_max.max(1),
            positions: HashMap::new(),
            blocks: Vec::new(),
            uses: Vec::new(),
        }
    }

    /// How many entries are referred to.
    pub(super) fn len(&self) -> usize {
        self.uses.len()
    }

    /// True where a digest is one of the range.
    pub(super) fn covers(&self, digest: &EntryDigest) -> bool {
        self.range.contains(&key(digest))
    }

    /// Says that an entry is referred to as a whole. False where there is no room for it.
    pub(super) fn add_whole(&mut self, digest: &EntryDigest) -> bool {
        if !self.covers(digest) {
            return true;
        }
        let Some(position) = self.position_made(digest) else { return false };
        self.uses[position].is_whole = true;
        true
    }

    /// Says what a map refers to. False where there is no room for it.
    pub(super) fn add_map(&mut self, map: &SegmentMap) -> bool {
        let spread = Spread::of(map, self.chunk_blocks);
        for run in map.runs() {
            if !self.covers(&run.chunk.0) {
                continue;
            }
            let Some(position) = self.position_made(&run.chunk.0) else { return false };
            self.set_blocks(position, run);
            let used = &mut self.uses[position];
            used.windows |= windows_of(run);
            used.in_fragmented |= spread.is_fragmented;
            if let Some((blocks, windows)) = spread.chunks.get(&key(&run.chunk.0)) {
                used.density = used.density.max((blocks / windows.count_ones()) as u16);
            }
        }
        true
    }

    /// How an entry is referred to, and how many of its blocks; `None` where nothing refers to it.
    pub(super) fn get(&self, digest: &EntryDigest) -> Option<(Use, u32)> {
        let position = *self.positions.get(&key(digest))? as usize;
        let words = &self.blocks[position * self.words..][..self.words];
        Some((self.uses[position], words.iter().map(|word| word.count_ones()).sum()))
    }

    fn set_blocks(&mut self, position: usize, run: &Run) {
        let words = &mut self.blocks[position * self.words..][..self.words];
        for block in run.first_in_chunk..run.first_in_chunk + run.block_count {
            match words.get_mut(block as usize / 64) {
                Some(word) => *word |= 1 << (block % 64),
                // Longer than this repository makes its chunks: then all of it counts.
                None => words.fill(u64::MAX),
            }
        }
    }

    fn position_made(&mut self, digest: &EntryDigest) -> Option<usize> {
        let next = self.uses.len();
        let position = match self.positions.entry(key(digest)) {
            std::collections::hash_map::Entry::Occupied(known) => *known.get() as usize,
            std::collections::hash_map::Entry::Vacant(_) if next >= self.count_max => return None,
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(next as u32);
                self.uses.push(Use::default());
                self.blocks.resize((next + 1) * self.words, 0);
                next
            }
        };
        Some(position)
    }
}

/// A bit for each MiB of the segment that a run touches.
pub(super) fn windows_of(run: &Run) -> u64 {
    let (first, last) = (run.first_block / WINDOW_BLOCKS, (run.end_block() - 1) / WINDOW_BLOCKS);
    (u64::MAX << first) & (u64::MAX >> (63 - last))
}

/// How a map spreads over chunks.
pub(super) struct Spread {
    /// Each chunk by the beginning of its digest: blocks used, and a bit for each MiB.
    pub(super) chunks: HashMap<u64, (u32, u64)>,
    /// True where reading it touches many more chunks than a fresh layout would.
    pub(super) is_fragmented: bool,
}

impl Spread {
    /// How a map spreads over chunks, where a fresh layout would fill chunks of `chunk_blocks`.
    pub(super) fn of(map: &SegmentMap, chunk_blocks: u32) -> Self {
        let mut chunks: HashMap<u64, (u32, u64)> = HashMap::new();
        let mut blocks_in = [0u32; 64];
        for run in map.runs() {
            let used = chunks.entry(key(&run.chunk.0)).or_default();
            used.0 += run.block_count;
            used.1 |= windows_of(run);
            for block in run.first_block..run.end_block() {
                blocks_in[(block / WINDOW_BLOCKS) as usize] += 1;
            }
        }
        let touches: u32 = chunks.values().map(|(_, windows)| windows.count_ones()).sum();
        Spread { chunks, is_fragmented: touches > touches_max(&blocks_in, chunk_blocks) }
    }
}

/// How many touches of chunks a segment may cost: twice those of a fresh layout, and one more for
/// each MiB, since no layout begins its chunks where a MiB begins.
fn touches_max(blocks_in: &[u32; 64], chunk_blocks: u32) -> u32 {
    let with_data = blocks_in.iter().filter(|blocks| **blocks > 0);
    with_data.map(|blocks| 2 * blocks.div_ceil(chunk_blocks) + 1).sum()
}
