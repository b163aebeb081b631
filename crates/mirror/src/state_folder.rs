//! Where a host keeps mirrors and bases.
//!
//! ```text
//! STATE/bases/<content digest>/...      see `base`
//! STATE/mirrors/<NAME>/lock             held by the owner, names its process
//!                      state.log        what is durable of the mirror; it exists with this file
//!                      live.<life>.<boot>   what survives the process
//!                      overlay.0, overlay.1
//! ```

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use env::{File, FileSystem, OpenMode};
use format::mirror_log::LogBinding;
use model::{ContentDigest, Error, Kind, LayoutDigest, MirrorName, Result, VersionId};
use store::ChunkStore;

use crate::background::Background;
use crate::base::Base;
use crate::chunks::ChunkCache;
use crate::fetch::BaseView;
use crate::live::LiveStates;
use crate::log::{log_path, read_log};
use crate::mirror::restore_states;
use crate::patience::Reachability;

const LOCK_LEN_MAX: u64 = 64;

/// What a mirror is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The version that the next commit follows.
    pub parent: VersionId,
    /// The content of the base: of the version that the mirror was attached to.
    pub content: ContentDigest,
    /// The layout by which the base is read.
    pub layout: LayoutDigest,
    /// Bytes of the disk.
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
    /// Bytes that changed since the last commit.
    pub dirty_bytes: u64,
    /// Bytes of disk that its base takes; shared with other mirrors of that content.
    pub fetched_bytes: u64,
    /// Bytes of disk that it takes itself.
    pub host_bytes: u64,
    /// The process that owns it, if one does and left its number.
    pub owner: Option<u32>,
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
    bases: Mutex<HashMap<ContentDigest, Weak<Base>>>,
    chunks: Arc<ChunkCache>,
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
            file_system,
            path,
            bases: Mutex::default(),
            chunks: Arc::new(ChunkCache::new()),
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

    /// Bytes of this host's disk that the bases of this folder take. Cost: one `fstat` for each.
    ///
    /// # Errors
    /// What the system says.
    pub fn base_bytes(&self) -> Result<u64> {
        let folder = self.shared.path.join("bases");
        let failed = |error| Error::io("measure the bases in", folder.display().to_string(), error);
        if !self.file_system().exists(&folder).map_err(failed)? {
            return Ok(0);
        }
        let mut sum = 0;
        for base in self.file_system().list(&folder).map_err(failed)? {
            // One that is being made has no bytes yet.
            let data = self.file_system().open(&folder.join(base).join("data"), OpenMode::Read);
            sum += data.and_then(|file| file.allocated_bytes()).unwrap_or(0);
        }
        Ok(sum)
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
        let live =
            LiveStates::look(file_system, &folder, log.epoch, binding.length).map_err(failed)?;
        let states = restore_states(&log, binding.length, live.as_ref()).map_err(failed)?;
        let dirty_blocks: u64 = states.iter().map(|(_, segment)| segment.counts().0).sum();
        let mut host_bytes = log.end as u64;
        for file in 0..2 {
            let overlay = file_system.open(&overlay_path(&folder, file), OpenMode::Read);
            host_bytes += overlay.and_then(|file| file.allocated_bytes()).map_err(failed)?;
        }
        let data = self.base_folder(binding.content).join("data");
        let base = file_system.open(&data, OpenMode::Read);
        let fetched_bytes = base.and_then(|file| file.allocated_bytes()).unwrap_or(0);
        let owner = match self.lock(name) {
            Ok(_) => None,
            Err((_, owner)) => owner,
        };
        Ok(MirrorSummary {
            name: name.clone(),
            base: binding.base.clone(),
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

    fn base_folder(&self, content: ContentDigest) -> PathBuf {
        self.shared.path.join("bases").join(content.to_string())
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

    /// Opens the base of a content, or joins those who have it open, and reads it by `layout`.
    pub(crate) fn open_base(
        &self,
        content: ContentDigest,
        layout: LayoutDigest,
        length: u64,
        store: Arc<dyn ChunkStore>,
    ) -> Result<Arc<BaseView>> {
        let base = {
            // Held over opening: a second opener would reset what the first has made.
            let mut bases = self.shared.bases.lock().unwrap_or_else(PoisonError::into_inner);
            match bases.get(&content).and_then(Weak::upgrade) {
                Some(base) => base,
                None => {
                    let folder = self.base_folder(content);
                    let base = Base::open(self.shared_file_system(), &folder, content, length)?;
                    let base = Arc::new(base);
                    bases.retain(|_, base| base.strong_count() > 0);
                    bases.insert(content, Arc::downgrade(&base));
                    base
                }
            }
        };
        let (chunks, background) = (self.shared.chunks.clone(), self.shared.background.clone());
        let reachability = self.shared.reachability.clone();
        BaseView::new(base, layout, length, store, chunks, background, reachability).map(Arc::new)
    }
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
