//! Which blocks of a base are local: the checkpoint that survives power loss, and the live bits
//! that survive the death of a process. The page is `docs/formats/presence.md`.
//!
//! ```text
//! 0        64          4096              4096 + 2048          ...
//! | header |  zeros    | bits, segment 0 | bits, segment 1 |  ...
//! ```
//!
//! **Invariants**: a bit that is set stays set for as long as the block's bytes stay; so bits of
//! different writes may mix, also within a sector. Decoding is total.

use model::ContentDigest;
use model::block::{BLOCKS_PER_SEGMENT, LENGTH_MAX};

use crate::checked::{checksum, part};

/// Bytes of the header.
pub const PRESENCE_HEADER_LEN: usize = 64;

/// Words of 64 bits per segment; block `b` of a segment is bit `b % 64` of word `b / 64`.
pub const WORDS_PER_SEGMENT: usize = (BLOCKS_PER_SEGMENT / 64) as usize;

/// Bytes of one segment's bits.
pub const PRESENCE_SEGMENT_LEN: usize = WORDS_PER_SEGMENT * 8;

const FORMAT: u32 = 1;
const BITS_OFFSET: u64 = 4096;

/// What is wrong with a header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PresenceError {
    /// The file does not begin as it must, or its header is damaged.
    #[error("it does not begin as presence bits do")]
    NotPresence,
    /// The file was made by a newer Larder.
    #[error("its format is {found}, and this Larder knows {FORMAT} only")]
    Format {
        /// The format's number.
        found: u32,
    },
}

/// Which of the two files it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PresenceKind {
    /// Bits of blocks whose bytes are durable.
    Checkpoint,
    /// Bits of blocks whose bytes are in the page cache of the boot that the file's name tells.
    Live,
}

/// The header: what the bits are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PresenceHeader {
    /// Which of the two files it is.
    pub kind: PresenceKind,
    /// The content of the base.
    pub content: ContentDigest,
    /// Bytes of the base, as a guest sees it.
    pub length: u64,
}

impl PresenceHeader {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; PRESENCE_HEADER_LEN] {
        let mut bytes = [0; PRESENCE_HEADER_LEN];
        bytes[..8].copy_from_slice(magic(self.kind));
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.length.to_le_bytes());
        bytes[24..56].copy_from_slice(self.content.as_bytes());
        let sum = checksum(&bytes[..56]);
        bytes[56..].copy_from_slice(&sum);
        bytes
    }

    /// Reads a header.
    pub fn decode(bytes: &[u8; PRESENCE_HEADER_LEN]) -> Result<Self, PresenceError> {
        let kinds = [PresenceKind::Checkpoint, PresenceKind::Live];
        let kind = kinds.into_iter().find(|kind| bytes[..8] == magic(*kind)[..]);
        let kind = kind.ok_or(PresenceError::NotPresence)?;
        let found = u32::from_le_bytes(part(bytes, 8));
        if found != FORMAT {
            return Err(PresenceError::Format { found });
        }
        let length = u64::from_le_bytes(part(bytes, 16));
        if bytes[56..] != checksum(&bytes[..56]) || length > LENGTH_MAX {
            return Err(PresenceError::NotPresence);
        }
        Ok(PresenceHeader { kind, content: ContentDigest(part(bytes, 24)), length })
    }
}

/// Where the bits of a segment are.
pub fn segment_offset(segment: u32) -> u64 {
    BITS_OFFSET + u64::from(segment) * PRESENCE_SEGMENT_LEN as u64
}

/// The words of a segment's bits; words that `bytes` does not reach are 0.
pub fn decode_words(bytes: &[u8]) -> [u64; WORDS_PER_SEGMENT] {
    let mut words = [0; WORDS_PER_SEGMENT];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
    }
    words
}

fn magic(kind: PresenceKind) -> &'static [u8; 8] {
    match kind {
        PresenceKind::Checkpoint => b"LARDPRES",
        PresenceKind::Live => b"LARDPLIV",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXAMPLE: PresenceHeader = PresenceHeader {
        kind: PresenceKind::Checkpoint,
        content: ContentDigest([7; 32]),
        length: (64 << 20) + 1,
    };

    #[test]
    fn the_layout_is_that_of_the_golden_file() {
        let mut bytes = vec![0; segment_offset(2) as usize];
        bytes[..PRESENCE_HEADER_LEN].copy_from_slice(&EXAMPLE.encode());
        let at = segment_offset(1) as usize;
        bytes[at..at + 8].copy_from_slice(&0x8000_0000_0000_0005u64.to_le_bytes());
        let golden = include_bytes!("../golden/presence-1.bin");
        assert!(bytes == golden, "the bytes on disk are a promise");
        assert_eq!(PresenceHeader::decode(&part(golden, 0)), Ok(EXAMPLE));
        let words = decode_words(&golden[at..]);
        assert_eq!((words[0], words[1]), (0x8000_0000_0000_0005, 0));
    }

    #[test]
    fn a_newer_format_is_told_apart_from_damage() {
        let mut bytes = EXAMPLE.encode();
        bytes[8] = 9;
        assert_eq!(PresenceHeader::decode(&bytes), Err(PresenceError::Format { found: 9 }));
    }

    proptest! {
        #[test]
        fn a_damaged_header_is_refused(at in 0usize..64, flip in 1u8..) {
            let mut bytes = EXAMPLE.encode();
            bytes[at] ^= flip;
            prop_assert!(PresenceHeader::decode(&bytes).is_err());
            let _ = decode_words(&bytes[at..]);
        }
    }
}
