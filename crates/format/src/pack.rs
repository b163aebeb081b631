//! Packs: immutable files that hold entries, their table, and the block digests of their chunks.
//!
//! ```text
//! 0        16                       table offset                      pack length - 64
//! | header | entry | entry | ...   | table: 44 each | list: 32 each  | footer |
//! ```
//!
//! **Invariants**: entries lie back to back from the end of the header to the table, in the table's
//! order, so an entry's offset is the sum of the stored lengths before it; the list holds the block
//! digests of the chunks in that order; a pack is at most [`PACK_LEN_MAX`] long. What does not hold
//! to this is refused.
//!
//! **Failure**: a pack cut short has no footer and is refused; a changed byte in table, list or
//! footer breaks the checksum; a list that lies breaks the digest of its chunk. A changed byte in an
//! entry is found when the entry is decoded and its digest compared.
//!
//! **Not here**: reading entries, and comparing their digests (the `store` crate).

use model::{BLOCK_LEN, BlockDigest, ChunkDigest};

use crate::FormatError;
use crate::cursor::Cursor;
use crate::entry::{Encoding, EntryKind};

/// The most bytes of a pack: 64 MiB.
pub const PACK_LEN_MAX: u64 = 64 << 20;

/// The format number that [`PackBuilder`] writes.
pub const PACK_FORMAT: u32 = 1;

const HEADER_LEN: usize = 16;
const FOOTER_LEN: usize = 64;
const TABLE_ENTRY_LEN: usize = 44;
const HEADER_MAGIC: [u8; 8] = *b"LARDPACK";
const FOOTER_MAGIC: [u8; 8] = *b"PACKDRAL";
/// How many bytes of the footer the checksum covers: those before the checksum itself.
const FOOTER_CHECKED_LEN: usize = 16;

/// One entry of a pack, as its table describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackEntry {
    /// What it holds.
    pub kind: EntryKind,
    /// How it is stored.
    pub encoding: Encoding,
    /// The digest that names it, of the type that its kind says.
    pub digest: [u8; 32],
    /// Where its stored bytes start in the pack.
    pub offset: u64,
    /// How many bytes are stored.
    pub stored_len: u32,
    /// How many bytes it has when decoded.
    pub plain_len: u32,
}

impl PackEntry {
    /// How many blocks the chunk has; 0 for other kinds.
    pub fn block_count(&self) -> usize {
        match self.kind {
            EntryKind::Chunk => self.plain_len as usize / BLOCK_LEN,
            _ => 0,
        }
    }

    /// The field that cannot be as it is, if one is; looks at nothing but the entry itself.
    fn fault(&self) -> Option<(&'static str, u64)> {
        let whole =
            self.kind != EntryKind::Chunk || (self.plain_len as usize).is_multiple_of(BLOCK_LEN);
        if self.plain_len == 0 || self.plain_len as usize > self.kind.plain_len_max() || !whole {
            return Some(("plain length", self.plain_len.into()));
        }
        let fits = self.encoding.fits(self.stored_len.into(), self.plain_len);
        (!fits).then_some(("stored length", self.stored_len.into()))
    }
}

/// A pack that is being put together in memory.
pub struct PackBuilder {
    bytes: Vec<u8>,
    entries: Vec<PackEntry>,
    block_digests: Vec<BlockDigest>,
}

impl Default for PackBuilder {
    fn default() -> Self {
        PackBuilder::new()
    }
}

impl PackBuilder {
    /// A pack without entries.
    pub fn new() -> Self {
        PackBuilder::with_room_for(HEADER_LEN)
    }

    /// The same, whose bytes are not moved while there are at most `len` of them.
    pub fn with_room_for(len: usize) -> Self {
        let mut bytes = Vec::with_capacity(len);
        bytes.extend_from_slice(&HEADER_MAGIC);
        bytes.extend_from_slice(&PACK_FORMAT.to_le_bytes());
        bytes.extend_from_slice(&0u32.to_le_bytes());
        PackBuilder { bytes, entries: Vec::new(), block_digests: Vec::new() }
    }

    /// Appends one entry and says where it went.
    ///
    /// Shape: `block_digests` has one digest for each block of a chunk and is empty for other
    /// kinds; `stored` is what [`crate::Encoder::encode`] made of `plain_len` bytes; the pack has
    /// room ([`PackBuilder::has_room`]).
    ///
    /// # Panics
    /// Where the shape does not hold: such a pack could be written, but never read.
    pub fn push(
        &mut self,
        kind: EntryKind,
        encoding: Encoding,
        digest: [u8; 32],
        plain_len: u32,
        stored: &[u8],
        block_digests: &[BlockDigest],
    ) -> PackEntry {
        assert!(self.has_room(stored.len(), block_digests.len()), "the pack has room");
        let offset = self.bytes.len() as u64;
        let stored_len = stored.len() as u32;
        let entry = PackEntry { kind, encoding, digest, offset, stored_len, plain_len };
        assert_eq!(entry.fault(), None, "the entry is sound");
        assert_eq!(block_digests.len(), entry.block_count(), "one digest for each block");
        self.bytes.extend_from_slice(stored);
        self.entries.push(entry);
        self.block_digests.extend_from_slice(block_digests);
        entry
    }

