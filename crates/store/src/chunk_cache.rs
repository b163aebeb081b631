//! Chunks of all versions that a host keeps near, compressed as they came.
//!
//! ```text
//! chunks/0000000000000007.chunks     | header | stored bytes | header | stored bytes | ...
//!        0000000000000008.chunks     each process appends to one of its own; the others are full
//!        lock                        held while files are made and removed
//! ```
//!
//! A file has at most an eighth of the limit, 64 MiB at most. Where the next one would not fit, the one
//! whose chunks were asked for longest ago goes, whole.
//!
//! **Invariants**: the lengths of all files together are at most the limit: a file that is being
//! filled has its final length from the start. What is read is verified against its digest.
//!
//! **Failure**: a file that is damaged, cut short or gone is a miss; so is what a crash has torn.
//! Nothing is synced, and a full disk or a limit that others have used up means that nothing more is
//! kept.
//!
//! **Not here**: maps and manifests, which are read once for each attach.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use env::{File, FileSystem, OpenMode};
use format::kept_chunk::{KEPT_CHUNK_HEADER_LEN, KeptChunkHeader};
use format::{Encoder, decode};
use model::boot_set::BootPiece;
use model::{ChunkDigest, ContentDigest, LayoutDigest, Manifest, MapDigest, Result, SegmentMap};

use crate::{Chunk, ChunkStore, StoredChunk};

const FILE_LEN_MAX: u64 = 64 << 20;
const FILES_MIN: u64 = 8;
const SUFFIX: &str = ".chunks";
/// How hard chunks are compressed that came plain.
const LEVEL: i32 = 1;

/// Chunks on this host's disk, within a limit. Shared by all stores that it stands before.
#[derive(Debug)]
pub struct ChunkCache {
    file_system: Arc<dyn FileSystem>,
    folder: PathBuf,
    limit: u64,
    kept: Mutex<Kept>,
    hits: AtomicU64,
    misses: AtomicU64,
    evicted: AtomicU64,
}

/// Numbers about a chunk cache, of this process alone but for `bytes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChunkCacheNumbers {
    /// Lengths of all files.
    pub bytes: u64,
    /// What they may be together.
    pub limit_bytes: u64,
    /// Chunks that were there.
    pub hits: u64,
    /// Chunks that were not.
    pub misses: u64,
    /// Lengths of files that were removed to make room.
    pub evicted_bytes: u64,
}

#[derive(Debug, Default)]
struct Kept {
    places: HashMap<ChunkDigest, Place>,
    files: BTreeMap<u64, KeptFile>,
    /// The file that is being filled, and where its next chunk goes.
    open: Option<(u64, u64)>,
    clock: u64,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    file: u64,
    offset: u64,
    header: KeptChunkHeader,
}

#[derive(Debug)]
struct KeptFile {
    file: Arc<dyn File>,
    used_at: u64,
}

