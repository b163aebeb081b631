//! One segment while it is laid out: where each block lies.
//!
//! A draft starts as a hole (an import) or as the parent's segment (a commit); blocks are set one
//! by one; then it becomes runs. Runs that lie in the chunk that is still open learn its digest
//! later: a [`PendingSegment`] waits for it.

use std::collections::HashMap;

use model::map::Run;
use model::{BlockDigest, ChunkDigest, SegmentDigest, SegmentMap};

use crate::block_list::Place;

/// A chunk that a draft refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChunkRef {
    /// A chunk with a name.
    Sealed(ChunkDigest),
    /// The chunk that still takes blocks.
    Open,
}

const HOLE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Slot {
    chunk: u32,
    index: u16,
}

/// Where each block of one segment lies, and its digest. Takes 40 bytes a block.
#[derive(Debug)]
pub struct SegmentDraft {
    segment: u32,
    digests: Vec<BlockDigest>,
    slots: Vec<Slot>,
    chunks: Vec<ChunkRef>,
    positions: HashMap<ChunkRef, u32>,
}

impl SegmentDraft {
    /// A segment of `block_count` blocks that is one hole.
    pub fn hole(segment: u32, block_count: u32) -> Self {
        SegmentDraft {
            segment,
            digests: vec![BlockDigest::HOLE; block_count as usize],
            slots: vec![Slot { chunk: HOLE, index: 0 }; block_count as usize],
            chunks: Vec::new(),
            positions: HashMap::new(),
        }
    }

    /// Which segment this is.
    pub fn segment(&self) -> u32 {
        self.segment
    }

    /// Lays out the runs of a map, as far as the segment goes. `blocks_of` gives the block digests
    /// of a chunk.
    ///
    /// # Errors
    /// What `blocks_of` fails with; `Err(None)` where a run names blocks that a chunk has not.
    pub fn lay_out<'a, E>(
        &mut self,
        map: &SegmentMap,
        mut blocks_of: impl FnMut(&ChunkDigest) -> Result<std::borrow::Cow<'a, [BlockDigest]>, E>,
    ) -> Result<(), Option<E>> {
        for run in map.runs() {
            let blocks = blocks_of(&run.chunk).map_err(Some)?;
            for step in 0..run.block_count {
                let index = run.first_in_chunk + step;
                let digest = *blocks.get(index as usize).ok_or(None)?;
                let block = run.first_block + step;
                if (block as usize) < self.digests.len() {
                    self.set(block, digest, ChunkRef::Sealed(run.chunk), index as u16);
                }
            }
        }
        Ok(())
    }

    /// Says that a block lies in a chunk.
    pub fn set(&mut self, block: u32, digest: BlockDigest, chunk: ChunkRef, index: u16) {
        let position = match self.chunks.last() {
            Some(last) if *last == chunk => self.chunks.len() as u32 - 1,
            _ => self.position_of(chunk),
        };
        self.digests[block as usize] = digest;
        self.slots[block as usize] = Slot { chunk: position, index };
    }

    /// Says that a block lies at a place.
    pub fn set_place(&mut self, block: u32, digest: BlockDigest, place: Place) {
        self.set(block, digest, ChunkRef::Sealed(place.chunk), place.index);
    }

    /// Says that a block is a hole.
    pub fn set_hole(&mut self, block: u32) {
        self.digests[block as usize] = BlockDigest::HOLE;
        self.slots[block as usize].chunk = HOLE;
    }

    /// Cuts the segment to `block_count` blocks: the end of a stream has been found.
    pub fn truncate(&mut self, block_count: u32) {
        self.digests.truncate(block_count as usize);
        self.slots.truncate(block_count as usize);
    }

    /// The open chunk has been sealed: what lay in it lies in the chunk of that name.
    pub fn resolve(&mut self, digest: ChunkDigest) {
        if let Some(position) = self.positions.remove(&ChunkRef::Open) {
            self.chunks[position as usize] = ChunkRef::Sealed(digest);
            self.positions.insert(ChunkRef::Sealed(digest), position);
        }
    }

    /// Ends the draft. `None` where the whole segment is a hole.
    pub fn finish(self) -> Option<PendingSegment> {
        let mut runs: Vec<PendingRun> = Vec::new();
        let mut data_block_count = 0;
        for (block, slot) in self.slots.iter().enumerate() {
            if slot.chunk == HOLE {
                continue;
            }
            data_block_count += 1;
            let chunk = self.chunks[slot.chunk as usize];
            match runs.last_mut() {
                Some(run) if run.goes_on_with(block as u32, chunk, slot.index) => {
                    run.block_count += 1;
                }
                _ => runs.push(PendingRun {
                    first_block: block as u32,
                    block_count: 1,
                    chunk,
                    first_in_chunk: u32::from(slot.index),
                }),
            }
        }
        (!runs.is_empty()).then(|| PendingSegment {
            segment: self.segment,
            content: SegmentDigest::of(&self.digests),
            data_block_count,
            runs,
        })
    }

    fn position_of(&mut self, chunk: ChunkRef) -> u32 {
        let next = self.chunks.len() as u32;
        let position = *self.positions.entry(chunk).or_insert(next);
        if position == next {
            self.chunks.push(chunk);
        }
        position
    }
}

