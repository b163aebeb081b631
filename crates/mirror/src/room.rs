//! Room for bases: a limit in bytes for all of them together, kept by all processes of the host.
//!
//! ```text
//! fetch ─► reserve ─► from this process's grant ─────────────────────────────► write
//!                 └─► grant used up: lock ─► measure ─► evict ─► next grant ──┘
//! ```
//!
//! A process may write what it was granted without asking again. What others were granted counts as
//! taken. So the limit holds at any time, and only one fetch in many looks at the disk.
//!
//! **Invariants**: bytes of all files below `bases`, and what was granted and is not written yet, are
//! at most the limit, but for what cannot be evicted (see `evict`). Bases are opened, and evicted from,
//! under one lock of the state folder; it is never held across a fetch.
//!
//! **Failure**: a process that dies loses its locks, and with them its grant. Where there is no room,
//! blocks are served without being kept.
//!
//! **Not here**: who goes first (`evict`); overlays: they are no cache, and are not counted.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use env::entropy::{Entropy, SystemEntropy};
use env::{Clock, File, FileSystem, OpenMode, SystemClock};
use model::{ContentDigest, Error, Kind, Result};

use crate::base::Base;

/// The most that a process is granted at a time.
const GRANT_MAX: u64 = 64 << 20;
/// A grant is at most one part in so many of the limit.
const GRANT_SHARE: u64 = 16;
/// Counted for each write beside its bytes: what presence and the file system's own notes may grow by.
const BESIDES: u64 = 8 << 10;
/// For how long nobody looks for room again where there was none.
const REFUSAL_LASTS: Duration = Duration::from_millis(100);
const TEXT_LEN_MAX: u64 = 64;

/// A limit that is none.
pub(crate) const UNLIMITED: u64 = u64::MAX;

/// Keeps bases within their limit.
#[derive(Debug)]
pub(crate) struct Room {
    file_system: Arc<dyn FileSystem>,
    /// The state folder.
    path: PathBuf,
    limit: AtomicU64,
    /// The bases that are open in this process.
    bases: Mutex<HashMap<ContentDigest, Weak<Base>>>,
    account: Mutex<Account>,
    lock: Mutex<Option<Arc<dyn File>>>,
    grant: OnceLock<Arc<dyn File>>,
    /// Ticks with each grant: coarse, so that reads seldom write down when they were.
    clock: Arc<AtomicU32>,
    counts: Evictions,
    /// When there was no room, by the monotonic clock.
    refused_at: Mutex<Option<Duration>>,
}

/// What this process may write.
#[derive(Debug, Default)]
struct Account {
    granted: u64,
    /// Reserved by those who are writing now.
    in_flight: u64,
}

/// What was evicted by this process.
#[derive(Debug, Default)]
pub(crate) struct Evictions {
    pub(crate) bytes: AtomicU64,
    pub(crate) segments: AtomicU64,
    pub(crate) bases: AtomicU64,
    /// Fetches that were not kept because there was no room.
    pub(crate) refused: AtomicU64,
}

/// What came of a look for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grant {
    Some,
    /// There would be room but for what other threads of this process are writing.
    NoneUntilOthersLand,
    None,
}

/// Room that is about to be filled; what was not is given back.
#[derive(Debug)]
pub(crate) struct Reservation<'a> {
    room: &'a Room,
    len: u64,
}

/// Held by the one process, and the one thread of it, that opens or evicts.
#[derive(Debug)]
pub(crate) struct RoomLock<'a> {
    file: MutexGuard<'a, Option<Arc<dyn File>>>,
}

impl Drop for RoomLock<'_> {
    fn drop(&mut self) {
        if let Some(file) = &*self.file
            && file.unlock().is_err()
        {
            // It goes with the file.
            *self.file = None;
        }
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.room.account().in_flight -= self.len;
    }
}

impl Room {
    pub(crate) fn new(file_system: Arc<dyn FileSystem>, path: PathBuf) -> Self {
        Room {
            file_system,
            path,
            limit: AtomicU64::new(UNLIMITED),
            bases: Mutex::default(),
            account: Mutex::default(),
            lock: Mutex::default(),
            grant: OnceLock::new(),
            clock: Arc::new(AtomicU32::new(1)),
            counts: Evictions::default(),
            refused_at: Mutex::default(),
        }
    }

    pub(crate) fn file_system(&self) -> &dyn FileSystem {
        &*self.file_system
    }

