//! What a door serves: a disk that is read, written, trimmed and flushed.

use std::io;
use std::os::fd::BorrowedFd;

use crate::{Error, Kind, Result};

/// What an extent of a device holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Bytes that may be anything.
    Data,
    /// Reads as zeros and takes no space.
    Hole,
}

/// A stretch of a device of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Bytes; never 0.
    pub len: u64,
    /// What it holds.
    pub kind: ExtentKind,
}

/// A file that holds all bytes of a device, each at its own address, and none behind them; until
/// this is dropped nothing of it goes away.
pub trait WholeFile: Send + Sync {
    /// The file. Whoever hands it on must see to it that nobody writes to it. `None` where there is
    /// no descriptor, as on simulated disks.
    fn fd(&self) -> Option<BorrowedFd<'_>>;
}

/// Takes bytes out of a file without copying them: at most as many as it is told, from an offset.
/// Returns how many it took.
pub type Take<'a> = dyn FnMut(BorrowedFd<'_>, u64, usize) -> io::Result<usize> + 'a;

/// A disk. Calls may come from many threads at once. It may become longer at any time, never shorter.
///
/// Offsets and lengths are bytes and need no alignment. Every range must lie inside
/// `0..length()`; otherwise the call fails with `Invalid` and nothing has happened. Two calls that
/// run at the same time on the same bytes may take effect in either order, but a byte never gets a
/// value that no call gave it.
pub trait Device: Send + Sync {
    /// Bytes of the disk.
    fn length(&self) -> u64;

    /// True when writes, zeros and discards are refused.
    fn is_read_only(&self) -> bool;

    /// Fills `buffer` from `offset`. May wait for a fetch.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;

    /// Writes `bytes` at `offset`. Durable after the next `flush`.
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Makes the range read as zeros, whole or not at all in blocks. Durable after the next `flush`.
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()>;

    /// Tells that the range is of no use any more. Whole blocks in it read as zeros from now on;
    /// partial blocks at its edges keep their bytes.
    fn discard(&self, offset: u64, len: u64) -> Result<()>;

    /// Makes everything that was answered before this call survive `kill -9` and power loss.
    fn flush(&self) -> Result<()>;

    /// Brings the range near, as far as possible, so that later reads do not wait.
    fn prefetch(&self, offset: u64, len: u64) -> Result<()>;

    /// True when a call on the range may have to wait for a fetch, so that a door can keep it from
    /// holding up the calls behind it. A hint: the answer may be out of date when it arrives.
    ///
    /// Cost: memory only; asked before each read.
    fn may_wait(&self, offset: u64, len: u64) -> bool {
        let _ = (offset, len);
        false
    }

    /// Has `take` take the range, or its beginning, out of a file in which it lies and never changes:
    /// for doors that hand pages on instead of copying them. Returns how many bytes were taken and
    /// count; 0 where there are none, or where they went away meanwhile: then throw away what was
    /// taken, and go on with [`Device::read`]. Waits for no fetch. Counts as a read where it succeeds.
    fn take_from_file(&self, offset: u64, len: usize, take: &mut Take<'_>) -> usize {
        let _ = (offset, len, take);
        0
    }

    /// The one file that holds the whole device, for readers that need not ask us. `None` where
    /// something is missing in it now, or where writes would pass it by.
    ///
    /// Cost: may sync a folder and read maps of what is stored; waits for no store that is away.
    ///
    /// # Errors
    /// Those of the host's disk: go on with [`Device::read`].
    fn whole_file(&self) -> Result<Option<Box<dyn WholeFile>>> {
        Ok(None)
    }