impl ChunkCache {
    /// The cache in `folder`, which need not exist. What is in it counts after [`ChunkCache::load`].
    pub fn new(file_system: Arc<dyn FileSystem>, folder: PathBuf, limit: u64) -> Self {
        ChunkCache {
            file_system,
            folder,
            limit,
            kept: Mutex::default(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
        }
    }

    /// Looks what is there, and brings it within the limit. Cost: a small read for each chunk.
    ///
    /// # Errors
    /// What the system says: the cache works, and knows of less.
    pub fn load(&self) -> io::Result<()> {
        let _lock = self.lock()?;
        for number in self.list()? {
            self.load_file(number);
        }
        self.make_room(0)
    }

    /// A chunk, where it is kept and sound.
    pub fn get(&self, digest: ChunkDigest) -> Option<Chunk> {
        let found = self.read(digest);
        let counter = if found.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    fn read(&self, digest: ChunkDigest) -> Option<Chunk> {
        let (place, file) = {
            let mut kept = self.guard();
            let place = *kept.places.get(&digest)?;
            kept.clock += 1;
            let now = kept.clock;
            let file = kept.files.get_mut(&place.file)?;
            file.used_at = now;
            (place, file.file.clone())
        };
        let header = place.header;
        let mut stored = vec![0; header.stored_len as usize];
        let sound = file.read_exact_at(&mut stored, place.offset).ok().and_then(|()| {
            let plain = decode(header.encoding, &stored, header.plain_len).ok()?;
            Chunk::verify(digest, plain).ok()
        });
        if sound.is_none() {
            self.guard().places.remove(&digest);
        }
        sound
    }

    /// Keeps a chunk. What cannot be kept is not.
    pub fn put(&self, chunk: &Chunk, stored: Option<StoredChunk>) {
        let stored = stored.unwrap_or_else(|| {
            let (encoding, bytes) = Encoder::new(LEVEL).encode(chunk.bytes());
            StoredChunk { encoding, bytes }
        });
        if let Err(error) = self.append(chunk, &stored) {
            tracing::debug!(%error, "a chunk is not kept");
        }
    }

    fn append(&self, chunk: &Chunk, stored: &StoredChunk) -> io::Result<()> {
        let header = KeptChunkHeader {
            digest: chunk.digest(),
            encoding: stored.encoding,
            stored_len: stored.bytes.len() as u32,
            plain_len: chunk.bytes().len() as u32,
        };
        let len = (KEPT_CHUNK_HEADER_LEN + stored.bytes.len()) as u64;
        let mut kept = self.guard();
        if len > self.file_len() || kept.places.contains_key(&header.digest) {
            return Ok(());
        }
        let has_room =
            |open: Option<(u64, u64)>| open.is_some_and(|(_, end)| end + len <= self.file_len());
        if !has_room(kept.open) {
            self.seal(&mut kept)?;
            drop(kept);
            self.open_file()?;
            kept = self.guard();
            if !has_room(kept.open) {
                return Ok(());
            }
        }
        let Some((number, end)) = kept.open else { return Ok(()) };
        let Some(file) = kept.files.get(&number).map(|kept| kept.file.clone()) else {
            kept.open = None;
            return Ok(());
        };
        file.write_all_at(&[&header.encode()[..], &stored.bytes].concat(), end)?;
        kept.open = Some((number, end + len));
        let offset = end + KEPT_CHUNK_HEADER_LEN as u64;
        kept.places.insert(header.digest, Place { file: number, offset, header });
        Ok(())
    }

    /// Cuts the file that is being filled to what is in it, and lets others remove it.
    fn seal(&self, kept: &mut Kept) -> io::Result<()> {
        let Some((number, end)) = kept.open.take() else { return Ok(()) };
        match kept.files.get(&number) {
            Some(kept) => kept.file.set_len(end).and_then(|()| kept.file.unlock()),
            None => Ok(()),
        }
    }

    /// Begins a file, if there is room for one.
    fn open_file(&self) -> io::Result<()> {
        let _lock = self.lock()?;
        if self.guard().open.is_some() {
            return Ok(());
        }
        let known: Vec<u64> = self.guard().files.keys().copied().collect();
        let there = self.list()?;
        // What other processes have kept meanwhile serves this one too.
        there.iter().filter(|number| !known.contains(number)).for_each(|n| self.load_file(*n));
        self.make_room(self.file_len())?;
        if self.len()? + self.file_len() > self.limit {
            return Ok(());
        }
        let number = there.last().map_or(1, |last| last + 1);
        let file = self.file_system.open(&self.path(number), OpenMode::CreateNew)?;
        file.try_lock()?;
        file.set_len(self.file_len())?;
        let mut kept = self.guard();
        let used_at = kept.clock;
        kept.files.insert(number, KeptFile { file, used_at });
        kept.open = Some((number, 0));
        Ok(())
    }

    /// Removes files until `len` bytes more would fit: those used longest ago first. Call under the
    /// lock.
    fn make_room(&self, len: u64) -> io::Result<()> {
        let mut files = self.list()?;
        let used_at = |number: &u64| {
            let kept = self.guard();
            (kept.files.get(number).map_or(0, |file| file.used_at), *number)
        };
        files.sort_by_key(used_at);
        let mut sum = self.len()?;
        for number in files {
            if sum + len <= self.limit {
                break;
            }
            let Ok(file) = self.file_system.open(&self.path(number), OpenMode::ReadWrite) else {
                continue;
            };
            // A process fills it.
            if !file.try_lock()? {
                continue;
            }
            let gone = file.len()?;
            // Who has it open reads nothing from it any more, and its space is free at once.
            file.set_len(0)?;
            self.file_system.remove_file(&self.path(number))?;
            self.forget(number);
            self.evicted.fetch_add(gone, Ordering::Relaxed);
            sum -= gone.min(sum);
        }
        Ok(())
    }

    fn forget(&self, number: u64) {
        let mut kept = self.guard();
        kept.files.remove(&number);
        kept.places.retain(|_, place| place.file != number);
    }

    /// Learns what is in a file. What is not sound is not there. Call under the lock.
    fn load_file(&self, number: u64) {
        let Ok(file) = self.file_system.open(&self.path(number), OpenMode::ReadWrite) else {
            return;
        };
        let len = file.len().unwrap_or(0);
        let mut places = Vec::new();
        let mut at = 0;
        let mut header = [0; KEPT_CHUNK_HEADER_LEN];
        while file.read_exact_at(&mut header, at).is_ok() {
            let Some(header) = KeptChunkHeader::decode(&header) else { break };
            let offset = at + KEPT_CHUNK_HEADER_LEN as u64;
            let end = offset + u64::from(header.stored_len);
            if end > len {
                break;
            }
            places.push((header.digest, Place { file: number, offset, header }));
            at = end;
        }
        // Whoever filled it has died: what it did not fill is given back.
        if at < len && file.try_lock().unwrap_or(false) {
            let _ = file.set_len(at).and_then(|()| file.unlock());
        }
        let mut kept = self.guard();
        kept.files.insert(number, KeptFile { file, used_at: 0 });
        for (digest, place) in places {
            kept.places.entry(digest).or_insert(place);
        }
    }

    /// Numbers about it.
    pub fn numbers(&self) -> ChunkCacheNumbers {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        ChunkCacheNumbers {
            bytes: self.len().unwrap_or(0),
            limit_bytes: self.limit,
            hits: of(&self.hits),
            misses: of(&self.misses),
            evicted_bytes: of(&self.evicted),
        }
    }

    fn file_len(&self) -> u64 {
        (self.limit / FILES_MIN).min(FILE_LEN_MAX)
    }

    /// The lengths of all files.
    fn len(&self) -> io::Result<u64> {
        let mut sum = 0;
        for number in self.list()? {
            let file = self.file_system.open(&self.path(number), OpenMode::Read);
            sum += file.and_then(|file| file.len()).unwrap_or(0);
        }
        Ok(sum)
    }

    /// The numbers of all files, ascending.
    fn list(&self) -> io::Result<Vec<u64>> {
        if !self.file_system.exists(&self.folder)? {
            return Ok(Vec::new());
        }
        let number =
            |name: PathBuf| u64::from_str_radix(name.to_str()?.strip_suffix(SUFFIX)?, 16).ok();
        let mut numbers: Vec<u64> =
            self.file_system.list(&self.folder)?.into_iter().filter_map(number).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{number:016x}{SUFFIX}"))
    }

    /// Held until what is returned is dropped.
    fn lock(&self) -> io::Result<Arc<dyn File>> {
        self.file_system.create_folders(&self.folder)?;
        let lock = self.file_system.open(&self.folder.join("lock"), OpenMode::OpenOrCreate)?;
        lock.lock()?;
        Ok(lock)
    }

    fn guard(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it keeps its files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// A store whose chunks are looked for in a cache first.
pub struct CachedChunks {
    store: Arc<dyn ChunkStore>,
    cache: Arc<ChunkCache>,
}

impl CachedChunks {
    /// Puts a cache before a store.
    pub fn new(store: Arc<dyn ChunkStore>, cache: Arc<ChunkCache>) -> Self {
        CachedChunks { store, cache }
    }
}

impl ChunkStore for CachedChunks {
    fn current_layout(&self, content: ContentDigest) -> Result<Option<LayoutDigest>> {
        self.store.current_layout(content)
    }

    fn manifest(&self, layout: LayoutDigest) -> Result<Arc<Manifest>> {
        self.store.manifest(layout)
    }

    fn segment_map(&self, map: MapDigest) -> Result<Arc<SegmentMap>> {
        self.store.segment_map(map)
    }

    fn chunk_as_stored(&self, chunk: ChunkDigest) -> Result<(Chunk, Option<StoredChunk>)> {
        if let Some(kept) = self.cache.get(chunk) {
            return Ok((kept, None));
        }
        let (fetched, stored) = self.store.chunk_as_stored(chunk)?;
        self.cache.put(&fetched, stored);
        Ok((fetched, None))
    }

    fn boot_pieces(&self, pieces: &[BootPiece]) -> Result<Vec<Vec<u8>>> {
        self.store.boot_pieces(pieces)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use env::simulated::SimulatedFileSystem;
    use model::{BLOCK_LEN, BlockDigest};

    use super::*;

    fn chunk(seed: u64) -> Chunk {
        let mut bytes = vec![0; 4 * BLOCK_LEN];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes[..9000]);
        let digests: Vec<_> = bytes.chunks(BLOCK_LEN).map(BlockDigest::of).collect();
        Chunk::verify(ChunkDigest::of(&digests), bytes).unwrap()
    }

    fn cache_on(disk: &SimulatedFileSystem, limit: u64) -> ChunkCache {
        let cache = ChunkCache::new(Arc::new(disk.clone()), "/state/chunks".into(), limit);
        cache.load().unwrap();
        cache
    }

    fn is_kept(cache: &ChunkCache, seed: u64) -> bool {
        let expected = chunk(seed);
        cache.get(expected.digest()).is_some_and(|found| found.bytes() == expected.bytes())
    }

    #[test]
    fn what_is_kept_is_there_after_a_restart_and_stays_within_the_limit() {
        let disk = SimulatedFileSystem::new();
        let (limit, count) = (400_000, 200);
        let cache = cache_on(&disk, limit);
        for seed in 0..count {
            cache.put(&chunk(seed), None);
            assert!(is_kept(&cache, seed), "{seed}");
            // Asked for again and again.
            assert!(is_kept(&cache, 0));
            assert!(cache.numbers().bytes <= limit);
        }
        assert!(cache.numbers().evicted_bytes > 0);
        let there: Vec<u64> = (0..count).filter(|seed| is_kept(&cache, *seed)).collect();
        assert!(there.len() > 15 && there.len() < 60, "{}", there.len());
        drop(cache);
        let after = cache_on(&disk.kill(), limit);
        assert_eq!((0..count).filter(|seed| is_kept(&after, *seed)).collect::<Vec<_>>(), there);
        let less = cache_on(&disk.kill(), limit / 4);
        assert!(less.numbers().bytes <= limit / 4);
        assert!((0..count).filter(|seed| is_kept(&less, *seed)).count() < there.len() / 2);
    }

    #[test]
    fn a_file_that_is_damaged_torn_or_gone_is_a_miss_and_never_wrong_bytes() {
        let disk = SimulatedFileSystem::new();
        let cache = cache_on(&disk, 4_000_000);
        (0..20).for_each(|seed| cache.put(&chunk(seed), None));
        let path = Path::new("/state/chunks/0000000000000001.chunks");
        let mut kept = HashSet::new();
        for at in (0..180_000).step_by(997) {
            let disk = disk.kill();
            let cache = cache_on(&disk, 4_000_000);
            let file = disk.open(path, OpenMode::ReadWrite).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
            // Known before the damage, or looked for after it.
            for cache in [cache, cache_on(&disk.kill(), 4_000_000)] {
                kept.insert((0..20).filter(|seed| is_kept(&cache, *seed)).count());
            }
        }
        assert!(kept.contains(&19) && kept.len() > 2, "{kept:?}");
        for seed in 0..20 {
            let cache = cache_on(&disk.crash(seed), 4_000_000);
            for wanted in 0..20 {
                let expected = chunk(wanted);
                let found = cache.get(expected.digest());
                assert!(found.is_none_or(|found| found.bytes() == expected.bytes()));
            }
            cache.put(&chunk(99), None);
            assert!(is_kept(&cache, 99));
        }
        disk.remove_file(path).unwrap();
        assert!(is_kept(&cache, 3), "it is open still");
        assert!(!is_kept(&cache_on(&disk, 4_000_000), 3));
    }

    #[test]
    fn processes_share_what_is_kept_and_the_limit() {
        let disk = SimulatedFileSystem::new();
        let limit = 400_000;
        let caches: Vec<ChunkCache> = (0..4).map(|_| cache_on(&disk, limit)).collect();
        for seed in 0..200 {
            caches[seed as usize % 4].put(&chunk(seed), None);
            assert!(caches[0].numbers().bytes <= limit);
            for cache in &caches {
                let expected = chunk(seed / 2);
                let found = cache.get(expected.digest());
                assert!(found.is_none_or(|found| found.bytes() == expected.bytes()));
            }
        }
        let fresh = cache_on(&disk, limit);
        assert!((0..200).filter(|seed| is_kept(&fresh, *seed)).count() > 10);
    }

    #[test]
    fn a_full_disk_keeps_nothing_more_and_fails_nobody() {
        let disk = SimulatedFileSystem::new();
        let cache = cache_on(&disk, 4_000_000);
        cache.put(&chunk(1), None);
        disk.limit_space(disk.used_bytes());
        cache.put(&chunk(2), None);
        assert!(is_kept(&cache, 1) && !is_kept(&cache, 2));
        disk.heal();
        cache.put(&chunk(2), None);
        assert!(is_kept(&cache, 2));
    }

    #[test]
    fn a_store_behind_the_cache_is_asked_once() {
        use crate::MemoryChunkStore;
        let mut memory = MemoryChunkStore::new(4);
        let blocks = BTreeMap::from([(0, vec![1; BLOCK_LEN]), (1, vec![2; BLOCK_LEN])]);
        memory.add(2 * BLOCK_LEN as u64, &blocks);
        let digest = memory.chunk_digests()[0];
        let cache = Arc::new(cache_on(&SimulatedFileSystem::new(), 1 << 20));
        let far = CachedChunks::new(Arc::new(memory), cache.clone());
        let first = far.chunk(digest).unwrap();
        let away = CachedChunks::new(Arc::new(MemoryChunkStore::new(4)), cache.clone());
        assert_eq!(away.chunk(digest).unwrap().bytes(), first.bytes());
        let numbers = cache.numbers();
        assert_eq!((numbers.hits, numbers.misses), (1, 1));
    }
}
