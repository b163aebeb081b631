//! A patch: the bytes that a writer lays upon a version.
//!
//! ```text
//! blocks     |        |        |        |        |        |
//! patch           hhhh|bbbbbbbb|bbbbbbbb|bbbbbbbb|ttt
//!                 head          body              tail
//! ```
//!
//! A patch of at most [`MEMORY_MAX`] bytes stays in memory and is packed together with the maps of
//! its version. Of a longer one the body is stored as it comes, before its writer's turn; only head
//! and tail, less than a block each, and the digests of its segment maps stay in memory.

use std::io::{Cursor, ErrorKind, Read};

use chunking::SegmentDraft;
use model::block::{BLOCKS_PER_SEGMENT, LENGTH_MAX};
use model::progress::{Cancel, Progress};
use model::{BLOCK_LEN, Error, Kind, Manifest, Result, SegmentEntry, VersionKind};

use crate::layout::{Layout, Plan};
use crate::lease::Lease;
use crate::ranges;
use crate::repository::Repository;
use crate::windows::{self, Window, WindowSource};

/// Bytes of the longest patch that stays in memory: about one chunk. With 64 writers that is 16 MiB.
pub const MEMORY_MAX: usize = 256 << 10;

/// Bytes that are read back at a time where a patch must be stored again.
const READ_BACK_LEN: usize = 4 << 20;

/// A writer's bytes.
pub enum Patch {
    /// All of them.
    Memory(Vec<u8>),
    /// Most of them are in the store.
    Stored(Stored),
}

/// A patch whose whole blocks are in the store, under the writer's lease.
pub struct Stored {
    /// What lies before the first whole block.
    pub head: Vec<u8>,
    /// The first whole block, where the patch was thought to lie when it was stored.
    pub first_block: u64,
    /// How many whole blocks there are.
    pub block_count: u64,
    /// Segments of the address space in which they were thought to lie, and how many blocks of each
    /// are data. What is missing is holes.
    pub segments: Vec<(SegmentEntry, u64)>,
    /// What lies behind the last whole block.
    pub tail: Vec<u8>,
    /// Bytes of blocks that the repository did not have.
    pub new_len: u64,
    /// Bytes of the packs that were written.
    pub stored_len: u64,
}

/// What a patch is gathered with.
pub struct Gather<'a> {
    /// Where it is stored.
    pub repository: &'a Repository,
    /// Under which claim.
    pub lease: &'a Lease,
    /// What is done and to which image, for errors.
    pub operation: &'static str,
    /// The image.
    pub subject: &'a str,
    /// Told of the progress.
    pub progress: &'a dyn Progress,
    /// Stops it.
    pub cancel: &'a Cancel,
}

impl Patch {
    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Patch::Memory(bytes) => bytes.len() as u64,
            Patch::Stored(stored) => stored.len(),
        }
    }

    /// True where it can lie at `offset`: where the blocks in which it was stored are blocks there.
    pub fn fits(&self, offset: u64) -> bool {
        match self {
            Patch::Memory(_) => true,
            Patch::Stored(stored) => {
                (offset + stored.head.len() as u64).is_multiple_of(BLOCK_LEN as u64)
            }
        }
    }
}

impl Stored {
    fn len(&self) -> u64 {
        let body_len = self.block_count * BLOCK_LEN as u64;
        self.head.len() as u64 + body_len + self.tail.len() as u64
    }
}