    /// The extents that make up the range, in order, without gaps; at most `max` of them, so they
    /// may end before the range does. Where finding out would need a fetch, `Data` is the answer.
    fn extents(&self, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>>;
}

/// Checks that a range lies inside a device.
///
/// # Errors
/// `Invalid` where it does not.
pub fn check_range(operation: &'static str, length: u64, offset: u64, len: u64) -> Result<()> {
    if offset.checked_add(len).is_some_and(|end| end <= length) {
        return Ok(());
    }
    Err(Error::new(Kind::Invalid, operation, format!("{len} bytes at {offset}"))
        .because(format!("the disk has {length} bytes")))
}

/// A device in memory: the model that others are compared with, and what doors are tested on.
/// It leaves out everything about time and durability: a flush does nothing.
#[derive(Debug)]
pub struct MemoryDevice {
    bytes: std::sync::RwLock<Vec<u8>>,
    read_only: bool,
}

impl MemoryDevice {
    /// A writable device with these bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        MemoryDevice { bytes: bytes.into(), read_only: false }
    }

    /// A read-only device with these bytes.
    pub fn read_only(bytes: Vec<u8>) -> Self {
        MemoryDevice { bytes: bytes.into(), read_only: true }
    }

    /// Makes it longer; what is added is zeros.
    pub fn grow(&self, length: u64) {
        let mut bytes = self.bytes.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let length = bytes.len().max(length as usize);
        bytes.resize(length, 0);
    }

    /// A copy of all bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        self.read_guard().clone()
    }

    fn read_guard(&self) -> std::sync::RwLockReadGuard<'_, Vec<u8>> {
        self.bytes.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn change(
        &self,
        operation: &'static str,
        offset: u64,
        len: u64,
        f: impl FnOnce(&mut [u8]),
    ) -> Result<()> {
        if self.read_only {
            return Err(Error::new(Kind::Refused, operation, "the disk").because("it is read-only"));
        }
        let mut bytes = self.bytes.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        check_range(operation, bytes.len() as u64, offset, len)?;
        f(&mut bytes[offset as usize..(offset + len) as usize]);
        Ok(())
    }
}

impl Device for MemoryDevice {
    fn length(&self) -> u64 {
        self.read_guard().len() as u64
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let bytes = self.read_guard();
        check_range("read", bytes.len() as u64, offset, buffer.len() as u64)?;
        buffer.copy_from_slice(&bytes[offset as usize..offset as usize + buffer.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, source: &[u8]) -> Result<()> {
        self.change("write", offset, source.len() as u64, |bytes| bytes.copy_from_slice(source))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.change("write zeros", offset, len, |bytes| bytes.fill(0))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        check_range("discard", self.length(), offset, len)?;
        let block = crate::BLOCK_LEN as u64;
        let (first, end) = (offset.next_multiple_of(block), (offset + len) / block * block);
        if first < end {
            self.write_zeroes(first, end - first)
        } else {
            self.change("discard", offset, len, |_| ())
        }
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn prefetch(&self, offset: u64, len: u64) -> Result<()> {
        check_range("prefetch", self.length(), offset, len)
    }

    fn extents(&self, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>> {
        let bytes = self.read_guard();
        check_range("list extents", bytes.len() as u64, offset, len)?;
        let mut extents: Vec<Extent> = Vec::new();
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let next =
                (at / crate::BLOCK_LEN as u64 + 1).saturating_mul(crate::BLOCK_LEN as u64).min(end);
            let hole = crate::block::is_zero(&bytes[at as usize..next as usize]);
            let kind = if hole { ExtentKind::Hole } else { ExtentKind::Data };
            let full = extents.len() == max;
            match extents.last_mut() {
                Some(last) if last.kind == kind => last.len += next - at,
                _ if full => break,
                _ => extents.push(Extent { offset: at, len: next - at, kind }),
            }
            at = next;
        }
        Ok(extents)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_discard_leaves_partial_blocks_alone() {
        let device = MemoryDevice::new(vec![1; 3 * 4096]);
        device.discard(1, 3 * 4096 - 2).unwrap();
        let extents = device.extents(0, 3 * 4096, 9).unwrap();
        assert_eq!(
            extents.iter().map(|e| (e.len, e.kind)).collect::<Vec<_>>(),
            vec![(4096, ExtentKind::Data), (4096, ExtentKind::Hole), (4096, ExtentKind::Data)]
        );
        assert!(device.read(3 * 4096, &mut [0]).is_err());
        assert!(device.write(u64::MAX, &[0, 0]).is_err());
    }
}
