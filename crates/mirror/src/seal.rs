//! Seal: the changes so far stand still for a commit, while the guest goes on writing.
//!
//! ```text
//! seal            finish_commit: dirty bits restart against the new version
//!  |---commit-----|
//!  |              abandon_commit: all stay dirty
//!  writers are held for the turning of targets, not for any byte
//! ```
//!
//! **Invariants**: while sealed, bytes of sealed blocks stay where they are. On disk a sealed block
//! is dirty until `finish_commit` has replaced the log, in one step.
//!
//! **Failure**: a crash before that step leaves everything dirty upon the old parent, nothing lost;
//! where the version was published by then, the next commit repeats the lineage. A `Sealed` that is
//! dropped is abandoned.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use env::{Clock, SystemClock};
use format::mirror_log::{BLOCKS_PER_GROUP, GroupStates, Place};
use model::block::{BLOCKS_PER_SEGMENT, blocks_in_segment};
use model::changes::{ChangedBlocks, Changes};
use model::device::Device;
use model::{BLOCK_LEN, BlockRange, Error, Kind, Result, VersionId};

use crate::live::LiveStates;
use crate::mirror::{Mirror, guard};
use crate::overlay::{OverlaySegment, place_in};

/// The changes of a mirror since its last commit, standing still.
pub struct Sealed {
    mirror: Arc<Mirror>,
    parent: VersionId,
    /// Bytes of the disk when it was sealed.
    length: u64,
    segments: BTreeMap<u32, Vec<GroupStates>>,
    pause: Duration,
    ended: bool,
}

impl Mirror {
    /// Seals the changes since the last commit. Waits for a commit that runs.
    ///
    /// Cost: a flush, then a pause for writers of about a microsecond per touched MiB; where blocks
    /// committed earlier were overwritten since that flush, a second flush in the pause.
    ///
    /// # Errors
    /// Those of a flush: nothing is sealed.
    pub fn seal(self: &Arc<Self>) -> Result<Sealed> {
        let mut sealing = guard(&self.sealing);
        while *sealing {
            sealing = self.unsealed.wait(sealing).unwrap_or_else(PoisonError::into_inner);
        }
        *sealing = true;
        drop(sealing);
        let sealed = self.seal_now();
        if sealed.is_err() {
            self.allow_seal();
        }
        sealed
    }

    fn seal_now(self: &Arc<Self>) -> Result<Sealed> {
        self.flush_all()?;
        let mut log = guard(&self.log);
        self.flush_log(&mut log)?;
        let clock = SystemClock;
        let start = clock.monotonic();
        let _gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        // Targets turn to files where bytes may have been left behind: those must be gone first,
        // and what took their place durable.
        if !guard(&self.stale).is_empty() {
            self.flush_log(&mut log)?;
        }
        let mut segments = BTreeMap::new();
        for segment in self.states.segments() {
            match self.states.visit(segment, OverlaySegment::seal) {
                Ok(sealed) => segments.extend(sealed.flatten().map(|sealed| (segment, sealed))),
                Err(error) => {
                    self.end_seal(false);
                    return Err(self.io_error("seal the mirror", error));
                }
            }
        }
        self.sealed.store(true, Ordering::SeqCst);
        let parent = guard(&self.binding).parent.clone();
        let pause = clock.monotonic().saturating_sub(start);
        let length = self.length();
        Ok(Sealed { mirror: self.clone(), parent, length, segments, pause, ended: false })
    }

    /// Sealed blocks are committed, or dirty again. Call while no writer is at work.
    fn end_seal(&self, committed: bool) {
        for segment in self.states.segments() {
            let ended = self.states.visit(segment, |bits| bits.end_seal(committed));
            if let Err(error) = ended {
                // What is dirty is not known any more: nothing is promised from here on.
                self.sync_failed.store(true, Ordering::SeqCst);
                tracing::error!(mirror = self.name.as_str(), %error, "states cannot be read back");
            }
        }
    }

    fn allow_seal(&self) {
        *guard(&self.sealing) = false;
        self.unsealed.notify_all();
    }

