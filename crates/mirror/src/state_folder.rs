//! Where a host keeps mirrors and bases.
//!
//! ```text
//! STATE/bases/<content digest>/...      see `base`
//! STATE/mirrors/<NAME>/lock             held by the owner, names its process
//!                      state.log        what is durable of the mirror; it exists with this file
//!                      live.<life>.<boot>   what survives the process
//!                      overlay.0, overlay.1
//!                      states.out       its owner's own, see `states`
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use env::entropy::{Entropy, SystemEntropy};
use env::{File, FileSystem, OpenMode};
use format::mirror_log::LogBinding;
use model::{
    ChunkDigest, ContentDigest, Error, Kind, LayoutDigest, MapDigest, MirrorName, Result,
    SegmentMap, VersionId,
};
use store::{CachedChunks, Chunk, ChunkStore, Recent};

use crate::background::Background;
use crate::fetch::{BaseView, Parts};
use crate::live::LiveStates;
use crate::log::{log_path, read_log};
use crate::mirror::{overlay_len, restore_states};
use crate::patience::Reachability;
use crate::room::{Room, UNLIMITED};

const LOCK_LEN_MAX: u64 = 64;

/// Plain bytes of chunks that were used a moment ago: segments and bases share them.
const CHUNKS_LEN_MAX: u64 = 16 << 20;
const CHUNK_LEN: u64 = 128 << 10;

/// Bytes of segment maps that were: some 200 of a fresh import, 12 GiB of address space. A map is needed
/// where blocks of its segment are missing, and is read again where it has gone.
const MAPS_LEN_MAX: u64 = 8 << 20;
const MAP_LEN: u64 = 36 << 10;

/// Every file system that has holes has files of this length.
const PROBED_MIN: u64 = 1 << 40;

/// What a mirror is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The version that the next commit follows.
    pub parent: VersionId,
    /// The content of the base: of the version that the mirror was attached to.
    pub content: ContentDigest,
    /// The layout by which the base is read.
    pub layout: LayoutDigest,
    /// Bytes of that version. A mirror's disk may be longer.
    pub length: u64,
}

/// What can be told of a mirror without owning it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorSummary {
    /// Its name.
    pub name: MirrorName,
    /// The version that it was attached to.
    pub base: VersionId,
    /// What it is bound to; its parent is the version that the next commit follows.
    pub binding: Binding,
    /// Bytes of its disk.
    pub length: u64,
    /// Bytes that changed since the last commit.
    pub dirty_bytes: u64,
    /// Bytes of disk that its base takes; shared with other mirrors of that content.
    pub fetched_bytes: u64,
    /// Bytes of disk that it takes itself.
    pub host_bytes: u64,
    /// The process that owns it, if one does and left its number.
    pub owner: Option<u32>,
}

/// What bases take, and what became of those that went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BaseNumbers {
    /// Bytes of disk that they take.
    pub bytes: u64,
    /// What they may take.
    pub limit_bytes: Option<u64>,
    /// Bytes of disk that this process has evicted.
    pub evicted_bytes: u64,
    /// Segments that went one by one.
    pub evicted_segments: u64,
    /// Bases that went whole.
    pub evicted_bases: u64,
    /// Fetches that were not kept because there was no room.
    pub refused: u64,
}

/// Where a host keeps mirrors and bases. Clones share caches and bases.
#[derive(Clone, Debug)]
pub struct StateFolder {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    file_system: Arc<dyn FileSystem>,
    path: PathBuf,
    room: Arc<Room>,
    chunks: Arc<Recent<ChunkDigest, Chunk>>,
    maps: Arc<Recent<MapDigest, Arc<SegmentMap>>>,
    kept_chunks: OnceLock<Arc<store::ChunkCache>>,
    background: Arc<Background>,
    reachability: Arc<Reachability>,
}

impl StateFolder {
    /// The state folder at `path`. No I/O.
    pub fn new(file_system: Arc<dyn FileSystem>, path: impl Into<PathBuf>) -> Self {
        Self::with_background(file_system, path.into(), Background::default())
    }

