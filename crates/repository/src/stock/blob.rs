//! A boot working set on its way into the stock: its blocks, verified, then all that is needed to use
//! them, as one blob.

use std::collections::HashSet;
use std::sync::Arc;

use catalog::VersionRecord;
use format::boot_set::encode_boot_set;
use format::entry::EntryKind;
use format::manifest::decode_manifest;
use format::stock::{INDEX_LEN_MAX, PartKind, StockIndex, StockPart, split_boot_set};
use model::block::BLOCKS_PER_SEGMENT;
use model::boot_set::BootSet;
use model::source::{DataRun, DiskSource};
use model::{BLOCK_LEN, BlockDigest, Error, Kind, Result};
use store::ChunkStore;

use crate::boot_set::FoundBootSet;
use crate::chunks::RepositoryChunks;

/// Pieces that are asked for at once: 4 MiB of plain bytes.
const PIECES_TOGETHER: usize = 16;

/// The most bytes of all parts.
const PARTS_LEN_MAX: usize = 256 << 20;

/// A set and its parts, read once in order.
pub struct SetBlob {
    chunks: Arc<RepositoryChunks>,
    set: Arc<BootSet>,
    /// What each block must be, in the order of the pieces.
    digests: Vec<BlockDigest>,
    next_piece: usize,
    next_block: usize,
    /// Bytes that were fetched, and how many of them are given.
    fetched: (Vec<u8>, usize),
    tail: Vec<u8>,
    offset: u64,
}

impl SetBlob {
    /// Reads everything but the blocks: manifest, the maps of the set's segments, the set.
    ///
    /// # Errors
    /// Those of the repository.
    pub fn new(
        chunks: Arc<RepositoryChunks>,
        version: &VersionRecord,
        found: &FoundBootSet,
    ) -> Result<SetBlob> {
        let set = found.set.clone();
        let digests: Vec<BlockDigest> = set
            .reads()
            .iter()
            .flat_map(|read| {
                let blocks = &set.sources()[read.source as usize].blocks;
                let first = read.first_in_chunk as usize;
                blocks[first..first + read.read.block_count as usize].iter().copied()
            })
            .collect();
        let mut parts = Parts {
            start: (digests.len() * BLOCK_LEN) as u64,
            index: StockIndex { block_count: digests.len() as u32, parts: Vec::new() },
            bytes: Vec::new(),
        };
        parts.add_maps_and_manifest(&chunks, version, &set)?;
        parts.add_set(&set, found.record.digest)?;
        let tail = parts.finish()?;
        Ok(SetBlob {
            chunks,
            set,
            digests,
            next_piece: 0,
            next_block: 0,
            fetched: (Vec::new(), 0),
            tail,
            offset: 0,
        })
    }

    /// Bytes of all of it.
    pub fn len(&self) -> u64 {
        (self.digests.len() * BLOCK_LEN + self.tail.len()) as u64
    }

    fn blocks_len(&self) -> u64 {
        (self.digests.len() * BLOCK_LEN) as u64
    }

    /// Fetches the next pieces and compares each block with what it must be.
    fn fetch(&mut self) -> Result<()> {
        let pieces = &self.set.pieces()[self.next_piece..];
        let pieces = &pieces[..pieces.len().min(PIECES_TOGETHER)];
        let bytes = self.chunks.boot_pieces(pieces)?.concat();
        let mut found = vec![BlockDigest::HOLE; bytes.len() / BLOCK_LEN];
        BlockDigest::of_each(&bytes[..found.len() * BLOCK_LEN], &mut found);
        let wanted = self.digests.get(self.next_block..self.next_block + found.len());
        if found.is_empty() || wanted != Some(&found[..]) {
            return Err(Error::new(Kind::Corrupt, "stock", "a boot working set")
                .because("its pieces hold other blocks than it says"));
        }
        self.next_piece += pieces.len();
        self.next_block += found.len();
        self.fetched = (bytes, 0);
        Ok(())
    }
}

