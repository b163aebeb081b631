//! The states of all segments that a mirror's overlay has: some in memory, the others in a file.
//!
//! ```text
//! first write ─► loaded ─── more than LOADED_MAX: those not used of late ──► put out
//!                  ▲                                                           │
//!                  └──────────────── read or written again ───────────────────┘
//! ```
//!
//! **Invariants**
//! - Where a segment is loaded, what the file has of it is old; where it is not, the file has it all, to
//!   the bit.
//! - Segments are loaded and put out under `moving`, and put out only while no writer is at work: there
//!   are never two of one segment that writers change.
//! - A reader that holds one which was put out sees places that were when its read began.
//!
//! **Failure**: the file belongs to one process. The next one begins without it, from the log and the
//! live states. What cannot be written stays loaded; what cannot be read fails the call at hand.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;
use env::{File, FileSystem, OpenMode};

use crate::overlay::{OverlaySegment, PUT_OUT_LEN};
use crate::segments::SegmentTable;

/// Segments whose states are in memory: 10 MiB of them, for 62 GiB that were written throughout.
const LOADED_MAX: usize = 1000;
/// How many go at a time.
const PUT_OUT_COUNT: usize = 64;

/// The states of a mirror's overlay, by segment.
#[derive(Debug)]
pub(crate) struct States {
    file_system: Arc<dyn FileSystem>,
    path: PathBuf,
    /// A slot is made with its segment's first state; it is empty while that is put out.
    slots: SegmentTable<ArcSwapOption<OverlaySegment>>,
    loaded_count: AtomicUsize,
    /// From here on some have to go.
    crowded_at: AtomicUsize,
    moving: Mutex<Moving>,
}

#[derive(Debug, Default)]
struct Moving {
    /// What is loaded, in the order in which it is looked at.
    loaded: VecDeque<u32>,
    file: Option<Arc<dyn File>>,
}

impl States {
    /// No states yet, for a disk of `length` bytes. What an earlier process has put out is removed.
    pub(crate) fn new(
        file_system: Arc<dyn FileSystem>,
        folder: &Path,
        length: u64,
    ) -> io::Result<States> {
        let path = folder.join("states.out");
        if file_system.exists(&path)? {
            file_system.remove_file(&path)?;
        }
        Ok(States {
            file_system,
            path,
            slots: SegmentTable::new(length),
            loaded_count: AtomicUsize::new(0),
            crowded_at: AtomicUsize::new(LOADED_MAX),
            moving: Mutex::default(),
        })
    }

    fn moving(&self) -> MutexGuard<'_, Moving> {
        self.moving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A segment's states, if it has any. Cost: no lock where they are loaded; otherwise a read of
    /// 12 KiB, from the page cache mostly.
    #[inline]
    pub(crate) fn get(&self, segment: u32) -> io::Result<Option<Arc<OverlaySegment>>> {
        let Some(slot) = self.slots.get(segment) else { return Ok(None) };
        match slot.load_full() {
            Some(states) => {
                states.note_use();
                Ok(Some(states))
            }
            None => self.load(segment, slot).map(Some),
        }
    }

    /// The same; made now, all absent, if it has none.
    pub(crate) fn get_or_make(&self, segment: u32) -> io::Result<Arc<OverlaySegment>> {
        match self.get(segment)? {
            Some(states) => Ok(states),
            None => {
                self.put(segment, OverlaySegment::absent());
                self.get(segment)?.ok_or_else(|| io::ErrorKind::NotFound.into())
            }
        }
    }

    /// Gives a segment states, unless it has some.
    pub(crate) fn put(&self, segment: u32, states: OverlaySegment) {
        let mut moving = self.moving();
        if self.slots.get(segment).is_none() {
            self.slots.get_or_init(segment, || ArcSwapOption::from_pointee(states));
            self.count_loaded(&mut moving, segment);
        }
    }

    fn count_loaded(&self, moving: &mut Moving, segment: u32) {
        moving.loaded.push_back(segment);
        self.loaded_count.store(moving.loaded.len(), Ordering::Relaxed);
    }

    fn load(
        &self,
        segment: u32,
        slot: &ArcSwapOption<OverlaySegment>,
    ) -> io::Result<Arc<OverlaySegment>> {
        let mut moving = self.moving();
        if let Some(states) = slot.load_full() {
            return Ok(states);
        }
        let states = Arc::new(read(&moving, segment)?);
        slot.store(Some(states.clone()));
        self.count_loaded(&mut moving, segment);
        Ok(states)
    }

    /// Looks at a segment's states where they are, and changes them there. Nothing is loaded or put
    /// out meanwhile. `None` where it has none.
    pub(crate) fn visit<T>(
        &self,
        segment: u32,
        work: impl FnOnce(&OverlaySegment) -> T,
    ) -> io::Result<Option<T>> {
        let moving = self.moving();
        let Some(slot) = self.slots.get(segment) else { return Ok(None) };
        if let Some(states) = slot.load_full() {
            return Ok(Some(work(&states)));
        }
        let states = read(&moving, segment)?;
        let before = states.to_bytes();
        let done = work(&states);
        let after = states.to_bytes();
        if before != after {
            write(&moving, segment, &after)?;
        }
        Ok(Some(done))
    }

