//! New blocks on their way to become a chunk.

use std::collections::HashMap;

use model::map::CHUNK_BLOCKS_MAX;
use model::{BLOCK_LEN, BlockDigest, ChunkDigest};

/// How many blocks a chunk may hold: 1 to 256 (1 MiB).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkSize(u16);

impl ChunkSize {
    /// 64 blocks, 256 KiB.
    pub const DEFAULT: ChunkSize = ChunkSize(64);

    /// The size, if a chunk may have it.
    pub fn from_blocks(blocks: u32) -> Option<Self> {
        (1..=CHUNK_BLOCKS_MAX).contains(&blocks).then_some(ChunkSize(blocks as u16))
    }

    /// In blocks.
    pub fn blocks(self) -> usize {
        usize::from(self.0)
    }
}

/// A chunk that takes no more blocks.
#[derive(Clone, Debug)]
pub struct SealedChunk {
    /// Its name.
    pub digest: ChunkDigest,
    /// The digests of its blocks, in order.
    pub blocks: Vec<BlockDigest>,
    /// Its plain bytes: whole blocks.
    pub bytes: Vec<u8>,
}

/// The chunk that takes new blocks, in the order in which they come.
#[derive(Debug)]
pub struct OpenChunk {
    size: ChunkSize,
    blocks: Vec<BlockDigest>,
    bytes: Vec<u8>,
    positions: HashMap<BlockDigest, u16>,
}

impl OpenChunk {
    /// An empty chunk that will hold up to `size` blocks.
    pub fn new(size: ChunkSize) -> Self {
        OpenChunk {
            size,
            blocks: Vec::with_capacity(size.blocks()),
            bytes: Vec::with_capacity(size.blocks() * BLOCK_LEN),
            positions: HashMap::with_capacity(size.blocks()),
        }
    }

    /// The position of a block that was pushed since the last seal.
    pub fn find(&self, digest: &BlockDigest) -> Option<u16> {
        self.positions.get(digest).copied()
    }

    /// Adds a block, padded with zeros to a whole one; returns its position. The chunk must not be
    /// full.
    pub fn push(&mut self, digest: BlockDigest, block: &[u8]) -> u16 {
        debug_assert!(!self.is_full() && block.len() <= BLOCK_LEN);
        let position = self.blocks.len() as u16;
        self.blocks.push(digest);
        self.bytes.extend_from_slice(block);
        self.bytes.resize(self.blocks.len() * BLOCK_LEN, 0);
        self.positions.insert(digest, position);
        position
    }

    /// True when no more block has room.
    pub fn is_full(&self) -> bool {
        self.blocks.len() == self.size.blocks()
    }

    /// True when there is no block.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Takes the blocks out as a chunk and starts anew; `None` when there is no block.
    pub fn seal(&mut self) -> Option<SealedChunk> {
        if self.is_empty() {
            return None;
        }
        self.positions.clear();
        let capacity = self.size.blocks();
        let blocks = std::mem::replace(&mut self.blocks, Vec::with_capacity(capacity));
        let bytes = std::mem::replace(&mut self.bytes, Vec::with_capacity(capacity * BLOCK_LEN));
        Some(SealedChunk { digest: ChunkDigest::of(&blocks), blocks, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_chunk_is_sealed_with_its_blocks_in_order() {
        let mut open = OpenChunk::new(ChunkSize::from_blocks(2).unwrap());
        let (a, b) = (BlockDigest::of(b"a"), BlockDigest::of(b"b"));
        assert_eq!((open.push(a, b"a"), open.push(b, b"b")), (0, 1));
        assert!(open.is_full());
        assert_eq!(open.find(&b), Some(1));
        let sealed = open.seal().unwrap();
        assert_eq!(sealed.digest, ChunkDigest::of(&[a, b]));
        assert_eq!(sealed.bytes.len(), 2 * BLOCK_LEN);
        assert_eq!((open.find(&a), open.seal().is_none()), (None, true));
    }
}