impl DiskSource for SetBlob {
    fn length_hint(&self) -> Option<u64> {
        Some(self.len())
    }

    fn data_len_hint(&self) -> Option<u64> {
        Some(self.len())
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<Option<DataRun>> {
        if self.offset >= self.len() {
            return Ok(None);
        }
        if self.offset < self.blocks_len() && self.fetched.1 == self.fetched.0.len() {
            self.fetch()?;
        }
        let (bytes, position) = match self.offset < self.blocks_len() {
            true => (&self.fetched.0, self.fetched.1),
            false => (&self.tail, (self.offset - self.blocks_len()) as usize),
        };
        let rest = &bytes[position..];
        let mut len = rest.len().min(buffer.len());
        if len < rest.len() {
            len -= len % BLOCK_LEN;
        }
        buffer[..len].copy_from_slice(&rest[..len]);
        if self.offset < self.blocks_len() {
            self.fetched.1 += len;
        }
        let run = DataRun { offset: self.offset, len };
        self.offset += len as u64;
        Ok(Some(run))
    }

    fn length(&self) -> u64 {
        self.len()
    }
}

/// The parts behind the blocks.
struct Parts {
    /// Where the first of them starts.
    start: u64,
    index: StockIndex,
    bytes: Vec<u8>,
}

impl Parts {
    fn add(&mut self, kind: PartKind, digest: [u8; 32], part: &[u8]) -> Result<()> {
        if self.bytes.len() + part.len() > PARTS_LEN_MAX {
            return Err(Error::new(Kind::Refused, "stock", "a boot working set")
                .because("its version has too many maps"));
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK_LEN), 0);
        let offset = self.start + self.bytes.len() as u64;
        self.index.parts.push(StockPart { kind, digest, offset, len: part.len() as u32 });
        self.bytes.extend_from_slice(part);
        Ok(())
    }

    /// The maps of the segments that the set touches, and the manifest with all its leaves.
    fn add_maps_and_manifest(
        &mut self,
        chunks: &RepositoryChunks,
        version: &VersionRecord,
        set: &BootSet,
    ) -> Result<()> {
        let layout = version.facts.layout;
        let root = chunks.manifest_root(layout)?;
        let leaves =
            root.leaves.iter().map(|(_, leaf)| chunks.leaf(*leaf)).collect::<Result<Vec<_>>>()?;
        let manifest = decode_manifest(&root, &leaves)?;
        let mut seen = HashSet::new();
        for read in set.reads() {
            let segment = (read.read.first_block / u64::from(BLOCKS_PER_SEGMENT)) as u32;
            let Some(entry) = manifest.segment(segment).filter(|_| seen.insert(segment)) else {
                continue;
            };
            let map = chunks.entry_alone(EntryKind::SegmentMap, entry.map.0)?;
            self.add(PartKind::SegmentMap, entry.map.0, &map)?;
        }
        for ((_, digest), leaf) in root.leaves.iter().zip(&leaves) {
            self.add(PartKind::ManifestLeaf, *digest, leaf)?;
        }
        let root = chunks.entry_alone(EntryKind::Manifest, layout.0)?;
        self.add(PartKind::Manifest, layout.0, &root)
    }

    fn add_set(&mut self, set: &BootSet, digest: [u8; 32]) -> Result<()> {
        let (frame, sources) = split_boot_set(&encode_boot_set(set))?;
        for (chunk, blocks) in sources {
            self.add(PartKind::Source, chunk.0, &blocks)?;
        }
        self.add(PartKind::Frame, digest, &frame)
    }

    /// The bytes of all parts, index and trailer behind them.
    fn finish(mut self) -> Result<Vec<u8>> {
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK_LEN), 0);
        let index = self.index.encode(self.start + self.bytes.len() as u64);
        if index.len() > INDEX_LEN_MAX {
            return Err(Error::new(Kind::Refused, "stock", "a boot working set")
                .because("its version has too many maps"));
        }
        self.bytes.extend_from_slice(&index);
        Ok(self.bytes)
    }
}
