//! Notes which blocks of a version a guest reads, in order of first use.
//!
//! **Cost**: nothing but a look at a flag while it does not record; while it does, one look-up for each
//! block read. **Bounds**: it stops by itself at 1 GiB of distinct blocks.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use env::{Clock, SystemClock};
use model::boot_set::{BOOT_BLOCKS_MAX, FirstRead};

/// What was noted so far.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    is_active: AtomicBool,
    noted: Mutex<Noted>,
}

#[derive(Debug, Default)]
struct Noted {
    seen: HashSet<u64>,
    reads: Vec<FirstRead>,
    /// When the first block was read, and when the last new one was.
    first: Option<Duration>,
    last: Duration,
}

/// How far a recording has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recording {
    /// Blocks that were read.
    pub block_count: u64,
    /// How long it is since the first read.
    pub running_for: Duration,
    /// How long nothing new was read.
    pub quiet_for: Duration,
}

impl Recorder {
    /// Notes from now on, from nothing.
    pub(crate) fn start(&self) {
        *self.noted.lock().unwrap_or_else(PoisonError::into_inner) = Noted::default();
        self.is_active.store(true, Ordering::Relaxed);
    }

    /// True while it notes.
    #[inline]
    pub(crate) fn is_active(&self) -> bool {
        self.is_active.load(Ordering::Relaxed)
    }

    /// Notes blocks that the guest reads from the version.
    pub(crate) fn note(&self, blocks: Range<u64>) {
        let now = SystemClock.monotonic();
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        let first = *noted.first.get_or_insert(now);
        let at_ms = u32::try_from((now - first).as_millis()).unwrap_or(u32::MAX);
        for block in blocks {
            if !noted.seen.insert(block) {
                continue;
            }
            noted.last = now;
            match noted.reads.last_mut() {
                Some(read)
                    if read.first_block + u64::from(read.block_count) == block
                        && read.at_ms == at_ms =>
                {
                    read.block_count += 1;
                }
                _ => noted.reads.push(FirstRead { first_block: block, block_count: 1, at_ms }),
            }
        }
        if noted.seen.len() >= BOOT_BLOCKS_MAX as usize {
            self.is_active.store(false, Ordering::Relaxed);
        }
    }

    /// How far it has come; `None` where nothing was read yet.
    pub(crate) fn progress(&self) -> Option<Recording> {
        let noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        let (first, now) = (noted.first?, SystemClock.monotonic());
        Some(Recording {
            block_count: noted.seen.len() as u64,
            running_for: now - first,
            quiet_for: now - noted.last,
        })
    }

    /// What was read so far, in order.
    pub(crate) fn reads(&self) -> Vec<FirstRead> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner).reads.clone()
    }

    /// Ends it. Returns what was read, in order.
    pub(crate) fn stop(&self) -> Vec<FirstRead> {
        self.is_active.store(false, Ordering::Relaxed);
        std::mem::take(&mut *self.noted.lock().unwrap_or_else(PoisonError::into_inner)).reads
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_noted_once_in_order_of_first_use() {
        let recorder = Recorder::default();
        assert!(!recorder.is_active() && recorder.progress().is_none());
        recorder.start();
        recorder.note(10..12);
        recorder.note(11..14);
        recorder.note(3..4);
        recorder.note(10..12);
        assert_eq!(recorder.progress().unwrap().block_count, 5);
        let blocks: Vec<u64> = recorder
            .stop()
            .iter()
            .flat_map(|read| read.first_block..read.first_block + u64::from(read.block_count))
            .collect();
        assert_eq!(blocks, [10, 11, 12, 13, 3]);
        assert!(!recorder.is_active() && recorder.stop().is_empty());
    }
}
