//! Digests of many blocks at once, as wide as the processor's vectors are.
//!
//! ```text
//!              lane 0    lane 1   ...  lane 15
//!   chunk 0    block 0   block 1  ...  block 15     four passes over 1024 bytes of each block
//!   chunk 1    block 0   block 1  ...  block 15
//!   ...
//!   parents    (0, 1) and (2, 3) of each block, then the root of each block
//! ```
//!
//! BLAKE3 cuts 4 KiB into four chunks, so a block by itself fills four lanes of up to sixteen. Taken
//! together, blocks are hashed as fast as one long input: 5.5 GB/s instead of 3.2 on one core with
//! AVX-512.
//!
//! The tree is built here from the crate's own vector code, which it shows (`blake3::platform`) but
//! does not promise. A version that moves it fails to build, and one that changes it fails the test;
//! [`BlockDigest::of`] in a loop does the same.
//!
//! **Source**: BLAKE3 specification, sections 2.1 to 2.5; bench/runs "import", rows "hashing".

use blake3::IncrementCounter;
use blake3::platform::Platform;

use crate::block::BLOCK_LEN;
use crate::digest::{BlockDigest, DIGEST_LEN};

/// How many blocks are hashed together: the most lanes that a processor has.
pub const BLOCKS_AT_ONCE: usize = 16;

/// Bytes of BLAKE3's chunks, its leaves.
const LEAF_LEN: usize = 1024;
const LEAF_COUNT: usize = BLOCK_LEN / LEAF_LEN;
const _: () = assert!(LEAF_COUNT == 4, "two levels of parents");

/// The initial chaining value: SHA-256's.
const START: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

const LEAF_START: u8 = 1 << 0;
const LEAF_END: u8 = 1 << 1;
const PARENT: u8 = 1 << 2;
const ROOT: u8 = 1 << 3;

type Pair = [u8; 2 * DIGEST_LEN];

/// The digests of at most [`BLOCKS_AT_ONCE`] blocks.
///
/// Shape: digests.len() == blocks.len()
pub fn digests_of(blocks: &[&[u8; BLOCK_LEN]], digests: &mut [BlockDigest]) {
    let count = blocks.len();
    assert!(count <= BLOCKS_AT_ONCE && count == digests.len());
    let platform = Platform::detect();
    let mut leaves = [[0; BLOCKS_AT_ONCE * DIGEST_LEN]; LEAF_COUNT];
    for (number, values) in leaves.iter_mut().enumerate() {
        let mut inputs = [&[0; LEAF_LEN]; BLOCKS_AT_ONCE];
        for (input, block) in inputs.iter_mut().zip(blocks) {
            *input = &block.as_chunks().0[number];
        }
        let (counter, same) = (number as u64, IncrementCounter::No);
        let inputs = &inputs[..count];
        platform.hash_many(inputs, &START, counter, same, 0, LEAF_START, LEAF_END, values);
    }
    let [first, second, third, fourth] = &leaves;
    let left = parents(platform, first, second, count, PARENT);
    let right = parents(platform, third, fourth, count, PARENT);
    let roots = parents(platform, &left, &right, count, PARENT | ROOT);
    for (digest, root) in digests.iter_mut().zip(roots.as_chunks().0) {
        *digest = BlockDigest(*root);
    }
}

/// The chaining values of the parents of each block's two children.
fn parents(
    platform: Platform,
    left: &[u8; BLOCKS_AT_ONCE * DIGEST_LEN],
    right: &[u8; BLOCKS_AT_ONCE * DIGEST_LEN],
    count: usize,
    flags: u8,
) -> [u8; BLOCKS_AT_ONCE * DIGEST_LEN] {
    let mut pairs: [Pair; BLOCKS_AT_ONCE] = [[0; 2 * DIGEST_LEN]; BLOCKS_AT_ONCE];
    let children = left.chunks_exact(DIGEST_LEN).zip(right.chunks_exact(DIGEST_LEN));
    for (pair, (left, right)) in pairs.iter_mut().zip(children) {
        pair[..DIGEST_LEN].copy_from_slice(left);
        pair[DIGEST_LEN..].copy_from_slice(right);
    }
    let inputs = pairs.each_ref();
    let mut values = [0; BLOCKS_AT_ONCE * DIGEST_LEN];
    let (inputs, same) = (&inputs[..count], IncrementCounter::No);
    platform.hash_many(inputs, &START, 0, same, flags, 0, 0, &mut values);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_hashed_together_have_the_digests_that_each_has_alone() {
        let mut bytes = vec![0; BLOCKS_AT_ONCE * BLOCK_LEN];
        blake3::Hasher::new().update(b"blocks").finalize_xof().fill(&mut bytes);
        // Zeros, ones, and blocks that differ in their last byte only.
        bytes[3 * BLOCK_LEN..4 * BLOCK_LEN].fill(0);
        bytes[4 * BLOCK_LEN..6 * BLOCK_LEN].fill(0xff);
        bytes[6 * BLOCK_LEN - 1] = 0;
        let (blocks, _) = bytes.as_chunks::<BLOCK_LEN>();
        let blocks: Vec<&[u8; BLOCK_LEN]> = blocks.iter().collect();
        for first in 0..BLOCKS_AT_ONCE {
            for end in first..=BLOCKS_AT_ONCE {
                let mut digests = vec![BlockDigest::HOLE; end - first];
                digests_of(&blocks[first..end], &mut digests);
                let alone = blocks[first..end].iter().map(|block| BlockDigest::of(*block));
                assert!(digests.into_iter().eq(alone), "{first}..{end}");
            }
        }
    }
}
