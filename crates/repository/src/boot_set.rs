//! Boot working sets: what guests of a version read first, packed in pieces of their own.
//!
//! ```text
//! reads of a boot ─► runs of the version's maps ─► blocks in order of first use ─► pieces ─► pack
//!                                               └► sources with their block digests ─► set ─┘
//! ```
//!
//! A version without a set of its own is served by that of the nearest version before it: what has
//! not changed since lies in the same chunks.
//!
//! A version that was laid out anew has its blocks in other chunks: its sets are made again, with the
//! same blocks in the same order, so that their pieces stay.
//!
//! **Not here**: who reads what (`mirror`), and when a boot is over (`host`).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use catalog::{BootSetRecord, LeaseId, VersionRecord};
use format::boot_set::encode_boot_set;
use format::entry::{EntryKind, PLAIN_LEN_MAX};
use model::block::{BLOCKS_PER_SEGMENT, LENGTH_MAX};
use model::boot_set::{
    BOOT_BLOCKS_MAX, BOOT_SOURCES_MAX, BootPiece, BootRead, BootSet, BootSource, FirstRead,
};
use model::{
    BLOCK_LEN, BlockDigest, ChunkDigest, ContentDigest, Error, Kind, LayoutDigest, Manifest,
    MapDigest, Result, Run, SegmentMap, VersionId,
};
use store::{Chunk, ChunkStore, Recent};

use crate::packer::{Entry, Packer};
use crate::repository::Repository;

/// How many versions back a set is looked for.
const ANCESTORS_MAX: usize = 16;

/// Plain bytes of a piece.
const PIECE_LEN: usize = 256 << 10;

/// Plain bytes of a pack of pieces: less than of other packs, since a daemon makes them while it serves.
const SET_PACK_LEN: u64 = 8 << 20;

/// Bytes of unpacked chunks that are kept while a set is made.
const CHUNKS_KEPT_LEN: u64 = 4 << 20;

/// Bytes of maps that are: a disk may have a thousand of them, of up to 768 KiB each.
const MAPS_KEPT_LEN: u64 = 4 << 20;

/// Bytes of one of them, by and large.
const KEPT_LEN: u64 = 64 << 10;

/// Bytes of a set that its sources may take. The rest is for reads and pieces.
const SOURCES_LEN_MAX: usize = PLAIN_LEN_MAX - (1 << 20);

/// A set, and what is known about it.
#[derive(Clone, Debug)]
pub struct FoundBootSet {
    /// The catalog's row. Its content is that of an earlier version where the set is inherited.
    pub record: BootSetRecord,
    /// The set.
    pub set: Arc<BootSet>,
}

/// A set in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootSetSizes {
    /// Blocks.
    pub blocks: u64,
    /// Their plain bytes.
    pub plain_len: u64,
    /// Bytes that its pieces and the set itself take in packs.
    pub stored_len: u64,
}

impl Repository {
    /// The working set that serves a version: its own, or that of the nearest version before it.
    ///
    /// # Errors
    /// Those of the catalog. A set that cannot be read is no set: the version is read without it.
    pub fn boot_set(&self, version: &VersionRecord, name: &str) -> Result<Option<FoundBootSet>> {
        let Some(record) = self.boot_set_record(version, name)? else { return Ok(None) };
        match self.chunks().boot_set(record.digest) {
            Ok(set) => Ok(Some(FoundBootSet { record, set: Arc::new(set) })),
            Err(error) => {
                tracing::warn!("{}", error.chain());
                Ok(None)
            }
        }
    }

    /// Which working set serves a version: its own, or that of the nearest version before it. Cost: a
    /// few questions to the catalog.
    pub fn boot_set_record(
        &self,
        version: &VersionRecord,
        name: &str,
    ) -> Result<Option<BootSetRecord>> {
        let mut version = version.clone();
        for _ in 0..ANCESTORS_MAX {
            let sets = self.catalog.boot_sets(version.facts.content)?;
            if let Some(record) = sets.into_iter().find(|set| set.name == name) {
                return Ok(Some(record));
            }
            let Some(parent) = version.facts.parent else { return Ok(None) };
            version = match self.catalog.version(&parent.into()) {
                Ok(parent) => parent,
                Err(error) if error.kind() == Kind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            };
        }
        Ok(None)
    }

