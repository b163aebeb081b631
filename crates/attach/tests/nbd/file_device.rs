//! A device over a file: what the door is timed on.

use std::fs::File;
use std::os::unix::fs::FileExt;

use model::device::{Device, Extent, ExtentKind, check_range};
use model::{Error, Result};

/// A device over a file of a fixed length, without holes.
pub struct FileDevice {
    file: File,
    length: u64,
}

impl FileDevice {
    /// The whole file, read and written.
    pub fn new(file: File) -> Self {
        let length = file.metadata().unwrap().len();
        FileDevice { file, length }
    }
}

fn failed(operation: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |error| Error::io(operation, "the file", error)
}

impl Device for FileDevice {
    fn length(&self) -> u64 {
        self.length
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buffer, offset).map_err(failed("read"))
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        check_range("write", self.length, offset, bytes.len() as u64)?;
        self.file.write_all_at(bytes, offset).map_err(failed("write"))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.write(offset, &vec![0; len as usize])
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        check_range("discard", self.length, offset, len)
    }

    fn flush(&self) -> Result<()> {
        self.file.sync_data().map_err(failed("flush"))
    }

    fn prefetch(&self, offset: u64, len: u64) -> Result<()> {
        check_range("prefetch", self.length, offset, len)
    }

    fn extents(&self, offset: u64, len: u64, _max: usize) -> Result<Vec<Extent>> {
        check_range("list extents", self.length, offset, len)?;
        Ok(vec![Extent { offset, len, kind: ExtentKind::Data }])
    }
}
