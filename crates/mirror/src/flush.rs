//! Flush: bytes first, then the states that tell of them.
//!
//! ```text
//! take states not yet logged -> sync touched overlay files -> append to the log -> sync the log
//!                                                          -> punch what was left behind
//! ```
//!
//! **Invariants**: states are taken before the sync, so all bytes that they tell of were written
//! before it. A flush that found no new states syncs bytes only; one that found nothing syncs
//! nothing.
//!
//! **Failure**: where bytes or log cannot be written, states are given back and the flush fails;
//! the next one tries all again. After a failed sync no flush succeeds any more, since the kernel
//! may have dropped the bytes.

use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex};

use format::mirror_log::{GroupStates, LogRecord, Place, RANGES_MAX, StateRange};
use model::device::Device;
use model::{BLOCK_LEN, BLOCKS_PER_SEGMENT, Error, Kind, Result};

use crate::log::{Append, MirrorLog};
use crate::mirror::{Mirror, guard};
use crate::overlay::place_in;

/// A segment with more ranges than this is logged whole, which is shorter.
const RANGES_PER_SEGMENT_MAX: usize = 384;

/// Lets flushes that come at the same time share one.
#[derive(Debug, Default)]
pub(crate) struct FlushGroup {
    turns: Mutex<Turns>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Turns {
    running: bool,
    started: u64,
    /// The highest that succeeded.
    succeeded: u64,
}

/// The one who flushes; ends its turn also when it panics.
struct Turn<'a> {
    group: &'a FlushGroup,
    number: u64,
    succeeded: bool,
}

impl FlushGroup {
    /// Runs `work` unless a run that started after this call succeeded meanwhile.
    pub(crate) fn run(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut turns = guard(&self.turns);
        let wanted = turns.started + 1;
        while turns.running {
            turns = self.ended.wait(turns).unwrap_or_else(std::sync::PoisonError::into_inner);
            if turns.succeeded >= wanted {
                return Ok(());
            }
        }
        turns.running = true;
        turns.started += 1;
        let mut turn = Turn { group: self, number: turns.started, succeeded: false };
        drop(turns);
        let result = work();
        turn.succeeded = result.is_ok();
        result
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut turns = guard(&self.group.turns);
        turns.running = false;
        if self.succeeded {
            turns.succeeded = turns.succeeded.max(self.number);
        }
        self.group.ended.notify_all();
    }
}

/// States that were taken to be logged.
type Taken = Vec<(u32, Vec<(usize, GroupStates, u64)>)>;

impl Mirror {
    /// Makes everything that was answered before this call survive power loss.
    pub(crate) fn flush_all(&self) -> Result<()> {
        self.flushes.run(|| self.flush_log(&mut guard(&self.log)))
    }

    /// The flush itself, by whoever holds the log.
    pub(crate) fn flush_log(&self, log: &mut MirrorLog) -> Result<()> {
        self.check_syncs()?;
        let stale = std::mem::take(&mut *guard(&self.stale));
        let taken = match self.take_unlogged() {
            Ok(taken) => taken,
            Err(error) => {
                guard(&self.stale).extend(stale);
                return Err(error);
            }
        };
        let flushed = self.sync_bytes().and_then(|()| self.log_states(log, &taken));
        if let Err(error) = flushed {
            self.give_back(&taken);
            guard(&self.stale).extend(stale);
            return Err(error);
        }
        self.punch_stale(stale);
        if log.wants_compaction() {
            let snapshot = self.snapshot(log, log.epoch(), self.length(), false);
            if let Err(error) = snapshot {
                tracing::warn!(error = %error.chain(), "the log of the mirror stays long");
            }
        }
        Ok(())
    }

    /// # Errors
    /// `Unavailable` once a sync has failed.
    pub(crate) fn check_syncs(&self) -> Result<()> {
        if !self.sync_failed.load(Ordering::SeqCst) {
            return Ok(());
        }
        Err(Error::new(Kind::Unavailable, "flush the mirror", self.name.as_str())
            .because("an earlier sync failed, so bytes written before it may be lost")
            .hint("check the disk that holds the state folder, then attach the mirror again"))
    }

