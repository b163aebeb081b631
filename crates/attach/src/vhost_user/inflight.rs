//! The shared region that remembers what is under way, and outlives this process.
//!
//! The front end keeps it and gives it to the next server. Of each queue it has a head of 16 bytes
//! (features, version, count, last head, used index) and 16 bytes for each descriptor (under way,
//! counter).
//!
//! **Invariants**: an index out of the region is never used to go anywhere without a look at its
//! bounds. The file cannot be cut shorter while it is mapped.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use rustix::fs::{MemfdFlags, SealFlags};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

use super::config::{QUEUE_COUNT_MAX, QUEUE_SIZE_MAX};

const HEAD_LEN: usize = 16;
const ENTRY_LEN: usize = 16;
const QUEUE_ALIGNMENT: usize = 64;
const VERSION: u16 = 1;

const VERSION_AT: usize = 8;
const COUNT_AT: usize = 10;
const LAST_HEAD_AT: usize = 12;
const USED_INDEX_AT: usize = 14;
const COUNTER_AT: usize = 8;

/// The region of all queues.
#[derive(Clone, Debug)]
pub(super) struct Inflight {
    mapping: Arc<MmapRegion>,
    queue_count: u16,
    queue_size: u16,
}

/// Bytes for one queue.
fn stride(queue_size: u16) -> usize {
    (HEAD_LEN + ENTRY_LEN * usize::from(queue_size)).next_multiple_of(QUEUE_ALIGNMENT)
}

fn region_len(queue_count: u16, queue_size: u16) -> Option<usize> {
    let fits = usize::from(queue_count) <= QUEUE_COUNT_MAX && queue_size <= QUEUE_SIZE_MAX;
    fits.then(|| stride(queue_size) * usize::from(queue_count))
}

impl Inflight {
    /// Makes an empty region: the file that the front end is to keep, and its length.
    pub(super) fn create(queue_count: u16, queue_size: u16) -> Option<(File, u64)> {
        let len = region_len(queue_count, queue_size)? as u64;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(rustix::fs::memfd_create("larder-inflight", flags).ok()?);
        file.set_len(len).ok()?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW).ok()?;
        Some((file, len))
    }

    /// Maps a region. `None` where it is too short for the queues or could be made shorter.
    pub(super) fn open(
        file: File,
        offset: u64,
        len: u64,
        queue_count: u16,
        queue_size: u16,
    ) -> Option<Self> {
        let needed = region_len(queue_count, queue_size)?;
        let file_len = file.metadata().ok()?.len();
        if len < needed as u64 || offset.checked_add(needed as u64)? > file_len {
            return None;
        }
        if !rustix::fs::fcntl_get_seals(&file).ok()?.contains(SealFlags::SHRINK) {
            return None;
        }
        let mapping = MmapRegion::from_file(FileOffset::new(file, offset), needed).ok()?;
        Some(Inflight { mapping: Arc::new(mapping), queue_count, queue_size })
    }

    /// The part of one queue; `None` where there is none, or it is of another size.
    pub(super) fn queue(&self, index: usize, size: u16) -> Option<InflightQueue> {
        let fits = index < usize::from(self.queue_count) && size <= self.queue_size;
        let start = index * stride(self.queue_size);
        fits.then(|| InflightQueue { mapping: self.mapping.clone(), start, size, counter: 0 })
    }
}

/// What one queue has under way.
#[derive(Debug)]
pub(super) struct InflightQueue {
    mapping: Arc<MmapRegion>,
    start: usize,
    size: u16,
    /// How many requests were begun: the order in which they are done again.
    counter: u64,
}

impl InflightQueue {
    fn store<T: vm_memory::AtomicAccess>(&self, at: usize, value: T) {
        let slice = self.mapping.as_volatile_slice();
        // It lies inside: `open` and `queue` saw to that.
        let _ = slice.store(value, self.start + at, Ordering::Release);
    }

    fn load<T: vm_memory::AtomicAccess + Default>(&self, at: usize) -> T {
        let slice = self.mapping.as_volatile_slice();
        slice.load(self.start + at, Ordering::Acquire).unwrap_or_default()
    }

    fn entry(head: u16) -> usize {
        HEAD_LEN + ENTRY_LEN * usize::from(head)
    }

    /// Notes that a request is under way. Shape: `head` is of the queue.
    pub(super) fn begin(&mut self, head: u16) {
        if head < self.size {
            self.counter += 1;
            self.store(Self::entry(head) + COUNTER_AT, self.counter);
            self.store(Self::entry(head), 1u8);
            fence(Ordering::SeqCst);
        }
    }

    /// Notes which request is about to be answered.
    pub(super) fn ending(&mut self, head: u16) {
        self.store(LAST_HEAD_AT, head);
        fence(Ordering::SeqCst);
    }

    /// Notes that it was answered, with the used index from then on.
    pub(super) fn end(&mut self, head: u16, used_index: u16) {
        fence(Ordering::SeqCst);
        if head < self.size {
            self.store(Self::entry(head), 0u8);
        }
        self.store(USED_INDEX_AT, used_index);
    }

    /// The requests that a server before this one had under way, in the order in which it began
    /// them. `used_index` is that of the ring: what was answered last may not have been noted.
    pub(super) fn recover(&mut self, used_index: u16) -> Vec<u16> {
        if self.load::<u16>(VERSION_AT) != VERSION {
            self.store(COUNT_AT, self.size);
            self.store(USED_INDEX_AT, used_index);
            self.store(VERSION_AT, VERSION);
            return Vec::new();
        }
        if self.load::<u16>(USED_INDEX_AT) != used_index {
            let last = self.load::<u16>(LAST_HEAD_AT);
            self.end(last, used_index);
        }
        let mut heads: Vec<(u64, u16)> = (0..self.size)
            .filter(|head| self.load::<u8>(Self::entry(*head)) == 1)
            .map(|head| (self.load(Self::entry(head) + COUNTER_AT), head))
            .collect();
        heads.sort_unstable();
        self.counter = heads.last().map_or(0, |(counter, _)| *counter);
        heads.into_iter().map(|(_, head)| head).collect()
    }
}
