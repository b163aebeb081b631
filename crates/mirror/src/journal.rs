//! What a mirror fetched and what its guest waited for, for whoever asks why a boot took long.
//!
//! **Bounds**: [`EVENTS_MAX`] fetches and as many waits are kept, some 600 KB; what comes after is
//! counted only.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use env::{Clock, SystemClock};

/// How many events of each kind are kept.
pub const EVENTS_MAX: usize = 8192;

/// Where fetched blocks came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A chunk of the version.
    Chunk,
    /// Pieces of its boot working set.
    BootSet,
}

/// One fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// When it began, after the mirror was opened.
    pub at: Duration,
    /// How long it took, until its blocks were there.
    pub took: Duration,
    /// Where from.
    pub origin: Origin,
    /// The first of the blocks that came, counted from the start of the disk.
    pub first_block: u64,
    /// Plain bytes of blocks that were kept.
    pub kept_bytes: u64,
}

/// One wait of a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// When it began, after the mirror was opened.
    pub at: Duration,
    /// How long it took.
    pub took: Duration,
    /// What was read.
    pub offset: u64,
    /// Bytes of it.
    pub len: u64,
}

/// What was noted so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JournalEntries {
    /// Fetches, in the order in which they ended.
    pub fetches: Vec<Fetch>,
    /// Waits, in the order in which they ended.
    pub waits: Vec<Wait>,
    /// How long readers waited in all.
    pub waited: Duration,
    /// How many events were not kept.
    pub left_out: u64,
}

/// Notes fetches and waits.
#[derive(Debug)]
pub(crate) struct Journal {
    opened: Duration,
    entries: Mutex<JournalEntries>,
    /// Blocks that a boot working set brought and that nobody has looked at yet.
    brought: Mutex<HashSet<u64>>,
}

impl Journal {
    /// Nothing noted yet; the mirror is opened now.
    pub(crate) fn new() -> Self {
        let opened = SystemClock.monotonic();
        Journal { opened, entries: Mutex::default(), brought: Mutex::default() }
    }

    /// The time since the mirror was opened.
    pub(crate) fn now(&self) -> Duration {
        SystemClock.monotonic() - self.opened
    }

    /// Notes a fetch that began at `at` and has ended now.
    pub(crate) fn fetched(&self, at: Duration, origin: Origin, first_block: u64, kept_bytes: u64) {
        let took = self.now() - at;
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        match entries.fetches.len() < EVENTS_MAX {
            true => entries.fetches.push(Fetch { at, took, origin, first_block, kept_bytes }),
            false => entries.left_out += 1,
        }
    }

    /// Notes a wait that began at `at` and has ended now.
    pub(crate) fn waited(&self, at: Duration, offset: u64, len: u64) {
        let took = self.now() - at;
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.waited += took;
        match entries.waits.len() < EVENTS_MAX {
            true => entries.waits.push(Wait { at, took, offset, len }),
            false => entries.left_out += 1,
        }
    }

    /// Notes blocks that a boot working set brought.
    pub(crate) fn brought(&self, blocks: impl Iterator<Item = u64>) {
        self.brought.lock().unwrap_or_else(PoisonError::into_inner).extend(blocks);
    }

    /// How many of the blocks that a set brought are among these.
    pub(crate) fn used(&self, read: impl Iterator<Item = u64>) -> u64 {
        let brought = self.brought.lock().unwrap_or_else(PoisonError::into_inner);
        read.filter(|block| brought.contains(block)).count() as u64
    }

    /// A copy of what was noted.
    pub(crate) fn entries(&self) -> JournalEntries {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets which blocks a set brought.
    pub(crate) fn forget_brought(&self) {
        *self.brought.lock().unwrap_or_else(PoisonError::into_inner) = HashSet::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_events_than_are_kept_are_counted() {
        let journal = Journal::new();
        for _ in 0..EVENTS_MAX + 3 {
            journal.waited(journal.now(), 0, 1);
        }
        journal.fetched(journal.now(), Origin::Chunk, 7, 4096);
        let entries = journal.entries();
        assert_eq!((entries.waits.len(), entries.fetches.len()), (EVENTS_MAX, 1));
        assert_eq!(entries.left_out, 3);
    }

    #[test]
    fn what_a_set_brought_and_was_read_is_counted_as_used() {
        let journal = Journal::new();
        journal.brought(10..20);
        assert_eq!(journal.used([5, 10, 19, 20].into_iter()), 2);
        journal.forget_brought();
        assert_eq!(journal.used([10].into_iter()), 0);
    }
}
