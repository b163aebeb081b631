//! A sealed overlay, on its way to become a version: what `mirror` hands to `repository`.

use crate::{BlockRange, Result};

/// Blocks that changed in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedBlocks {
    /// Which blocks, counted from the start of the disk; within one segment.
    pub blocks: BlockRange,
    /// True where they became zeros, false where they hold data to be read.
    pub zero: bool,
}

/// What changed upon a parent version. Sealed: asked twice, it answers the same.
///
/// Blocks are compared padded with zeros: where the disk became shorter and ends inside a block,
/// that block has changed.
pub trait Changes: Sync {
    /// Length in bytes of the disk after the changes.
    fn length(&self) -> u64;

    /// The segments that hold changes, ascending, each once.
    fn segments(&self) -> Vec<u32>;

    /// The changed blocks of one segment, ascending, without overlap.
    fn in_segment(&self, segment: u32) -> Result<Vec<ChangedBlocks>>;

    /// Reads whole changed blocks that hold data; a partial last block is padded with zeros.
    /// `buffer` is `blocks.len()` bytes long.
    fn read(&self, blocks: BlockRange, buffer: &mut [u8]) -> Result<()>;
}
