//! Raw disks in files and on block devices: one `pread` for each stretch of data, into the
//! caller's buffer.
//!
//! ```text
//! file      |data...|      hole      |da|h|ta....|   hole   | end
//! stretches |=======|                |===========|            rounded outwards to 4 KiB
//! ```
//!
//! **Invariants**: `position` is a multiple of the block length until the end is reached; what is
//! skipped is what the file system calls a hole.
//!
//! **Failure**: a file that shrinks while it is read is an error, found by the read that comes up
//! short, or by a last look at its length (a shrunk file ends in what looks like a hole). One that
//! grows is read up to the length it had at the start. A file that is written to meanwhile gives
//! some mixture of old and new.

use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use model::block::LENGTH_MAX;
use model::source::{DataRun, DiskSource};
use model::{BLOCK_LEN, Error, Kind, Result};
use rustix::fs::{Advice, SeekFrom, fadvise, seek};
use rustix::io::Errno;

use super::open::{OPERATION, length_of, read_up_to};

const BLOCK: u64 = BLOCK_LEN as u64;

/// A raw disk that can be read at any offset.
#[derive(Debug)]
pub(super) struct RawSource {
    file: File,
    subject: String,
    length: u64,
    data_len: u64,
    has_holes: bool,
    /// Where the next stretch is looked for.
    position: u64,
    /// The end of the stretch in which `position` lies; at or below it when the stretch is done.
    data_end: u64,
}

impl RawSource {
    /// Takes over `file`. Its length is what it is now.
    pub(super) fn open(file: File, subject: String) -> Result<Self> {
        let facts = || -> std::io::Result<_> { Ok((file.metadata()?, length_of(&file)?)) };
        let (metadata, length) = facts().map_err(|e| Error::io(OPERATION, &subject, e))?;
        if length > LENGTH_MAX {
            let reason = format!("it has {length} bytes; a disk has at most {LENGTH_MAX}");
            return Err(Error::new(Kind::Invalid, OPERATION, subject).because(reason));
        }
        let on_device = metadata.file_type().is_block_device();
        let data_len =
            if on_device { length } else { metadata.blocks().saturating_mul(512).min(length) };
        // Advice only: a file system that takes none is read all the same.
        let _ = fadvise(&file, 0, None, Advice::Sequential);
        Ok(RawSource {
            file,
            subject,
            length,
            data_len,
            has_holes: !on_device,
            position: 0,
            data_end: if on_device { length } else { 0 },
        })
    }

    /// Moves `position` to the next data and `data_end` behind it; false when there is none.
    fn find_data(&mut self) -> Result<bool> {
        if self.position < self.data_end {
            return Ok(true);
        }
        if self.position >= self.length || !self.has_holes {
            return Ok(false);
        }
        let start = match seek(&self.file, SeekFrom::Data(self.position)) {
            Ok(start) => start,
            Err(Errno::NXIO) => self.length,
            // A file system that knows no holes: all is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                self.has_holes = false;
                self.data_end = self.length;
                return Ok(true);
            }
            Err(error) => return Err(Error::io(OPERATION, &self.subject, error.into())),
        };
        if start >= self.length {
            self.position = self.length;
            return Ok(false);
        }
        let end = match seek(&self.file, SeekFrom::Hole(start)) {
            Ok(end) => end,
            // The file was cut between the two questions.
            Err(Errno::NXIO) => return Err(self.shrunk()),
            Err(error) => return Err(Error::io(OPERATION, &self.subject, error.into())),
        };
        self.position = (start / BLOCK * BLOCK).max(self.position);
        self.data_end = end.next_multiple_of(BLOCK).min(self.length);
        Ok(true)
    }

    fn shrunk(&self) -> Error {
        Error::new(Kind::Corrupt, OPERATION, &self.subject)
            .because(format!("it shrank below its {} bytes while it was read", self.length))
            .hint("read it again when nobody writes to it")
    }

    fn check_length(&self) -> Result<()> {
        let now = length_of(&self.file).map_err(|e| Error::io(OPERATION, &self.subject, e))?;
        if now < self.length { Err(self.shrunk()) } else { Ok(()) }
    }
}

impl DiskSource for RawSource {
    fn length_hint(&self) -> Option<u64> {
        Some(self.length)
    }

    fn data_len_hint(&self) -> Option<u64> {
        Some(self.data_len)
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<Option<DataRun>> {
        let room = buffer.len() / BLOCK_LEN * BLOCK_LEN;
        assert!(room > 0, "a buffer for a disk holds at least one block");
        if !self.find_data()? {
            self.check_length()?;
            return Ok(None);
        }
        let offset = self.position;
        let left = self.data_end - offset;
        let len = usize::try_from(left).map_or(room, |left| left.min(room));
        let done = read_up_to(&self.file, &mut buffer[..len], offset)
            .map_err(|e| Error::io(OPERATION, &self.subject, e))?;
        if done < len {
            return Err(self.shrunk());
        }
        self.position += len as u64;
        Ok(Some(DataRun { offset, len }))
    }

    fn length(&self) -> u64 {
        self.length
    }
}
