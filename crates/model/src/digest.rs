//! The digests that name things. Each is 32 bytes of BLAKE3; each kind is a type of its own, so
//! that a chunk's digest cannot be handed in where a layout's is meant.

use std::fmt;
use std::str::FromStr;

use crate::block::BLOCK_LEN;
use crate::block_hashing::{BLOCKS_AT_ONCE, digests_of};
use crate::{Error, Kind};

/// Bytes of every digest.
pub const DIGEST_LEN: usize = 32;

macro_rules! digest {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; DIGEST_LEN]);

        impl $name {
            /// The 32 bytes.
            pub fn as_bytes(&self) -> &[u8; DIGEST_LEN] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), &self.to_string()[..12])
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                parse_hex(text).map($name).ok_or_else(|| {
                    Error::new(Kind::Invalid, "read the digest", text)
                        .because("a digest is 64 hexadecimal digits")
                })
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

digest! {
    /// BLAKE3 of one block of 4096 bytes. A partial last block is padded with zeros first.
    BlockDigest
}
digest! {
    /// BLAKE3 over the digests of a chunk's blocks, in order.
    ChunkDigest
}
digest! {
    /// BLAKE3 over the digests of a segment's blocks, in order; a hole counts as 32 zero bytes.
    SegmentDigest
}
digest! {
    /// BLAKE3 over an encoded segment map.
    MapDigest
}
digest! {
    /// A version's identity: BLAKE3 over its length and the digests of its segments.
    ContentDigest
}
digest! {
    /// BLAKE3 over an encoded manifest: what lazy reads are verified against.
    LayoutDigest
}

impl BlockDigest {
    /// What a hole counts as where block digests are hashed.
    pub const HOLE: BlockDigest = BlockDigest([0; DIGEST_LEN]);

    /// Hashes one block. Shorter input is padded with zeros to a whole block.
    pub fn of(block: &[u8]) -> Self {
        debug_assert!(block.len() <= BLOCK_LEN);
        if block.len() == BLOCK_LEN {
            return BlockDigest(*blake3::hash(block).as_bytes());
        }
        let mut padded = [0; BLOCK_LEN];
        padded[..block.len()].copy_from_slice(block);
        BlockDigest(*blake3::hash(&padded).as_bytes())
    }

    /// Hashes the whole blocks that `bytes` consists of, in about half the time of one by one.
    ///
    /// Shape: bytes.len() == digests.len() * BLOCK_LEN
    pub fn of_each(bytes: &[u8], digests: &mut [BlockDigest]) {
        let (blocks, rest) = bytes.as_chunks::<BLOCK_LEN>();
        assert!(rest.is_empty() && blocks.len() == digests.len());
        let together = blocks.chunks(BLOCKS_AT_ONCE).zip(digests.chunks_mut(BLOCKS_AT_ONCE));
        for (blocks, digests) in together {
            let mut found = [&[0; BLOCK_LEN]; BLOCKS_AT_ONCE];
            found.iter_mut().zip(blocks).for_each(|(found, block)| *found = block);
            digests_of(&found[..blocks.len()], digests);
        }
    }

    /// True for one block digest in 64, chosen by its first byte: the blocks that the bounded
    /// index keeps.
    pub fn is_hook(&self) -> bool {
        self.0[0] & 0x3f == 0
    }

    /// The eight bytes by which an index keeps a hook. Not unique: verify with the whole digest.
    pub fn hook(&self) -> Hook {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.0[..8]);
        Hook(u64::from_le_bytes(bytes))
    }
}

/// The first eight bytes of a sampled block digest: leads to the packs that hold the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hook(pub u64);

impl ChunkDigest {
    /// Hashes the digests of a chunk's blocks.
    pub fn of(blocks: &[BlockDigest]) -> Self {
        ChunkDigest(hash_of_digests(blocks))
    }
}

impl SegmentDigest {
    /// Hashes the digests of a segment's blocks, holes as [`BlockDigest::HOLE`].
    pub fn of(blocks: &[BlockDigest]) -> Self {
        SegmentDigest(hash_of_digests(blocks))
    }
}

impl ContentDigest {
    /// Hashes a version's length and the digests of all its segments, in order.
    pub fn of(length: u64, segments: impl IntoIterator<Item = SegmentDigest>) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&length.to_le_bytes());
        // In long pieces, as below: a disk of 16 TiB has 8 MiB of digests, and is hashed at each attach.
        let mut piece = [0; DIGESTS_AT_ONCE * DIGEST_LEN];
        let mut count = 0;
        for segment in segments {
            piece.as_chunks_mut().0[count] = segment.0;
            count += 1;
            if count == DIGESTS_AT_ONCE {
                hasher.update(&piece);
                count = 0;
            }
        }
        hasher.update(&piece[..count * DIGEST_LEN]);
        ContentDigest(*hasher.finalize().as_bytes())
    }
}

fn hash_of_digests(blocks: &[BlockDigest]) -> [u8; DIGEST_LEN] {
    let mut hasher = blake3::Hasher::new();
    // In long pieces, which the crate hashes several lanes at a time.
    let mut piece = [0; DIGESTS_AT_ONCE * DIGEST_LEN];
    for blocks in blocks.chunks(DIGESTS_AT_ONCE) {
        for (to, block) in piece.as_chunks_mut().0.iter_mut().zip(blocks) {
            *to = block.0;
        }
        hasher.update(&piece[..blocks.len() * DIGEST_LEN]);
    }
    *hasher.finalize().as_bytes()
}

/// How many digests are handed on to be hashed together: 16 KiB, and most chunks' all.
const DIGESTS_AT_ONCE: usize = 512;

fn parse_hex(text: &str) -> Option<[u8; DIGEST_LEN]> {
    if text.len() != 2 * DIGEST_LEN || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; DIGEST_LEN];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_survives_its_text() {
        let digest = ChunkDigest::of(&[BlockDigest::of(b"a"), BlockDigest::of(b"b")]);
        assert_eq!(digest.to_string().parse::<ChunkDigest>().unwrap(), digest);
        assert!("xyz".parse::<ChunkDigest>().is_err());
        assert!("+0".repeat(32).parse::<ChunkDigest>().is_err());
    }

    #[test]
    fn blocks_are_hashed_together_as_one_by_one() {
        for count in [0, 1, 15, 16, 17, 40] {
            let mut bytes = vec![0; count * BLOCK_LEN];
            blake3::Hasher::new().finalize_xof().fill(&mut bytes);
            let mut digests = vec![BlockDigest::HOLE; count];
            BlockDigest::of_each(&bytes, &mut digests);
            assert!(digests.into_iter().eq(bytes.chunks(BLOCK_LEN).map(BlockDigest::of)));
        }
    }

    #[test]
    fn many_digests_are_hashed_as_their_bytes_are() {
        for count in [0, 1, DIGESTS_AT_ONCE, 2 * DIGESTS_AT_ONCE + 3] {
            let digests: Vec<_> =
                (0..count).map(|number| BlockDigest::of(&number.to_le_bytes())).collect();
            let bytes: Vec<u8> = digests.iter().flat_map(|digest| digest.0).collect();
            assert_eq!(SegmentDigest::of(&digests).0, *blake3::hash(&bytes).as_bytes());
        }
    }

    #[test]
    fn a_short_block_is_padded_with_zeros() {
        let mut whole = vec![0; BLOCK_LEN];
        whole[0] = 7;
        assert_eq!(BlockDigest::of(&[7]), BlockDigest::of(&whole));
    }
}