    /// The same, but without a thread of its own: nothing is fetched ahead, and bases are
    /// checkpointed only when they are closed. What happens is then in the caller's order.
    pub fn without_background(file_system: Arc<dyn FileSystem>, path: impl Into<PathBuf>) -> Self {
        Self::with_background(file_system, path.into(), Background::none())
    }

    fn with_background(
        file_system: Arc<dyn FileSystem>,
        path: PathBuf,
        background: Background,
    ) -> Self {
        let shared = Shared {
            room: Arc::new(Room::new(file_system.clone(), path.clone())),
            file_system,
            path,
            chunks: Arc::new(Recent::new(CHUNKS_LEN_MAX, CHUNK_LEN)),
            maps: Arc::new(Recent::new(MAPS_LEN_MAX, MAP_LEN)),
            kept_chunks: OnceLock::new(),
            background: Arc::new(background),
            reachability: Arc::default(),
        };
        StateFolder { shared: Arc::new(shared) }
    }

    /// Whether the stores that mirrors of this folder read from answer.
    pub fn reachability(&self) -> Arc<Reachability> {
        self.shared.reachability.clone()
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Keeps chunks that are fetched from now on, compressed, in at most that many bytes of
    /// `STATE/chunks`; what is there from before serves as soon as it was looked through. For stores
    /// that are far: where one is a folder of this machine, it would only be copied. The first call
    /// counts.
    pub fn keep_chunks(&self, bytes: u64) {
        let shared = &self.shared;
        let cache = shared.kept_chunks.get_or_init(|| {
            let folder = shared.path.join("chunks");
            Arc::new(store::ChunkCache::new(shared.file_system.clone(), folder, bytes))
        });
        let cache = cache.clone();
        let load = move || {
            if let Err(error) = cache.load() {
                tracing::warn!(folder = %cache.folder().display(), %error, "kept chunks are lost");
            }
        };
        if let Err(error) = std::thread::Builder::new().name("chunk-cache".into()).spawn(load) {
            tracing::debug!(%error, "kept chunks are not looked through");
        }
    }

    /// The chunks that are kept compressed, if any are to be.
    pub fn chunk_cache(&self) -> Option<&Arc<store::ChunkCache>> {
        self.shared.kept_chunks.get()
    }

    /// Limits the bytes of disk that all bases may take, in this process and, together with what others
    /// know, on this host. Without it there is no limit.
    pub fn limit_bases(&self, bytes: u64) {
        self.shared.room.set_limit(bytes);
    }

    /// The limit, if there is one.
    pub fn base_limit(&self) -> Option<u64> {
        let limit = self.shared.room.limit();
        (limit != UNLIMITED).then_some(limit)
    }

    /// Lets the next fetch look for room, though the one before found none a moment ago.
    pub fn look_for_room_again(&self) {
        self.shared.room.look_again();
    }

    /// Evicts from bases until that many bytes are free, as far as possible. Returns how many are. For
    /// other processes, which cannot evict what this one has open.
    ///
    /// # Errors
    /// Those of the lock of the state folder.
    pub fn make_room(&self, bytes: u64) -> Result<u64> {
        let room = &self.shared.room;
        let lock = room.lock().map_err(|error| {
            Error::io("make room in", room.bases_folder().display().to_string(), error)
        })?;
        Ok(room.evict(&lock, bytes))
    }

    /// Numbers about the bases and their limit. Cost: that of [`StateFolder::base_bytes`].
    ///
    /// # Errors
    /// What the system says.
    pub fn base_numbers(&self) -> Result<BaseNumbers> {
        let room = &self.shared.room;
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counts = room.counts();
        Ok(BaseNumbers {
            bytes: self.base_bytes()?,
            limit_bytes: self.base_limit(),
            evicted_bytes: of(&counts.bytes),
            evicted_segments: of(&counts.segments),
            evicted_bases: of(&counts.bases),
            refused: of(&counts.refused),
        })
    }

    /// Bytes of this host's disk that the bases of this folder take. Cost: a few calls for each.
    ///
    /// # Errors
    /// What the system says.
    pub fn base_bytes(&self) -> Result<u64> {
        let room = &self.shared.room;
        let subject = || room.bases_folder().display().to_string();
        room.measure().map_err(|error| Error::io("measure the bases in", subject(), error))
    }

    /// The names of all mirrors, ascending.
    pub fn list(&self) -> Result<Vec<MirrorName>> {
        let folder = self.shared.path.join("mirrors");
        let failed = |error| Error::io("list the mirrors in", folder.display().to_string(), error);
        if !self.file_system().exists(&folder).map_err(failed)? {
            return Ok(Vec::new());
        }
        let mut names = Vec::new();
        for entry in self.file_system().list(&folder).map_err(failed)? {
            let Some(name) = entry.to_str().and_then(|text| MirrorName::new(text).ok()) else {
                continue;
            };
            if self.exists(&name)? {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// True where a mirror has that name.
    pub fn exists(&self, name: &MirrorName) -> Result<bool> {
        self.file_system()
            .exists(&log_path(&self.mirror_folder(name)))
            .map_err(|error| Error::io("look for the mirror", name.as_str(), error))
    }

    /// Tells of a mirror, owned by another or not. Cost: reads its log.
    ///
    /// # Errors
    /// `NotFound` where there is none.
    pub fn inspect(&self, name: &MirrorName) -> Result<MirrorSummary> {
        let folder = self.mirror_folder(name);
        let file_system = self.file_system();
        let failed = |error| Error::io("inspect the mirror", name.as_str(), error);
        let (log, binding) = read_log(file_system, &folder, name.as_str())?;
        let live = LiveStates::look(file_system, &folder, log.epoch, log.length).map_err(failed)?;
        let mut dirty_blocks = 0;
        restore_states(&log, live.as_ref(), |_, states| dirty_blocks += states.counts().0)
            .map_err(failed)?;
        let mut host_bytes = log.end as u64;
        for file in 0..2 {
            let overlay = file_system.open(&overlay_path(&folder, file), OpenMode::Read);
            host_bytes += overlay.and_then(|file| file.allocated_bytes()).map_err(failed)?;
        }
        let data = self.shared.room.base_folder(binding.content).join("data");
        let base = file_system.open(&data, OpenMode::Read);
        let fetched_bytes = base.and_then(|file| file.allocated_bytes()).unwrap_or(0);
        let owner = match self.lock(name) {
            Ok(_) => None,
            Err((_, owner)) => owner,
        };
        Ok(MirrorSummary {
            name: name.clone(),
            base: binding.base.clone(),
            length: log.length,
            dirty_bytes: dirty_blocks * model::BLOCK_LEN as u64,
            fetched_bytes,
            host_bytes,
            owner,
            binding: binding_of(&binding),
        })
    }

    /// Removes a mirror with all that was written to it since its last commit. Its base stays.
    ///
    /// # Errors
    /// `NotFound` where there is none, `Refused` where a process owns it.
    pub fn discard(&self, name: &MirrorName) -> Result<()> {
        let folder = self.mirror_folder(name);
        let failed = |error| Error::io("discard the mirror", name.as_str(), error);
        if !self.exists(name)? {
            return Err(Error::new(Kind::NotFound, "discard the mirror", name.as_str())
                .because("no mirror has this name"));
        }
        let _lock = self.lock(name).map_err(|(error, _)| error)?;
        self.file_system()
            .remove_file(&log_path(&folder))
            .and_then(|()| self.file_system().sync_folder(&folder))
            .and_then(|()| self.file_system().remove_folder(&folder))
            .map_err(failed)
    }

    pub(crate) fn file_system(&self) -> &dyn FileSystem {
        &*self.shared.file_system
    }

    pub(crate) fn shared_file_system(&self) -> Arc<dyn FileSystem> {
        self.shared.file_system.clone()
    }

    /// The folder that holds all state of a mirror; whether or not it exists.
    pub fn mirror_folder(&self, name: &MirrorName) -> PathBuf {
        self.shared.path.join("mirrors").join(name.as_str())
    }

    pub(crate) fn room(&self) -> &Arc<Room> {
        &self.shared.room
    }

    /// Takes the lock of a mirror; otherwise the error, and who has it.
    pub(crate) fn lock(&self, name: &MirrorName) -> Result<Arc<dyn File>, (Error, Option<u32>)> {
        let operation = "own the mirror";
        let failed = |error| (Error::io(operation, name.as_str(), error), None);
        let path = self.mirror_folder(name).join("lock");
        let file = self.file_system().open(&path, OpenMode::OpenOrCreate).map_err(failed)?;
        if file.try_lock().map_err(failed)? {
            return Ok(file);
        }
        let text = self.file_system().read_file(&path, LOCK_LEN_MAX).unwrap_or_default();
        let owner = String::from_utf8_lossy(&text).trim().parse::<u32>().ok();
        let reason = match owner {
            Some(process) => format!("process {process} owns it"),
            None => "another process owns it".to_string(),
        };
        let error = Error::new(Kind::Refused, operation, name.as_str())
            .because(reason)
            .hint("a mirror has one owner at a time: ask that one, or use another name");
        Err((error, owner))
    }

    /// Looks whether the file system of this folder has files of that length, before anything is made.
    fn check_file_can_be(&self, length: u64) -> Result<()> {
        if length < PROBED_MIN {
            return Ok(());
        }
        let path = self.path();
        let probe = path.join(format!("length-{}", SystemEntropy.name()));
        let file_system = self.file_system();
        let tried = file_system
            .create_folders(path)
            .and_then(|()| file_system.open(&probe, OpenMode::CreateNew))
            .and_then(|file| file.set_len(overlay_len(length)));
        let _ = file_system.remove_file(&probe);
        tried.map_err(|error| too_long("attach a disk", format!("of {length} bytes"), error))
    }

    /// Opens the base of a content, or joins those who have it open, and reads it by `layout`.
    pub(crate) fn open_base(
        &self,
        content: ContentDigest,
        layout: LayoutDigest,
        length: u64,
        store: Arc<dyn ChunkStore>,
    ) -> Result<Arc<BaseView>> {
        self.check_file_can_be(length)?;
        let base = self.shared.room.open_base(content, length)?;
        let store: Arc<dyn ChunkStore> = match self.chunk_cache() {
            Some(cache) => Arc::new(CachedChunks::new(store, cache.clone())),
            None => store,
        };
        let parts = Parts {
            chunks: self.shared.chunks.clone(),
            maps: self.shared.maps.clone(),
            background: self.shared.background.clone(),
            reachability: self.shared.reachability.clone(),
            room: self.shared.room.clone(),
        };
        BaseView::new(base, layout, length, store, parts).map(Arc::new)
    }
}

/// What a file that cannot be as long as a disk is to whoever asked for the disk.
pub(crate) fn too_long(operation: &'static str, subject: String, error: io::Error) -> Error {
    if error.kind() != io::ErrorKind::FileTooLarge {
        return Error::io(operation, subject, error);
    }
    Error::new(Kind::Invalid, operation, subject)
        .because("the file system of the state folder has no files that long")
        .hint("use a state folder on XFS or btrfs: on ext4, files end just below 16 TiB")
}

pub(crate) fn overlay_path(folder: &Path, file: usize) -> PathBuf {
    folder.join(format!("overlay.{file}"))
}

pub(crate) fn binding_of(binding: &LogBinding) -> Binding {
    Binding {
        parent: binding.parent.clone(),
        content: binding.content,
        layout: binding.layout,
        length: binding.length,
    }
}