    /// True where one more entry of that size fits into [`PACK_LEN_MAX`].
    pub fn has_room(&self, stored_len: usize, block_count: usize) -> bool {
        let more = stored_len as u64
            + TABLE_ENTRY_LEN as u64
            + block_count as u64 * model::digest::DIGEST_LEN as u64;
        self.len() + more <= PACK_LEN_MAX
    }

    /// Bytes that the finished pack would have, table, list and footer included.
    pub fn len(&self) -> u64 {
        (self.bytes.len()
            + self.entries.len() * TABLE_ENTRY_LEN
            + self.block_digests.len() * model::digest::DIGEST_LEN
            + FOOTER_LEN) as u64
    }

    /// True before the first entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many entries.
    pub fn entry_count(&self) -> usize {
        self.entries.len()
    }

    /// Appends table, list and footer.
    pub fn finish(self) -> FinishedPack {
        let len = self.len() as usize;
        let PackBuilder { mut bytes, entries, block_digests } = self;
        let table_offset = bytes.len();
        bytes.reserve_exact(len - table_offset);
        for entry in &entries {
            bytes.extend_from_slice(&[entry.kind as u8, entry.encoding as u8, 0, 0]);
            bytes.extend_from_slice(&entry.stored_len.to_le_bytes());
            bytes.extend_from_slice(&entry.plain_len.to_le_bytes());
            bytes.extend_from_slice(&entry.digest);
        }
        for digest in &block_digests {
            bytes.extend_from_slice(&digest.0);
        }
        bytes.extend_from_slice(&(table_offset as u64).to_le_bytes());
        bytes.extend_from_slice(&(entries.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(block_digests.len() as u32).to_le_bytes());
        let checksum = blake3::hash(&bytes[table_offset..]);
        bytes.extend_from_slice(checksum.as_bytes());
        bytes.extend_from_slice(&PACK_FORMAT.to_le_bytes());
        bytes.extend_from_slice(&0u32.to_le_bytes());
        bytes.extend_from_slice(&FOOTER_MAGIC);
        debug_assert_eq!(bytes.len(), len);
        FinishedPack { bytes, entries, block_digests }
    }
}

/// A whole pack, ready to be written.
#[derive(Clone, Debug)]
pub struct FinishedPack {
    /// All its bytes.
    pub bytes: Vec<u8>,
    /// Its entries, in order.
    pub entries: Vec<PackEntry>,
    /// The block digests of its chunks, in order.
    pub block_digests: Vec<BlockDigest>,
}

/// What a pack holds: its table and its list, read back and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackIndex {
    entries: Vec<PackEntry>,
    block_digests: Vec<BlockDigest>,
    /// Where in the list the digests of each entry start.
    first_blocks: Vec<u32>,
}