impl Gather<'_> {
    /// Takes a stream to its end as a patch that will lie at `offset`.
    pub fn gather(&self, offset: u64, source: &mut (dyn Read + Send)) -> Result<Patch> {
        let mut bytes = vec![0; MEMORY_MAX + 1];
        let len = self.fill(source, &mut bytes)?;
        bytes.truncate(len);
        self.check_end(offset, len as u64)?;
        if len <= MEMORY_MAX {
            bytes.shrink_to_fit();
            self.progress.advance(len as u64);
            return Ok(Patch::Memory(bytes));
        }
        let mut whole = Cursor::new(bytes).chain(source);
        self.store(offset, &mut whole).map(Patch::Stored)
    }

    /// Stores a patch again, for another offset: its bytes have moved against the blocks.
    pub fn gather_again(&self, offset: u64, stored: &Stored) -> Result<Patch> {
        let len = stored.len();
        self.check_end(offset, len)?;
        let mut source = ReadBack { repository: self.repository, stored, position: 0 };
        // A buffer, since each read of the store unpacks whole chunks.
        let mut source = std::io::BufReader::with_capacity(READ_BACK_LEN, &mut source);
        self.store(offset, &mut source).map(Patch::Stored)
    }

    fn store(&self, offset: u64, source: &mut (dyn Read + Send)) -> Result<Stored> {
        let mut head = vec![0; (offset.next_multiple_of(BLOCK_LEN as u64) - offset) as usize];
        let head_len = self.fill(source, &mut head)?;
        head.truncate(head_len);
        let first_block = offset.div_ceil(BLOCK_LEN as u64);
        let mut stream = Stream {
            gather: self,
            source,
            next_block: first_block,
            tail: Vec::new(),
            at_end: false,
        };
        let plan = Plan {
            kind: VersionKind::Disk,
            kept: Vec::new(),
            draft: Box::new(|segment| Ok(SegmentDraft::hole(segment, BLOCKS_PER_SEGMENT))),
        };
        let repository = self.repository;
        let mut layout = Layout::new(repository, repository.destination(self.lease), plan);
        windows::run(&mut stream, |window| {
            self.cancel.check(self.operation, self.subject)?;
            layout.push(window)?;
            self.progress.advance(window.len as u64);
            Ok(())
        })?;
        let laid_out = layout.finish_segments()?;
        Ok(Stored {
            head,
            first_block,
            block_count: stream.next_block - first_block,
            segments: laid_out.segments,
            tail: stream.tail,
            new_len: laid_out.new_block_count * BLOCK_LEN as u64,
            stored_len: laid_out.written.stored_len,
        })
    }

    /// Reads until the buffer is full or the stream has ended.
    fn fill(&self, source: &mut (dyn Read + Send), buffer: &mut [u8]) -> Result<usize> {
        let mut len = 0;
        while len < buffer.len() {
            match source.read(&mut buffer[len..]) {
                Ok(0) => break,
                Ok(read) => len += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.cannot_read(error)),
            }
            self.cancel.check(self.operation, self.subject)?;
        }
        Ok(len)
    }

    /// The stream's own error where it is one of ours, so that it is said once.
    fn cannot_read(&self, error: std::io::Error) -> Error {
        match error.downcast::<Error>() {
            Ok(error) => error,
            Err(error) => Error::io(self.operation, self.subject, error),
        }
    }

    fn check_end(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len).is_some_and(|end| end <= LENGTH_MAX) {
            true => Ok(()),
            false => Err(too_long(self.operation, self.subject, offset)),
        }
    }
}

/// The error of a patch that ends behind the longest disk there can be.
pub fn too_long(operation: &'static str, subject: &str, offset: u64) -> Error {
    Error::new(Kind::Invalid, operation, subject).because(format!(
        "what is to lie from {offset} on ends behind the most that an image can have, {LENGTH_MAX} bytes"
    ))
}

/// Whole blocks from a stream; what is left behind the last is the tail.
struct Stream<'a> {
    gather: &'a Gather<'a>,
    source: &'a mut (dyn Read + Send),
    next_block: u64,
    tail: Vec<u8>,
    at_end: bool,
}

impl WindowSource for &mut Stream<'_> {
    fn fill(&mut self, window: &mut Window) -> Result<bool> {
        if self.at_end {
            return Ok(false);
        }
        let len = self.gather.fill(self.source, &mut window.bytes)?;
        self.at_end = len < window.bytes.len();
        self.gather.check_end(self.next_block * BLOCK_LEN as u64, len as u64)?;
        let whole = len - len % BLOCK_LEN;
        self.tail = window.bytes[whole..len].to_vec();
        if whole > 0 {
            window.push_data(self.next_block, whole);
            self.next_block += (whole / BLOCK_LEN) as u64;
        }
        Ok(whole > 0)
    }

    fn data_len_hint(&self) -> Option<u64> {
        None
    }
}

/// Reads a stored patch back.
struct ReadBack<'a> {
    repository: &'a Repository,
    stored: &'a Stored,
    position: u64,
}

impl Read for ReadBack<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let Stored { head, first_block, block_count, tail, .. } = self.stored;
        let body_len = block_count * BLOCK_LEN as u64;
        let body = head.len() as u64..head.len() as u64 + body_len;
        let read = if self.position < body.start {
            (&head[self.position as usize..]).read(buffer)?
        } else if self.position < body.end {
            let len = buffer.len().min((body.end - self.position) as usize);
            let offset = first_block * BLOCK_LEN as u64 + (self.position - body.start);
            self.read_body(offset, &mut buffer[..len]).map_err(std::io::Error::other)?;
            len
        } else {
            (&tail[((self.position - body.end) as usize).min(tail.len())..]).read(buffer)?
        };
        self.position += read as u64;
        Ok(read)
    }
}

impl ReadBack<'_> {
    fn read_body(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let Stored { first_block, block_count, segments, .. } = self.stored;
        let entries = segments.iter().map(|(entry, _)| *entry).collect();
        let end = (first_block + block_count) * BLOCK_LEN as u64;
        let manifest = Manifest::new(VersionKind::Disk, end, entries)
            .ok_or_else(|| Error::new(Kind::Bug, "read back", "the segments of a patch"))?;
        ranges::read_at(&*self.repository.chunks(), &manifest, offset, buffer)
    }
}
