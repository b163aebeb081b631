//! Packs: entries one behind the other, their table, the list of block digests, a footer.
//!
//! ```text
//! | header | entry | entry | ... | table | block digests | footer |
//!   12       stored bytes          54 each  32 each         64
//! ```
//!
//! **Invariants**: entries lie without gaps in the order of the table; the digests of a chunk's
//! blocks hash to the chunk's digest; a pack is at most 64 MiB.

use model::digest::DIGEST_LEN;
use model::map::CHUNK_BLOCKS_MAX;
use model::{BLOCK_LEN, BlockDigest, ChunkDigest};

use crate::entry::{Encoding, EntryKind, PLAIN_LEN_MAX};
use crate::error::FormatError;
use crate::reader::Reader;

/// The format number of packs.
pub const FORMAT: u32 = 1;
/// The longest pack.
pub const PACK_LEN_MAX: u64 = 64 << 20;

const MAGIC: [u8; 8] = *b"LARDPACK";
const HEADER_LEN: usize = 12;
const ROW_LEN: usize = 2 + DIGEST_LEN + 8 + 4 + 4 + 4;
const FOOTER_LEN: usize = 8 + 4 + 4 + DIGEST_LEN + 4 + 4 + 8;
const WHAT: &str = "pack";

/// One entry of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackEntry {
    /// What it is.
    pub kind: EntryKind,
    /// How it is stored.
    pub encoding: Encoding,
    /// The digest by which it is asked for.
    pub digest: [u8; DIGEST_LEN],
    /// Where in the pack its stored bytes start.
    pub offset: u64,
    /// Bytes it takes in the pack.
    pub stored_len: u32,
    /// Bytes it has when unpacked.
    pub plain_len: u32,
}

impl PackEntry {
    /// How many blocks a chunk has; 0 for other kinds.
    pub fn block_count(&self) -> usize {
        match self.kind {
            EntryKind::Chunk => self.plain_len as usize / BLOCK_LEN,
            _ => 0,
        }
    }

    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&[self.kind as u8, self.encoding as u8]);
        to.extend_from_slice(&self.digest);
        to.extend_from_slice(&self.offset.to_le_bytes());
        to.extend_from_slice(&self.stored_len.to_le_bytes());
        to.extend_from_slice(&self.plain_len.to_le_bytes());
        to.extend_from_slice(&(self.block_count() as u32).to_le_bytes());
    }

    fn decode(reader: &mut Reader) -> Result<Self, FormatError> {
        let entry = PackEntry {
            kind: EntryKind::try_from(reader.u8()?)?,
            encoding: Encoding::try_from(reader.u8()?)?,
            digest: reader.array()?,
            offset: reader.u64()?,
            stored_len: reader.u32()?,
            plain_len: reader.u32()?,
        };
        let block_count = reader.u32()?;
        let plain_len = entry.plain_len as usize;
        let is_whole = entry.kind != EntryKind::Chunk
            || (plain_len.is_multiple_of(BLOCK_LEN)
                && (1..=CHUNK_BLOCKS_MAX as usize).contains(&entry.block_count()));
        if plain_len > PLAIN_LEN_MAX || !is_whole {
            return Err(reader.unsound("plain length", plain_len as u64));
        }
        if block_count as usize != entry.block_count() {
            return Err(reader.unsound("block count", block_count.into()));
        }
        Ok(entry)
    }
}

/// Gathers entries to a pack.
#[derive(Debug, Default)]
pub struct PackBuilder {
    bytes: Vec<u8>,
    entries: Vec<PackEntry>,
    block_digests: Vec<BlockDigest>,
}

/// A pack that is whole.
#[derive(Clone, Debug)]
pub struct FinishedPack {
    /// All its bytes.
    pub bytes: Vec<u8>,
    /// Its entries.
    pub entries: Vec<PackEntry>,
    /// The digests of its chunks' blocks, chunk after chunk.
    pub block_digests: Vec<BlockDigest>,
}

impl PackBuilder {
    /// An empty pack.
    pub fn new() -> Self {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        PackBuilder { bytes, ..PackBuilder::default() }
    }

    /// Adds an entry that [`crate::entry::Encoder`] has encoded; a chunk with the digests of its
    /// blocks.
    pub fn push(
        &mut self,
        kind: EntryKind,
        encoding: Encoding,
        digest: [u8; DIGEST_LEN],
        plain_len: u32,
        stored: &[u8],
        block_digests: &[BlockDigest],
    ) -> PackEntry {
        let (offset, stored_len) = (self.len(), stored.len() as u32);
        let entry = PackEntry { kind, encoding, digest, offset, stored_len, plain_len };
        debug_assert_eq!(entry.block_count(), block_digests.len());
        self.bytes.extend_from_slice(stored);
        self.block_digests.extend_from_slice(block_digests);
        self.entries.push(entry);
        entry
    }