    /// How much a set holds and takes.
    pub fn boot_set_sizes(&self, found: &FoundBootSet) -> Result<BootSetSizes> {
        let mut digests: Vec<_> = found.set.pieces().iter().map(|piece| piece.digest).collect();
        digests.push(found.record.digest);
        let places = self.catalog.locate(&self.realm, &digests)?;
        let stored = places.iter().flatten().map(|place| u64::from(place.entry.stored_len)).sum();
        let blocks = found.set.block_count();
        Ok(BootSetSizes { blocks, plain_len: blocks * BLOCK_LEN as u64, stored_len: stored })
    }

    /// Makes what a guest read first the version's working set of a name; what earlier boots read
    /// comes before what only this one did. Durable when it returns.
    ///
    /// Holes are left out, and what is beyond 1 GiB, 1,500 chunks or 3 MiB of their block digests.
    ///
    /// # Errors
    /// `NotFound` where the version is gone; those of a commit.
    pub fn record_boot_set(
        &self,
        version: &VersionId,
        name: &str,
        reads: &[FirstRead],
    ) -> Result<BootSetRecord> {
        let lease = self.begin_lease()?;
        let version = self.catalog.version(&version.clone().into())?;
        let content = version.facts.content;
        let own = self.catalog.boot_sets(content)?.into_iter().find(|set| set.name == name);
        let before = own.as_ref().and_then(|own| self.chunks().boot_set(own.digest).ok());
        let earlier = before.iter().flat_map(|set| set.reads()).map(|read| read.read);
        let mut maker = Maker::new(self, version.facts.layout, lease.id())?;
        for read in earlier.chain(reads.iter().copied()) {
            maker.add(read)?;
        }
        let digest = maker.finish()?;
        let boots = own.map_or(0, |own| own.boots).saturating_add(1);
        let record = BootSetRecord { content, name: name.to_string(), digest, boots };
        self.catalog.set_boot_set(lease.id(), &record)?;
        Ok(record)
    }

    /// Makes the sets of a content that was laid out anew fit that layout. Sets that cannot be read
    /// stay as they are.
    ///
    /// Cost: the chunks of the sets' blocks; what is put is the sets themselves, without their pieces.
    pub(crate) fn follow_layout(&self, content: ContentDigest, layout: LayoutDigest) -> Result<()> {
        for before in self.catalog.boot_sets(content)? {
            let Ok(set) = self.chunks().boot_set(before.digest) else { continue };
            let lease = self.begin_lease()?;
            let mut maker = Maker::new(self, layout, lease.id())?;
            for read in set.reads() {
                maker.add(read.read)?;
            }
            let digest = maker.finish()?;
            self.catalog.set_boot_set(lease.id(), &BootSetRecord { digest, ..before })?;
        }
        Ok(())
    }
}

/// Makes one set.
struct Maker<'a> {
    repository: &'a Repository,
    manifest: Arc<Manifest>,
    lease: LeaseId,
    packer: Packer,
    packed_len: u64,
    maps: Recent<MapDigest, Arc<SegmentMap>>,
    chunks: Recent<ChunkDigest, Chunk>,
    seen: HashSet<u64>,
    sources: Vec<BootSource>,
    positions: HashMap<ChunkDigest, u32>,
    sources_len: usize,
    reads: Vec<BootRead>,
    pieces: Vec<BootPiece>,
    piece: Vec<u8>,
}

impl<'a> Maker<'a> {
    fn new(repository: &'a Repository, layout: LayoutDigest, lease: LeaseId) -> Result<Self> {
        Ok(Maker {
            repository,
            manifest: repository.chunks().manifest(layout)?,
            lease,
            packer: Packer::start(repository.destination_of(lease)),
            packed_len: 0,
            maps: Recent::new(MAPS_KEPT_LEN, KEPT_LEN),
            chunks: Recent::new(CHUNKS_KEPT_LEN, KEPT_LEN),
            seen: HashSet::new(),
            sources: Vec::new(),
            positions: HashMap::new(),
            sources_len: 0,
            reads: Vec::new(),
            pieces: Vec::new(),
            piece: Vec::new(),
        })
    }

    /// Adds the blocks of a read that are no hole and that no read before it had.
    fn add(&mut self, read: FirstRead) -> Result<()> {
        let end = read.first_block.saturating_add(read.block_count.into());
        for block in read.first_block..end.min(LENGTH_MAX / BLOCK_LEN as u64) {
            if self.seen.len() >= BOOT_BLOCKS_MAX as usize || self.seen.contains(&block) {
                continue;
            }
            let segment = (block / u64::from(BLOCKS_PER_SEGMENT)) as u32;
            let in_segment = (block % u64::from(BLOCKS_PER_SEGMENT)) as u32;
            let Some(map) = self.map(segment)? else { continue };
            let Some(run) = map.runs_in(in_segment, in_segment + 1).first() else { continue };
            let Run { first_block, chunk, first_in_chunk, .. } = *run;
            self.add_block(block, chunk, first_in_chunk + in_segment - first_block, read.at_ms)?;
        }
        Ok(())
    }

