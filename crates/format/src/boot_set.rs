//! Boot working sets as bytes: sources with their block digests, reads in order, pieces.
//!
//! ```text
//! | LBTS | format | source count | read count | piece count |
//! sources: | chunk digest | block count u16 | block digests |   each
//! reads:   | first block u64 | at ms u32 | source u32 | block count u16 | first in chunk u16 |
//! pieces:  | digest | block count u16 |
//! ```
//!
//! **Failure**: counts are compared with the bytes at hand before memory is taken; parts that do not
//! fit together are refused. Whether the set is that of a version only the version's maps tell.

use model::boot_set::{BootPiece, BootRead, BootSet, BootSource, FirstRead};
use model::{BlockDigest, ChunkDigest};

use crate::FormatError;
use crate::cursor::Cursor;

/// The format number that [`encode_boot_set`] writes.
pub const BOOT_SET_FORMAT: u32 = 1;

const WHAT: &str = "boot working set";
const MAGIC: [u8; 4] = *b"LBTS";
pub(crate) const HEADER_LEN: usize = 20;
const READ_LEN: usize = 20;
const PIECE_LEN: usize = 34;

/// Encodes a set.
pub fn encode_boot_set(set: &BootSet) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&BOOT_SET_FORMAT.to_le_bytes());
    for count in [set.sources().len(), set.reads().len(), set.pieces().len()] {
        bytes.extend_from_slice(&(count as u32).to_le_bytes());
    }
    for source in set.sources() {
        bytes.extend_from_slice(source.chunk.as_bytes());
        bytes.extend_from_slice(&(source.blocks.len() as u16).to_le_bytes());
        source.blocks.iter().for_each(|block| bytes.extend_from_slice(block.as_bytes()));
    }
    for BootRead { read, source, first_in_chunk } in set.reads() {
        bytes.extend_from_slice(&read.first_block.to_le_bytes());
        bytes.extend_from_slice(&read.at_ms.to_le_bytes());
        bytes.extend_from_slice(&source.to_le_bytes());
        bytes.extend_from_slice(&(read.block_count as u16).to_le_bytes());
        bytes.extend_from_slice(&(*first_in_chunk as u16).to_le_bytes());
    }
    for piece in set.pieces() {
        bytes.extend_from_slice(&piece.digest);
        bytes.extend_from_slice(&(piece.block_count as u16).to_le_bytes());
    }
    bytes
}

/// Decodes a set. Cost: one hash over the digests of each source.
///
/// # Errors
/// Where the bytes are cut short, a newer Larder wrote them, or the parts do not fit together: do
/// without the set.
pub fn decode_boot_set(bytes: &[u8]) -> Result<BootSet, FormatError> {
    let mut cursor = Cursor::new(WHAT, bytes);
    cursor.preamble(MAGIC, BOOT_SET_FORMAT)?;
    let [source_count, read_count, piece_count] =
        [cursor.u32()?, cursor.u32()?, cursor.u32()?].map(|count| count as usize);
    let mut sources = Vec::new();
    for _ in 0..source_count {
        let chunk = ChunkDigest(cursor.array()?);
        let count = usize::from(cursor.u16()?);
        let (blocks, _) = cursor.take(count * 32)?.as_chunks::<32>();
        sources
            .push(BootSource { chunk, blocks: blocks.iter().copied().map(BlockDigest).collect() });
    }
    if cursor.remaining() / READ_LEN < read_count {
        return Err(FormatError::Truncated { what: WHAT, offset: bytes.len() as u64 });
    }
    let mut reads = Vec::with_capacity(read_count);
    for _ in 0..read_count {
        let (first_block, at_ms, source) = (cursor.u64()?, cursor.u32()?, cursor.u32()?);
        let (block_count, first_in_chunk) = (cursor.u16()?.into(), cursor.u16()?.into());
        let read = FirstRead { first_block, block_count, at_ms };
        reads.push(BootRead { read, source, first_in_chunk });
    }
    if cursor.remaining() / PIECE_LEN < piece_count {
        return Err(FormatError::Truncated { what: WHAT, offset: bytes.len() as u64 });
    }
    let mut pieces = Vec::with_capacity(piece_count);
    for _ in 0..piece_count {
        pieces.push(BootPiece { digest: cursor.array()?, block_count: cursor.u16()?.into() });
    }
    cursor.end()?;
    BootSet::new(sources, reads, pieces).ok_or(FormatError::Unsound {
        what: WHAT,
        field: "parts",
        offset: 8,
        value: 0,
    })
}