    /// Bytes so far.
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// True while there is no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Ends the pack.
    pub fn finish(self) -> FinishedPack {
        let PackBuilder { mut bytes, entries, block_digests } = self;
        let table = bytes.len();
        entries.iter().for_each(|entry| entry.encode(&mut bytes));
        block_digests.iter().for_each(|digest| bytes.extend_from_slice(digest.as_bytes()));
        let checksum = blake3::hash(&bytes[table..]);
        bytes.extend_from_slice(&(table as u64).to_le_bytes());
        bytes.extend_from_slice(&(entries.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(block_digests.len() as u32).to_le_bytes());
        bytes.extend_from_slice(checksum.as_bytes());
        bytes.extend_from_slice(&0u32.to_le_bytes());
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&MAGIC);
        FinishedPack { bytes, entries, block_digests }
    }
}

struct Footer {
    table: u64,
    entry_count: u32,
    digest_count: u32,
    checksum: [u8; DIGEST_LEN],
}

impl Footer {
    fn decode(bytes: &[u8], pack_len: u64) -> Result<Self, FormatError> {
        let mut reader = Reader::new(WHAT, bytes);
        let footer = Footer {
            table: reader.u64()?,
            entry_count: reader.u32()?,
            digest_count: reader.u32()?,
            checksum: reader.array()?,
        };
        let reserved = reader.u32()?;
        reader.format(FORMAT)?;
        if reader.array::<8>()? != MAGIC {
            return Err(reader.unsound("magic", 0));
        }
        if reserved != 0 {
            return Err(reader.unsound("reserved field", reserved.into()));
        }
        let end = footer
            .table
            .checked_add(footer.index_len())
            .and_then(|end| end.checked_add(FOOTER_LEN as u64));
        if footer.table < HEADER_LEN as u64 || end != Some(pack_len) {
            return Err(reader.unsound("table offset", footer.table));
        }
        Ok(footer)
    }

    fn index_len(&self) -> u64 {
        u64::from(self.entry_count) * ROW_LEN as u64
            + u64::from(self.digest_count) * DIGEST_LEN as u64
    }
}

/// The table of a pack and its list of block digests, read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackIndex {
    entries: Vec<PackEntry>,
    firsts: Vec<usize>,
    block_digests: Vec<BlockDigest>,
}

impl PackIndex {
    /// Reads the footer, then table and list, by `read(offset, len)`. Every number is checked, and
    /// that the digests of each chunk's blocks hash to the chunk's digest.
    pub fn read<E: From<FormatError>>(
        pack_len: u64,
        mut read: impl FnMut(u64, usize) -> Result<Vec<u8>, E>,
    ) -> Result<Self, E> {
        let footer_at =
            pack_len.checked_sub(FOOTER_LEN as u64).filter(|_| pack_len <= PACK_LEN_MAX);
        let footer_at = footer_at.ok_or(FormatError::Unsound {
            what: WHAT,
            field: "length",
            value: pack_len,
        })?;
        let footer = Footer::decode(&read(footer_at, FOOTER_LEN)?, pack_len)?;
        let index = read(footer.table, footer.index_len() as usize)?;
        Ok(Self::decode(&footer, &index)?)
    }

    fn decode(footer: &Footer, bytes: &[u8]) -> Result<Self, FormatError> {
        if *blake3::hash(bytes).as_bytes() != footer.checksum {
            return Err(FormatError::Checksum { what: WHAT });
        }
        let mut reader = Reader::new(WHAT, bytes);
        let mut entries = Vec::with_capacity(footer.entry_count as usize);
        let mut firsts = Vec::with_capacity(footer.entry_count as usize);
        let (mut offset, mut digest_count) = (HEADER_LEN as u64, 0);
        for _ in 0..footer.entry_count {
            let entry = PackEntry::decode(&mut reader)?;
            if entry.offset != offset {
                return Err(reader.unsound("entry offset", entry.offset));
            }
            offset += u64::from(entry.stored_len);
            firsts.push(digest_count);
            digest_count += entry.block_count();
            entries.push(entry);
        }
        if offset != footer.table || digest_count != footer.digest_count as usize {
            return Err(reader.unsound("count", digest_count as u64));
        }
        let mut block_digests = Vec::with_capacity(digest_count);
        for _ in 0..digest_count {
            block_digests.push(BlockDigest(reader.array()?));
        }
        reader.end()?;
        let index = PackIndex { entries, firsts, block_digests };
        let is_sound = |(position, entry): (usize, &PackEntry)| {
            entry.kind != EntryKind::Chunk
                || ChunkDigest::of(index.block_digests(position)).0 == entry.digest
        };
        match index.entries.iter().enumerate().all(is_sound) {
            true => Ok(index),
            false => Err(FormatError::Checksum { what: "block list" }),
        }
    }

    /// All entries, in the order in which they lie.
    pub fn entries(&self) -> &[PackEntry] {
        &self.entries
    }

    /// The digests of the blocks of the chunk at that position; empty for other kinds.
    pub fn block_digests(&self, entry: usize) -> &[BlockDigest] {
        let first = self.firsts[entry];
        &self.block_digests[first..first + self.entries[entry].block_count()]
    }
}
