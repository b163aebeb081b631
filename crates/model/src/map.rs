//! Segment maps: for one segment, the runs of blocks and the chunk each run lies in.
//!
//! ```text
//! segment  |....aaaa|bb......|cc..|     . hole
//! runs      (4,4,A,0) (8,2,B,7) (16,2,A,9)      (first block, count, chunk, first in chunk)
//! ```
//!
//! **Invariants**, kept by [`SegmentMap::new`]: runs are in ascending order, do not overlap, are
//! not empty, end inside the segment and inside the longest chunk there can be.

use crate::block::BLOCKS_PER_SEGMENT;
use crate::digest::ChunkDigest;

/// The most blocks a chunk can hold: 1 MiB.
pub const CHUNK_BLOCKS_MAX: u32 = 256;

/// Blocks of a segment that lie one behind the other in one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first block, counted from the start of the segment.
    pub first_block: u32,
    /// How many blocks.
    pub block_count: u32,
    /// The chunk they lie in.
    pub chunk: ChunkDigest,
    /// Where in that chunk the first of them lies, in blocks.
    pub first_in_chunk: u32,
}

impl Run {
    /// The block behind the last, counted from the start of the segment.
    pub fn end_block(&self) -> u32 {
        self.first_block + self.block_count
    }

    fn is_sound(&self) -> bool {
        self.block_count > 0
            && self.block_count <= CHUNK_BLOCKS_MAX
            && self.first_block < BLOCKS_PER_SEGMENT
            && self.end_block() <= BLOCKS_PER_SEGMENT
            && self.first_in_chunk < CHUNK_BLOCKS_MAX
            && self.first_in_chunk + self.block_count <= CHUNK_BLOCKS_MAX
    }
}

/// The runs of one segment; what no run covers is a hole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SegmentMap {
    runs: Vec<Run>,
}

impl SegmentMap {
    /// The map, if its runs keep the invariants; otherwise the position of the first that does not.
    pub fn new(runs: Vec<Run>) -> Result<Self, usize> {
        let mut end = 0;
        for (position, run) in runs.iter().enumerate() {
            if !run.is_sound() || run.first_block < end {
                return Err(position);
            }
            end = run.end_block();
        }
        Ok(SegmentMap { runs })
    }

    /// All runs, in order.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The runs that touch blocks `first..end` of the segment, whole.
    pub fn runs_in(&self, first: u32, end: u32) -> &[Run] {
        let from = self.runs.partition_point(|run| run.end_block() <= first);
        let to = self.runs.partition_point(|run| run.first_block < end);
        &self.runs[from..to.max(from)]
    }

    /// How many blocks are no hole.
    pub fn data_block_count(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.block_count)).sum()
    }

    /// Each chunk that the runs name, once, in order of first use.
    pub fn chunks(&self) -> Vec<ChunkDigest> {
        let mut seen = std::collections::HashSet::new();
        self.runs.iter().map(|run| run.chunk).filter(|chunk| seen.insert(*chunk)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first_block: u32, block_count: u32) -> Run {
        Run { first_block, block_count, chunk: ChunkDigest([1; 32]), first_in_chunk: 0 }
    }

    #[test]
    fn runs_that_overlap_or_leave_the_segment_are_refused() {
        assert!(SegmentMap::new(vec![run(0, 2), run(2, 3)]).is_ok());
        assert_eq!(SegmentMap::new(vec![run(0, 2), run(1, 3)]), Err(1));
        assert_eq!(SegmentMap::new(vec![run(0, 0)]), Err(0));
        assert_eq!(SegmentMap::new(vec![run(BLOCKS_PER_SEGMENT - 1, 2)]), Err(0));
        assert_eq!(SegmentMap::new(vec![run(u32::MAX, 1)]), Err(0));
    }

    #[test]
    fn runs_in_finds_all_that_touch() {
        let map = SegmentMap::new(vec![run(2, 2), run(6, 4), run(20, 1)]).unwrap();
        let firsts = |a, b| map.runs_in(a, b).iter().map(|r| r.first_block).collect::<Vec<_>>();
        assert_eq!(firsts(0, 2), Vec::<u32>::new());
        assert_eq!(firsts(3, 7), vec![2, 6]);
        assert_eq!(firsts(4, 6), Vec::<u32>::new());
        assert_eq!(firsts(9, 100), vec![6, 20]);
    }
}
