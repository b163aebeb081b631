//! A raw file as a disk that notes what is asked of it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use model::device::{Device, Extent, ExtentKind, check_range};
use model::{Error, Result};

use super::trace::Call;

/// The disk.
pub struct Recorder {
    file: File,
    length: u64,
    calls: Mutex<Vec<Call>>,
}

impl Recorder {
    /// Opens a raw file, which is written to.
    pub fn open(path: &Path) -> Result<Recorder> {
        let failed = |source| Error::io("open", path.display().to_string(), source);
        let file = File::options().read(true).write(true).open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        Ok(Recorder { file, length, calls: Mutex::default() })
    }

    /// What was asked so far.
    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, call: Call) {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
    }

    fn fill(&self, offset: u64, len: u64) -> Result<()> {
        let zeros = vec![0; 1 << 20];
        let mut at = offset;
        while at < offset + len {
            let step = (offset + len - at).min(zeros.len() as u64);
            self.file
                .write_all_at(&zeros[..step as usize], at)
                .map_err(|source| Error::io("write", "the recorded disk", source))?;
            at += step;
        }
        Ok(())
    }
}

/// A length within one request of the protocol.
fn short(len: u64) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

impl Device for Recorder {
    fn length(&self) -> u64 {
        self.length
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.note(Call::Read { offset, len: short(buffer.len() as u64) });
        self.file
            .read_exact_at(buffer, offset)
            .map_err(|source| Error::io("read", "the recorded disk", source))
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.note(Call::Write { offset, len: short(bytes.len() as u64) });
        self.file
            .write_all_at(bytes, offset)
            .map_err(|source| Error::io("write", "the recorded disk", source))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.note(Call::Zeroes { offset, len: short(len) });
        self.fill(offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        // The contract has whole blocks read as zeros afterwards; keeping them is not enough.
        self.note(Call::Discard { offset, len: short(len) });
        let first = offset.next_multiple_of(4096);
        let end = (offset + len) / 4096 * 4096;
        if first < end { self.fill(first, end - first) } else { Ok(()) }
    }

    fn flush(&self) -> Result<()> {
        self.note(Call::Flush);
        self.file.sync_data().map_err(|source| Error::io("sync", "the recorded disk", source))
    }

    fn prefetch(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }

    fn extents(&self, offset: u64, len: u64, _max: usize) -> Result<Vec<Extent>> {
        check_range("list extents", self.length, offset, len)?;
        Ok(vec![Extent { offset, len, kind: ExtentKind::Data }])
    }
}
