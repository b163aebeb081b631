//! One host's lazy, writable view of one version: its life from `create` to `close`.
//!
//! ```text
//! fresh writes ---> overlay files + live states ---flush---> synced bytes, then state.log
//! reads        <--- overlay, else base, else fetch
//! seal         ---> the changes so far, unchanging, while writes go on ---> commit
//! ```
//!
//! **Invariants**
//! 1. `state.log` never tells of bytes that were not synced before it was written.
//! 2. Bytes that are committed or sealed are not overwritten, see `overlay`.
//! 3. Bytes that were left behind are punched only after the log tells of their successors, and
//!    readers who may have looked before read again (`punches`).
//! 4. No lock is held across a fetch.
//!
//! Locks, in the order in which they are taken: `log`, `gate`, a segment's `writing`, its
//! `changing`, then the small ones (`stale`, `unlogged`), which are held for a few instructions.
//!
//! **Failure**: after power loss every flushed write is there, and each other block holds old or
//! new sectors. After `kill -9` every answered write is there. After a sync that failed, bytes may
//! be gone without anybody knowing which: flushes fail from then on.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use env::{File, OpenMode};
use format::mirror_log::{BLOCKS_PER_GROUP, DecodedLog, GroupStates, LogBinding, LogRecord, Place};
use model::block::{LENGTH_MAX, block_count};
use model::boot_set::{BootSet, FirstRead};
use model::{BLOCK_LEN, Error, Kind, MirrorName, Result, VersionId};
use store::ChunkStore;

use crate::fetch::{BaseView, by_segment};
use crate::flush::FlushGroup;
use crate::journal::JournalEntries;
use crate::live::LiveStates;
use crate::log::{MirrorLog, read_log};
use crate::overlay::{OverlaySegment, place_in};
use crate::patience::Patience;
use crate::recorder::Recording;
use crate::state_folder::{Binding, MirrorSummary, StateFolder, binding_of, overlay_path};
use crate::states::States;

/// One host's lazy, writable view of one version.
///
/// Dropped without [`Mirror::close`] it is as if its process had been killed: every write that was
/// answered is there when it is opened again, unless the machine stops in between.
pub struct Mirror {
    pub(crate) name: MirrorName,
    pub(crate) state: StateFolder,
    pub(crate) folder: PathBuf,
    /// Bytes of the disk. Grows under `log` and an exclusive `gate`, see `grow`.
    pub(crate) length: AtomicU64,
    /// Blocks of the base: what lies behind them is in the overlay or nowhere.
    pub(crate) base_blocks: u64,
    pub(crate) view: Arc<BaseView>,
    pub(crate) files: [Arc<dyn File>; 2],
    /// Files with bytes that were not synced yet.
    pub(crate) touched: [AtomicBool; 2],
    pub(crate) states: States,
    pub(crate) gate: RwLock<Gate>,
    /// Counts the times that bytes left behind were punched.
    pub(crate) punches: AtomicU64,
    /// Blocks left behind: file, block.
    pub(crate) stale: Mutex<Vec<(usize, u64)>>,
    /// Segments with states that the log does not tell of yet.
    pub(crate) unlogged: Mutex<BTreeSet<u32>>,
    pub(crate) flushes: FlushGroup,
    pub(crate) log: Mutex<MirrorLog>,
    pub(crate) sync_failed: AtomicBool,
    pub(crate) binding: Mutex<LogBinding>,
    /// True from the call of `seal` until the commit has ended.
    pub(crate) sealing: Mutex<bool>,
    pub(crate) unsealed: Condvar,
    /// True while sealed bytes are kept. Changes under `log` and an exclusive `gate`.
    pub(crate) sealed: AtomicBool,
    lock: Mutex<Option<Arc<dyn File>>>,
}

/// What every writer passes: held shared while it works, exclusively by a seal.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) live: LiveStates,
    pub(crate) closed: bool,
}

