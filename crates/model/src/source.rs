//! What an import reads and what an export writes: disks as streams of data in address order.

use crate::Result;

/// A stretch of data that a source has put into the caller's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataRun {
    /// Where on the disk its first byte lies; a multiple of the block length.
    pub offset: u64,
    /// How many bytes; a multiple of the block length except at the end of the disk.
    pub len: usize,
}

/// A disk to import, read once in address order, its holes skipped.
pub trait DiskSource: Send {
    /// The disk's length in bytes, where it is known before the end is reached.
    fn length_hint(&self) -> Option<u64>;

    /// About how many bytes are no hole, for a progress bar.
    fn data_len_hint(&self) -> Option<u64>;

    /// Puts the next stretch of data into `buffer` (at least one block long). Stretches come in
    /// ascending order and never overlap; what lies between them reads as zeros. `None` at the end.
    fn read(&mut self, buffer: &mut [u8]) -> Result<Option<DataRun>>;

    /// The disk's length in bytes. Final once `read` has returned `None`.
    fn length(&self) -> u64;
}

/// Where an export goes: written once, in ascending order; gaps are holes.
pub trait DiskSink: Send {
    /// Writes `bytes` at `offset`, which is not below the end of the last write.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Ends the disk at `length` bytes and makes it durable. Without this call nothing is left at
    /// the destination.
    fn finish(self: Box<Self>, length: u64) -> Result<()>;
}