#[derive(Clone, Copy, Debug)]
struct PendingRun {
    first_block: u32,
    block_count: u32,
    chunk: ChunkRef,
    first_in_chunk: u32,
}

impl PendingRun {
    fn goes_on_with(&self, block: u32, chunk: ChunkRef, index: u16) -> bool {
        self.chunk == chunk
            && self.first_block + self.block_count == block
            && self.first_in_chunk + self.block_count == u32::from(index)
    }
}

/// A segment that is laid out but for the name of the open chunk.
#[derive(Clone, Debug)]
pub struct PendingSegment {
    /// Which segment.
    pub segment: u32,
    /// The digest of its block digests.
    pub content: SegmentDigest,
    /// How many of its blocks are no hole.
    pub data_block_count: u64,
    runs: Vec<PendingRun>,
}

impl PendingSegment {
    /// True while a run lies in the open chunk.
    pub fn waits(&self) -> bool {
        self.runs.iter().any(|run| run.chunk == ChunkRef::Open)
    }

    /// The open chunk has been sealed under this name.
    pub fn resolve(&mut self, digest: ChunkDigest) {
        for run in &mut self.runs {
            if run.chunk == ChunkRef::Open {
                run.chunk = ChunkRef::Sealed(digest);
            }
        }
    }

    /// The segment's map; `None` while a run waits for the open chunk's name.
    pub fn map(&self) -> Option<SegmentMap> {
        let runs = self.runs.iter().map(|run| match run.chunk {
            ChunkRef::Open => None,
            ChunkRef::Sealed(chunk) => Some(Run {
                first_block: run.first_block,
                block_count: run.block_count,
                chunk,
                first_in_chunk: run.first_in_chunk,
            }),
        });
        SegmentMap::new(runs.collect::<Option<Vec<_>>>()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::borrow::Cow;

    const A: ChunkDigest = ChunkDigest([1; 32]);
    const B: ChunkDigest = ChunkDigest([2; 32]);

    #[test]
    fn blocks_that_go_on_become_one_run_and_the_open_chunk_gets_its_name() {
        let mut draft = SegmentDraft::hole(3, 100);
        for block in 0..4 {
            draft.set(10 + block, BlockDigest([9; 32]), ChunkRef::Open, block as u16);
        }
        draft.set(14, BlockDigest([8; 32]), ChunkRef::Sealed(A), 4);
        let mut pending = draft.finish().unwrap();
        assert!(pending.waits() && pending.map().is_none());
        pending.resolve(B);
        let map = pending.map().unwrap();
        assert_eq!(map.runs().len(), 2);
        assert_eq!((map.runs()[0].block_count, map.runs()[0].chunk), (4, B));
        assert_eq!(pending.data_block_count, 5);
    }

    #[test]
    fn a_patch_upon_a_parent_keeps_the_rest_and_a_hole_takes_away() {
        let blocks: Vec<_> = (0u8..8).map(|n| BlockDigest([n + 1; 32])).collect();
        let run = Run { first_block: 0, block_count: 8, chunk: A, first_in_chunk: 0 };
        let map = SegmentMap::new(vec![run]).unwrap();
        let mut draft = SegmentDraft::hole(0, 8);
        draft.lay_out::<()>(&map, |_| Ok(Cow::Borrowed(&blocks))).unwrap();
        draft.set_hole(2);
        draft.set(5, BlockDigest([77; 32]), ChunkRef::Sealed(B), 9);
        let pending = draft.finish().unwrap();
        let runs: Vec<_> = pending
            .map()
            .unwrap()
            .runs()
            .iter()
            .map(|r| (r.first_block, r.block_count, r.chunk, r.first_in_chunk))
            .collect();
        assert_eq!(runs, [(0, 2, A, 0), (3, 2, A, 3), (5, 1, B, 9), (6, 2, A, 6)]);
        let mut expected = blocks.clone();
        expected[2] = BlockDigest::HOLE;
        expected[5] = BlockDigest([77; 32]);
        assert_eq!(pending.content, SegmentDigest::of(&expected));
    }

    #[test]
    fn a_draft_without_blocks_is_a_hole() {
        let mut draft = SegmentDraft::hole(0, 8);
        draft.set(1, BlockDigest([1; 32]), ChunkRef::Open, 0);
        draft.set_hole(1);
        assert!(draft.finish().is_none());
    }
}
