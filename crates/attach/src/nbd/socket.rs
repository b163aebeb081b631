//! A connected socket, Unix or TCP alike: what is received, what is sent, and how it ends.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::Timeout;
use rustix::net::{RecvFlags, SendFlags, Shutdown, sockopt};
use rustix::pipe::{SpliceFlags, splice};

/// A connected socket. Dropping it closes it.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    /// Nothing more is received, even if something has arrived.
    stopped: AtomicBool,
}

impl Socket {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Socket { fd, stopped: AtomicBool::new(false) }
    }

    /// Receives what there is, at least one byte; 0 at the end.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.stopped.load(Ordering::Acquire) {
                return Ok(0);
            }
            match rustix::net::recv(&self.fd, &mut *buffer, RecvFlags::empty()) {
                Err(Errno::INTR) => (),
                Err(error) => return Err(error.into()),
                Ok((_, len)) => return Ok(len),
            }
        }
    }

    /// Sends everything. A client that is gone is an error, never a signal.
    pub(super) fn send_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match rustix::net::send(&self.fd, bytes, SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => (),
                Err(error) => return Err(error.into()),
                Ok(len) => bytes = &bytes[len..],
            }
        }
        Ok(())
    }

    /// Sends what a pipe holds, at most `len` bytes of it. Returns how many.
    pub(super) fn send_from(&self, pipe: &OwnedFd, len: usize) -> io::Result<usize> {
        loop {
            match splice(pipe, None, &self.fd, None, len, SpliceFlags::empty()) {
                Err(Errno::INTR) => (),
                other => return Ok(other?),
            }
        }
    }

    /// Limits how long each call may block; `None` is without limit.
    pub(super) fn set_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        sockopt::set_socket_timeout(&self.fd, Timeout::Recv, limit)?;
        Ok(sockopt::set_socket_timeout(&self.fd, Timeout::Send, limit)?)
    }

    /// Lets what is being done be answered, and receives nothing more.
    pub(super) fn stop_receiving(&self) {
        self.stopped.store(true, Ordering::Release);
        // The client may be gone already: that is as good.
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Read);
    }

    /// Ends both directions: calls that block on this socket return.
    pub(super) fn close(&self) {
        self.stopped.store(true, Ordering::Release);
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Both);
    }
}
