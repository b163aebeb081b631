//! The blocks of one pack, found by digest.
//!
//! ```text
//! chunks     [ A            | B       | C ...      ]   in the order of the pack
//! digests    [ a0 a1 ... a63| b0 b1 ..| c0 ...     ]   32 bytes each
//! slots      open addressing: first bytes of a digest -> its position + 1; 0 is free
//! ```
//!
//! A list of a 16 MiB pack takes 128 KiB of digests and at most 64 KiB of slots.

use model::digest::{DIGEST_LEN, Hook};
use model::{BlockDigest, ChunkDigest};

/// Where a block lies: in which chunk, and which of its blocks it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The chunk.
    pub chunk: ChunkDigest,
    /// The block's position in it.
    pub index: u16,
}

/// The blocks of one pack's data chunks.
#[derive(Clone, Debug, Default)]
pub struct BlockList {
    chunks: Vec<ListedChunk>,
    digests: Vec<BlockDigest>,
    slots: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct ListedChunk {
    digest: ChunkDigest,
    first: u32,
}

impl BlockList {
    /// Adds a chunk and its blocks, in order. A block that is listed already keeps its place.
    pub fn push(&mut self, chunk: ChunkDigest, blocks: &[BlockDigest]) {
        let first = self.digests.len() as u32;
        self.chunks.push(ListedChunk { digest: chunk, first });
        self.digests.extend_from_slice(blocks);
        if self.digests.len() * 2 > self.slots.len() {
            self.rebuild();
        } else {
            (first..self.digests.len() as u32).for_each(|position| self.insert(position));
        }
    }

    /// Where a block lies, if it is in the list.
    pub fn find(&self, digest: &BlockDigest) -> Option<Place> {
        let mut slot = self.home(digest)?;
        loop {
            match self.slots[slot] {
                0 => return None,
                taken if self.digests[taken as usize - 1] == *digest => {
                    return Some(self.place(taken - 1));
                }
                _ => slot = (slot + 1) % self.slots.len(),
            }
        }
    }

    /// The blocks of one chunk of the list, in order.
    pub fn blocks_of(&self, chunk: &ChunkDigest) -> Option<&[BlockDigest]> {
        let position = self.chunks.iter().position(|listed| listed.digest == *chunk)?;
        Some(self.blocks_at(position))
    }

    fn blocks_at(&self, position: usize) -> &[BlockDigest] {
        let first = self.chunks[position].first as usize;
        let end = self.chunks.get(position + 1).map_or(self.digests.len(), |c| c.first as usize);
        &self.digests[first..end]
    }

    /// The chunks, in order.
    pub fn chunks(&self) -> impl ExactSizeIterator<Item = ChunkDigest> {
        self.chunks.iter().map(|listed| listed.digest)
    }

    /// The list without the chunks that `keep` says no to.
    pub fn retained(&self, mut keep: impl FnMut(&ChunkDigest) -> bool) -> BlockList {
        let mut retained = BlockList::default();
        for (position, listed) in self.chunks.iter().enumerate() {
            if keep(&listed.digest) {
                retained.push(listed.digest, self.blocks_at(position));
            }
        }
        retained
    }

    /// The hooks among the blocks, each once.
    pub fn hooks(&self) -> Vec<Hook> {
        let mut hooks: Vec<Hook> =
            self.digests.iter().filter(|d| d.is_hook()).map(BlockDigest::hook).collect();
        hooks.sort_unstable();
        hooks.dedup();
        hooks
    }

    /// How many blocks are listed.
    pub fn len(&self) -> usize {
        self.digests.len()
    }

    /// True where no block is listed.
    pub fn is_empty(&self) -> bool {
        self.digests.is_empty()
    }

    /// Bytes of memory that the list takes.
    pub fn memory_len(&self) -> usize {
        self.digests.capacity() * DIGEST_LEN
            + self.slots.capacity() * size_of::<u32>()
            + self.chunks.capacity() * size_of::<ListedChunk>()
    }

    fn home(&self, digest: &BlockDigest) -> Option<usize> {
        // The low six bits of the first byte choose hooks; the bytes behind it are even.
        let bytes = digest.as_bytes();
        let number = u32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
        (number as usize).checked_rem(self.slots.len())
    }

    fn place(&self, position: u32) -> Place {
        let after = self.chunks.partition_point(|chunk| chunk.first <= position);
        let chunk = self.chunks[after - 1];
        Place { chunk: chunk.digest, index: (position - chunk.first) as u16 }
    }

    fn insert(&mut self, position: u32) {
        let digest = self.digests[position as usize];
        let Some(mut slot) = self.home(&digest) else { return };
        loop {
            match self.slots[slot] {
                0 => {
                    self.slots[slot] = position + 1;
                    return;
                }
                taken if self.digests[taken as usize - 1] == digest => return,
                _ => slot = (slot + 1) % self.slots.len(),
            }
        }
    }

    fn rebuild(&mut self) {
        let slot_count = (self.digests.len() * 4).max(64);
        self.slots.clear();
        self.slots.resize(slot_count, 0);
        (0..self.digests.len() as u32).for_each(|position| self.insert(position));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u32) -> BlockDigest {
        BlockDigest::of(&number.to_le_bytes())
    }

    #[test]
    fn every_block_is_found_where_it_was_put_and_no_other_is() {
        let mut list = BlockList::default();
        assert_eq!(list.find(&digest(0)), None);
        for chunk in 0..70 {
            let blocks: Vec<_> = (0..64).map(|index| digest(chunk * 64 + index)).collect();
            list.push(ChunkDigest::of(&blocks), &blocks);
        }
        for number in 0..70 * 64 {
            let place = list.find(&digest(number)).unwrap();
            assert_eq!(u32::from(place.index), number % 64);
            let blocks = list.blocks_of(&place.chunk).unwrap();
            assert_eq!(blocks[place.index as usize], digest(number));
        }
        assert_eq!(list.find(&digest(70 * 64)), None);
    }

    #[test]
    fn a_block_that_is_listed_twice_keeps_its_first_place() {
        let mut list = BlockList::default();
        let first = ChunkDigest([1; 32]);
        list.push(first, &[digest(1)]);
        list.push(ChunkDigest([2; 32]), &[digest(2), digest(1)]);
        assert_eq!(list.find(&digest(1)), Some(Place { chunk: first, index: 0 }));
    }
}