impl PackIndex {
    /// Reads the index of a pack of `pack_len` bytes.
    ///
    /// `read` is asked twice, for ranges inside the pack, and answers with exactly as many bytes as
    /// it was asked for: first for the footer, then for table and list.
    ///
    /// Cost: two reads, memory for table and list, one BLAKE3 pass over both and one over the list.
    ///
    /// # Errors
    /// What `read` fails with; otherwise a [`FormatError`] where any number does not fit the others
    /// or a chunk's block digests do not hash to its digest: fetch another copy.
    pub fn read<E: From<FormatError>>(
        pack_len: u64,
        mut read: impl FnMut(u64, usize) -> Result<Vec<u8>, E>,
    ) -> Result<PackIndex, E> {
        check_pack_len(pack_len)?;
        let footer_offset = pack_len - FOOTER_LEN as u64;
        let footer_bytes = read(footer_offset, FOOTER_LEN)?;
        check_answer("pack footer", &footer_bytes, FOOTER_LEN)?;
        let footer = Footer::decode(&footer_bytes, footer_offset)?;

        let index_len = (footer_offset - footer.table_offset) as usize;
        let index = read(footer.table_offset, index_len)?;
        check_answer("pack table", &index, index_len)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&index).update(&footer_bytes[..FOOTER_CHECKED_LEN]);
        if *hasher.finalize().as_bytes() != footer.checksum {
            return Err(FormatError::Checksum { what: "pack table" }.into());
        }
        Ok(PackIndex::decode(&footer, &index)?)
    }

    /// The entries, in order.
    pub fn entries(&self) -> &[PackEntry] {
        &self.entries
    }

    /// The block digests of the chunk at that position; empty for other kinds and for positions
    /// that there are not.
    pub fn block_digests(&self, entry: usize) -> &[BlockDigest] {
        let Some(described) = self.entries.get(entry) else { return &[] };
        let first = self.first_blocks[entry] as usize;
        &self.block_digests[first..first + described.block_count()]
    }

    /// Decodes table and list, whose lengths the footer has vouched for.
    fn decode(footer: &Footer, index: &[u8]) -> Result<PackIndex, FormatError> {
        let table_len = footer.entry_count as usize * TABLE_ENTRY_LEN;
        let (table, list) = index
            .split_at_checked(table_len)
            .ok_or(FormatError::Truncated { what: "pack table", offset: index.len() as u64 })?;
        let (digests, rest) = list.as_chunks();
        debug_assert!(rest.is_empty());
        let block_digests: Vec<BlockDigest> = digests.iter().copied().map(BlockDigest).collect();

        let mut cursor = Cursor::new("pack table", table);
        let mut entries = Vec::with_capacity(footer.entry_count as usize);
        let mut first_blocks = Vec::with_capacity(footer.entry_count as usize);
        let mut offset = HEADER_LEN as u64;
        let mut first_block = 0usize;
        for _ in 0..footer.entry_count {
            let entry = decode_entry(&mut cursor, offset)?;
            let end_block = first_block + entry.block_count();
            if entry.kind == EntryKind::Chunk {
                let blocks = block_digests.get(first_block..end_block).ok_or(footer.blocks())?;
                if ChunkDigest::of(blocks).0 != entry.digest {
                    return Err(FormatError::Checksum { what: "block digests of a chunk" });
                }
            }
            first_blocks.push(first_block as u32);
            first_block = end_block;
            offset += u64::from(entry.stored_len);
            entries.push(entry);
        }
        if offset != footer.table_offset {
            return Err(footer.unsound("table offset", 0, footer.table_offset));
        }
        if first_block != block_digests.len() {
            return Err(footer.blocks());
        }
        Ok(PackIndex { entries, block_digests, first_blocks })
    }
}

/// Checks the first 16 bytes of a pack.
///
/// # Errors
/// Where they are not a pack's, or a newer Larder wrote them.
pub fn check_header(bytes: &[u8]) -> Result<(), FormatError> {
    let mut cursor = Cursor::new("pack header", bytes);
    if cursor.array::<8>()? != HEADER_MAGIC {
        return Err(FormatError::Magic { what: "pack header" });
    }
    cursor.format(PACK_FORMAT)?;
    match cursor.u32()? {
        0 => Ok(()),
        value => Err(cursor.unsound_before(4, "reserved", value.into())),
    }
}

/// The last bytes of a pack, their numbers checked against its length.
struct Footer {
    table_offset: u64,
    entry_count: u32,
    block_count: u32,
    checksum: [u8; 32],
}

impl Footer {
    fn decode(bytes: &[u8], footer_offset: u64) -> Result<Footer, FormatError> {
        let mut cursor = Cursor::new("pack footer", bytes);
        let table_offset = cursor.u64()?;
        let entry_count = cursor.u32()?;
        let block_count = cursor.u32()?;
        let checksum = cursor.array()?;
        let mut tail = Cursor::new("pack footer", bytes);
        tail.take(FOOTER_LEN - 8)?;
        // The magic first, then the format: in a newer format the other fields may differ.
        if tail.array::<8>()? != FOOTER_MAGIC {
            return Err(FormatError::Magic { what: "pack footer" });
        }
        cursor.format(PACK_FORMAT)?;
        let reserved = cursor.u32()?;
        let footer = Footer { table_offset, entry_count, block_count, checksum };
        if reserved != 0 {
            return Err(footer.unsound("reserved", 52, reserved.into()));
        }
        let index_len = u64::from(entry_count) * TABLE_ENTRY_LEN as u64
            + u64::from(block_count) * model::digest::DIGEST_LEN as u64;
        let fits = table_offset >= HEADER_LEN as u64
            && table_offset.checked_add(index_len) == Some(footer_offset);
        match fits {
            true => Ok(footer),
            false => Err(footer.unsound("table offset", 0, table_offset)),
        }
    }

    fn unsound(&self, field: &'static str, offset: u64, value: u64) -> FormatError {
        FormatError::Unsound { what: "pack footer", field, offset, value }
    }

    fn blocks(&self) -> FormatError {
        self.unsound("block digest count", 12, self.block_count.into())
    }
}

