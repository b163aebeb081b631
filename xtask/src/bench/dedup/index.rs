//! The index under test, driven with digests alone, and the one it is held against.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use catalog::{Catalog, EntryRecord, LeaseId, NewPack, PackId, SqliteCatalog};
use chunking::{BlockList, ChunkSize, OpenChunk, Sampling, SealedChunk, WINDOW_LEN};
use env::SystemClock;
use format::entry::{Encoding, EntryKind};
use format::pack::PackBuilder;
use model::digest::{DIGEST_LEN, Hook};
use model::{BLOCK_LEN, BlockDigest, ChunkDigest, Error, Kind, Realm, Result};
use repository::duplicates::Duplicates;
use repository::lists::{LISTS_MAX, PackLists};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};
use store::{MemoryPackStore, PackName, PackStore};

use super::super::inputs::{noise, remove};

/// How bytes are counted.
pub const NOTE: &str = "Bytes of the index: all pages of the catalog's table of hooks (`dbstat`), as if none of \
    them were on the disk alone, and the block lists in memory at their most (digests, slots and chunks, by \
    the capacities of their vectors; 32 lists). Not counted: the list of the pack that is being filled \
    and those on their way to the disk, which hold new blocks only and of which there are two or three. The index of \
    every block is counted as 40 bytes for each different block, a digest of 32 and a place of 8, without \
    the free slots or the pages that it would need.";

/// How many blocks a window has that is full.
const WINDOW_BLOCKS: usize = WINDOW_LEN / BLOCK_LEN;

/// Chunks of a pack that is full.
const PACK_CHUNKS: usize = 64;

/// Bytes that an index of every block needs for one, at least.
const EXHAUSTIVE_ROW_LEN: u64 = DIGEST_LEN as u64 + 8;

/// An index of every block.
#[derive(Default)]
pub struct Exhaustive {
    known: HashSet<BlockDigest>,
    others: u64,
    /// Blocks that it knew when they came.
    pub duplicates: u64,
}

impl Exhaustive {
    /// Counts the blocks that are known, and learns the others.
    pub fn import(&mut self, digests: &[BlockDigest]) {
        for digest in digests {
            self.duplicates += u64::from(!self.known.insert(*digest));
        }
    }

    /// Learns packs of blocks that nobody has.
    pub fn others(&mut self, pack_count: usize) {
        self.others += (pack_count * PACK_CHUNKS * ChunkSize::DEFAULT.blocks()) as u64;
    }

    /// Bytes that it takes, at least.
    pub fn memory_len(&self) -> u64 {
        (self.known.len() as u64 + self.others) * EXHAUSTIVE_ROW_LEN
    }
}

/// The product's index: catalog, packs with lists but without bytes, lists in memory.
pub struct BoundedIndex {
    file: PathBuf,
    catalog: Arc<SqliteCatalog>,
    packs: Arc<MemoryPackStore>,
    lists: Arc<PackLists>,
    lease: LeaseId,
    realm: Realm,
    sampling: Sampling,
    lists_len_max: u64,
    noise: blake3::OutputReader,
    next_name: u128,
}

impl BoundedIndex {
    /// An empty one whose catalog is in a file, with one hook in `reduction` blocks.
    pub fn new(file: &Path, reduction: u8) -> Result<Self> {
        let sampling = Sampling::one_in(reduction)
            .ok_or_else(|| Error::new(Kind::Bug, "sample", reduction.to_string()))?;
        let catalog = Arc::new(SqliteCatalog::open(file, Arc::new(SystemClock))?);
        let packs = Arc::new(MemoryPackStore::default());
        let lists = Arc::new(PackLists::new(catalog.clone(), packs.clone()));
        let lease = catalog.begin_lease(Duration::from_secs(24 * 3600))?;
        Ok(BoundedIndex {
            file: file.to_path_buf(),
            catalog,
            packs,
            lists,
            lease,
            realm: Realm::default(),
            sampling,
            lists_len_max: 0,
            noise: noise(64),
            next_name: 1,
        })
    }

    /// Takes a disk's blocks as an import does; returns how many of them were found.
    pub fn import(&mut self, digests: &[BlockDigest]) -> Result<u64> {
        let mut duplicates = Duplicates::new(
            self.catalog.clone(),
            self.lists.clone(),
            self.realm.clone(),
            self.lease,
            OpenChunk::new(ChunkSize::DEFAULT),
        )
        .with_sampling(self.sampling);
        let (mut found, mut pack, mut visible) = (0, Vec::new(), Vec::new());
        for window in digests.chunks(WINDOW_BLOCKS) {
            visible.drain(..).for_each(|id| duplicates.made_visible(id));
            duplicates.prepare(window)?;
            for digest in window {
                if duplicates.find(digest)?.is_some() {
                    found += 1;
                    continue;
                }
                if duplicates.open.is_full() {
                    seal(&mut duplicates, &mut pack);
                    if pack.len() == PACK_CHUNKS {
                        duplicates.end_pack();
                        visible.push(self.put(&std::mem::take(&mut pack))?);
                    }
                }
                duplicates.open.push(*digest, &[]);
            }
            self.note_lists();
        }
        seal(&mut duplicates, &mut pack);
        if !pack.is_empty() {
            self.put(&pack)?;
        }
        Ok(found)
    }

