//! One request: is it allowed, may it wait, what does the device say, and the reply.

use std::io;
use std::sync::Arc;

use model::device::{Device, Extent, ExtentKind};
use model::{BLOCK_LEN, Error, Kind};

use super::reply::{Outlet, ReplyBuffer, SMALL_REPLY_LEN_MAX};
use super::wire::{self, Code, Request};
use crate::aside::Worker;

/// The longest stretch that is read or written at once, and so what bounds the buffers.
pub(super) const PIECE_LEN: usize = 1 << 20;
/// Bytes of a reply buffer: a piece with its headers always fits into an empty one.
pub(super) const REPLY_BUFFER_LEN: usize = PIECE_LEN + 64 * 1024;
/// The most extents in one answer; a client asks again from where the answer ends.
const EXTENT_COUNT_MAX: usize = 4096;

/// Why a request fails, as the client will see it.
#[derive(Debug)]
pub(super) struct Failure {
    code: Code,
    message: String,
}

impl Failure {
    fn new(code: Code, message: impl Into<String>) -> Self {
        Failure { code, message: message.into() }
    }
}

impl From<Error> for Failure {
    /// What a device's error is for the client. Logged here, for the client gets less.
    fn from(error: Error) -> Self {
        let code = match error.kind() {
            Kind::Full => Code::NoSpace,
            Kind::Refused => Code::Permission,
            Kind::Invalid => Code::Invalid,
            _ => Code::InputOutput,
        };
        if code == Code::InputOutput {
            tracing::warn!("a request failed: {}", error.chain());
        } else {
            tracing::debug!("a request failed: {}", error.chain());
        }
        Failure::new(code, error.to_string())
    }
}

/// The longest write whose payload is copied to be executed aside.
pub(super) const PAYLOAD_LEN_MAX: usize = 64 * 1024;

/// A request that passed `Executor::check`, with the payload of a write.
pub(super) struct Job {
    pub(super) request: Request,
    pub(super) payload: Vec<u8>,
}

/// What is known of a connection after the handshake.
pub(super) struct Executor {
    pub(super) device: Arc<dyn Device>,
    /// Bytes of the disk, as the client was told.
    pub(super) length: u64,
    /// The client asked for structured replies.
    pub(super) structured: bool,
    /// The client chose `base:allocation`.
    pub(super) allocation: bool,
    pub(super) outlet: Outlet,
}

impl Worker for Executor {
    type Job = Job;
    type Scratch = ReplyBuffer;

    fn is_flush(&self, job: &Job) -> bool {
        job.request.command == wire::CMD_FLUSH
    }

    fn scratch(&self) -> ReplyBuffer {
        ReplyBuffer::new(REPLY_BUFFER_LEN)
    }

    fn execute(&self, job: Job, out: &mut ReplyBuffer) -> io::Result<()> {
        Executor::execute(self, &job.request, &job.payload, out)?;
        out.send(&self.outlet)
    }

    fn abandon(&self) {
        self.outlet.close();
    }
}

impl Executor {
    /// Checks everything about a request that can be known before the device is asked.
    pub(super) fn check(&self, request: &Request) -> Result<(), Failure> {
        let invalid = |message: &str| Err(Failure::new(Code::Invalid, message));
        let (flags, changes) = match request.command {
            wire::CMD_READ if self.structured => (wire::CMD_FLAG_DF, false),
            wire::CMD_READ | wire::CMD_FLUSH | wire::CMD_CACHE => (0, false),
            wire::CMD_WRITE | wire::CMD_TRIM => (0, true),
            wire::CMD_WRITE_ZEROES => (wire::CMD_FLAG_NO_HOLE | wire::CMD_FLAG_FAST_ZERO, true),
            wire::CMD_BLOCK_STATUS if self.allocation => (wire::CMD_FLAG_REQ_ONE, false),
            wire::CMD_BLOCK_STATUS => return invalid("base:allocation was not negotiated"),
            _ => return invalid("unknown command"),
        };
        // The protocol has servers accept FUA on every command, with or without an effect.
        if request.flags & !(flags | wire::CMD_FLAG_FUA) != 0 {
            return invalid("unknown flag for this command");
        }
        if changes && self.device.is_read_only() {
            return Err(Failure::new(Code::Permission, "the export is read-only"));
        }
        let inside = request.offset.checked_add(u64::from(request.len));
        if inside.is_none_or(|end| end > self.length) {
            let grows = [wire::CMD_WRITE, wire::CMD_WRITE_ZEROES].contains(&request.command);
            let code = if grows { Code::NoSpace } else { Code::Invalid };
            return Err(Failure::new(code, "the range ends behind the end of the export"));
        }
        match request.command {
            wire::CMD_READ if request.len > wire::REQUEST_LEN_MAX => {
                invalid("longer than the largest block size")
            }
            wire::CMD_READ
                if request.has(wire::CMD_FLAG_DF) && request.len as usize > PIECE_LEN =>
            {
                Err(Failure::new(Code::Overflow, "too long for one chunk"))
            }
            wire::CMD_WRITE_ZEROES
                if request.has(wire::CMD_FLAG_FAST_ZERO) && self.edges_may_wait(request) =>
            {
                Err(Failure::new(Code::NotSupported, "the blocks at the edges have to be fetched"))
            }
            wire::CMD_FLUSH if request.offset != 0 || request.len != 0 => {
                invalid("a flush has no range")
            }
            wire::CMD_BLOCK_STATUS if request.len == 0 => invalid("an empty range has no extents"),
            _ => Ok(()),
        }
    }

