//! A chunk that was digested on the way in.

use std::sync::Arc;

use model::{BLOCK_LEN, BlockDigest, ChunkDigest, Error, Kind, Result};

/// The plain bytes of a chunk whose digest was checked. Cheap to copy.
#[derive(Clone, Debug)]
pub struct Chunk {
    digest: ChunkDigest,
    /// As it came: a slice would be a copy.
    bytes: Arc<Vec<u8>>,
}

impl Chunk {
    /// Takes plain bytes as the chunk `digest` after hashing every block. Cost: one BLAKE3 pass.
    ///
    /// # Errors
    /// `Corrupt` where the bytes are not those that the digest names: fetch another copy.
    pub fn verify(digest: ChunkDigest, bytes: Vec<u8>) -> Result<Self> {
        let corrupt = || {
            Error::new(Kind::Corrupt, "verify the chunk", digest.to_string())
                .because("its bytes have another digest")
        };
        if bytes.is_empty() || !bytes.len().is_multiple_of(BLOCK_LEN) {
            return Err(corrupt());
        }
        let mut blocks = vec![BlockDigest::HOLE; bytes.len() / BLOCK_LEN];
        BlockDigest::of_each(&bytes, &mut blocks);
        if ChunkDigest::of(&blocks) != digest {
            return Err(corrupt());
        }
        Ok(Chunk { digest, bytes: Arc::new(bytes) })
    }

    /// The chunk's name.
    pub fn digest(&self) -> ChunkDigest {
        self.digest
    }

    /// All its bytes; a whole number of blocks.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes of `block_count` blocks from `first`.
    ///
    /// # Errors
    /// `Corrupt` where the chunk has not that many blocks: the map that says so is wrong.
    pub fn blocks(&self, first: u32, block_count: u32) -> Result<&[u8]> {
        let start = first as usize * BLOCK_LEN;
        let end = start + block_count as usize * BLOCK_LEN;
        self.bytes.get(start..end).ok_or_else(|| {
            Error::new(Kind::Corrupt, "read blocks of the chunk", self.digest.to_string())
                .because("the segment map names blocks that it does not have")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_with_a_flipped_bit_is_refused() {
        let mut bytes = vec![5; 2 * BLOCK_LEN];
        let digests: Vec<_> = bytes.chunks(BLOCK_LEN).map(BlockDigest::of).collect();
        let digest = ChunkDigest::of(&digests);
        let chunk = Chunk::verify(digest, bytes.clone()).unwrap();
        assert_eq!(chunk.blocks(1, 1).unwrap(), &bytes[BLOCK_LEN..]);
        assert_eq!(chunk.blocks(1, 2).unwrap_err().kind(), Kind::Corrupt);
        bytes[BLOCK_LEN] ^= 1;
        assert_eq!(Chunk::verify(digest, bytes).unwrap_err().kind(), Kind::Corrupt);
    }
}
