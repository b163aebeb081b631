//! One request on the device.

use std::sync::Arc;

use model::device::Device;
use model::{BLOCK_LEN, Error};

use super::config::{self, RANGE_COUNT_MAX, RANGE_SECTOR_COUNT_MAX};
use super::memory::{Memory, Segment, Stretch};
use super::request::{Command, Request, SECTOR_LEN};

/// Bytes of the buffer through which scattered data goes.
pub(super) const BUFFER_LEN: usize = 1 << 20;
/// A stretch at least this long is given to the device as it is, though there are others.
const DIRECT_LEN_MIN: usize = 64 * 1024;
/// Bytes of the name that a guest gets for a disk.
const ID_LEN: usize = 20;
/// Bytes of one range of a discard or a write of zeros.
const RANGE_LEN: usize = 16;
/// The flag of a range of zeros that may become a hole.
const RANGE_UNMAP: u32 = 1;

/// What a guest is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ok = 0,
    Failed = 1,
    Unsupported = 2,
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        tracing::warn!("a request failed: {}", error.chain());
        Status::Failed
    }
}

/// What a request came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    pub(super) status: Status,
    /// Bytes that the guest got, without the status.
    pub(super) filled: u32,
}

/// The device, and what a guest may know of it.
pub(super) struct Disk {
    device: Arc<dyn Device>,
    id: [u8; ID_LEN],
}

impl Disk {
    pub(super) fn new(device: Arc<dyn Device>, name: &str) -> Self {
        let mut id = [0; ID_LEN];
        let len = name.len().min(ID_LEN);
        id[..len].copy_from_slice(&name.as_bytes()[..len]);
        Disk { device, id }
    }

    /// Bytes of whole sectors, as they are now.
    fn length(&self) -> u64 {
        config::sector_count(&*self.device) * SECTOR_LEN
    }

    pub(super) fn device(&self) -> &dyn Device {
        &*self.device
    }

    /// True when the request may wait for a fetch or for stable storage, and so had better not be
    /// executed on the thread of its ring.
    pub(super) fn may_wait(&self, request: &Request) -> bool {
        let range = || self.range(request).ok();
        let block = BLOCK_LEN as u64;
        match request.command {
            Command::Flush => !self.device.is_read_only(),
            Command::Read => range().is_some_and(|(offset, len)| self.device.may_wait(offset, len)),
            Command::Write => range().is_some_and(|(offset, len)| {
                let whole = offset.is_multiple_of(block) && len.is_multiple_of(block);
                !whole && self.device.may_wait(offset, len)
            }),
            Command::WriteZeroes | Command::Discard => true,
            Command::GetId | Command::Unknown => false,
        }
    }

    /// Executes a request. `buffer` is made when it is first needed.
    pub(super) fn execute(
        &self,
        memory: &Memory,
        request: &Request,
        buffer: &mut Vec<u8>,
    ) -> Outcome {
        let mut filled = 0;
        let done = match request.command {
            Command::Read => self.read(memory, request, buffer).map(|len| filled = len),
            Command::Write => self.write(memory, request, buffer),
            Command::Flush => self.device.flush().map_err(Status::from),
            Command::GetId => self.identify(memory, request).map(|len| filled = len),
            Command::Discard | Command::WriteZeroes => self.clear(memory, request),
            Command::Unknown => Err(Status::Unsupported),
        };
        Outcome { status: done.err().unwrap_or(Status::Ok), filled }
    }