    /// Ends a commit that was published as `parent`: the sealed changes are no longer dirty, and
    /// the next commit follows that version. The base stays the one that the mirror was attached
    /// to. Durable when it returns.
    ///
    /// # Errors
    /// `Full`, `Unavailable` where the state could not be saved: all stay dirty upon the old parent,
    /// as after [`Mirror::abandon_commit`]. `Invalid` where `sealed` is of another mirror.
    pub fn finish_commit(&self, mut sealed: Sealed, parent: VersionId) -> Result<()> {
        if !std::ptr::eq(&*sealed.mirror, self) {
            return Err(Error::new(Kind::Invalid, "finish the commit", self.name.as_str())
                .because("the sealed changes are those of another mirror"));
        }
        // Most bytes are synced before writers are held.
        self.flush_all()?;
        let mut log = guard(&self.log);
        let mut gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        self.check_syncs()?;
        let epoch = log.epoch() + 1;
        let live = LiveStates::open(self.state.file_system(), &self.folder, epoch, self.length())
            .map_err(|error| self.io_error("finish the commit", error))?;
        let before = std::mem::replace(&mut guard(&self.binding).parent, parent);
        if let Err(error) = self.snapshot(&mut log, epoch, self.length(), true) {
            guard(&self.binding).parent = before;
            return Err(error);
        }
        gate.live = live;
        self.end_seal(true);
        self.sealed.store(false, Ordering::SeqCst);
        let stale = std::mem::take(&mut *guard(&self.stale));
        drop(gate);
        self.punch_stale(stale);
        // Best effort: states of an earlier life never count.
        let _ = LiveStates::remove_others(self.state.file_system(), &self.folder, epoch);
        drop(log);
        sealed.ended = true;
        self.allow_seal();
        Ok(())
    }

    /// Ends a commit that was not published: all changes stay dirty. No I/O.
    pub fn abandon_commit(&self, sealed: Sealed) {
        drop(sealed);
    }
}

impl Drop for Sealed {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let mirror = &self.mirror;
        {
            let _log = guard(&mirror.log);
            let _gate = mirror.gate.write().unwrap_or_else(PoisonError::into_inner);
            mirror.end_seal(false);
            mirror.sealed.store(false, Ordering::SeqCst);
        }
        mirror.allow_seal();
    }
}

impl Sealed {
    /// The version that the changes are upon.
    pub fn parent(&self) -> &VersionId {
        &self.parent
    }

    /// How long writers were held.
    pub fn pause(&self) -> Duration {
        self.pause
    }

    /// Bytes of the blocks that changed.
    pub fn dirty_bytes(&self) -> u64 {
        let groups = self.segments.values().flatten();
        groups.map(|group| u64::from(group.dirty.count_ones())).sum::<u64>() * BLOCK_LEN as u64
    }

    /// The place of a block as it was sealed; `Absent` where it was not dirty.
    fn place(&self, block: u64) -> Place {
        let per_segment = u64::from(BLOCKS_PER_SEGMENT);
        let Some(groups) = self.segments.get(&((block / per_segment) as u32)) else {
            return Place::Absent;
        };
        let in_segment = (block % per_segment) as u32;
        let group = &groups[(in_segment / BLOCKS_PER_GROUP) as usize];
        let bit = in_segment % BLOCKS_PER_GROUP;
        match group.dirty >> bit & 1 {
            1 => place_in(&group.places, bit),
            _ => Place::Absent,
        }
    }
}

impl Changes for Sealed {
    fn length(&self) -> u64 {
        self.length
    }

    fn segments(&self) -> Vec<u32> {
        self.segments.keys().copied().collect()
    }

    fn in_segment(&self, segment: u32) -> Result<Vec<ChangedBlocks>> {
        let first = u64::from(segment) * u64::from(BLOCKS_PER_SEGMENT);
        let count = u64::from(blocks_in_segment(self.length, segment));
        let mut changed = Vec::new();
        let mut at = first;
        while at < first + count {
            let start = at;
            let kind = |place: Place| (place != Place::Absent).then_some(place == Place::Zero);
            let zero = kind(self.place(at));
            while at < first + count && kind(self.place(at)) == zero {
                at += 1;
            }
            if let (Some(zero), Some(blocks)) = (zero, BlockRange::new(start..at)) {
                changed.push(ChangedBlocks { blocks, zero });
            }
        }
        Ok(changed)
    }

    fn read(&self, blocks: BlockRange, buffer: &mut [u8]) -> Result<()> {
        let operation = "read the sealed changes of";
        let mirror = &self.mirror;
        if buffer.len() as u64 != blocks.len() {
            return Err(Error::new(Kind::Bug, operation, mirror.name.as_str())
                .because("the buffer has another length than the blocks"));
        }
        let mut at = blocks.start();
        while at < blocks.end() {
            let (start, place) = (at, self.place(at));
            while at < blocks.end() && self.place(at) == place {
                at += 1;
            }
            let from = ((start - blocks.start()) * BLOCK_LEN as u64) as usize;
            let piece = &mut buffer[from..from + (at - start) as usize * BLOCK_LEN];
            match place {
                Place::Zero => piece.fill(0),
                Place::Absent => {
                    return Err(Error::new(Kind::Bug, operation, mirror.name.as_str())
                        .because("a block was asked for that did not change"));
                }
                Place::First | Place::Second => {
                    let file = &mirror.files[place.file().unwrap_or_default()];
                    file.read_exact_at(piece, start * BLOCK_LEN as u64)
                        .map_err(|error| mirror.io_error(operation, error))?;
                }
            }
        }
        Ok(())
    }
}
