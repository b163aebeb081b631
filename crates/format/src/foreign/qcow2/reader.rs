//! A qcow2 as a source: consecutive pieces of data, put together until the caller's buffer is full.
//!
//! **Invariants**: a stretch begins at a multiple of the block length and ends at one, or with the
//! disk; `piece` is the first data that has not been given out.
//!
//! **Failure**: every table has been walked once before the first byte is given out (unless there
//! are very many), so that most lies are found before an import begins.

use std::fs::File;

use model::source::{DataRun, DiskSource};
use model::{BLOCK_LEN, Result};
use rayon::prelude::*;

use super::fault::Fault;
use super::header::{Header, has_backing};
use super::inflate::Unpacker;
use super::walker::{Origin, Piece, Walker, read_exactly};
use crate::foreign::open::{OPERATION, length_of, read_up_to};

const BLOCK: u64 = BLOCK_LEN as u64;

/// With more L2 tables than this the walk before the first read is left out: it would take
/// seconds. 64 Ki tables of 64 KiB cover 32 TiB.
const TABLES_WALKED_MAX: usize = 64 << 10;

/// A qcow2, versions 2 and 3.
#[derive(Debug)]
pub(in crate::foreign) struct Qcow2Source {
    subject: String,
    image: Image,
}

impl Qcow2Source {
    /// Opens the qcow2 in `file`; `None` where it lies on a backing file and `allow_backing` says
    /// that it may.
    pub(in crate::foreign) fn open(
        file: File,
        subject: String,
        allow_backing: bool,
    ) -> Result<Option<Self>> {
        match Image::open(file, allow_backing) {
            Ok(image) => Ok(image.map(|image| Qcow2Source { subject, image })),
            Err(fault) => Err(fault.into_error(OPERATION, &subject)),
        }
    }
}

impl DiskSource for Qcow2Source {
    fn length_hint(&self) -> Option<u64> {
        Some(self.image.header.length)
    }

