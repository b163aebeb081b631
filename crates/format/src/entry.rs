//! How one entry is stored in a pack: its kind, its encoding, its limits.
//!
//! **Invariants**: an entry is stored compressed only where that saves at least one byte in 32; the
//! plain length is written beside it, and decompression gives exactly that many bytes or an error.
//!
//! **Failure**: a lying peer can name any plain length up to [`PLAIN_LEN_MAX`] and costs at most
//! that much memory. Whether the bytes are the right ones only their digest tells.

use std::cell::RefCell;

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe;

use crate::FormatError;

/// The most plain bytes of any entry: 4 MiB.
pub const PLAIN_LEN_MAX: usize = 4 << 20;

/// The most plain bytes of a chunk: 1 MiB.
pub const CHUNK_LEN_MAX: usize = model::map::CHUNK_BLOCKS_MAX as usize * model::BLOCK_LEN;

/// The most plain bytes of a record: 128 KiB.
pub const RECORD_LEN_MAX: usize = 128 << 10;

const WHAT: &str = "pack entry";

/// What an entry holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum EntryKind {
    /// Blocks, named by their chunk digest.
    Chunk = 1,
    /// A segment map, named by its map digest.
    SegmentMap = 2,
    /// A leaf of a manifest, named by the BLAKE3 of its bytes.
    ManifestLeaf = 3,
    /// The root of a manifest, named by its layout digest.
    Manifest = 4,
    /// What a publication tells of itself, named by the BLAKE3 of its bytes.
    Record = 5,
    /// A boot working set, named by the BLAKE3 of its bytes.
    BootSet = 6,
    /// Blocks of a boot working set, named by the BLAKE3 of their bytes. In no list: they are copies.
    BootPiece = 7,
    /// A document that is kept with a content, named by the BLAKE3 of its bytes.
    Document = 10,
}

impl EntryKind {
    /// The most plain bytes that an entry of this kind may have.
    pub fn plain_len_max(self) -> usize {
        match self {
            EntryKind::Chunk | EntryKind::BootPiece => CHUNK_LEN_MAX,
            EntryKind::SegmentMap
            | EntryKind::ManifestLeaf
            | EntryKind::Manifest
            | EntryKind::BootSet
            | EntryKind::Document => PLAIN_LEN_MAX,
            EntryKind::Record => RECORD_LEN_MAX,
        }
    }
}

impl TryFrom<u8> for EntryKind {
    type Error = FormatError;

    fn try_from(code: u8) -> Result<Self, FormatError> {
        match code {
            1 => Ok(EntryKind::Chunk),
            2 => Ok(EntryKind::SegmentMap),
            3 => Ok(EntryKind::ManifestLeaf),
            4 => Ok(EntryKind::Manifest),
            5 => Ok(EntryKind::Record),
            6 => Ok(EntryKind::BootSet),
            7 => Ok(EntryKind::BootPiece),
            10 => Ok(EntryKind::Document),
            _ => Err(unsound("kind", code.into())),
        }
    }
}

/// How an entry's bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Encoding {
    /// As they are.
    Plain = 0,
    /// As zstd frames, the first of which states its plain length.
    Zstd = 1,
}

impl Encoding {
    /// True where `plain_len` bytes can be stored in `stored_len` bytes.
    pub fn fits(self, stored_len: u64, plain_len: u32) -> bool {
        match self {
            Encoding::Plain => stored_len == u64::from(plain_len),
            Encoding::Zstd => stored_len > 0 && stored_len < u64::from(plain_len),
        }
    }
}

impl TryFrom<u8> for Encoding {
    type Error = FormatError;

    fn try_from(code: u8) -> Result<Self, FormatError> {
        match code {
            0 => Ok(Encoding::Plain),
            1 => Ok(Encoding::Zstd),
            _ => Err(unsound("encoding", code.into())),
        }
    }
}

/// Compresses entries. Keeps its context and its buffer, so one per thread is enough.
pub struct Encoder {
    compressor: Compressor<'static>,
    buffer: Vec<u8>,
}

impl Encoder {
    /// An encoder at a zstd level; levels beyond zstd's own are taken as the nearest it has.
    pub fn new(level: i32) -> Self {
        let range = zstd::compression_level_range();
        let level = level.clamp(*range.start(), *range.end());
        let compressor = Compressor::new(level).expect("zstd allocates a context");
        Encoder { compressor, buffer: Vec::new() }
    }

    /// Encodes the plain bytes of one entry: as zstd where that saves at least one byte in 32,
    /// else as they are. The answer has no spare capacity.
    pub fn encode(&mut self, plain: &[u8]) -> (Encoding, Vec<u8>) {
        self.buffer.clear();
        self.buffer.reserve(zstd_safe::compress_bound(plain.len()));
        let longest = plain.len() - plain.len() / 32;
        match self.compressor.compress_to_buffer(plain, &mut self.buffer) {
            Ok(len) if len <= longest && len < plain.len() => {
                (Encoding::Zstd, self.buffer.to_vec())
            }
            // Compression into a buffer of the bound's length has no other way to fail than a lack
            // of memory; plain is always right.
            _ => (Encoding::Plain, plain.to_vec()),
        }
    }
}