    fn add_block(&mut self, block: u64, chunk: ChunkDigest, index: u32, at_ms: u32) -> Result<()> {
        let chunk = self.chunk(chunk)?;
        let Some(source) = self.source(&chunk) else { return Ok(()) };
        self.seen.insert(block);
        match self.reads.last_mut() {
            Some(last)
                if last.source == source
                    && last.read.at_ms == at_ms
                    && last.read.first_block + u64::from(last.read.block_count) == block
                    && last.first_in_chunk + last.read.block_count == index
                    && !block.is_multiple_of(BLOCKS_PER_SEGMENT.into()) =>
            {
                last.read.block_count += 1;
            }
            _ => self.reads.push(BootRead {
                read: FirstRead { first_block: block, block_count: 1, at_ms },
                source,
                first_in_chunk: index,
            }),
        }
        self.piece.extend_from_slice(chunk.blocks(index, 1)?);
        if self.piece.len() >= PIECE_LEN {
            self.end_piece()?;
        }
        Ok(())
    }

    fn map(&self, segment: u32) -> Result<Option<Arc<SegmentMap>>> {
        let Some(entry) = self.manifest.segment(segment) else { return Ok(None) };
        let read = || self.repository.chunks().segment_map(entry.map);
        self.maps.get_or_fetch(&entry.map, read).map(Some)
    }

    fn chunk(&self, digest: ChunkDigest) -> Result<Chunk> {
        self.chunks.get_or_fetch(&digest, || self.repository.chunks().chunk(digest))
    }

    /// The position of a chunk among the sources; `None` where there is no room for another.
    fn source(&mut self, chunk: &Chunk) -> Option<u32> {
        if let Some(position) = self.positions.get(&chunk.digest()) {
            return Some(*position);
        }
        let blocks: Vec<BlockDigest> =
            chunk.bytes().chunks(BLOCK_LEN).map(BlockDigest::of).collect();
        let len = self.sources_len + 34 + 32 * blocks.len();
        if self.sources.len() == BOOT_SOURCES_MAX || len > SOURCES_LEN_MAX {
            return None;
        }
        self.sources_len = len;
        let position = self.sources.len() as u32;
        self.sources.push(BootSource { chunk: chunk.digest(), blocks });
        self.positions.insert(chunk.digest(), position);
        Some(position)
    }

    fn end_piece(&mut self) -> Result<()> {
        let plain = std::mem::take(&mut self.piece);
        if plain.is_empty() {
            return Ok(());
        }
        let digest = *blake3::hash(&plain).as_bytes();
        let block_count = (plain.len() / BLOCK_LEN) as u32;
        self.pieces.push(BootPiece { digest, block_count });
        self.put_unknown(EntryKind::BootPiece, digest, plain)
    }

    fn put_unknown(&mut self, kind: EntryKind, digest: [u8; 32], plain: Vec<u8>) -> Result<()> {
        let Repository { catalog, realm, .. } = self.repository;
        if matches!(catalog.claim(self.lease, realm, &[digest])?.first(), Some(Some(_))) {
            return Ok(());
        }
        self.packed_len += plain.len() as u64;
        self.packer.push(Entry { kind, digest, plain, blocks: Vec::new() })?;
        if self.packed_len >= SET_PACK_LEN {
            self.packed_len = 0;
            self.packer.end_pack()?;
        }
        Ok(())
    }

    /// Packs the set itself. Returns its digest.
    fn finish(mut self) -> Result<[u8; 32]> {
        self.end_piece()?;
        let (sources, reads) = (std::mem::take(&mut self.sources), std::mem::take(&mut self.reads));
        let set = BootSet::new(sources, reads, std::mem::take(&mut self.pieces))
            .ok_or_else(|| Error::new(Kind::Bug, "make", "a boot working set"))?;
        let bytes = encode_boot_set(&set);
        let digest = *blake3::hash(&bytes).as_bytes();
        self.put_unknown(EntryKind::BootSet, digest, bytes)?;
        self.packer.finish()?;
        Ok(digest)
    }
}
