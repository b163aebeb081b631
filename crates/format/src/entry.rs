//! How one entry of a pack is stored: plain, or as one zstd frame.

use std::cell::RefCell;

use crate::error::FormatError;

/// The longest entry, unpacked: 4 MiB. Chunks are at most 1 MiB, maps and leaves far less.
pub const PLAIN_LEN_MAX: usize = 4 << 20;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// Blocks.
    Chunk = 1,
    /// The map of a segment.
    SegmentMap = 2,
    /// A leaf of a manifest.
    ManifestLeaf = 3,
    /// The root of a manifest.
    Manifest = 4,
}

/// How an entry is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Encoding {
    /// As it is.
    Plain = 0,
    /// As one zstd frame.
    Zstd = 1,
}

impl TryFrom<u8> for EntryKind {
    type Error = FormatError;

    fn try_from(value: u8) -> Result<Self, FormatError> {
        match value {
            1 => Ok(EntryKind::Chunk),
            2 => Ok(EntryKind::SegmentMap),
            3 => Ok(EntryKind::ManifestLeaf),
            4 => Ok(EntryKind::Manifest),
            _ => Err(FormatError::Unsound { what: "entry", field: "kind", value: value.into() }),
        }
    }
}

impl TryFrom<u8> for Encoding {
    type Error = FormatError;

    fn try_from(value: u8) -> Result<Self, FormatError> {
        match value {
            0 => Ok(Encoding::Plain),
            1 => Ok(Encoding::Zstd),
            _ => {
                Err(FormatError::Unsound { what: "entry", field: "encoding", value: value.into() })
            }
        }
    }
}

/// Compresses entries. One for each thread: it keeps its tables.
pub struct Encoder {
    compressor: Option<zstd::bulk::Compressor<'static>>,
}

impl Encoder {
    /// An encoder of a zstd level; a level that zstd does not have stores plain.
    pub fn new(level: i32) -> Self {
        Encoder { compressor: zstd::bulk::Compressor::new(level).ok() }
    }

    /// Stores plain what compression does not make at least one part in 32 smaller: reading it back
    /// costs nothing then.
    pub fn encode(&mut self, plain: &[u8]) -> (Encoding, Vec<u8>) {
        let compressed = self.compressor.as_mut().and_then(|zstd| zstd.compress(plain).ok());
        match compressed {
            Some(mut stored) if stored.len() <= plain.len() - plain.len() / 32 => {
                stored.shrink_to_fit();
                (Encoding::Zstd, stored)
            }
            _ => (Encoding::Plain, plain.to_vec()),
        }
    }
}

/// Unpacks an entry that is `plain_len` bytes long.
///
/// # Errors
/// Where the bytes are no sound frame or not exactly that long: a bomb is cut off at `plain_len`.
pub fn decode(encoding: Encoding, stored: &[u8], plain_len: u32) -> Result<Vec<u8>, FormatError> {
    thread_local! {
        static ZSTD: RefCell<Option<zstd::bulk::Decompressor<'static>>> =
            RefCell::new(zstd::bulk::Decompressor::new().ok());
    }
    let unsound =
        |value: usize| FormatError::Unsound { what: "entry", field: "length", value: value as u64 };
    let len = plain_len as usize;
    if len > PLAIN_LEN_MAX {
        return Err(unsound(len));
    }
    let plain = match encoding {
        Encoding::Plain => stored.to_vec(),
        Encoding::Zstd => ZSTD.with_borrow_mut(|zstd| {
            zstd.as_mut()
                .and_then(|zstd| zstd.decompress(stored, len).ok())
                .ok_or(FormatError::Checksum { what: "entry" })
        })?,
    };
    match plain.len() == len {
        true => Ok(plain),
        false => Err(unsound(plain.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_and_what_does_not_shrink_is_plain() {
        let mut encoder = Encoder::new(3);
        let noise: Vec<u8> =
            (0..40_000u32).flat_map(|n| *blake3::hash(&n.to_le_bytes()).as_bytes()).collect();
        for (plain, expected) in [
            (vec![7; 10_000], Encoding::Zstd),
            (noise, Encoding::Plain),
            (Vec::new(), Encoding::Plain),
        ] {
            let (encoding, stored) = encoder.encode(&plain);
            assert_eq!(encoding, expected);
            assert_eq!(decode(encoding, &stored, plain.len() as u32).unwrap(), plain);
        }
    }

    #[test]
    fn a_frame_that_holds_more_or_less_than_it_should_is_refused() {
        let (encoding, stored) = Encoder::new(3).encode(&vec![0; 1 << 20]);
        for plain_len in [0, 1, (1 << 20) - 1, (1 << 20) + 1, u32::MAX] {
            assert!(decode(encoding, &stored, plain_len).is_err(), "{plain_len}");
        }
        assert!(decode(Encoding::Zstd, b"rubbish", 10).is_err());
        assert!(decode(Encoding::Plain, b"rubbish", 10).is_err());
    }
}