fn decode_entry(cursor: &mut Cursor<'_>, offset: u64) -> Result<PackEntry, FormatError> {
    let code = cursor.u8()?;
    let kind =
        EntryKind::try_from(code).map_err(|_| cursor.unsound_before(1, "kind", code.into()))?;
    let code = cursor.u8()?;
    let encoding =
        Encoding::try_from(code).map_err(|_| cursor.unsound_before(1, "encoding", code.into()))?;
    let reserved = cursor.u16()?;
    if reserved != 0 {
        return Err(cursor.unsound_before(2, "reserved", reserved.into()));
    }
    let stored_len = cursor.u32()?;
    let plain_len = cursor.u32()?;
    let digest = cursor.array()?;
    let entry = PackEntry { kind, encoding, digest, offset, stored_len, plain_len };
    match entry.fault() {
        None => Ok(entry),
        Some((field, value)) => Err(cursor.unsound_before(TABLE_ENTRY_LEN, field, value)),
    }
}

fn check_pack_len(pack_len: u64) -> Result<(), FormatError> {
    if pack_len > PACK_LEN_MAX {
        return Err(FormatError::TooLong { what: "pack", len: pack_len, max: PACK_LEN_MAX });
    }
    match pack_len < (HEADER_LEN + FOOTER_LEN) as u64 {
        true => Err(FormatError::Truncated { what: "pack", offset: pack_len }),
        false => Ok(()),
    }
}

fn check_answer(what: &'static str, answer: &[u8], len: usize) -> Result<(), FormatError> {
    match answer.len() == len {
        true => Ok(()),
        false => Err(FormatError::Truncated { what, offset: answer.len() as u64 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Encoder, decode};

    /// A chunk of that many blocks, none like another.
    fn chunk(seed: u8, block_count: usize) -> (Vec<u8>, Vec<BlockDigest>) {
        let mut bytes = vec![seed; block_count * BLOCK_LEN];
        for (number, block) in bytes.chunks_mut(BLOCK_LEN).enumerate() {
            block[..8].copy_from_slice(&(number as u64).to_le_bytes());
        }
        let digests = bytes.chunks(BLOCK_LEN).map(BlockDigest::of).collect();
        (bytes, digests)
    }

    fn sample() -> FinishedPack {
        let mut encoder = Encoder::new(3);
        let mut builder = PackBuilder::new();
        for (seed, block_count) in [(1, 3), (2, 64)] {
            let (plain, blocks) = chunk(seed, block_count);
            let (encoding, stored) = encoder.encode(&plain);
            let digest = ChunkDigest::of(&blocks).0;
            let len = plain.len() as u32;
            builder.push(EntryKind::Chunk, encoding, digest, len, &stored, &blocks);
            builder.push(EntryKind::SegmentMap, Encoding::Plain, [seed; 32], 3, b"map", &[]);
        }
        let len = builder.len();
        let pack = builder.finish();
        assert_eq!(pack.bytes.len() as u64, len);
        pack
    }

    fn read(bytes: &[u8]) -> Result<PackIndex, FormatError> {
        PackIndex::read(bytes.len() as u64, |offset, len| {
            let start = usize::try_from(offset).unwrap();
            Ok(bytes[start..start + len].to_vec())
        })
    }

    #[test]
    fn a_pack_reads_back_as_it_was_built() {
        let pack = sample();
        let index = read(&pack.bytes).unwrap();
        assert_eq!(index.entries(), pack.entries);
        assert_eq!(index.block_digests(0), &pack.block_digests[..3]);
        assert_eq!(index.block_digests(1), &[]);
        assert_eq!(index.block_digests(2), &pack.block_digests[3..]);
        assert_eq!(index.block_digests(4), &[]);
        check_header(&pack.bytes[..16]).unwrap();
        let entry = index.entries()[2];
        let start = entry.offset as usize;
        let stored = &pack.bytes[start..start + entry.stored_len as usize];
        assert_eq!(decode(entry.encoding, stored, entry.plain_len).unwrap(), chunk(2, 64).0);
    }

    #[test]
    fn a_pack_has_room_up_to_its_longest_and_not_a_byte_more() {
        let builder = PackBuilder::new();
        let room = PACK_LEN_MAX as usize - HEADER_LEN - FOOTER_LEN - TABLE_ENTRY_LEN;
        assert!(builder.has_room(room, 0) && !builder.has_room(room + 1, 0));
        assert!(builder.has_room(room - 32, 1) && !builder.has_room(room - 31, 1));
        assert!(!builder.has_room(0, 1 << 21));
    }

    #[test]
    #[should_panic(expected = "one digest for each block")]
    fn a_chunk_without_its_block_digests_is_a_mistake_of_the_caller() {
        let plain = [0; BLOCK_LEN];
        PackBuilder::new().push(EntryKind::Chunk, Encoding::Plain, [0; 32], 4096, &plain, &[]);
    }

    #[test]
    fn a_pack_without_entries_reads_back() {
        let builder = PackBuilder::new();
        assert!(builder.is_empty());
        let pack = builder.finish();
        assert_eq!(read(&pack.bytes).unwrap().entries(), &[]);
    }
}
