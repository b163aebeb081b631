//! Lines that QEMU or a guest sends over a stream, one after the other.
//!
//! **Invariants**: every wait has a limit, and so has a line: who is silent or talks without end costs
//! a limit of time and of memory.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Bytes that are read at a time.
const STEP: usize = 4096;

/// The lines of a stream that is read by nobody else.
#[derive(Debug)]
pub(crate) struct Lines {
    len_max: usize,
    /// Bytes that came after the last whole line.
    pending: Vec<u8>,
}

/// Why there is no line.
#[derive(Debug)]
pub(crate) enum NoLine {
    /// It is longer than may be.
    TooLong,
    /// It did not come in time.
    Late,
    /// The other end is closed.
    Ended,
    /// The stream failed.
    Failed(io::Error),
}

impl Lines {
    /// Takes lines of at most so many bytes.
    pub(crate) fn new(len_max: usize) -> Self {
        Lines { len_max, pending: Vec::new() }
    }

    /// Takes the next line, its end included.
    pub(crate) fn next(
        &mut self,
        stream: &UnixStream,
        deadline: Instant,
    ) -> Result<Vec<u8>, NoLine> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.pending[searched..].iter().position(|byte| *byte == b'\n') {
                let rest = self.pending.split_off(searched + at + 1);
                return Ok(std::mem::replace(&mut self.pending, rest));
            }
            searched = self.pending.len();
            if searched > self.len_max {
                return Err(NoLine::TooLong);
            }
            self.read_some(stream, deadline)?;
        }
    }

    /// Reads at least one byte.
    fn read_some(&mut self, mut stream: &UnixStream, deadline: Instant) -> Result<(), NoLine> {
        let mut bytes = [0; STEP];
        loop {
            let left = time_left(deadline).ok_or(NoLine::Late)?;
            let read = stream.set_read_timeout(Some(left)).and_then(|()| stream.read(&mut bytes));
            match read {
                Ok(0) => return Err(NoLine::Ended),
                Ok(len) => {
                    self.pending.extend_from_slice(&bytes[..len]);
                    return Ok(());
                }
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(NoLine::Failed(error)),
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn clear(&mut self) {
        self.pending.clear();
    }
}

/// The time until a deadline; none where it is over.
pub(crate) fn time_left(deadline: Instant) -> Option<Duration> {
    Some(deadline.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero())
}

/// Whether an operation on a stream may be tried again.
pub(crate) fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}
