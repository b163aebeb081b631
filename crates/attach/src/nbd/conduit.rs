//! A pipe through which pages go from a file to a client without being copied on the way.
//!
//! ```text
//! file ── splice ──► pipe ── do they still count? ── splice ──► socket
//! ```
//!
//! The pipe stands between because a device can say only afterwards that what was taken counts: what
//! does not goes away with the pipe.
//!
//! **Failure**: where the system does not splice, the device is read as ever.
//!
//! **Source**: splice(2); `cargo xtask bench doors`, `nbdcopy` and long reads.

use std::io;
use std::os::fd::OwnedFd;

use model::device::Device;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use super::socket::Socket;

/// From how many bytes on it pays: a shorter stretch is copied sooner than handed on.
pub(super) const TAKE_LEN_MIN: usize = 64 * 1024;
/// Bytes that a pipe is asked to hold.
const PIPE_LEN: usize = 1 << 20;

/// The pipe of one thread; made when it is first needed.
#[derive(Default)]
pub(super) struct Conduit {
    pipe: Option<Pipe>,
    /// The system gave no pipe: it is not asked again.
    is_useless: bool,
}

struct Pipe {
    to: OwnedFd,
    from: OwnedFd,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (from, to) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // A smaller one takes less at once.
        let _ = fcntl_setpipe_size(&to, PIPE_LEN);
        Ok(Pipe { to, from })
    }
}

impl Conduit {
    /// Takes the range, or its beginning, from a device that has it in a file. Returns how many bytes
    /// wait to be sent; 0 where it has to be read.
    ///
    /// Shape: what was taken before has been sent.
    pub(super) fn take(&mut self, device: &dyn Device, offset: u64, len: usize) -> usize {
        if self.is_useless || len < TAKE_LEN_MIN {
            return 0;
        }
        let pipe = match self.pipe.take().map_or_else(Pipe::new, Ok) {
            Ok(pipe) => pipe,
            Err(error) => {
                tracing::debug!("no pipe to hand pages on with: {error}");
                self.is_useless = true;
                return 0;
            }
        };
        let mut in_pipe = 0;
        let counted = device.take_from_file(offset, len, &mut |file, mut at, len| {
            // Little is not worth two calls.
            while len >= TAKE_LEN_MIN && in_pipe < len {
                let flags = SpliceFlags::NONBLOCK;
                match splice(file, Some(&mut at), &pipe.to, None, len - in_pipe, flags) {
                    Err(Errno::INTR) => (),
                    // The pipe is full.
                    Err(Errno::AGAIN) | Ok(0) => break,
                    Err(error) => return Err(error.into()),
                    Ok(taken) => in_pipe += taken,
                }
            }
            Ok(in_pipe)
        });
        // What is in it and does not count goes away with it.
        if counted == in_pipe {
            self.pipe = Some(pipe);
        }
        if counted == in_pipe { counted } else { 0 }
    }

    /// Sends what was taken.
    ///
    /// # Errors
    /// The connection broke.
    pub(super) fn send(&self, socket: &Socket, mut len: usize) -> io::Result<()> {
        let Some(pipe) = &self.pipe else { return Ok(()) };
        while len > 0 {
            match socket.send_from(&pipe.from, len) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => len -= sent,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