/// Numbers about a mirror.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Bytes that changed since the last commit.
    pub dirty_bytes: u64,
    /// Bytes that the overlay holds.
    pub overlay_bytes: u64,
    /// Bytes of disk that the overlay takes.
    pub overlay_file_bytes: u64,
    /// Plain bytes of the chunks that were fetched since it was opened.
    pub fetched_bytes: u64,
    /// Bytes of the base that are on this host, as far as its segments were touched.
    pub present_bytes: u64,
    /// Bytes of disk that the mirror and its base take.
    pub host_bytes: u64,
    /// Plain bytes that a boot working set brought.
    pub prefetched_bytes: u64,
    /// Plain bytes of that set that the version does not have where the set says.
    pub misfit_bytes: u64,
}

pub(crate) fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mirror {
    /// Makes a mirror and owns it. Durable when it returns.
    ///
    /// # Errors
    /// `Exists` where one has the name: reopen it. `Refused` where a process owns it. Those of the
    /// store, where the version's manifest cannot be read.
    pub fn create(
        state: &StateFolder,
        name: &MirrorName,
        binding: Binding,
        store: Arc<dyn ChunkStore>,
    ) -> Result<Arc<Mirror>> {
        let operation = "create the mirror";
        let failed = |error| Error::io(operation, name.as_str(), error);
        if binding.length > LENGTH_MAX {
            return Err(Error::new(Kind::Invalid, operation, name.as_str())
                .because("the version is longer than a disk can be"));
        }
        let Binding { parent, content, layout, length } = binding;
        let view = state.open_base(content, layout, length, store)?;
        let folder = state.mirror_folder(name);
        state.file_system().create_folders(&folder).map_err(failed)?;
        let lock = own(state, name)?;
        if state.exists(name)? {
            return Err(Error::new(Kind::Exists, operation, name.as_str())
                .because("a mirror of this name exists"));
        }
        let log_binding = LogBinding { content, layout, length, base: parent.clone(), parent };
        let files =
            [make_overlay(state, &folder, 0, length), make_overlay(state, &folder, 1, length)];
        let [first, second] = files;
        let files = [first.map_err(failed)?, second.map_err(failed)?];
        LiveStates::remove_all(state.file_system(), &folder).map_err(failed)?;
        let live = LiveStates::open(state.file_system(), &folder, 0, length).map_err(failed)?;
        let states = States::new(state.shared_file_system(), &folder, length).map_err(failed)?;
        let records = [LogRecord::Binding(log_binding.clone())];
        let log = MirrorLog::create(state.shared_file_system(), &folder, &records, &files)
            .map_err(failed)?;
        Ok(Mirror::assemble(state, name, log_binding, view, files, states, live, log, lock))
    }

    /// Opens a mirror that exists and owns it. `open_store` is told what the mirror is bound to.
    ///
    /// # Errors
    /// `NotFound` where there is none, `Refused` where a process owns it, `Corrupt` where its state
    /// cannot be read, those of `open_store` and of the store.
    pub fn reopen(
        state: &StateFolder,
        name: &MirrorName,
        open_store: impl FnOnce(&Binding) -> Result<Arc<dyn ChunkStore>>,
    ) -> Result<Arc<Mirror>> {
        let operation = "open the mirror";
        let failed = |error| Error::io(operation, name.as_str(), error);
        if !state.exists(name)? {
            return Err(Error::new(Kind::NotFound, operation, name.as_str())
                .because("no mirror has this name"));
        }
        let lock = own(state, name)?;
        let folder = state.mirror_folder(name);
        let (log, binding) = read_log(state.file_system(), &folder, name.as_str())?;
        let length = log.length;
        let store = open_store(&binding_of(&binding))?;
        let view = state.open_base(binding.content, binding.layout, binding.length, store)?;
        let open =
            |file| state.file_system().open(&overlay_path(&folder, file), OpenMode::ReadWrite);
        let files = [open(0).map_err(failed)?, open(1).map_err(failed)?];
        for file in &files {
            let (found, wanted) = (file.len().map_err(failed)?, overlay_len(length));
            if found < wanted {
                return Err(Error::new(Kind::Corrupt, operation, name.as_str())
                    .because("a file of its overlay is shorter than the disk"));
            }
            if found > wanted {
                // It was about to grow when its process was killed.
                file.set_len(wanted).map_err(failed)?;
            }
        }
        let live =
            LiveStates::open(state.file_system(), &folder, log.epoch, length).map_err(failed)?;
        LiveStates::remove_others(state.file_system(), &folder, log.epoch).map_err(failed)?;
        let states = States::new(state.shared_file_system(), &folder, length).map_err(failed)?;
        restore_states(&log, Some(&live), |segment, restored| {
            states.put(segment, restored);
            if states.is_crowded() {
                states.put_out();
            }
        })
        .map_err(failed)?;
        let survived = live.segments();
        let log_file =
            MirrorLog::open(state.shared_file_system(), &folder, &log).map_err(failed)?;
        let mirror =
            Mirror::assemble(state, name, binding, view, files, states, live, log_file, lock);
        mirror.length.store(length, Ordering::SeqCst);
        // A process that was killed may have left bytes and states in the page cache only; of bytes
        // that were overwritten in place nothing tells.
        mirror.touched.iter().for_each(|touched| touched.store(true, Ordering::SeqCst));
        guard(&mirror.unlogged).extend(survived);
        Ok(mirror)
    }

    #[expect(clippy::too_many_arguments, reason = "both ways of opening meet here")]
    fn assemble(
        state: &StateFolder,
        name: &MirrorName,
        binding: LogBinding,
        view: Arc<BaseView>,
        files: [Arc<dyn File>; 2],
        states: States,
        live: LiveStates,
        log: MirrorLog,
        lock: Arc<dyn File>,
    ) -> Arc<Mirror> {
        Arc::new(Mirror {
            name: name.clone(),
            state: state.clone(),
            folder: state.mirror_folder(name),
            length: AtomicU64::new(binding.length),
            base_blocks: block_count(binding.length),
            view,
            files,
            touched: [AtomicBool::new(false), AtomicBool::new(false)],
            states,
            gate: RwLock::new(Gate { live, closed: false }),
            punches: AtomicU64::new(0),
            stale: Mutex::default(),
            unlogged: Mutex::default(),
            flushes: FlushGroup::default(),
            log: Mutex::new(log),
            sync_failed: AtomicBool::new(false),
            binding: Mutex::new(binding),
            sealing: Mutex::new(false),
            unsealed: Condvar::new(),
            sealed: AtomicBool::new(false),
            lock: Mutex::new(Some(lock)),
        })
    }

    /// The names of all mirrors of a state folder, ascending.
    pub fn list(state: &StateFolder) -> Result<Vec<MirrorName>> {
        state.list()
    }

    /// True where a mirror has that name.
    pub fn exists(state: &StateFolder, name: &MirrorName) -> Result<bool> {
        state.exists(name)
    }

    /// See [`StateFolder::inspect`].
    pub fn inspect(state: &StateFolder, name: &MirrorName) -> Result<MirrorSummary> {
        state.inspect(name)
    }

    /// See [`StateFolder::discard`].
    pub fn discard(state: &StateFolder, name: &MirrorName) -> Result<()> {
        state.discard(name)
    }

    /// Says how long its reads wait for a store that cannot be reached, from now on. Without it they
    /// fail at once.
    pub fn set_patience(&self, patience: Patience) {
        self.view.set_patience(patience);
    }

    /// Ends all waits for a store that cannot be reached, with its error, now and later: the mirror is
    /// about to be closed.
    pub fn give_up(&self) {
        self.view.give_up();
    }

    /// Its name.
    pub fn name(&self) -> &MirrorName {
        &self.name
    }

    /// The folder that holds all its state.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What it is bound to; the parent is the version that the next commit follows.
    pub fn binding(&self) -> Binding {
        binding_of(&guard(&self.binding))
    }

    /// The version that it was attached to: its base, whatever was committed since.
    pub fn base(&self) -> VersionId {
        guard(&self.binding).base.clone()
    }

    /// Binds the mirror, dirty state and all, to another version as the parent of its next commit.
    /// The other version's content is that of the present parent. Durable when it returns.
    ///
    /// # Errors
    /// `Full`, `Unavailable` where the state could not be written: nothing has changed.
    pub fn rebind(&self, parent: VersionId) -> Result<()> {
        let mut log = guard(&self.log);
        self.check_syncs()?;
        let append = log
            .append(&[LogRecord::Parent(parent.clone())])
            .map_err(|error| self.io_error("rebind the mirror", error))?;
        self.commit_append(&mut log, append, "rebind the mirror")?;
        guard(&self.binding).parent = parent;
        Ok(())
    }

    /// Notes from now on which blocks of its version are read, in order of first use.
    pub fn start_recording(&self) {
        self.view.recorder.start();
    }

    /// How far a recording has come; `None` where none runs or nothing was read yet.
    pub fn recording(&self) -> Option<Recording> {
        self.view.recorder.progress()
    }

    /// Ends the recording. Returns what was read, in order.
    pub fn stop_recording(&self) -> Vec<FirstRead> {
        self.view.journal.forget_brought();
        self.view.recorder.stop()
    }

    /// What was recorded so far, in order.
    pub fn recorded(&self) -> Vec<FirstRead> {
        self.view.recorder.reads()
    }

    /// What was fetched and waited for since it was opened.
    pub fn journal(&self) -> JournalEntries {
        self.view.journal.entries()
    }

    /// Plain bytes of these reads that a boot working set had brought.
    pub fn brought_by_set(&self, reads: &[FirstRead]) -> u64 {
        let blocks = |read: &FirstRead| {
            read.first_block..read.first_block.saturating_add(read.block_count.into())
        };
        self.view.journal.used(reads.iter().flat_map(blocks)) * BLOCK_LEN as u64
    }

    /// Brings the blocks of a boot working set in the background, as far as the version has them.
    /// Reads overtake it.
    pub fn prefetch_boot_set(&self, set: Arc<BootSet>) {
        self.view.prefetch_boot_set(set);
    }

    /// Numbers about it. Cost: a walk over the states of touched segments, three `fstat`.
    pub fn statistics(&self) -> Statistics {
        let (mut dirty, mut data) = (0, 0);
        for segment in self.states.segments() {
            let counts = self.states.visit(segment, OverlaySegment::counts);
            let counts = counts.ok().flatten().unwrap_or_default();
            (dirty, data) = (dirty + counts.0, data + counts.1);
        }
        let overlay: u64 = self.files.iter().map(|f| f.allocated_bytes().unwrap_or(0)).sum();
        let base = self.view.base.allocated_bytes().unwrap_or(0);
        Statistics {
            dirty_bytes: dirty * BLOCK_LEN as u64,
            overlay_bytes: data * BLOCK_LEN as u64,
            fetched_bytes: self.view.fetched_bytes(),
            present_bytes: self.view.base.present_bytes(),
            overlay_file_bytes: overlay,
            host_bytes: overlay + base + guard(&self.log).len(),
            prefetched_bytes: self.view.boot_counts.brought.load(Ordering::Relaxed),
            misfit_bytes: self.view.boot_counts.misfits.load(Ordering::Relaxed),
        }
    }

    /// Makes everything durable, the base's presence too, and gives the mirror free for others.
    /// Later writes are refused.
    ///
    /// # Errors
    /// Those of a flush; the mirror is open still, and `close` may be tried again.
    pub fn close(&self) -> Result<()> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner).closed = true;
        let closed = self.flush_all().and_then(|()| self.view.base.checkpoint());
        if closed.is_err() {
            self.gate.write().unwrap_or_else(PoisonError::into_inner).closed = false;
            return closed;
        }
        if let Some(lock) = guard(&self.lock).take() {
            // The lock itself goes with the file; the number in it is for messages only.
            let _ = lock.set_len(0);
        }
        Ok(())
    }

    pub(crate) fn io_error(&self, operation: &'static str, error: io::Error) -> Error {
        let error = Error::io(operation, self.name.as_str(), error);
        match error.kind() {
            Kind::Full => error.hint("make room on the disk that holds the state folder"),
            _ => error,
        }
    }
}

