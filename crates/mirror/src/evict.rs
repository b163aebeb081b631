//! Which bases give space back, and in which order.
//!
//! ```text
//! 1  bases without a mirror that nobody has open     whole, the one opened longest ago first
//! 2  bases of mirrors that nobody serves             by segment, the one opened longest ago first
//! 3  bases in use here                               by segment, the one read longest ago first
//! ```
//!
//! Never: a base that is pinned, whose file the kernel may be reading (`backing`), or that another
//! process has open. Each process holds a shared lock on what it has open; who evicts makes it
//! exclusive for that while, or leaves the base alone. A daemon has all bases open by itself, so there
//! everything can go.
//!
//! **Failure**: what cannot be looked at or evicted is left where it is.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use env::OpenMode;
use model::{ContentDigest, MirrorName, SEGMENT_LEN};

use crate::backing;
use crate::base::Base;
use crate::log::read_log;
use crate::room::{Room, RoomLock, read_number};

/// The most segments whose bits are cleared with one sync.
const SEGMENTS_PER_SYNC_MAX: u64 = 8;

/// Files of a base that begin so pin it.
pub(crate) const PIN: &str = "pin.";

/// A base that nobody has open in this process.
struct Idle {
    folder: PathBuf,
    content: ContentDigest,
    opened: u64,
    /// The length of its disk, where a mirror needs it.
    length: Option<u64>,
}

impl Room {
    /// Gives at least `wanted` bytes back, as far as possible. Returns how many.
    pub(crate) fn evict(&self, lock: &RoomLock<'_>, wanted: u64) -> u64 {
        let mut freed = 0;
        let mut idle = self.idle_bases();
        idle.sort_by_key(|base| (base.length.is_some(), base.opened));
        for base in idle {
            if freed >= wanted {
                break;
            }
            freed += match base.length {
                None => self.remove(&base),
                Some(length) => self.evict_idle(lock, &base, length, wanted - freed),
            };
        }
        if freed < wanted {
            freed += self.evict_in_use(wanted - freed);
        }
        self.counts().bytes.fetch_add(freed, Ordering::Relaxed);
        freed
    }

    fn idle_bases(&self) -> Vec<Idle> {
        let names = self.file_system().list(&self.bases_folder()).unwrap_or_default();
        let bound = self.bound_lengths();
        let idle = names.into_iter().filter_map(|name| {
            let content: ContentDigest = name.to_str()?.parse().ok()?;
            if self.open_here(content).is_some() {
                return None;
            }
            let folder = self.bases_folder().join(name);
            let users = self.file_system().open(&folder.join("users"), OpenMode::Read);
            let opened = users.map_or(0, |file| read_number(&*file));
            Some(Idle { folder, content, opened, length: bound.get(&content).copied() })
        });
        idle.collect()
    }

    /// The contents that mirrors of this host are bound to, with the lengths of their bases.
    fn bound_lengths(&self) -> HashMap<ContentDigest, u64> {
        let folder = self.path().join("mirrors");
        let names = self.file_system().list(&folder).unwrap_or_default();
        let names = names.iter().filter_map(|name| MirrorName::new(name.to_str()?).ok());
        let bindings = names.filter_map(|name| {
            read_log(self.file_system(), &folder.join(name.as_str()), name.as_str()).ok()
        });
        bindings.map(|(_, binding)| (binding.content, binding.length)).collect()
    }

    /// True where no byte of a base may go.
    fn is_kept(&self, folder: &Path) -> bool {
        let names = self.file_system().list(folder);
        let is_pin = |name: &PathBuf| name.to_string_lossy().starts_with(PIN);
        names.map_or(true, |names| names.iter().any(is_pin))
            || backing::is_held(self.file_system(), folder).unwrap_or(true)
    }

    /// Removes a base that has no mirror, if no process has it open.
    fn remove(&self, base: &Idle) -> u64 {
        let users = self.file_system().open(&base.folder.join("users"), OpenMode::OpenOrCreate);
        let is_free = users.as_ref().is_ok_and(|users| users.try_lock().unwrap_or(false));
        if !is_free || self.is_kept(&base.folder) {
            return 0;
        }
        let len = self.measure_folder(&base.folder);
        // Presence first: bytes that are there in part must not count as all there.
        let presence = base.folder.join("presence");
        let removed = self
            .file_system()
            .remove_file(&presence)
            .and_then(|()| self.file_system().sync_folder(&base.folder))
            .and_then(|()| self.file_system().remove_folder(&base.folder));
        match removed {
            Ok(()) => {
                self.counts().bases.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(content = %base.content, bytes = len, "a base was evicted");
                len
            }
            Err(error) => {
                tracing::warn!(content = %base.content, %error, "a base cannot be removed");
                0
            }
        }
    }

    /// Evicts segments of a base whose mirrors nobody serves.
    fn evict_idle(&self, lock: &RoomLock<'_>, idle: &Idle, length: u64, wanted: u64) -> u64 {
        match self.open_to_evict(lock, idle.content, length) {
            Ok(base) => {
                let picked = base.segments_here().into_iter().map(|(segment, _)| segment);
                self.evict_from(&base, &picked.collect::<Vec<_>>(), wanted).unwrap_or(0)
            }
            Err(error) => {
                tracing::warn!("{}", error.chain());
                0
            }
        }
    }

    /// Evicts from the bases that are open here, by when their segments were read last.
    fn evict_in_use(&self, wanted: u64) -> u64 {
        let bases = self.all_open_here();
        let mut segments: Vec<(u32, usize, u32)> = Vec::new();
        for (number, base) in bases.iter().enumerate() {
            let here = base.segments_here();
            segments.extend(here.into_iter().map(|(segment, used)| (used, number, segment)));
        }
        segments.sort_unstable();
        let (mut freed, mut refused) = (0, HashSet::new());
        for picked in segments.chunk_by(|a, b| a.1 == b.1) {
            let number = picked[0].1;
            if freed >= wanted {
                break;
            }
            if refused.contains(&number) {
                continue;
            }
            let numbers: Vec<u32> = picked.iter().map(|(_, _, segment)| *segment).collect();
            match self.evict_from(&bases[number], &numbers, wanted - freed) {
                Some(gained) => freed += gained,
                None => drop(refused.insert(number)),
            }
        }
        freed
    }

    /// Evicts segments of one base, in order, until that many bytes are free. Returns how many are;
    /// none where the base may not be touched.
    fn evict_from(&self, base: &Arc<Base>, segments: &[u32], wanted: u64) -> Option<u64> {
        // Nobody is given the file until this is done.
        let _holders = base.holders.guard();
        if self.is_kept(base.folder()) || !base.try_claim().unwrap_or(false) {
            return None;
        }
        let before = base.allocated_bytes().unwrap_or(0);
        let freed = || before.saturating_sub(base.allocated_bytes().unwrap_or(before));
        let together = (wanted / SEGMENT_LEN).clamp(1, SEGMENTS_PER_SYNC_MAX) as usize;
        for picked in segments.chunks(together) {
            if freed() >= wanted {
                break;
            }
            if let Err(error) = base.evict(picked) {
                tracing::warn!(content = %base.content(), %error, "segments cannot be evicted");
                break;
            }
            self.counts().segments.fetch_add(picked.len() as u64, Ordering::Relaxed);
        }
        if let Err(error) = base.share() {
            // It stays ours alone: others cannot open it, and nothing wrong is read.
            tracing::error!(content = %base.content(), %error, "a base cannot be shared again");
        }
        Some(freed())
    }
}
