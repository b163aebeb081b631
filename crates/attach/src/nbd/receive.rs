//! The receive buffer of a connection: one `recv` takes as many requests as have arrived.
//!
//! ```text
//! 0        start            end            capacity
//! | used   | received       | free          |
//! ```

use std::io;
use std::time::Instant;

use super::socket::Socket;

/// The receive buffer of a connection.
pub(super) struct Receiver {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    deadline: Option<Instant>,
}

impl Receiver {
    /// A buffer that can hold `capacity` bytes in one piece.
    pub(super) fn new(capacity: usize) -> Self {
        // Zeroed pages are not touched before they are received into.
        Receiver { bytes: vec![0; capacity], start: 0, end: 0, deadline: None }
    }

    /// From now on, receiving fails after this moment, however the bytes come.
    pub(super) fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    /// Bytes that were received and not taken.
    pub(super) fn available(&self) -> usize {
        self.end - self.start
    }

    /// Receives until `len` bytes are there; false where the stream ends before.
    ///
    /// Shape: `len` is at most the capacity.
    pub(super) fn fill(&mut self, socket: &Socket, len: usize) -> io::Result<bool> {
        assert!(len <= self.bytes.len());
        while self.available() < len {
            if self.start == self.end {
                (self.start, self.end) = (0, 0);
            } else if self.start + len > self.bytes.len() {
                self.bytes.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.available());
            }
            if let Some(deadline) = self.deadline {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                socket.set_timeout(Some(left))?;
            }
            match socket.receive(&mut self.bytes[self.end..])? {
                0 => return Ok(false),
                count => self.end += count,
            }
        }
        Ok(true)
    }

    /// Takes `len` bytes that are there.
    pub(super) fn take(&mut self, len: usize) -> &[u8] {
        assert!(len <= self.available());
        self.start += len;
        &self.bytes[self.start - len..self.start]
    }
}