    /// True when the request may wait for a fetch or for stable storage, and so had better not be
    /// executed on the thread that receives.
    ///
    /// Shape: the request passed `check`.
    pub(super) fn may_wait(&self, request: &Request) -> bool {
        match request.command {
            wire::CMD_FLUSH => !self.device.is_read_only(),
            wire::CMD_TRIM => request.has(wire::CMD_FLAG_FUA),
            wire::CMD_WRITE_ZEROES => {
                request.has(wire::CMD_FLAG_FUA) || self.edges_may_wait(request)
            }
            wire::CMD_WRITE => self.edges_may_wait(request),
            wire::CMD_READ | wire::CMD_CACHE => {
                self.device.may_wait(request.offset, u64::from(request.len))
            }
            _ => false,
        }
    }

    /// True when the request changes a part of a block whose other part may have to be fetched.
    fn edges_may_wait(&self, request: &Request) -> bool {
        let block = BLOCK_LEN as u64;
        let len = u64::from(request.len);
        let whole = request.offset.is_multiple_of(block) && len.is_multiple_of(block);
        !whole && self.device.may_wait(request.offset, len)
    }

    /// Executes a request that passed `check`, and adds its reply. A write brings its payload.
    ///
    /// # Errors
    /// The connection is of no use any more.
    pub(super) fn execute(
        &self,
        request: &Request,
        payload: &[u8],
        out: &mut ReplyBuffer,
    ) -> io::Result<()> {
        match request.command {
            wire::CMD_READ if self.structured => self.read_chunks(request, out),
            wire::CMD_READ => self.read_simple(request, out),
            wire::CMD_BLOCK_STATUS => self.block_status(request, out),
            _ => {
                let result = self.change(request, payload);
                self.reply(request, result, out)
            }
        }
    }

    /// Executes a request whose reply carries no data.
    fn change(&self, request: &Request, payload: &[u8]) -> Result<(), Failure> {
        let (offset, len) = (request.offset, u64::from(request.len));
        match request.command {
            wire::CMD_WRITE => self.device.write(offset, payload)?,
            wire::CMD_TRIM => self.device.discard(offset, len)?,
            wire::CMD_WRITE_ZEROES => self.device.write_zeroes(offset, len)?,
            wire::CMD_CACHE => return Ok(self.device.prefetch(offset, len)?),
            wire::CMD_FLUSH => return Ok(self.device.flush()?),
            _ => return Err(Failure::new(Code::Invalid, "unknown command")),
        }
        if request.has(wire::CMD_FLAG_FUA) {
            self.device.flush()?;
        }
        Ok(())
    }

    /// Adds a reply without data.
    pub(super) fn reply(
        &self,
        request: &Request,
        result: Result<(), Failure>,
        out: &mut ReplyBuffer,
    ) -> io::Result<()> {
        if out.room() < SMALL_REPLY_LEN_MAX {
            out.send(&self.outlet)?;
        }
        match result {
            Ok(()) => out.push_simple(request.cookie, 0),
            Err(failure) if self.structured => {
                out.push_error_chunk(request.cookie, failure.code, &failure.message);
            }
            Err(failure) => out.push_simple(request.cookie, failure.code as u32),
        }
        Ok(())
    }

    /// Reads; one chunk for each piece. Chunks but the last are sent as soon as they are there, so
    /// that the client takes one while the next is read.
    fn read_chunks(&self, request: &Request, out: &mut ReplyBuffer) -> io::Result<()> {
        if request.len == 0 {
            if out.room() < SMALL_REPLY_LEN_MAX {
                out.send(&self.outlet)?;
            }
            out.push_chunk(request.cookie, wire::REPLY_FLAG_DONE, wire::REPLY_NONE, 0);
            return Ok(());
        }
        let (mut at, end) = (request.offset, request.offset + u64::from(request.len));
        while at < end {
            let len = (end - at).min(PIECE_LEN as u64) as usize;
            // A chunk that must not be cut is read.
            let taken = match request.has(wire::CMD_FLAG_DF) {
                true => 0,
                false => out.take(&*self.device, at, len),
            };
            let len = if taken > 0 { taken } else { len };
            let last = at + len as u64 == end;
            if out.room() < wire::CHUNK_HEADER_LEN + 8 + len {
                out.send(&self.outlet)?;
            }
            let mark = out.used();
            let flags = if last { wire::REPLY_FLAG_DONE } else { 0 };
            out.push_chunk(request.cookie, flags, wire::REPLY_OFFSET_DATA, len as u32 + 8);
            out.push(&at.to_be_bytes());
            if taken > 0 {
                out.send_taken(&self.outlet, taken)?;
                at += taken as u64;
                continue;
            }
            if let Err(error) = self.device.read(at, out.space(len)) {
                out.truncate(mark);
                return self.reply(request, Err(error.into()), out);
            }
            at += len as u64;
            if !last {
                out.send(&self.outlet)?;
            }
        }
        Ok(())
    }

