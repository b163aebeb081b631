//! What a stocked boot working set consists of, and where in the stocked bytes each part lies.
//!
//! ```text
//! [ blocks of the set, in its order ][ parts, each from a block boundary ][ index ][ trailer ]
//! index:   | LSTK | format | block count | part count | parts: | kind u8 | digest | offset u64 | len u32 |
//! trailer: | offset of the index u64 | len of the index u32 | LSTK |
//! ```
//!
//! A part starts on a block so that equal parts of two sets are equal blocks, which are stored once.
//!
//! **Failure**: lengths are compared with the bytes at hand; parts outside of the stocked bytes, or not
//! on a block, are refused. What a part holds only its digest tells.

use model::{BLOCK_LEN, ChunkDigest};

use crate::FormatError;
use crate::cursor::Cursor;

/// The format number that [`StockIndex::encode`] writes.
pub const STOCK_FORMAT: u32 = 1;

/// Bytes of the trailer.
pub const TRAILER_LEN: usize = 16;

/// The most bytes of an index: for 90,000 parts.
pub const INDEX_LEN_MAX: usize = 4 << 20;

const WHAT: &str = "stock index";
const TRAILER: &str = "stock trailer";
const MAGIC: [u8; 4] = *b"LSTK";
const PART_LEN: usize = 45;

/// What a part holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum PartKind {
    /// The root of a manifest, named by its layout digest.
    Manifest = 1,
    /// A leaf of a manifest, named by the BLAKE3 of its bytes.
    ManifestLeaf = 2,
    /// A segment map, named by its map digest.
    SegmentMap = 3,
    /// The digests of a source's blocks, named by the chunk digest.
    Source = 4,
    /// The set without its sources' digests, named by the BLAKE3 of the whole set.
    Frame = 5,
}

/// A part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StockPart {
    /// What it holds.
    pub kind: PartKind,
    /// Its name.
    pub digest: [u8; 32],
    /// Where it starts, a multiple of the block length.
    pub offset: u64,
    /// Its bytes.
    pub len: u32,
}

/// The index of a stocked set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StockIndex {
    /// How many blocks of the set lie at the start.
    pub block_count: u32,
    /// The parts behind them.
    pub parts: Vec<StockPart>,
}

impl StockIndex {
    /// The index, and the trailer behind it. The index will start at `offset`.
    pub fn encode(&self, offset: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(16 + self.parts.len() * PART_LEN + TRAILER_LEN);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&STOCK_FORMAT.to_le_bytes());
        bytes.extend_from_slice(&self.block_count.to_le_bytes());
        bytes.extend_from_slice(&(self.parts.len() as u32).to_le_bytes());
        for part in &self.parts {
            bytes.push(part.kind as u8);
            bytes.extend_from_slice(&part.digest);
            bytes.extend_from_slice(&part.offset.to_le_bytes());
            bytes.extend_from_slice(&part.len.to_le_bytes());
        }
        let len = bytes.len() as u32;
        bytes.extend_from_slice(&offset.to_le_bytes());
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&MAGIC);
        bytes
    }

    /// Reads an index that starts at `offset`.
    ///
    /// # Errors
    /// Where the bytes are cut short, a newer Larder wrote them, or a part lies outside of what is
    /// before the index: do without what is stocked.
    pub fn decode(bytes: &[u8], offset: u64) -> Result<StockIndex, FormatError> {
        let mut cursor = Cursor::new(WHAT, bytes);
        cursor.preamble(MAGIC, STOCK_FORMAT)?;
        let (block_count, part_count) = (cursor.u32()?, cursor.u32()? as usize);
        let unsound =
            |field, offset, value| Err(FormatError::Unsound { what: WHAT, field, offset, value });
        if cursor.remaining() / PART_LEN < part_count {
            return Err(FormatError::Truncated { what: WHAT, offset: bytes.len() as u64 });
        }
        let mut free_from = u64::from(block_count) * BLOCK_LEN as u64;
        let mut parts = Vec::with_capacity(part_count);
        for _ in 0..part_count {
            let at = cursor.offset();
            let kind = match cursor.u8()? {
                1 => PartKind::Manifest,
                2 => PartKind::ManifestLeaf,
                3 => PartKind::SegmentMap,
                4 => PartKind::Source,
                5 => PartKind::Frame,
                other => return unsound("part kind", at, other.into()),
            };
            let part = StockPart {
                kind,
                digest: cursor.array()?,
                offset: cursor.u64()?,
                len: cursor.u32()?,
            };
            let end = part.offset.checked_add(part.len.into()).filter(|end| *end <= offset);
            let is_placed =
                part.offset >= free_from && part.offset.is_multiple_of(BLOCK_LEN as u64);
            let Some(end) = end.filter(|_| is_placed) else {
                return unsound("part offset", at, part.offset);
            };
            free_from = end;
            parts.push(part);
        }
        cursor.end()?;
        Ok(StockIndex { block_count, parts })
    }
}

