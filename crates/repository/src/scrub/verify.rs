//! Whether bytes are what a digest names.

use catalog::{EntryDigest, EntryRecord};
use format::entry::{Encoding, EntryKind, decode};
use model::{BLOCK_LEN, BlockDigest, ChunkDigest};

/// An entry's plain bytes, verified; with the digests of its blocks where it is a chunk.
#[derive(Clone, Debug)]
pub struct Verified {
    pub kind: EntryKind,
    pub digest: EntryDigest,
    pub plain: Vec<u8>,
    pub blocks: Vec<BlockDigest>,
}

/// Decodes stored bytes and compares their digest.
///
/// # Errors
/// Why they are not what the digest names, in words.
pub fn verify(record: &EntryRecord, stored: &[u8]) -> Result<Verified, String> {
    let kind = EntryKind::try_from(record.kind).map_err(|error| error.to_string())?;
    let encoding = Encoding::try_from(record.encoding).map_err(|error| error.to_string())?;
    let plain = decode(encoding, stored, record.plain_len).map_err(|error| error.to_string())?;
    verify_plain(kind, record.digest, plain)
}

/// Compares the digest of plain bytes.
pub fn verify_plain(
    kind: EntryKind,
    digest: EntryDigest,
    plain: Vec<u8>,
) -> Result<Verified, String> {
    let blocks: Vec<BlockDigest> = match kind {
        EntryKind::Chunk => plain.chunks(BLOCK_LEN).map(BlockDigest::of).collect(),
        _ => Vec::new(),
    };
    let found = match kind {
        EntryKind::Chunk => ChunkDigest::of(&blocks).0,
        _ => *blake3::hash(&plain).as_bytes(),
    };
    // A kind that a damaged row made up may not allow so many bytes.
    let fits = (1..=kind.plain_len_max()).contains(&plain.len())
        && (kind != EntryKind::Chunk || plain.len().is_multiple_of(BLOCK_LEN));
    match found == digest && fits {
        true => Ok(Verified { kind, digest, plain, blocks }),
        false => Err("its bytes have another digest".to_string()),
    }
}