/// How often, and after how long, a lock that another holds is tried again.
const LOCK_TRIES: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(2);

/// Takes the lock and leaves this process's number in it.
fn own(state: &StateFolder, name: &MirrorName) -> Result<Arc<dyn File>> {
    let mut tries = 0;
    let lock = loop {
        match state.lock(name) {
            Ok(lock) => break lock,
            Err((error, _)) if tries == LOCK_TRIES => return Err(error),
            // Whoever only looks at mirrors holds the lock for an instant.
            Err(_) => std::thread::park_timeout(LOCK_PAUSE),
        }
        tries += 1;
    };
    let text = format!("{}\n", std::process::id());
    // The number is for messages only: a full disk must not keep a mirror from being opened.
    let _ = lock.set_len(0).and_then(|()| lock.write_all_at(text.as_bytes(), 0));
    Ok(lock)
}

fn make_overlay(
    state: &StateFolder,
    folder: &Path,
    number: usize,
    length: u64,
) -> io::Result<Arc<dyn File>> {
    let file = state.file_system().open(&overlay_path(folder, number), OpenMode::OpenOrCreate)?;
    file.set_len(0)?;
    file.set_len(overlay_len(length))?;
    Ok(file)
}

/// The length of the overlay files of a disk.
pub(crate) fn overlay_len(length: u64) -> u64 {
    block_count(length) * BLOCK_LEN as u64
}