/// Decodes the stored bytes of one entry into exactly `plain_len` bytes.
///
/// Cost: one allocation of `plain_len` bytes, made only after the frame itself has named the same
/// length; the zstd context is the thread's own.
///
/// # Errors
/// Where `plain_len` is more than [`PLAIN_LEN_MAX`], the stored bytes are no zstd, or they hold
/// more or fewer bytes than `plain_len`: fetch another copy.
pub fn decode(encoding: Encoding, stored: &[u8], plain_len: u32) -> Result<Vec<u8>, FormatError> {
    if plain_len as usize > PLAIN_LEN_MAX {
        let (len, max) = (plain_len.into(), PLAIN_LEN_MAX as u64);
        return Err(FormatError::TooLong { what: WHAT, len, max });
    }
    if !encoding.fits(stored.len() as u64, plain_len) {
        return Err(unsound("stored length", stored.len() as u64));
    }
    match encoding {
        Encoding::Plain => Ok(stored.to_vec()),
        Encoding::Zstd => decompress(stored, plain_len),
    }
}

fn decompress(stored: &[u8], plain_len: u32) -> Result<Vec<u8>, FormatError> {
    thread_local! {
        static DECOMPRESSOR: RefCell<Decompressor<'static>> = RefCell::new(Decompressor::default());
    }
    match zstd_safe::get_frame_content_size(stored) {
        Ok(Some(len)) if len == u64::from(plain_len) => {}
        Ok(Some(len)) => return Err(unsound("plain length", len)),
        Ok(None) | Err(_) => {
            let reason = "the frame does not state its length".to_owned();
            return Err(FormatError::Decompress { what: WHAT, reason });
        }
    }
    let mut plain = Vec::with_capacity(plain_len as usize);
    DECOMPRESSOR
        .with_borrow_mut(|decompressor| decompressor.decompress_to_buffer(stored, &mut plain))
        .map_err(|error| FormatError::Decompress { what: WHAT, reason: error.to_string() })?;
    match plain.len() == plain_len as usize {
        true => Ok(plain),
        false => Err(unsound("plain length", plain.len() as u64)),
    }
}

fn unsound(field: &'static str, value: u64) -> FormatError {
    FormatError::Unsound { what: WHAT, field, offset: 0, value }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn an_entry_survives_its_encoding() {
        let mut encoder = Encoder::new(3);
        let mut mixed = noise(100_000);
        mixed.resize(262_144, 0);
        for (plain, expected) in [
            (vec![7; 262_144], Encoding::Zstd),
            (mixed, Encoding::Zstd),
            (noise(262_144), Encoding::Plain),
            (vec![1, 2, 3], Encoding::Plain),
            (Vec::new(), Encoding::Plain),
        ] {
            let (encoding, stored) = encoder.encode(&plain);
            assert_eq!(encoding, expected);
            assert!(stored.len() <= plain.len());
            assert_eq!(decode(encoding, &stored, plain.len() as u32).unwrap(), plain);
        }
    }

    #[test]
    fn an_entry_that_would_save_too_little_is_stored_plain() {
        let mut plain = noise(262_144);
        plain[..4096].fill(0);
        let (encoding, stored) = Encoder::new(3).encode(&plain);
        assert_eq!((encoding, stored.len()), (Encoding::Plain, plain.len()));
    }

    #[test]
    fn a_bomb_is_refused() {
        let plain = vec![0; PLAIN_LEN_MAX];
        let (_, stored) = Encoder::new(3).encode(&plain);
        assert!(stored.len() < 4096);
        for lie in [0, 1, 4096, PLAIN_LEN_MAX as u32 - 1, PLAIN_LEN_MAX as u32 + 1, u32::MAX] {
            assert!(decode(Encoding::Zstd, &stored, lie).is_err(), "plain length {lie}");
        }
        // A second frame behind an honest first one.
        let (_, honest) = Encoder::new(3).encode(&vec![0; 65_536]);
        let two = [honest.clone(), stored].concat();
        assert!(decode(Encoding::Zstd, &two, 65_536).is_err());
        assert!(decode(Encoding::Zstd, &honest, 65_536).is_ok());
    }

    #[test]
    fn levels_beyond_the_range_of_zstd_work() {
        for level in [i32::MIN, -1, 0, 22, i32::MAX] {
            let (encoding, stored) = Encoder::new(level).encode(&[5; 4096]);
            assert_eq!(decode(encoding, &stored, 4096).unwrap(), [5; 4096]);
        }
    }
}