    /// Offset and length in bytes of a read or a write.
    fn range(&self, request: &Request) -> Result<(u64, u64), Status> {
        let len = request.len();
        let offset = request.sector.checked_mul(SECTOR_LEN).ok_or(Status::Failed)?;
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.length());
        if !inside || !len.is_multiple_of(SECTOR_LEN) {
            tracing::debug!("a request of {len} bytes at sector {} is refused", request.sector);
            return Err(Status::Failed);
        }
        Ok((offset, len))
    }

    fn read(
        &self,
        memory: &Memory,
        request: &Request,
        buffer: &mut Vec<u8>,
    ) -> Result<u32, Status> {
        let (mut offset, len) = self.range(request)?;
        let stretches = memory.stretches(&request.data).ok_or(Status::Failed)?;
        for run in Runs(&stretches) {
            if let [stretch] = run {
                stretch.with_mut(|bytes| self.device.read(offset, bytes))?;
                offset += stretch.len() as u64;
                continue;
            }
            let len = run.iter().map(Stretch::len).sum();
            let mut bytes = space(buffer, len);
            self.device.read(offset, bytes)?;
            for stretch in run {
                let (now, rest) = bytes.split_at_mut(stretch.len());
                stretch.copy_from(now);
                bytes = rest;
            }
            offset += len as u64;
        }
        // Shorter than 4 GiB where the guest keeps to the rules; a hint for it anyway.
        Ok(u32::try_from(len).unwrap_or(u32::MAX))
    }

    fn write(
        &self,
        memory: &Memory,
        request: &Request,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Status> {
        let (mut offset, _) = self.range(request)?;
        if self.device.is_read_only() {
            return Err(Status::Failed);
        }
        let stretches = memory.stretches(&request.data).ok_or(Status::Failed)?;
        for run in Runs(&stretches) {
            if let [stretch] = run {
                stretch.with(|bytes| self.device.write(offset, bytes))?;
                offset += stretch.len() as u64;
                continue;
            }
            let len = run.iter().map(Stretch::len).sum();
            let bytes = space(buffer, len);
            let mut rest = &mut *bytes;
            for stretch in run {
                let (now, later) = rest.split_at_mut(stretch.len());
                stretch.copy_to(now);
                rest = later;
            }
            self.device.write(offset, bytes)?;
            offset += len as u64;
        }
        Ok(())
    }

    /// Says the disk's name, as much of it as there is room for.
    fn identify(&self, memory: &Memory, request: &Request) -> Result<u32, Status> {
        let mut rest = &self.id[..];
        for segment in &request.data {
            let (now, later) = rest.split_at(rest.len().min(segment.len as usize));
            if !memory.write(segment.address, now) {
                return Err(Status::Failed);
            }
            rest = later;
        }
        Ok((ID_LEN - rest.len()) as u32)
    }

    /// Discards, or writes zeros. All ranges are looked at before the first is changed.
    fn clear(&self, memory: &Memory, request: &Request) -> Result<(), Status> {
        let len = request.len();
        let len_max = u64::from(RANGE_COUNT_MAX) * RANGE_LEN as u64;
        if self.device.is_read_only() || len == 0 || len > len_max {
            return Err(Status::Failed);
        }
        let bytes = gather(memory, &request.data, len as usize).ok_or(Status::Failed)?;
        let (ranges, []) = bytes.as_chunks::<RANGE_LEN>() else {
            return Err(Status::Failed);
        };
        let zeroes = request.command == Command::WriteZeroes;
        let mut checked = Vec::with_capacity(ranges.len());
        for range in ranges {
            checked.push(self.check_range(range, zeroes)?);
        }
        for (offset, len) in checked {
            match zeroes {
                true => self.device.write_zeroes(offset, len)?,
                false => self.device.discard(offset, len)?,
            }
        }
        Ok(())
    }

    fn check_range(&self, range: &[u8; RANGE_LEN], zeroes: bool) -> Result<(u64, u64), Status> {
        let field = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| range[at + i]));
        let sector = u64::from(field(0)) | u64::from(field(4)) << 32;
        let (count, flags) = (field(8), field(12));
        let known = if zeroes { RANGE_UNMAP } else { 0 };
        if flags & !known != 0 {
            return Err(Status::Unsupported);
        }
        let offset = sector.checked_mul(SECTOR_LEN).ok_or(Status::Failed)?;
        let len = u64::from(count) * SECTOR_LEN;
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.length());
        if !inside || count > RANGE_SECTOR_COUNT_MAX {
            return Err(Status::Failed);
        }
        Ok((offset, len))
    }
}

/// The first `len` bytes of the buffer, which is never longer than [`BUFFER_LEN`].
fn space(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if buffer.len() < len {
        buffer.resize(len.next_power_of_two().min(BUFFER_LEN), 0);
    }
    &mut buffer[..len]
}

fn gather(memory: &Memory, segments: &[Segment], len: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut rest = &mut bytes[..];
    for segment in segments {
        let (now, later) = rest.split_at_mut(segment.len as usize);
        if !memory.read(segment.address, now) {
            return None;
        }
        rest = later;
    }
    Some(bytes)
}

/// Stretches in runs: one that the device gets as it is, or several that go through the buffer.
struct Runs<'a, 'm>(&'a [Stretch<'m>]);

impl<'a, 'm> Iterator for Runs<'a, 'm> {
    type Item = &'a [Stretch<'m>];

    fn next(&mut self) -> Option<Self::Item> {
        let first = self.0.first()?;
        let is_long = |stretch: &Stretch<'_>| {
            stretch.len() >= DIRECT_LEN_MIN && stretch.len().is_multiple_of(BLOCK_LEN)
        };
        let mut count = 1;
        if !is_long(first) && first.len() < BUFFER_LEN {
            let mut len = first.len();
            for stretch in &self.0[1..] {
                if is_long(stretch) || len + stretch.len() > BUFFER_LEN {
                    break;
                }
                len += stretch.len();
                count += 1;
            }
        }
        let (run, rest) = self.0.split_at(count);
        self.0 = rest;
        Some(run)
    }
}