    /// Syncs the overlay files that were written to.
    pub(crate) fn sync_bytes(&self) -> Result<()> {
        for (file, touched) in self.files.iter().zip(&self.touched) {
            if touched.swap(false, Ordering::SeqCst) {
                file.sync().map_err(|error| self.sync_error("flush the mirror", error))?;
            }
        }
        Ok(())
    }

    pub(crate) fn sync_error(&self, operation: &'static str, error: io::Error) -> Error {
        self.sync_failed.store(true, Ordering::SeqCst);
        self.io_error(operation, error)
    }

    pub(crate) fn commit_append(
        &self,
        log: &mut MirrorLog,
        append: Append,
        operation: &'static str,
    ) -> Result<()> {
        log.commit(append).map_err(|error| self.sync_error(operation, error))
    }

    /// # Errors
    /// What was put out cannot be read: nothing is taken.
    fn take_unlogged(&self) -> Result<Taken> {
        let segments = std::mem::take(&mut *guard(&self.unlogged));
        let mut taken = Taken::new();
        for segment in &segments {
            let groups = self.states.visit(*segment, |bits| {
                let _changing = guard(&bits.changing);
                bits.take_unlogged()
            });
            match groups {
                Ok(groups) => taken.extend(groups.map(|groups| (*segment, groups))),
                Err(error) => {
                    self.give_back(&taken);
                    guard(&self.unlogged).extend(segments);
                    return Err(self.io_error("flush the mirror", error));
                }
            }
        }
        Ok(taken)
    }

    fn give_back(&self, taken: &Taken) {
        for (segment, groups) in taken {
            let given = self.states.visit(*segment, |bits| {
                groups.iter().for_each(|(group, _, mask)| bits.give_back_unlogged(*group, *mask));
            });
            if let Err(error) = given {
                // What the log is not told of now must not be told to be durable later.
                self.sync_failed.store(true, Ordering::SeqCst);
                tracing::error!(mirror = self.name.as_str(), %error, "states are lost to the log");
            }
        }
        guard(&self.unlogged).extend(taken.iter().map(|(segment, _)| *segment));
    }

    fn log_states(&self, log: &mut MirrorLog, taken: &Taken) -> Result<()> {
        let operation = "flush the mirror";
        let mut ranges = Vec::new();
        for (segment, groups) in taken {
            for (group, states, mask) in groups {
                push_ranges(&mut ranges, *segment, *group, states, *mask);
            }
        }
        if ranges.is_empty() {
            return Ok(());
        }
        let records: Vec<LogRecord> =
            ranges.chunks(RANGES_MAX).map(|ranges| LogRecord::Ranges(ranges.to_vec())).collect();
        let append = log.append(&records).map_err(|error| self.io_error(operation, error))?;
        self.commit_append(log, append, operation)
    }

    /// Gives back the space of blocks whose successors are durable. Those that a seal needs wait.
    pub(crate) fn punch_stale(&self, mut stale: Vec<(usize, u64)>) {
        if stale.is_empty() {
            return;
        }
        if self.sealed.load(Ordering::SeqCst) {
            guard(&self.stale).append(&mut stale);
            return;
        }
        // Readers who looked before this line may still read what is punched below, and will see
        // that they have to look again.
        self.punches.fetch_add(1, Ordering::SeqCst);
        stale.sort_unstable();
        stale.dedup();
        let mut at = 0;
        while at < stale.len() {
            let (file, first) = stale[at];
            let mut end = first;
            while at < stale.len() && stale[at] == (file, end) {
                end += 1;
                at += 1;
            }
            self.punch(file, first..end);
        }
    }

    /// Gives back the space of blocks. Best effort: nobody reads them.
    pub(crate) fn punch(&self, file: usize, blocks: Range<u64>) {
        let block_len = BLOCK_LEN as u64;
        let len = (blocks.end - blocks.start) * block_len;
        let _ = self.files[file].punch_hole(blocks.start * block_len, len);
    }