    /// Reads for a client without structured replies. Of a long read only the first piece can fail
    /// with an error: after the header has left, the protocol knows no way but to close.
    fn read_simple(&self, request: &Request, out: &mut ReplyBuffer) -> io::Result<()> {
        let len = request.len as usize;
        let first_len = len.min(PIECE_LEN);
        if out.room() < wire::SIMPLE_HEADER_LEN + first_len {
            out.send(&self.outlet)?;
        }
        let mark = out.used();
        out.push_simple(request.cookie, 0);
        if let Err(error) = self.device.read(request.offset, out.space(first_len)) {
            out.truncate(mark);
            return self.reply(request, Err(error.into()), out);
        }
        if first_len == len {
            return Ok(());
        }
        let turn = self.outlet.turn();
        let mut done = first_len;
        while done < len {
            turn.send(out)?;
            let piece = (len - done).min(PIECE_LEN);
            let offset = request.offset + done as u64;
            self.device.read(offset, out.space(piece)).map_err(|error| {
                tracing::warn!("a read failed in its middle: {}", error.chain());
                io::Error::other("a simple reply was begun and cannot be ended")
            })?;
            done += piece;
        }
        turn.send(out)
    }

    /// Answers which parts of the range hold data.
    fn block_status(&self, request: &Request, out: &mut ReplyBuffer) -> io::Result<()> {
        let max = if request.has(wire::CMD_FLAG_REQ_ONE) { 1 } else { EXTENT_COUNT_MAX };
        let extents = self.device.extents(request.offset, u64::from(request.len), max);
        let descriptors = match extents {
            Ok(extents) => descriptors(&extents, request, max),
            Err(error) => return self.reply(request, Err(error.into()), out),
        };
        let payload_len = 4 + 8 * descriptors.len();
        if out.room() < wire::CHUNK_HEADER_LEN + payload_len {
            out.send(&self.outlet)?;
        }
        out.push_chunk(
            request.cookie,
            wire::REPLY_FLAG_DONE,
            wire::REPLY_BLOCK_STATUS,
            payload_len as u32,
        );
        out.push(&wire::CONTEXT_ID.to_be_bytes());
        for (len, state) in descriptors {
            out.push(&len.to_be_bytes());
            out.push(&state.to_be_bytes());
        }
        Ok(())
    }
}

/// The extents as the client gets them: inside the request, neighbours of one kind joined, at
/// least one, at most `max`.
fn descriptors(extents: &[Extent], request: &Request, max: usize) -> Vec<(u32, u32)> {
    let mut out: Vec<(u32, u32)> = Vec::new();
    let mut left = request.len;
    for extent in extents {
        let len = u32::try_from(extent.len).unwrap_or(u32::MAX).min(left);
        if len == 0 {
            break;
        }
        let state = match extent.kind {
            ExtentKind::Data => 0,
            ExtentKind::Hole => wire::STATE_HOLE | wire::STATE_ZERO,
        };
        let full = out.len() == max;
        match out.last_mut() {
            Some(last) if last.1 == state => last.0 += len,
            _ if full => break,
            _ => out.push((len, state)),
        }
        left -= len;
    }
    if out.is_empty() {
        // "Data" is always a true answer.
        out.push((request.len, 0));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(extents: &[(u64, ExtentKind)], len: u32, max: usize, expected: &[(u32, u32)]) {
        let mut offset = 0;
        let extents: Vec<Extent> = extents
            .iter()
            .map(|&(len, kind)| {
                offset += len;
                Extent { offset: offset - len, len, kind }
            })
            .collect();
        let request = Request { flags: 0, command: 7, cookie: 0, offset: 0, len };
        assert_eq!(descriptors(&extents, &request, max), expected);
    }

    #[test]
    fn extents_are_joined_and_stay_inside_the_request() {
        use ExtentKind::{Data, Hole};
        check(&[(5, Data), (5, Data), (9, Hole)], 19, 9, &[(10, 0), (9, 3)]);
        check(&[(5, Data), (5, Hole), (9, Data)], 7, 9, &[(5, 0), (2, 3)]);
        check(&[(5, Hole), (5, Hole), (9, Data)], 19, 1, &[(10, 3)]);
        check(&[(1 << 40, Hole)], u32::MAX, 9, &[(u32::MAX, 3)]);
        check(&[], 7, 9, &[(7, 0)]);
    }
}
