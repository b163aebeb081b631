//! Chunks that a host keeps, compressed, one behind the other in a file. The page is
//! `docs/formats/chunk-cache.md`.
//!
//! ```text
//! 0        64                       64 + stored length
//! | header | stored bytes of a chunk | header | stored bytes | ...
//! ```
//!
//! **Invariants**: decoding is total. A header that is sound says nothing of the bytes behind it: these
//! are what they should be where the chunk's digest says so.

use model::ChunkDigest;

use crate::checked::{checksum, part};
use crate::entry::{CHUNK_LEN_MAX, Encoding};

/// Bytes of a header.
pub const KEPT_CHUNK_HEADER_LEN: usize = 64;

const MAGIC: &[u8; 8] = b"LARDKEPT";
const FORMAT: u32 = 1;

/// What stands before the bytes of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptChunkHeader {
    /// The chunk.
    pub digest: ChunkDigest,
    /// How its bytes are stored.
    pub encoding: Encoding,
    /// How many bytes follow.
    pub stored_len: u32,
    /// How many they are when decoded.
    pub plain_len: u32,
}

impl KeptChunkHeader {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; KEPT_CHUNK_HEADER_LEN] {
        let mut bytes = [0; KEPT_CHUNK_HEADER_LEN];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[12..16].copy_from_slice(&u32::from(self.encoding as u8).to_le_bytes());
        bytes[16..48].copy_from_slice(self.digest.as_bytes());
        bytes[48..52].copy_from_slice(&self.stored_len.to_le_bytes());
        bytes[52..56].copy_from_slice(&self.plain_len.to_le_bytes());
        let sum = checksum(&bytes[..56]);
        bytes[56..].copy_from_slice(&sum);
        bytes
    }

    /// Reads a header; `None` where these bytes are none that this Larder knows: nothing is lost but
    /// what can be fetched again.
    pub fn decode(bytes: &[u8; KEPT_CHUNK_HEADER_LEN]) -> Option<Self> {
        let number = |at: usize| u32::from_le_bytes(part(bytes, at));
        if bytes[..8] != MAGIC[..] || number(8) != FORMAT || bytes[56..] != checksum(&bytes[..56]) {
            return None;
        }
        let encoding = Encoding::try_from(u8::try_from(number(12)).ok()?).ok()?;
        let (stored_len, plain_len) = (number(48), number(52));
        let is_sound = plain_len as usize <= CHUNK_LEN_MAX
            && encoding.fits(stored_len.into(), plain_len)
            && stored_len > 0;
        let digest = ChunkDigest(part(bytes, 16));
        is_sound.then_some(KeptChunkHeader { digest, encoding, stored_len, plain_len })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXAMPLE: KeptChunkHeader = KeptChunkHeader {
        digest: ChunkDigest([7; 32]),
        encoding: Encoding::Zstd,
        stored_len: 1000,
        plain_len: 262_144,
    };

    #[test]
    fn the_layout_is_that_of_the_golden_file() {
        let golden = include_bytes!("../golden/kept-chunk-1.bin");
        assert!(EXAMPLE.encode() == *golden, "the bytes on disk are a promise");
        assert_eq!(KeptChunkHeader::decode(golden), Some(EXAMPLE));
    }

    proptest! {
        #[test]
        fn a_damaged_header_is_none(at in 0usize..64, flip in 1u8..) {
            let mut bytes = EXAMPLE.encode();
            bytes[at] ^= flip;
            prop_assert_eq!(KeptChunkHeader::decode(&bytes), None);
        }
    }

    #[test]
    fn lengths_that_cannot_be_are_none() {
        for (encoding, stored_len, plain_len) in [
            (Encoding::Plain, 4096, 8192),
            (Encoding::Plain, 0, 0),
            (Encoding::Zstd, 8192, 4096),
            (Encoding::Zstd, 0, 4096),
            (Encoding::Zstd, 10, u32::MAX),
        ] {
            let header = KeptChunkHeader { encoding, stored_len, plain_len, ..EXAMPLE };
            assert_eq!(KeptChunkHeader::decode(&header.encode()), None);
        }
    }
}