    /// The segments that have states, ascending.
    pub(crate) fn segments(&self) -> impl Iterator<Item = u32> {
        self.slots.iter().map(|(segment, _)| segment)
    }

    /// True where more is loaded than should be: [`States::put_out`] is due.
    #[inline]
    pub(crate) fn is_crowded(&self) -> bool {
        self.loaded_count.load(Ordering::Relaxed) > self.crowded_at.load(Ordering::Relaxed)
    }

    /// Puts out some of what was not used of late. Call while no writer is at work. Cost: a write of
    /// 12 KiB for each, without sync; [`PUT_OUT_COUNT`] of them.
    pub(crate) fn put_out(&self) {
        let mut moving = self.moving();
        let excess = moving.loaded.len().saturating_sub(LOADED_MAX);
        if excess == 0 {
            return;
        }
        match self.put_out_some(&mut moving, excess + PUT_OUT_COUNT) {
            Ok(()) => self.crowded_at.store(LOADED_MAX, Ordering::Relaxed),
            Err(error) => {
                tracing::debug!(%error, "states stay in memory");
                let later = moving.loaded.len() + LOADED_MAX / 4;
                self.crowded_at.store(later, Ordering::Relaxed);
            }
        }
        self.loaded_count.store(moving.loaded.len(), Ordering::Relaxed);
    }

    fn put_out_some(&self, moving: &mut Moving, count: usize) -> io::Result<()> {
        if moving.file.is_none() {
            let file = self.file_system.open(&self.path, OpenMode::OpenOrCreate)?;
            moving.file = Some(file);
        }
        let mut left = count.min(moving.loaded.len());
        // Each is passed over once at most.
        for _ in 0..2 * moving.loaded.len() {
            if left == 0 {
                break;
            }
            let Some(segment) = moving.loaded.pop_front() else { break };
            let Some(slot) = self.slots.get(segment) else { continue };
            let Some(states) = slot.load_full() else { continue };
            if states.take_use() {
                moving.loaded.push_back(segment);
                continue;
            }
            if let Err(error) = write(moving, segment, &states.to_bytes()) {
                moving.loaded.push_front(segment);
                return Err(error);
            }
            slot.store(None);
            left -= 1;
        }
        Ok(())
    }
}

fn offset(segment: u32) -> u64 {
    u64::from(segment) * PUT_OUT_LEN as u64
}

fn read(moving: &Moving, segment: u32) -> io::Result<OverlaySegment> {
    let file = moving.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
    let mut bytes = vec![0; PUT_OUT_LEN];
    file.read_exact_at(&mut bytes, offset(segment))?;
    Ok(OverlaySegment::from_bytes(&bytes))
}

fn write(moving: &Moving, segment: u32, bytes: &[u8]) -> io::Result<()> {
    let file = moving.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
    file.write_all_at(bytes, offset(segment))
}

#[cfg(test)]
mod tests {
    use env::simulated::SimulatedFileSystem;
    use format::mirror_log::Place;

    use super::*;

    fn states() -> States {
        let file_system = Arc::new(SimulatedFileSystem::new());
        States::new(file_system, Path::new("/"), 1 << 50).unwrap()
    }

    #[test]
    fn what_was_put_out_comes_back_to_the_bit() {
        let states = states();
        let count = (LOADED_MAX + 500) as u32;
        for segment in 0..count {
            let made = states.get_or_make(segment * 7).unwrap();
            made.apply(&made.plan_change(&(segment..segment + 90), Place::First));
            if states.is_crowded() {
                states.put_out();
            }
        }
        assert!(states.loaded_count.load(Ordering::Relaxed) <= LOADED_MAX);
        let sealed = |segment| states.visit(segment, OverlaySegment::seal).unwrap().flatten();
        assert_eq!(states.segments().filter_map(sealed).count(), count as usize);
        for segment in 0..count {
            let found = states.get(segment * 7).unwrap().unwrap();
            assert_eq!(found.counts(), (90, 90));
            assert_eq!((found.target(segment), found.target(segment + 90)), (1, 0));
            assert_eq!(
                found.take_unlogged().iter().map(|(_, _, mask)| mask.count_ones()).sum::<u32>(),
                90
            );
        }
    }

    #[test]
    fn what_is_used_stays_longer_than_what_is_not() {
        let states = states();
        for segment in 0..LOADED_MAX as u32 + 1 {
            states.get_or_make(segment).unwrap();
        }
        states.put_out();
        states.get(900).unwrap();
        for segment in 0..LOADED_MAX as u32 / 2 {
            states.get_or_make(5000 + segment).unwrap();
            states.get(900).unwrap();
            states.put_out();
        }
        assert!(states.slots.get(900).is_some_and(|slot| slot.load().is_some()));
    }
}
