//! Raw disks into files and onto block devices; blocks of zeros become holes on the way.
//!
//! **Invariants**: what is not written reads as zeros: in a new file by itself, on a device because
//! every gap is zeroed before the next data is written.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use model::block::is_zero;
use model::source::DiskSink;
use model::{BLOCK_LEN, Error, Kind, Result};
use rustix::fs::{FallocateFlags, OFlags, fallocate};

use super::create::{OPERATION, check_order};
use super::destination::Destination;
use super::open::length_of;

/// Calls `put(offset, bytes)` for each run of blocks in `bytes` (which lie at `offset`) that is not
/// all zeros. Blocks are cut at multiples of `granularity` of the disk, not of the buffer.
pub(super) fn for_each_data_run(
    offset: u64,
    bytes: &[u8],
    granularity: usize,
    mut put: impl FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let mut run_start = None;
    let mut at = 0;
    while at < bytes.len() {
        let in_block = ((offset + at as u64) % granularity as u64) as usize;
        let end = (at + granularity - in_block).min(bytes.len());
        match (is_zero(&bytes[at..end]), run_start) {
            (false, None) => run_start = Some(at),
            (true, Some(start)) => {
                put(offset + start as u64, &bytes[start..at])?;
                run_start = None;
            }
            _ => {}
        }
        at = end;
    }
    match run_start {
        Some(start) => put(offset + start as u64, &bytes[start..]),
        None => Ok(()),
    }
}

/// A sparse raw file.
#[derive(Debug)]
pub(super) struct RawSink {
    destination: Destination,
    position: u64,
}

impl RawSink {
    /// Takes over an empty destination.
    pub(super) fn new(destination: Destination) -> Self {
        RawSink { destination, position: 0 }
    }
}

impl DiskSink for RawSink {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let subject = self.destination.subject();
        self.position = check_order(subject, self.position, offset, bytes.len())?;
        for_each_data_run(offset, bytes, BLOCK_LEN, |at, run| self.destination.write_at(run, at))
    }

    fn finish(self: Box<Self>, length: u64) -> Result<()> {
        check_order(self.destination.subject(), self.position, length, 0)?;
        self.destination.commit(length)
    }
}

/// A raw disk on a block device.
#[derive(Debug)]
pub(super) struct DeviceSink {
    device: File,
    subject: String,
    position: u64,
    length_max: u64,
    can_punch: bool,
}

impl DeviceSink {
    /// Opens the device for itself alone and checks that `length` bytes fit on it.
    pub(super) fn open(path: &Path, subject: String, length: u64) -> Result<Self> {
        // EXCL on a block device: not while it is mounted or otherwise held.
        let device = File::options()
            .write(true)
            .custom_flags(OFlags::EXCL.bits() as i32)
            .open(path)
            .map_err(|error| match error.raw_os_error() {
                Some(code) if code == rustix::io::Errno::BUSY.raw_os_error() => {
                    Error::new(Kind::Refused, OPERATION, &subject)
                        .because("the device is in use")
                        .hint("unmount it first")
                }
                _ => Error::io(OPERATION, &subject, error),
            })?;
        let length_max = length_of(&device).map_err(|e| Error::io(OPERATION, &subject, e))?;
        if length > length_max {
            let reason = format!("the device has {length_max} bytes, the disk {length}");
            return Err(Error::new(Kind::Full, OPERATION, subject).because(reason));
        }
        Ok(DeviceSink { device, subject, position: 0, length_max, can_punch: true })
    }

    /// Makes the bytes from `position` to `end` zero.
    fn zero_to(&mut self, end: u64) -> Result<()> {
        let block = BLOCK_LEN as u64;
        let edge = self.position.next_multiple_of(block).min(end);
        self.write_zeros(edge)?;
        let whole = end / block * block;
        if self.can_punch && self.position < whole {
            let len = whole - self.position;
            let keep = FallocateFlags::KEEP_SIZE;
            let punched =
                fallocate(&self.device, FallocateFlags::PUNCH_HOLE | keep, self.position, len)
                    .or_else(|_| {
                        fallocate(
                            &self.device,
                            FallocateFlags::ZERO_RANGE | keep,
                            self.position,
                            len,
                        )
                    });
            match punched {
                Ok(()) => self.position = whole,
                Err(_) => self.can_punch = false,
            }
        }
        self.write_zeros(end)
    }

    fn write_zeros(&mut self, end: u64) -> Result<()> {
        static ZEROS: [u8; 256 << 10] = [0; 256 << 10];
        while self.position < end {
            let len = (end - self.position).min(ZEROS.len() as u64) as usize;
            self.put(&ZEROS[..len])?;
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.device
            .write_all_at(bytes, self.position)
            .map_err(|error| Error::io(OPERATION, &self.subject, error))?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn check(&self, offset: u64, len: usize) -> Result<u64> {
        let end = check_order(&self.subject, self.position, offset, len)?;
        if end > self.length_max {
            let reason = format!("the device has {} bytes, the disk {end}", self.length_max);
            return Err(Error::new(Kind::Full, OPERATION, &self.subject).because(reason));
        }
        Ok(end)
    }
}

impl DiskSink for DeviceSink {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let end = self.check(offset, bytes.len())?;
        for_each_data_run(offset, bytes, BLOCK_LEN, |at, run| {
            self.zero_to(at)?;
            self.put(run)
        })?;
        self.zero_to(end)
    }

    fn finish(mut self: Box<Self>, length: u64) -> Result<()> {
        self.check(length, 0)?;
        self.zero_to(length)?;
        self.device.sync_all().map_err(|error| Error::io(OPERATION, &self.subject, error))
    }
}
