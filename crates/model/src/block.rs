//! How a disk's address space is cut: blocks of 4 KiB, segments of 64 MiB.
//!
//! ```text
//! 0                                             64 MiB                          length
//! |b0|b1|b2| ...                         |b16383|b0 of segment 1| ...       |last, padded|
//! ```

use std::ops::Range;

/// Bytes of a block, the unit of deduplication.
pub const BLOCK_LEN: usize = 4096;

/// Bytes of a segment of a version's address space.
pub const SEGMENT_LEN: u64 = 64 << 20;

/// Blocks of a whole segment.
pub const BLOCKS_PER_SEGMENT: u32 = (SEGMENT_LEN / BLOCK_LEN as u64) as u32;

/// The longest disk there can be: 1 PiB, so that block and segment numbers never overflow.
pub const LENGTH_MAX: u64 = 1 << 50;

/// How many blocks a disk of `length` bytes has; the last may be partial.
pub fn block_count(length: u64) -> u64 {
    length.div_ceil(BLOCK_LEN as u64)
}

/// How many segments a disk of `length` bytes has; the last may be partial.
pub fn segment_count(length: u64) -> u32 {
    u32::try_from(length.div_ceil(SEGMENT_LEN)).unwrap_or(u32::MAX)
}

/// How many blocks segment `segment` of a disk of `length` bytes has; 0 beyond its end.
pub fn blocks_in_segment(length: u64, segment: u32) -> u32 {
    let first = u64::from(segment) * u64::from(BLOCKS_PER_SEGMENT);
    block_count(length).saturating_sub(first).min(u64::from(BLOCKS_PER_SEGMENT)) as u32
}

/// True where every byte is zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (lanes, tail) = bytes.as_chunks::<64>();
    lanes.iter().all(|lane| lane.iter().fold(0u8, |all, byte| all | byte) == 0)
        && tail.iter().all(|byte| *byte == 0)
}

/// A half-open range of blocks, numbered from the start of the disk. Never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockRange {
    start: u64,
    end: u64,
}

impl BlockRange {
    /// The range, unless it is empty or the wrong way round.
    pub fn new(range: Range<u64>) -> Option<Self> {
        (range.start < range.end).then_some(BlockRange { start: range.start, end: range.end })
    }

    /// First block.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The block behind the last.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// How many blocks.
    pub fn count(&self) -> u64 {
        self.end - self.start
    }

    /// Offset of the first byte.
    pub fn offset(&self) -> u64 {
        self.start * BLOCK_LEN as u64
    }

    /// Bytes, when every block is whole.
    pub fn len(&self) -> u64 {
        self.count() * BLOCK_LEN as u64
    }

    /// Never: a range has at least one block.
    pub fn is_empty(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_of_any_length_add_up_to_its_blocks() {
        for length in [0, 1, 4096, 4097, SEGMENT_LEN - 1, SEGMENT_LEN, 3 * SEGMENT_LEN + 5] {
            let sum: u64 =
                (0..segment_count(length)).map(|s| u64::from(blocks_in_segment(length, s))).sum();
            assert_eq!(sum, block_count(length), "length {length}");
            assert_eq!(blocks_in_segment(length, segment_count(length)), 0);
        }
    }

    #[test]
    fn one_byte_makes_a_block_not_zero() {
        let mut block = vec![0; BLOCK_LEN + 3];
        assert!(is_zero(&block));
        for position in [0, 63, 64, 4095, BLOCK_LEN + 2] {
            block[position] = 1;
            assert!(!is_zero(&block), "position {position}");
            block[position] = 0;
        }
    }
}
