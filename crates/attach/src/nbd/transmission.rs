//! The loop that receives requests, executes them or has them executed aside, and replies.
//!
//! Replies are collected while further requests are in the receive buffer, and sent before the
//! thread blocks: a client that keeps many requests under way costs few system calls.

use std::io;
use std::sync::Arc;

use super::execute::{Executor, Failure, Job, PAYLOAD_LEN_MAX, PIECE_LEN, REPLY_BUFFER_LEN};
use super::receive::Receiver;
use super::reply::ReplyBuffer;
use super::socket::Socket;
use super::wire::{self, REQUEST_HEADER_LEN, Request};
use crate::aside::Aside;

/// From this much on, replies are sent even though more requests have arrived: the client works on
/// these while the next are made.
const COLLECTED_LEN_MAX: usize = 64 * 1024;

/// Serves requests until the client disconnects, breaks the protocol, or is gone.
///
/// # Errors
/// The connection broke.
pub(super) fn serve(
    executor: Arc<Executor>,
    socket: &Socket,
    receiver: &mut Receiver,
) -> io::Result<()> {
    let aside = Aside::new(Arc::clone(&executor));
    let out = ReplyBuffer::new(REPLY_BUFFER_LEN);
    let mut transmission = Transmission { executor, socket, receiver, out, aside };
    while transmission.step()? {}
    // A client that disconnects is owed the replies to everything it sent before.
    transmission.aside.finish();
    transmission.out.send(&transmission.executor.outlet)
}

struct Transmission<'a> {
    executor: Arc<Executor>,
    socket: &'a Socket,
    receiver: &'a mut Receiver,
    out: ReplyBuffer,
    aside: Aside<Executor>,
}

impl Transmission<'_> {
    /// Receives and handles one request; false at the end.
    fn step(&mut self) -> io::Result<bool> {
        if self.out.used() >= COLLECTED_LEN_MAX {
            self.out.send(&self.executor.outlet)?;
        }
        if !self.need(REQUEST_HEADER_LEN)? {
            return Ok(false);
        }
        let header = self.receiver.take(REQUEST_HEADER_LEN).first_chunk();
        let Some(request) = header.and_then(Request::parse) else {
            tracing::debug!("an NBD client sent something that is not a request; closing");
            return Ok(false);
        };
        match request.command {
            wire::CMD_DISC => Ok(false),
            wire::CMD_WRITE => self.write(&request),
            _ => {
                match self.executor.check(&request) {
                    Err(failure) => {
                        self.executor.reply(&request, Err(failure), &mut self.out)?;
                    }
                    Ok(()) if self.executor.may_wait(&request) => {
                        self.submit(Job { request, payload: Vec::new() })?;
                    }
                    Ok(()) => self.executor.execute(&request, &[], &mut self.out)?,
                }
                Ok(true)
            }
        }
    }

    /// Sees to it that `len` bytes are received; false where the stream ends before. What was
    /// answered is sent before the thread blocks.
    fn need(&mut self, len: usize) -> io::Result<bool> {
        if self.receiver.available() >= len {
            return Ok(true);
        }
        self.out.send(&self.executor.outlet)?;
        self.receiver.fill(self.socket, len)
    }

    /// Has a request executed aside. Submitting may block, and so nothing is held back.
    fn submit(&mut self, job: Job) -> io::Result<()> {
        self.out.send(&self.executor.outlet)?;
        self.aside.submit(job)
    }

    /// Receives the payload of a write and writes it, piece by piece; false where the connection
    /// must end.
    fn write(&mut self, request: &Request) -> io::Result<bool> {
        if request.len > wire::REQUEST_LEN_MAX {
            tracing::debug!("an NBD client sent a write of {} bytes; closing", request.len);
            return Ok(false);
        }
        let mut result = self.executor.check(request);
        let len = request.len as usize;
        if result.is_ok() && len <= PAYLOAD_LEN_MAX && self.executor.may_wait(request) {
            if !self.need(len)? {
                return Ok(false);
            }
            let payload = self.receiver.take(len).to_vec();
            self.submit(Job { request: *request, payload })?;
            return Ok(true);
        }
        let mut done = 0;
        while done < len {
            let piece = piece_len(request.offset.wrapping_add(done as u64), len - done);
            if !self.need(piece)? {
                return Ok(false);
            }
            let bytes = self.receiver.take(piece);
            // After a failure the rest of the payload is received and dropped.
            if result.is_ok() {
                let offset = request.offset + done as u64;
                result = self.executor.device.write(offset, bytes).map_err(Failure::from);
            }
            done += piece;
        }
        if result.is_ok() && request.has(wire::CMD_FLAG_FUA) {
            let flush = Request { command: wire::CMD_FLUSH, flags: 0, ..*request };
            self.submit(Job { request: flush, payload: Vec::new() })?;
            return Ok(true);
        }
        self.executor.reply(request, result, &mut self.out)?;
        Ok(true)
    }
}

/// Bytes up to the next multiple of `PIECE_LEN` on the disk, so that a long write is not cut inside
/// a block.
fn piece_len(offset: u64, left: usize) -> usize {
    let into = (offset % PIECE_LEN as u64) as usize;
    (PIECE_LEN - into).min(left)
}