    /// Puts full packs of blocks that nobody else has, as imports of other people's images do.
    pub fn others(&mut self, pack_count: usize) -> Result<()> {
        let block_count = ChunkSize::DEFAULT.blocks();
        for _ in 0..pack_count {
            let mut list = BlockList::default();
            let mut pack = Vec::with_capacity(PACK_CHUNKS);
            for _ in 0..PACK_CHUNKS {
                let mut bytes = vec![0; block_count * DIGEST_LEN];
                self.noise.fill(&mut bytes);
                let blocks: Vec<_> =
                    bytes.as_chunks().0.iter().map(|digest| BlockDigest(*digest)).collect();
                let digest = ChunkDigest::of(&blocks);
                list.push(digest, &blocks);
                pack.push((digest, blocks));
            }
            let id = self.put(&pack)?;
            self.lists.insert(id, Arc::new(list));
        }
        self.note_lists();
        Ok(())
    }

    /// Makes a pack visible, with one byte for each chunk.
    fn put(&mut self, chunks: &[(ChunkDigest, Vec<BlockDigest>)]) -> Result<PackId> {
        let mut builder = PackBuilder::new();
        for (digest, blocks) in chunks {
            let plain_len = (blocks.len() * BLOCK_LEN) as u32;
            builder.push(EntryKind::Chunk, Encoding::Zstd, digest.0, plain_len, &[0], blocks);
        }
        let finished = builder.finish();
        let name = PackName::new(&format!("{:032x}", self.next_name))?;
        self.next_name += 1;
        self.packs.put(&name, &finished.bytes)?;
        let kept = finished.block_digests.iter().filter(|digest| self.sampling.keeps(digest));
        let mut hooks: Vec<Hook> = kept.map(BlockDigest::hook).collect();
        hooks.sort_unstable();
        hooks.dedup();
        let entries = finished.entries.iter().map(|entry| EntryRecord {
            digest: entry.digest,
            offset: entry.offset,
            stored_len: entry.stored_len,
            plain_len: entry.plain_len,
            encoding: entry.encoding as u8,
            kind: entry.kind as u8,
        });
        let pack = NewPack {
            name: name.as_str().to_owned(),
            realm: self.realm.clone(),
            stored_len: finished.bytes.len() as u64,
            data_len: (finished.block_digests.len() * BLOCK_LEN) as u64,
            data_stored_len: chunks.len() as u64,
            entries: entries.collect(),
            hooks,
        };
        self.catalog.add_pack(self.lease, &pack)
    }

    fn note_lists(&mut self) {
        debug_assert!(self.lists.all_cached().len() <= LISTS_MAX);
        self.lists_len_max = self.lists_len_max.max(self.lists.memory_len() as u64);
    }

    /// The most bytes that the block lists in memory took.
    pub fn lists_len_max(&self) -> u64 {
        self.lists_len_max
    }

    /// How many packs there are.
    pub fn pack_count(&self) -> Result<u64> {
        Ok(self.catalog.statistics()?.pack_count)
    }

    /// Bytes of all pages that the table of hooks takes.
    pub fn hooks_len(&self) -> Result<u64> {
        let failed = |error| {
            Error::io("measure", self.file.display().to_string(), std::io::Error::other(error))
        };
        let work = async {
            let options = SqliteConnectOptions::new().filename(&self.file).read_only(true);
            let mut connection: SqliteConnection = options.connect().await?;
            let len: i64 = sqlx::query_scalar("SELECT sum(pgsize) FROM dbstat WHERE name = 'hook'")
                .fetch_one(&mut connection)
                .await?;
            connection.close().await?;
            Ok::<_, sqlx::Error>(len as u64)
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let runtime = runtime.map_err(|source| Error::io("start", "a runtime", source))?;
        runtime.block_on(work).map_err(failed)
    }

    /// Removes the catalog's files.
    pub fn remove(self) -> Result<()> {
        let file = self.file.clone();
        drop(self);
        for suffix in ["", "-wal", "-shm"] {
            remove(&PathBuf::from(format!("{}{suffix}", file.display())))?;
        }
        Ok(())
    }
}

/// Seals the open chunk, if there is something in it.
fn seal(duplicates: &mut Duplicates, pack: &mut Vec<(ChunkDigest, Vec<BlockDigest>)>) {
    if let Some(chunk) = duplicates.open.seal() {
        duplicates.add(&chunk);
        let SealedChunk { digest, blocks, .. } = chunk;
        pack.push((digest, blocks));
    }
}