/// Gives `put` the states that the log tells, then those that survived the process, by segment.
pub(crate) fn restore_states(
    log: &DecodedLog,
    live: Option<&LiveStates>,
    mut put: impl FnMut(u32, OverlaySegment),
) -> io::Result<()> {
    let mut logged: std::collections::BTreeMap<u32, Vec<GroupStates>> = Default::default();
    let segment_of = |map: &mut std::collections::BTreeMap<u32, Vec<GroupStates>>, segment: u32| {
        map.entry(segment).or_insert_with(|| {
            vec![GroupStates::default(); format::mirror_log::GROUPS_PER_SEGMENT]
        });
    };
    for record in &log.records {
        match record {
            LogRecord::Ranges(ranges) => {
                for range in ranges {
                    let end = range.first_block + u64::from(range.block_count);
                    for (segment, blocks) in by_segment(range.first_block..end) {
                        segment_of(&mut logged, segment);
                        if let Some(groups) = logged.get_mut(&segment) {
                            blocks.for_each(|b| set_block(groups, b, range.place, range.dirty));
                        }
                    }
                }
            }
            LogRecord::Segment { segment, groups } => {
                logged.insert(*segment, groups.clone());
            }
            LogRecord::Binding(_) | LogRecord::Parent(_) | LogRecord::Length(_) => {}
        }
    }
    let survived = live.map(LiveStates::segments).unwrap_or_default();
    let segments: BTreeSet<u32> = logged.keys().copied().chain(survived.iter().copied()).collect();
    let survived: BTreeSet<u32> = survived.into_iter().collect();
    for segment in segments {
        let bits = OverlaySegment::absent();
        let logged = logged.remove(&segment).unwrap_or_default();
        logged.iter().enumerate().for_each(|(number, group)| bits.restore(number, group, 0));
        if let Some(live) = live.filter(|_| survived.contains(&segment)) {
            for (number, group) in live.read(segment)? {
                let before = logged.get(number).copied().unwrap_or_default();
                bits.restore(number, &group, difference(&before, &group));
            }
        }
        put(segment, bits);
    }
    Ok(())
}

fn set_block(groups: &mut [GroupStates], block: u32, place: Place, dirty: bool) {
    let group = &mut groups[(block / BLOCKS_PER_GROUP) as usize];
    let (word, shift) = ((block / 32 % 2) as usize, block % 32 * 2);
    group.places[word] = group.places[word] & !(3 << shift) | (place as u64) << shift;
    let bit = 1 << (block % BLOCKS_PER_GROUP);
    group.dirty = if dirty { group.dirty | bit } else { group.dirty & !bit };
}

/// The blocks whose states differ.
fn difference(a: &GroupStates, b: &GroupStates) -> u64 {
    (0..BLOCKS_PER_GROUP)
        .filter(|bit| place_in(&a.places, *bit) != place_in(&b.places, *bit))
        .fold(a.dirty ^ b.dirty, |mask, bit| mask | 1 << bit)
}