/// Where the index lies, from the last [`TRAILER_LEN`] bytes of what has `length` bytes in all.
///
/// # Errors
/// Where that is no trailer, or it names bytes that are not right before it.
pub fn decode_trailer(bytes: &[u8], length: u64) -> Result<(u64, usize), FormatError> {
    let mut cursor = Cursor::new(TRAILER, bytes);
    let (offset, len) = (cursor.u64()?, cursor.u32()? as usize);
    if cursor.array::<4>()? != MAGIC {
        return Err(FormatError::Magic { what: TRAILER });
    }
    cursor.end()?;
    let end = offset.checked_add(len as u64 + TRAILER_LEN as u64);
    match end == Some(length) && len <= INDEX_LEN_MAX {
        true => Ok((offset, len)),
        false => {
            Err(FormatError::Unsound { what: TRAILER, field: "offset", offset: 0, value: offset })
        }
    }
}

/// A source: its chunk, and the digests of its blocks, one behind the other.
pub type Source = (ChunkDigest, Vec<u8>);

/// Cuts an encoded boot working set into its frame and its sources, see [`join_boot_set`].
///
/// # Errors
/// Where it is cut short.
pub fn split_boot_set(bytes: &[u8]) -> Result<(Vec<u8>, Vec<Source>), FormatError> {
    let mut cursor = Cursor::new(WHAT, bytes);
    let header = cursor.take(crate::boot_set::HEADER_LEN)?;
    let source_count = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    let mut frame = header.to_vec();
    let mut sources = Vec::new();
    for _ in 0..source_count {
        let chunk = ChunkDigest(cursor.array()?);
        let count = usize::from(cursor.u16()?);
        sources.push((chunk, cursor.take(count * 32)?.to_vec()));
    }
    frame.extend_from_slice(cursor.take(cursor.remaining())?);
    Ok((frame, sources))
}

/// Makes the bytes of a boot working set out of its frame and its sources, in order.
pub fn join_boot_set<'a>(
    frame: &[u8],
    sources: impl Iterator<Item = (ChunkDigest, &'a [u8])>,
) -> Vec<u8> {
    let (header, rest) = frame.split_at(frame.len().min(crate::boot_set::HEADER_LEN));
    let mut bytes = header.to_vec();
    for (chunk, blocks) in sources {
        bytes.extend_from_slice(chunk.as_bytes());
        bytes.extend_from_slice(&((blocks.len() / 32) as u16).to_le_bytes());
        bytes.extend_from_slice(blocks);
    }
    bytes.extend_from_slice(rest);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> StockIndex {
        let part = |kind, byte, offset, len| StockPart { kind, digest: [byte; 32], offset, len };
        let parts = vec![
            part(PartKind::SegmentMap, 1, 8192, 100),
            part(PartKind::Source, 2, 12288, 4097),
            part(PartKind::Frame, 3, 20480, 7),
        ];
        StockIndex { block_count: 2, parts }
    }

    #[test]
    fn an_index_reads_back_and_says_where_it_lies() {
        let bytes = index().encode(24576);
        let (encoded, trailer) = bytes.split_at(bytes.len() - TRAILER_LEN);
        assert_eq!(StockIndex::decode(encoded, 24576).unwrap(), index());
        let length = 24576 + bytes.len() as u64;
        assert_eq!(decode_trailer(trailer, length).unwrap(), (24576, encoded.len()));
        assert!(decode_trailer(trailer, length + 1).is_err());
        let digest = blake3::hash(&bytes).to_hex();
        assert_eq!(&digest[..16], "1de8640d60941dc8", "a new format has a new number");
    }

    #[test]
    fn an_index_that_was_spoiled_is_refused_or_another() {
        let bytes = index().encode(24576);
        let encoded = &bytes[..bytes.len() - TRAILER_LEN];
        for len in 0..encoded.len() {
            assert!(StockIndex::decode(&encoded[..len], 24576).is_err(), "{len}");
        }
        for at in 0..encoded.len() {
            for bit in 0..8 {
                let mut spoiled = encoded.to_vec();
                spoiled[at] ^= 1 << bit;
                if let Ok(other) = StockIndex::decode(&spoiled, 24576) {
                    assert!(
                        other != index() && other.encode(24576)[..spoiled.len()] == spoiled[..]
                    );
                }
            }
        }
        let mut overlapping = index();
        overlapping.parts[1].offset = 8192;
        assert!(StockIndex::decode(&overlapping.encode(24576)[..encoded.len()], 24576).is_err());
        assert!(StockIndex::decode(encoded, 20480).is_err(), "a part beyond the parts");
    }

    #[test]
    fn a_set_is_cut_and_joined_again() {
        let blocks: Vec<model::BlockDigest> =
            (1..4).map(|byte| model::BlockDigest([byte; 32])).collect();
        let source = model::boot_set::BootSource { chunk: ChunkDigest::of(&blocks), blocks };
        let set = model::boot_set::BootSet::new(vec![source], Vec::new(), Vec::new()).unwrap();
        let bytes = crate::boot_set::encode_boot_set(&set);
        let (frame, sources) = split_boot_set(&bytes).unwrap();
        assert_eq!(sources[0].1.len(), 96);
        let joined = join_boot_set(&frame, sources.iter().map(|(c, b)| (*c, &b[..])));
        assert_eq!(joined, bytes);
        assert!(split_boot_set(&bytes[..bytes.len() - 97]).is_err());
    }
}