    /// Replaces the log by what it comes to, for a disk of `length` bytes. Dirty bits of sealed
    /// blocks are left out where they are `committed`. Whoever asks for that keeps writers out.
    pub(crate) fn snapshot(
        &self,
        log: &mut MirrorLog,
        epoch: u64,
        length: u64,
        committed: bool,
    ) -> Result<()> {
        let operation = "save the state of the mirror";
        let binding = guard(&self.binding).clone();
        let grown = (length != binding.length).then_some(LogRecord::Length(length));
        let mut records = vec![LogRecord::Binding(binding)];
        records.extend(grown);
        let mut taken: Taken = Vec::new();
        let mut ranges = Vec::new();
        for segment in self.states.segments() {
            let visited = self.states.visit(segment, |bits| {
                let _changing = guard(&bits.changing);
                (bits.take_unlogged(), bits.snapshot(committed))
            });
            let states = match visited {
                Ok(None) => continue,
                Ok(Some((unlogged, states))) => {
                    taken.push((segment, unlogged));
                    states
                }
                Err(error) => {
                    self.give_back(&taken);
                    return Err(self.io_error(operation, error));
                }
            };
            let before = ranges.len();
            for (group, states) in states.iter().enumerate() {
                push_ranges(&mut ranges, segment, group, states, known_mask(states));
            }
            if ranges.len() - before > RANGES_PER_SEGMENT_MAX {
                ranges.truncate(before);
                records.push(LogRecord::Segment { segment, groups: states });
            }
        }
        records.extend(ranges.chunks(RANGES_MAX).map(|r| LogRecord::Ranges(r.to_vec())));
        let saved = self.sync_bytes().and_then(|()| {
            let prepared =
                MirrorLog::prepare(self.state.shared_file_system(), &self.folder, epoch, &records)
                    .map_err(|error| self.io_error(operation, error))?;
            prepared.install().map_err(|error| self.sync_error(operation, error))?;
            *log = prepared;
            Ok(())
        });
        if saved.is_err() {
            self.give_back(&taken);
        }
        saved
    }
}

/// The blocks of a group that are not absent.
fn known_mask(states: &GroupStates) -> u64 {
    (0..64).filter(|bit| place_in(&states.places, *bit) != Place::Absent).fold(0, |m, b| m | 1 << b)
}

/// Appends the states of the blocks in `mask`, joined to the last range where they continue it.
fn push_ranges(
    ranges: &mut Vec<StateRange>,
    segment: u32,
    group: usize,
    states: &GroupStates,
    mask: u64,
) {
    let first = u64::from(segment) * u64::from(BLOCKS_PER_SEGMENT) + group as u64 * 64;
    let mut rest = mask;
    while rest != 0 {
        let bit = rest.trailing_zeros();
        rest &= rest - 1;
        let block = first + u64::from(bit);
        let place = place_in(&states.places, bit);
        let dirty = states.dirty >> bit & 1 == 1;
        match ranges.last_mut() {
            Some(last)
                if last.first_block + u64::from(last.block_count) == block
                    && (last.place, last.dirty) == (place, dirty) =>
            {
                last.block_count += 1;
            }
            _ => ranges.push(StateRange { first_block: block, block_count: 1, place, dirty }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn those_who_come_during_a_flush_share_the_next() {
        let group = FlushGroup::default();
        let (runs, waiting) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (go, gate) = channel::<()>();
        let (started, begun) = channel::<()>();
        std::thread::scope(|scope| {
            let (group, runs, waiting) = (&group, &runs, &waiting);
            scope.spawn(move || {
                group.run(|| {
                    runs.fetch_add(1, Ordering::SeqCst);
                    started.send(()).unwrap();
                    gate.recv().unwrap();
                    Ok(())
                })
            });
            begun.recv().unwrap();
            for _ in 0..8 {
                scope.spawn(|| {
                    waiting.fetch_add(1, Ordering::SeqCst);
                    group.run(|| {
                        runs.fetch_add(1, Ordering::SeqCst);
                        Ok(())
                    })
                });
            }
            while waiting.load(Ordering::SeqCst) < 8 {
                std::thread::yield_now();
            }
            go.send(()).unwrap();
        });
        // The first, one that the others share, and at most those who had not yet queued.
        assert!((2..=9).contains(&runs.load(Ordering::SeqCst)));
        assert!(!guard(&group.turns).running);
    }

    #[test]
    fn a_failed_flush_satisfies_nobody() {
        let group = FlushGroup::default();
        let failed = || Err(Error::new(Kind::Full, "flush", "x"));
        assert!(group.run(failed).is_err());
        assert!(group.run(failed).is_err());
        assert!(group.run(|| Ok(())).is_ok());
    }
}
