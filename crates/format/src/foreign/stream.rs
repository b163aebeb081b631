//! Raw disks through pipes: all bytes in order, no holes, and no length before the end.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::BorrowedFd;

use model::block::LENGTH_MAX;
use model::source::{DataRun, DiskSink, DiskSource};
use model::{BLOCK_LEN, Error, Kind, Result};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use super::open::OPERATION;

/// A raw disk that can only be read from its beginning to its end.
#[derive(Debug)]
pub(super) struct StreamSource {
    input: File,
    subject: String,
    interrupt: Option<BorrowedFd<'static>>,
    position: u64,
    ended: bool,
}

impl StreamSource {
    /// Takes over `input` where it stands. A wait for its bytes ends with `Cancelled` when `interrupt`
    /// becomes readable or its other end is closed.
    pub(super) fn new(
        input: File,
        subject: String,
        interrupt: Option<BorrowedFd<'static>>,
    ) -> Self {
        StreamSource { input, subject, interrupt, position: 0, ended: false }
    }

    fn wait(&self) -> Result<()> {
        let Some(interrupt) = self.interrupt else { return Ok(()) };
        let failed = |error: Errno| Error::io(OPERATION, &self.subject, error.into());
        loop {
            let (input, flags) = (&self.input, PollFlags::IN);
            let mut waits = [PollFd::new(input, flags), PollFd::new(&interrupt, flags)];
            match rustix::event::poll(&mut waits, None) {
                Ok(_) if !waits[1].revents().is_empty() => {
                    return Err(Error::new(Kind::Cancelled, OPERATION, &self.subject)
                        .because("it was interrupted"));
                }
                Ok(_) if !waits[0].revents().is_empty() => return Ok(()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

impl DiskSource for StreamSource {
    fn length_hint(&self) -> Option<u64> {
        self.ended.then_some(self.position)
    }

    fn data_len_hint(&self) -> Option<u64> {
        self.length_hint()
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<Option<DataRun>> {
        let room = buffer.len() / BLOCK_LEN * BLOCK_LEN;
        assert!(room > 0, "a buffer for a disk holds at least one block");
        let mut len = 0;
        while len < room && !self.ended {
            self.wait()?;
            match self.input.read(&mut buffer[len..room]) {
                Ok(0) => self.ended = true,
                Ok(more) => len += more,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io(OPERATION, &self.subject, error)),
            }
        }
        if len == 0 {
            return Ok(None);
        }
        let offset = self.position;
        self.position += len as u64;
        if self.position > LENGTH_MAX {
            let reason = format!("it goes on beyond {LENGTH_MAX} bytes, the longest disk");
            return Err(Error::new(Kind::Invalid, OPERATION, &self.subject).because(reason));
        }
        Ok(Some(DataRun { offset, len }))
    }

    fn length(&self) -> u64 {
        self.position
    }
}

/// A raw disk written into a pipe, holes as zeros.
#[derive(Debug)]
pub(super) struct StreamSink {
    output: File,
    subject: String,
    position: u64,
}

const WRITE: &str = "write the disk";

/// What is written for a stretch of a hole.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

impl StreamSink {
    /// Takes over `output`.
    pub(super) fn new(output: File, subject: String) -> Self {
        StreamSink { output, subject, position: 0 }
    }

    fn fill_to(&mut self, offset: u64) -> Result<()> {
        while self.position < offset {
            let len = (offset - self.position).min(ZEROS.len() as u64) as usize;
            self.put(&ZEROS[..len])?;
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.output.write_all(bytes).map_err(|e| Error::io(WRITE, &self.subject, e))?;
        self.position += bytes.len() as u64;
        Ok(())
    }
}

impl DiskSink for StreamSink {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        super::create::check_order(&self.subject, self.position, offset, bytes.len())?;
        self.fill_to(offset)?;
        self.put(bytes)
    }

    fn finish(mut self: Box<Self>, length: u64) -> Result<()> {
        super::create::check_order(&self.subject, self.position, length, 0)?;
        self.fill_to(length)
    }
}
