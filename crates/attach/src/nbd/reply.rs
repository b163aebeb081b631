//! Replies: the buffer that collects them, and the one way to the socket.
//!
//! **Invariants**: whoever sends holds the outlet's lock, and sends whole replies.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::device::Device;

use super::conduit::Conduit;
use super::socket::Socket;
use super::wire::{
    CHUNK_HEADER_LEN, CHUNK_MAGIC, Code, REPLY_ERROR, REPLY_FLAG_DONE, SIMPLE_REPLY_MAGIC,
};

/// The way to the socket, shared by all threads of a connection.
pub(super) struct Outlet {
    socket: Arc<Socket>,
    turn: Mutex<()>,
}

impl Outlet {
    pub(super) fn new(socket: Arc<Socket>) -> Self {
        Outlet { socket, turn: Mutex::new(()) }
    }

    /// Takes the turn: until it is given back, nobody else sends.
    pub(super) fn turn(&self) -> Turn<'_> {
        let guard = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        Turn { socket: &self.socket, _guard: guard }
    }

    /// Ends the connection: its thread sees the end of the stream.
    pub(super) fn close(&self) {
        self.socket.close();
    }
}

/// The right to send.
pub(super) struct Turn<'a> {
    socket: &'a Socket,
    _guard: MutexGuard<'a, ()>,
}

impl Turn<'_> {
    /// Sends what the buffer holds and empties it.
    pub(super) fn send(&self, buffer: &mut ReplyBuffer) -> io::Result<()> {
        let used = std::mem::take(&mut buffer.used);
        self.socket.send_all(&buffer.bytes[..used])
    }

    /// Sends what the buffer holds and empties it, and behind it `len` bytes that it has taken.
    fn send_with(&self, buffer: &mut ReplyBuffer, len: usize) -> io::Result<()> {
        self.send(buffer)?;
        buffer.conduit.send(self.socket, len)
    }
}

/// Replies that were made and not sent. Its bytes are zeroed once, when it is made.
pub(super) struct ReplyBuffer {
    bytes: Vec<u8>,
    used: usize,
    conduit: Conduit,
}

impl ReplyBuffer {
    /// A buffer for `capacity` bytes.
    pub(super) fn new(capacity: usize) -> Self {
        ReplyBuffer { bytes: vec![0; capacity], used: 0, conduit: Conduit::default() }
    }

    /// Bytes that wait to be sent.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Bytes that still fit.
    pub(super) fn room(&self) -> usize {
        self.bytes.len() - self.used
    }

    /// Sends what is there, if anything is.
    pub(super) fn send(&mut self, outlet: &Outlet) -> io::Result<()> {
        if self.used == 0 { Ok(()) } else { outlet.turn().send(self) }
    }

    /// Adds bytes.
    ///
    /// Shape: they fit into the room.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.space(bytes.len()).copy_from_slice(bytes);
    }

    /// Adds `len` bytes for the caller to fill; until then they hold whatever was sent before.
    ///
    /// Shape: they fit into the room.
    pub(super) fn space(&mut self, len: usize) -> &mut [u8] {
        self.used += len;
        &mut self.bytes[self.used - len..self.used]
    }

    /// Has the next bytes of a reply taken from a device that has them in a file. Returns how many
    /// wait for [`ReplyBuffer::send_taken`]; 0 where the device has to be read.
    pub(super) fn take(&mut self, device: &dyn Device, offset: u64, len: usize) -> usize {
        self.conduit.take(device, offset, len)
    }

    /// Sends what is there, and behind it the `len` bytes that were taken.
    pub(super) fn send_taken(&mut self, outlet: &Outlet, len: usize) -> io::Result<()> {
        outlet.turn().send_with(self, len)
    }

    /// Takes back what was added since `used` was read.
    pub(super) fn truncate(&mut self, used: usize) {
        self.used = used;
    }

    /// Adds the header of a simple reply; 0 is success.
    pub(super) fn push_simple(&mut self, cookie: u64, error: u32) {
        let mut header = [0; super::wire::SIMPLE_HEADER_LEN];
        header[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        header[4..8].copy_from_slice(&error.to_be_bytes());
        header[8..].copy_from_slice(&cookie.to_be_bytes());
        self.push(&header);
    }

    /// Adds the header of a chunk.
    pub(super) fn push_chunk(&mut self, cookie: u64, flags: u16, kind: u16, payload_len: u32) {
        let mut header = [0; CHUNK_HEADER_LEN];
        header[..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
        header[4..6].copy_from_slice(&flags.to_be_bytes());
        header[6..8].copy_from_slice(&kind.to_be_bytes());
        header[8..16].copy_from_slice(&cookie.to_be_bytes());
        header[16..].copy_from_slice(&payload_len.to_be_bytes());
        self.push(&header);
    }

    /// Adds an error as the last chunk of a reply.
    pub(super) fn push_error_chunk(&mut self, cookie: u64, code: Code, message: &str) {
        let message = &message[..message.floor_char_boundary(MESSAGE_LEN_MAX)];
        let payload_len = 6 + message.len();
        self.push_chunk(cookie, REPLY_FLAG_DONE, REPLY_ERROR, payload_len as u32);
        self.push(&(code as u32).to_be_bytes());
        self.push(&(message.len() as u16).to_be_bytes());
        self.push(message.as_bytes());
    }
}

/// The longest message that goes with an error.
const MESSAGE_LEN_MAX: usize = 512;
/// Room that suffices for any reply without data.
pub(super) const SMALL_REPLY_LEN_MAX: usize = CHUNK_HEADER_LEN + 6 + MESSAGE_LEN_MAX;