    /// The state folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bases_folder(&self) -> PathBuf {
        self.path.join("bases")
    }

    pub(crate) fn base_folder(&self, content: ContentDigest) -> PathBuf {
        self.bases_folder().join(content.to_string())
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Sets the limit, from the next grant on.
    pub(crate) fn set_limit(&self, bytes: u64) {
        self.limit.store(bytes, Ordering::Relaxed);
        self.look_again();
        self.account().granted = 0;
    }

    pub(crate) fn counts(&self) -> &Evictions {
        &self.counts
    }

    pub(crate) fn clock(&self) -> Arc<AtomicU32> {
        self.clock.clone()
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the lock under which bases are opened and evicted.
    pub(crate) fn lock(&self) -> io::Result<RoomLock<'_>> {
        let mut file = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if file.is_none() {
            self.file_system.create_folders(&self.path)?;
            let path = self.path.join("room.lock");
            *file = Some(self.file_system.open(&path, OpenMode::OpenOrCreate)?);
        }
        if let Some(file) = &*file {
            file.lock()?;
        }
        Ok(RoomLock { file })
    }

    /// The base of a content: joins those who have it open, or opens it.
    pub(crate) fn open_base(&self, content: ContentDigest, length: u64) -> Result<Arc<Base>> {
        if let Some(base) = self.open_here(content) {
            return Ok(base);
        }
        let failed = |error| Error::io("open the base", content.to_string(), error);
        // Held over opening: a second opener would reset what the first has made, and nobody may
        // remove what is being opened.
        let lock = self.lock().map_err(failed)?;
        if let Some(base) = self.open_here(content) {
            return Ok(base);
        }
        let folder = self.base_folder(content);
        let base = Base::open(self.file_system.clone(), &folder, content, length, self.clock())?;
        // Only the order of eviction hangs on it.
        let _ = self.next_use(&lock).and_then(|number| base.note_opened(number));
        let base = Arc::new(base);
        let mut bases = self.bases_guard();
        bases.retain(|_, base| base.strong_count() > 0);
        bases.insert(content, Arc::downgrade(&base));
        Ok(base)
    }

    /// Opens a base only to evict from it: that is no use of it.
    pub(crate) fn open_to_evict(
        &self,
        _lock: &RoomLock<'_>,
        content: ContentDigest,
        length: u64,
    ) -> Result<Arc<Base>> {
        let folder = self.base_folder(content);
        Base::open(self.file_system.clone(), &folder, content, length, self.clock()).map(Arc::new)
    }

    /// The bases that are open in this process.
    pub(crate) fn all_open_here(&self) -> Vec<Arc<Base>> {
        self.bases_guard().values().filter_map(Weak::upgrade).collect()
    }

    /// Counts, for all processes and for ever, how often a base was opened.
    fn next_use(&self, lock: &RoomLock<'_>) -> io::Result<u64> {
        let Some(file) = &*lock.file else { return Ok(0) };
        let number = read_number(&**file) + 1;
        write_number(&**file, number).map(|()| number)
    }

    fn bases_guard(&self) -> MutexGuard<'_, HashMap<ContentDigest, Weak<Base>>> {
        self.bases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A base, if it is open in this process.
    pub(crate) fn open_here(&self, content: ContentDigest) -> Option<Arc<Base>> {
        self.bases_guard().get(&content).and_then(Weak::upgrade)
    }

    /// Reserves room for a write of `len` bytes into a base. Makes room where there is none.
    ///
    /// # Errors
    /// `Full` where nothing more can be evicted: serve the bytes without keeping them.
    pub(crate) fn reserve(&self, len: u64) -> Result<Reservation<'_>> {
        if self.limit() == UNLIMITED {
            return Ok(Reservation { room: self, len: 0 });
        }
        let len = len + BESIDES;
        if let Some(reservation) = self.take(len) {
            return Ok(reservation);
        }
        if self.was_refused_just_now() {
            return Err(self.refused());
        }
        let failed = |error| Error::io("make room", "for fetched blocks", error);
        let lock = self.lock().map_err(failed)?;
        // Another thread may have been granted something meanwhile.
        if let Some(reservation) = self.take(len) {
            return Ok(reservation);
        }
        match self.grant_more(&lock, len).map_err(failed)? {
            Grant::Some => {
                if let Some(reservation) = self.take(len) {
                    return Ok(reservation);
                }
            }
            // It lands in a moment, and can go then.
            Grant::NoneUntilOthersLand => {}
            Grant::None => *self.refused_guard() = Some(SystemClock.monotonic()),
        }
        Err(self.refused())
    }

    fn refused(&self) -> Error {
        self.counts.refused.fetch_add(1, Ordering::Relaxed);
        Error::new(Kind::Full, "keep fetched blocks", "on this host")
            .because(format!("the limit of {} bytes for bases is reached", self.limit()))
    }

    fn refused_guard(&self) -> MutexGuard<'_, Option<Duration>> {
        self.refused_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looking for room costs more than a fetch; where there was none, the next look can wait.
    fn was_refused_just_now(&self) -> bool {
        let refused_at = *self.refused_guard();
        refused_at.is_some_and(|at| SystemClock.monotonic() < at + REFUSAL_LASTS)
    }

    /// Lets the next reservation look for room.
    pub(crate) fn look_again(&self) {
        *self.refused_guard() = None;
    }

    fn take(&self, len: u64) -> Option<Reservation<'_>> {
        let mut account = self.account();
        if account.granted < len {
            return None;
        }
        account.granted -= len;
        account.in_flight += len;
        Some(Reservation { room: self, len })
    }

    /// Grants this process more, at least `len`, if there is room.
    fn grant_more(&self, lock: &RoomLock<'_>, len: u64) -> io::Result<Grant> {
        let limit = self.limit();
        let step = (limit / GRANT_SHARE).clamp(len, GRANT_MAX.max(len));
        self.clock.fetch_add(1, Ordering::Relaxed);
        // What is in flight is looked at before what is on disk: it may be counted twice, never not.
        let in_flight = {
            let mut account = self.account();
            account.granted = 0;
            account.in_flight
        };
        let beside = in_flight + self.granted_to_others()?;
        let mut taken = beside + self.measure()?;
        if taken.saturating_add(step) > limit {
            // Room for a few grants at a time: each eviction syncs.
            let wanted = taken.saturating_add(step).saturating_sub(limit) + step;
            self.evict(lock, wanted);
            taken = beside + self.measure()?;
        }
        let granted = step.min(limit.saturating_sub(taken));
        let granted = if granted < len { 0 } else { granted };
        write_number(&*self.grant_file()?, granted + in_flight)?;
        self.account().granted = granted;
        Ok(match granted {
            0 if taken - in_flight + len <= limit => Grant::NoneUntilOthersLand,
            0 => Grant::None,
            _ => Grant::Some,
        })
    }

    /// Gives space back after a write has found the disk full. True where some was found.
    pub(crate) fn relieve(&self, len: u64) -> bool {
        self.lock().is_ok_and(|lock| self.evict(&lock, len.max(GRANT_MAX / 4)) > 0)
    }

    fn grants_folder(&self) -> PathBuf {
        self.path.join("grants")
    }

    /// This process's grant, locked as long as the process lives.
    fn grant_file(&self) -> io::Result<Arc<dyn File>> {
        if let Some(file) = self.grant.get() {
            return Ok(file.clone());
        }
        self.file_system.create_folders(&self.grants_folder())?;
        let path = self.grants_folder().join(SystemEntropy.name());
        let file = self.file_system.open(&path, OpenMode::CreateNew)?;
        file.try_lock()?;
        Ok(self.grant.get_or_init(|| file).clone())
    }

    /// What other processes may have been granted and not written yet. Call under the lock.
    fn granted_to_others(&self) -> io::Result<u64> {
        let own = self.grant_file()?;
        let mut sum = 0;
        for name in self.file_system.list(&self.grants_folder())? {
            let path = self.grants_folder().join(name);
            let Ok(file) = self.file_system.open(&path, OpenMode::ReadWrite) else { continue };
            if file.try_lock()? {
                // Its process is gone.
                let _ = self.file_system.remove_file(&path);
            } else {
                sum += read_number(&*file);
            }
        }
        // The own one is among them.
        Ok(sum - read_number(&*own).min(sum))
    }

    /// Bytes of disk that all bases take. Cost: each file is opened and asked.
    pub(crate) fn measure(&self) -> io::Result<u64> {
        let folder = self.bases_folder();
        let mut sum = 0;
        if self.file_system.exists(&folder)? {
            for base in self.file_system.list(&folder)? {
                sum += self.measure_folder(&folder.join(base));
            }
        }
        Ok(sum)
    }

    /// Bytes of disk that the files of a folder take. What is gone meanwhile takes none.
    pub(crate) fn measure_folder(&self, folder: &Path) -> u64 {
        let names = self.file_system.list(folder).unwrap_or_default();
        let len = |name: PathBuf| {
            let file = self.file_system.open(&folder.join(name), OpenMode::Read);
            file.and_then(|file| file.allocated_bytes()).unwrap_or(0)
        };
        names.into_iter().map(len).sum()
    }
}

/// A number that a file holds as text; 0 where it holds none.
pub(crate) fn read_number(file: &dyn File) -> u64 {
    let mut bytes = [0; TEXT_LEN_MAX as usize];
    let count = file.read_at(&mut bytes, 0).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..count]).trim().parse().unwrap_or(0)
}

/// Makes a number what a file holds. Always as long: a shorter one needs no cut.
pub(crate) fn write_number(file: &dyn File, number: u64) -> io::Result<()> {
    file.write_all_at(format!("{number:020}\n").as_bytes(), 0)
}