    fn data_len_hint(&self) -> Option<u64> {
        self.image.data_len
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<Option<DataRun>> {
        assert!(buffer.len() >= BLOCK_LEN, "a buffer for a disk holds at least one block");
        self.image.read(buffer).map_err(|fault| fault.into_error(OPERATION, &self.subject))
    }

    fn length(&self) -> u64 {
        self.image.header.length
    }
}

#[derive(Debug)]
struct Image {
    file: File,
    header: Header,
    walker: Walker,
    /// The next piece, without what has been given out of it.
    piece: Option<Piece>,
    data_len: Option<u64>,
    unpacker: Unpacker,
    packed: Vec<u8>,
    /// A cluster that is given out in parts, and which it is.
    unpacked: Vec<u8>,
    unpacked_from: Option<Origin>,
}

impl Image {
    fn open(file: File, allow_backing: bool) -> Result<Option<Self>, Fault> {
        let file_len = length_of(&file)?;
        let header = Header::read(&file, file_len, allow_backing)?;
        let mut first = [0; 16];
        read_up_to(&file, &mut first, 0)?;
        if has_backing(&first) {
            return Ok(None);
        }
        let mut walker = Walker::new(&file, &header)?;
        let mut data_len = None;
        if walker.table_count() <= TABLES_WALKED_MAX {
            let mut sum = 0;
            while let Some(piece) = walker.next(&file, &header)? {
                sum += piece.len;
            }
            data_len = Some(sum);
            walker.rewind();
        }
        let unpacker = Unpacker::new(header.compression)?;
        let mut image = Image {
            file,
            header,
            walker,
            piece: None,
            data_len,
            unpacker,
            packed: Vec::new(),
            unpacked: Vec::new(),
            unpacked_from: None,
        };
        image.piece = image.walker.next(&image.file, &image.header)?;
        Ok(Some(image))
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<Option<DataRun>, Fault> {
        let room = (buffer.len() / BLOCK_LEN * BLOCK_LEN) as u64;
        let Some(first) = self.piece else {
            return Ok(None);
        };
        // Clusters can be smaller than blocks: the rest of a touched block is zeros.
        let start = first.guest_offset / BLOCK * BLOCK;
        let limit = (start + room).min(self.header.length);
        let mut at = start;
        let mut rest = &mut buffer[..(limit - start) as usize];
        let mut parts = Vec::new();
        while let Some(piece) = self.piece {
            let same_block = piece.guest_offset < at.next_multiple_of(BLOCK);
            let follows = piece.guest_offset == at || same_block || at == start;
            if piece.guest_offset >= limit || !follows {
                break;
            }
            let (gap, behind) = rest.split_at_mut((piece.guest_offset - at) as usize);
            gap.fill(0);
            let len = piece.len.min(limit - piece.guest_offset);
            let (part, behind) = behind.split_at_mut(len as usize);
            parts.push((piece, part));
            rest = behind;
            at = piece.guest_offset + len;
            self.advance(piece, len)?;
        }
        let end = at.next_multiple_of(BLOCK).min(self.header.length);
        rest[..(end - at) as usize].fill(0);
        self.fetch_all(parts)?;
        Ok(Some(DataRun { offset: start, len: (end - start) as usize }))
    }

    /// Fetches each piece into its part; whole compressed clusters on all cores, since inflating
    /// is slower than anything else on an import's way.
    fn fetch_all(&mut self, parts: Vec<(Piece, &mut [u8])>) -> Result<(), Fault> {
        let cluster_len = self.header.cluster_len() as usize;
        let (packed, others): (Vec<_>, Vec<_>) = parts.into_iter().partition(|(piece, part)| {
            matches!(piece.origin, Origin::Compressed { .. }) && part.len() == cluster_len
        });
        for (piece, part) in others {
            self.fetch(&piece, part)?;
        }
        let (file, compression) = (&self.file, self.header.compression);
        packed.into_par_iter().try_for_each_init(
            || (Unpacker::new(compression), Vec::new()),
            |(unpacker, bytes), (piece, part)| {
                let unpacker = unpacker.as_mut().map_err(|error| Fault::Io(error.kind().into()))?;
                fetch_compressed(file, unpacker, bytes, &piece.origin, part)
            },
        )
    }

    /// Steps `len` bytes into the current piece, or to the one behind it.
    fn advance(&mut self, piece: Piece, len: u64) -> Result<(), Fault> {
        self.piece = if len < piece.len {
            let origin = match piece.origin {
                Origin::Plain(host_offset) => Origin::Plain(host_offset + len),
                compressed => compressed,
            };
            let (guest_offset, len) = (piece.guest_offset + len, piece.len - len);
            Some(Piece { guest_offset, len, origin })
        } else {
            self.walker.next(&self.file, &self.header)?
        };
        Ok(())
    }

    /// Puts the first bytes of `piece` into `part`, of a compressed cluster by way of a copy of it
    /// that is kept for the parts that follow.
    fn fetch(&mut self, piece: &Piece, part: &mut [u8]) -> Result<(), Fault> {
        if let Origin::Plain(host_offset) = piece.origin {
            return read_exactly(&self.file, part, host_offset);
        }
        let in_cluster = (piece.guest_offset % self.header.cluster_len()) as usize;
        if self.unpacked_from != Some(piece.origin) || in_cluster == 0 {
            self.unpacked.resize(self.header.cluster_len() as usize, 0);
            self.unpacked_from = None;
            let (file, unpacker, bytes) = (&self.file, &mut self.unpacker, &mut self.packed);
            fetch_compressed(file, unpacker, bytes, &piece.origin, &mut self.unpacked)?;
            self.unpacked_from = Some(piece.origin);
        }
        part.copy_from_slice(&self.unpacked[in_cluster..in_cluster + part.len()]);
        Ok(())
    }
}

/// Unpacks the compressed cluster at `origin` into `cluster`; `bytes` is room to read it into.
fn fetch_compressed(
    file: &File,
    unpacker: &mut Unpacker,
    bytes: &mut Vec<u8>,
    origin: &Origin,
    cluster: &mut [u8],
) -> Result<(), Fault> {
    let Origin::Compressed { host_offset, len } = *origin else { return Ok(()) };
    // At most two clusters' worth, by the width of the field that it comes from.
    bytes.resize(len as usize, 0);
    read_exactly(file, bytes, host_offset)?;
    if unpacker.unpack(bytes, cluster) { Ok(()) } else { Err(Fault::Compressed { host_offset }) }
}
