//! Boot working sets: the blocks that a guest reads from power-on to ready, in order of first use,
//! packed in pieces of their own.
//!
//! ```text
//! reads    (block 812, 3 blocks, source 0, from 17) (block 40000, 1, source 1, from 2) ...
//! pieces   [ the blocks of the first reads, one after the other | ... | ... ]     256 KiB each
//! sources  chunk A: digests of all its blocks      chunk B: ...
//! ```
//!
//! A set is a copy by design: it is fetched in a few large requests, where its blocks lie scattered
//! over many chunks. It is not trusted: a source's block digests hash to the digest of a chunk that
//! the version's own segment map names for that block, and each block of a piece is compared with its
//! digest there.
//!
//! **Invariants**, kept by [`BootSet::new`]: reads name blocks that their source has; no block is read
//! twice; the pieces hold exactly the blocks of the reads.

use std::collections::HashSet;

use crate::block::LENGTH_MAX;
use crate::digest::{BlockDigest, ChunkDigest, DIGEST_LEN};
use crate::map::CHUNK_BLOCKS_MAX;
use crate::{BLOCK_LEN, SEGMENT_LEN};

/// The name of the set that is recorded when a guest boots.
pub const BOOT: &str = "boot";

/// The most blocks of one set: 1 GiB.
pub const BOOT_BLOCKS_MAX: u32 = 1 << 18;

/// The most chunks that the blocks of one set lie in: with 64 blocks each, 3 MB of digests.
pub const BOOT_SOURCES_MAX: usize = 1500;

/// Blocks that a guest read one behind the other, as it was observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstRead {
    /// The first block, counted from the start of the disk.
    pub first_block: u64,
    /// How many blocks.
    pub block_count: u32,
    /// Milliseconds after the guest's first read.
    pub at_ms: u32,
}

/// A chunk in which blocks of a set lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootSource {
    /// The chunk.
    pub chunk: ChunkDigest,
    /// The digests of all its blocks, in order: they hash to the chunk's digest.
    pub blocks: Vec<BlockDigest>,
}

/// Blocks of a set that lie one behind the other on the disk and in their source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootRead {
    /// When and where they were read.
    pub read: FirstRead,
    /// The source, by position.
    pub source: u32,
    /// Where in the source the first of them lies, in blocks.
    pub first_in_chunk: u32,
}

/// Up to 256 blocks of a set, stored and fetched together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BootPiece {
    /// BLAKE3 over its bytes.
    pub digest: [u8; DIGEST_LEN],
    /// How many blocks.
    pub block_count: u32,
}

/// A boot working set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootSet {
    sources: Vec<BootSource>,
    reads: Vec<BootRead>,
    pieces: Vec<BootPiece>,
}

impl BootSet {
    /// The set, if its parts fit together.
    pub fn new(
        sources: Vec<BootSource>,
        reads: Vec<BootRead>,
        pieces: Vec<BootPiece>,
    ) -> Option<Self> {
        let sources_sound = sources.len() <= BOOT_SOURCES_MAX
            && sources.iter().all(|source| {
                (1..=CHUNK_BLOCKS_MAX as usize).contains(&source.blocks.len())
                    && ChunkDigest::of(&source.blocks) == source.chunk
            });
        let pieces_sound =
            pieces.iter().all(|piece| (1..=CHUNK_BLOCKS_MAX).contains(&piece.block_count));
        let packed: u64 = pieces.iter().map(|piece| u64::from(piece.block_count)).sum();
        let read: u64 = reads.iter().map(|read| u64::from(read.read.block_count)).sum();
        let counts_sound = packed == read && read <= u64::from(BOOT_BLOCKS_MAX);
        let set = BootSet { sources, reads, pieces };
        let sound = sources_sound && pieces_sound && counts_sound && set.reads_are_sound();
        sound.then_some(set)
    }

    fn reads_are_sound(&self) -> bool {
        let mut seen = HashSet::new();
        self.reads.iter().all(|read| {
            let FirstRead { first_block, block_count, .. } = read.read;
            let inside = first_block < LENGTH_MAX / BLOCK_LEN as u64
                && first_block % (SEGMENT_LEN / BLOCK_LEN as u64) + u64::from(block_count)
                    <= SEGMENT_LEN / BLOCK_LEN as u64;
            let source = self.sources.get(read.source as usize);
            let end = u64::from(read.first_in_chunk) + u64::from(block_count);
            block_count > 0
                && inside
                && source.is_some_and(|source| end <= source.blocks.len() as u64)
                && (first_block..first_block + u64::from(block_count)).all(|b| seen.insert(b))
        })
    }

    /// The chunks in which its blocks lie.
    pub fn sources(&self) -> &[BootSource] {
        &self.sources
    }

    /// The reads, in order of first use.
    pub fn reads(&self) -> &[BootRead] {
        &self.reads
    }

    /// The pieces, in order.
    pub fn pieces(&self) -> &[BootPiece] {
        &self.pieces
    }

    /// How many blocks it holds.
    pub fn block_count(&self) -> u64 {
        self.pieces.iter().map(|piece| u64::from(piece.block_count)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Parts = (Vec<BootSource>, Vec<BootRead>, Vec<BootPiece>);

    fn parts() -> Parts {
        let blocks: Vec<BlockDigest> = (1..5).map(|byte| BlockDigest([byte; 32])).collect();
        let source = BootSource { chunk: ChunkDigest::of(&blocks), blocks };
        let read = |first_block, block_count, first_in_chunk| BootRead {
            read: FirstRead { first_block, block_count, at_ms: 0 },
            source: 0,
            first_in_chunk,
        };
        let pieces = vec![BootPiece { digest: [7; 32], block_count: 3 }];
        (vec![source], vec![read(9, 2, 1), read(100, 1, 0)], pieces)
    }

    #[test]
    fn parts_that_do_not_fit_together_are_no_set() {
        let (sources, reads, pieces) = parts();
        let with = |change: &dyn Fn(&mut Parts)| {
            let mut changed = parts();
            change(&mut changed);
            BootSet::new(changed.0, changed.1, changed.2)
        };
        assert_eq!(BootSet::new(sources, reads, pieces).unwrap().block_count(), 3);
        assert!(with(&|parts| parts.0[0].blocks[3] = BlockDigest([9; 32])).is_none());
        assert!(with(&|parts| parts.1[0].first_in_chunk = 3).is_none());
        assert!(with(&|parts| parts.1[0].source = 1).is_none());
        assert!(with(&|parts| parts.1[1].read.first_block = 10).is_none(), "read twice");
        assert!(with(&|parts| parts.1[1].read.first_block = u64::MAX).is_none());
        assert!(with(&|parts| parts.1[0].read.first_block = 16383).is_none(), "two segments");
        assert!(with(&|parts| parts.2[0].block_count = 2).is_none());
        assert!(with(&|parts| parts.2.clear()).is_none());
    }
}
