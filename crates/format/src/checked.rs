//! Headers of a fixed length that end in a checksum of themselves.

/// The first eight bytes of the BLAKE3 digest.
pub(crate) fn checksum(bytes: &[u8]) -> [u8; 8] {
    part(blake3::hash(bytes).as_bytes(), 0)
}

/// The `N` bytes at `at`. Panics where the header is shorter: its length was looked at before.
pub(crate) fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}
