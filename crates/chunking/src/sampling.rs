//! Which blocks an index keeps as hooks.
//!
//! **Invariant**: the choice hangs on the digest alone, so whoever writes a block and whoever looks
//! for it choose alike; what a sparser sampling keeps, a denser one keeps too.

use model::BlockDigest;

/// One block digest in so many, chosen by the low bits of its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling {
    mask: u8,
}

impl Sampling {
    /// One in 64: what [`BlockDigest::is_hook`] says, and what repositories are written with.
    pub const DEFAULT: Sampling = Sampling { mask: 0x3f };

    /// One in `count`, which is a power of two up to 128.
    pub fn one_in(count: u8) -> Option<Self> {
        count.is_power_of_two().then(|| Sampling { mask: count - 1 })
    }

    /// Whether this block is a hook. A hole is none.
    pub fn keeps(self, digest: &BlockDigest) -> bool {
        digest.0[0] & self.mask == 0 && *digest != BlockDigest::HOLE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_keeps_what_is_a_hook_and_a_denser_one_keeps_that_too() {
        let denser = Sampling::one_in(8).unwrap();
        let mut kept = [0; 2];
        for number in 0..64_000_u32 {
            let digest = BlockDigest::of(&number.to_le_bytes());
            assert_eq!(Sampling::DEFAULT.keeps(&digest), digest.is_hook());
            assert!(denser.keeps(&digest) || !digest.is_hook());
            kept[0] += u32::from(digest.is_hook());
            kept[1] += u32::from(denser.keeps(&digest));
        }
        assert!((900..1100).contains(&kept[0]) && (7500..8500).contains(&kept[1]), "{kept:?}");
        assert!(!Sampling::DEFAULT.keeps(&BlockDigest::HOLE));
        assert_eq!((Sampling::one_in(0), Sampling::one_in(48)), (None, None));
        assert_eq!(Sampling::one_in(64), Some(Sampling::DEFAULT));
    }
}
