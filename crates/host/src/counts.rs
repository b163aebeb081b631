//! Counts what goes through a mirror's doors, and what is fetched from the repository.
//!
//! **Invariant**: counting takes no lock and fails nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use env::{Clock, SystemClock};
use model::boot_set::BootPiece;
use model::device::{Device, Extent, Take};
use model::{ChunkDigest, ContentDigest, LayoutDigest, Manifest, MapDigest, Result, SegmentMap};
use store::{Chunk, ChunkStore, StoredChunk};

/// Kinds of requests to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Bytes are read.
    Read,
    /// Bytes are written.
    Write,
    /// A range becomes zeros.
    WriteZeroes,
    /// A range is of no use any more.
    Discard,
    /// What was answered becomes durable.
    Flush,
}

impl Operation {
    /// All of them.
    pub const ALL: [Operation; 5] = [
        Operation::Read,
        Operation::Write,
        Operation::WriteZeroes,
        Operation::Discard,
        Operation::Flush,
    ];

    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Read => "read",
            Operation::Write => "write",
            Operation::WriteZeroes => "write_zeroes",
            Operation::Discard => "discard",
            Operation::Flush => "flush",
        }
    }
}

/// Numbers about requests of one kind.
#[derive(Debug, Default)]
pub struct RequestCounts {
    requests: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
}

impl RequestCounts {
    /// Requests, answered well or not.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Bytes of those that were answered well.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Requests that failed.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }
}

/// Numbers about the requests that a mirror got.
#[derive(Debug, Default)]
pub struct Counts([RequestCounts; Operation::ALL.len()]);

impl Counts {
    /// Those of one kind.
    pub fn of(&self, operation: Operation) -> &RequestCounts {
        &self.0[operation as usize]
    }

    fn count<T>(&self, operation: Operation, len: u64, outcome: Result<T>) -> Result<T> {
        let counts = self.of(operation);
        counts.requests.fetch_add(1, Ordering::Relaxed);
        match outcome {
            Ok(_) => counts.bytes.fetch_add(len, Ordering::Relaxed),
            Err(_) => counts.errors.fetch_add(1, Ordering::Relaxed),
        };
        outcome
    }
}

/// A device whose requests are counted.
pub(crate) struct CountedDevice {
    device: Arc<dyn Device>,
    counts: Arc<Counts>,
}

impl CountedDevice {
    pub(crate) fn new(device: Arc<dyn Device>, counts: Arc<Counts>) -> Self {
        CountedDevice { device, counts }
    }
}

impl Device for CountedDevice {
    fn length(&self) -> u64 {
        self.device.length()
    }

    fn is_read_only(&self) -> bool {
        self.device.is_read_only()
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let len = buffer.len() as u64;
        self.counts.count(Operation::Read, len, self.device.read(offset, buffer))
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.counts.count(Operation::Write, bytes.len() as u64, self.device.write(offset, bytes))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.counts.count(Operation::WriteZeroes, len, self.device.write_zeroes(offset, len))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.counts.count(Operation::Discard, len, self.device.discard(offset, len))
    }

    fn flush(&self) -> Result<()> {
        self.counts.count(Operation::Flush, 0, self.device.flush())
    }

    fn prefetch(&self, offset: u64, len: u64) -> Result<()> {
        self.device.prefetch(offset, len)
    }

    fn may_wait(&self, offset: u64, len: u64) -> bool {
        self.device.may_wait(offset, len)
    }

    fn take_from_file(&self, offset: u64, len: usize, take: &mut Take<'_>) -> usize {
        let taken = self.device.take_from_file(offset, len, take);
        if taken > 0 {
            let _ = self.counts.count(Operation::Read, taken as u64, Ok(()));
        }
        taken
    }

    fn extents(&self, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>> {
        self.device.extents(offset, len, max)
    }
}

/// Upper bounds of the buckets of fetch times, in seconds; one more bucket is without bound.
pub const FETCH_SECONDS_BOUNDS: [f64; 13] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0];

/// Numbers about fetches.
#[derive(Debug, Default)]
pub struct Fetches {
    buckets: [AtomicU64; FETCH_SECONDS_BOUNDS.len() + 1],
    micros: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
}

impl Fetches {
    /// How many fell between each bound and the one before it, the last without bound.
    pub fn buckets(&self) -> impl Iterator<Item = u64> + '_ {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed))
    }

    /// Time that all took.
    pub fn total_time(&self) -> Duration {
        Duration::from_micros(self.micros.load(Ordering::Relaxed))
    }

    /// Plain bytes of the chunks that came.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Fetches that failed.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    fn count<T>(&self, time: Duration, outcome: &Result<T>, len: impl Fn(&T) -> usize) {
        let seconds = time.as_secs_f64();
        let bucket = FETCH_SECONDS_BOUNDS.partition_point(|bound| *bound < seconds);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
        match outcome {
            Ok(chunk) => self.bytes.fetch_add(len(chunk) as u64, Ordering::Relaxed),
            Err(_) => self.errors.fetch_add(1, Ordering::Relaxed),
        };
    }
}

/// A chunk store whose chunks are counted.
pub(crate) struct CountedChunks {
    store: Arc<dyn ChunkStore>,
    fetches: Arc<Fetches>,
}

impl CountedChunks {
    pub(crate) fn new(store: Arc<dyn ChunkStore>, fetches: Arc<Fetches>) -> Self {
        CountedChunks { store, fetches }
    }
}

impl ChunkStore for CountedChunks {
    fn current_layout(&self, content: ContentDigest) -> Result<Option<LayoutDigest>> {
        self.store.current_layout(content)
    }

    fn manifest(&self, layout: LayoutDigest) -> Result<Arc<Manifest>> {
        self.store.manifest(layout)
    }

    fn segment_map(&self, map: MapDigest) -> Result<Arc<SegmentMap>> {
        self.store.segment_map(map)
    }

    fn chunk_as_stored(&self, digest: ChunkDigest) -> Result<(Chunk, Option<StoredChunk>)> {
        let start = SystemClock.monotonic();
        let outcome = self.store.chunk_as_stored(digest);
        let len = |(chunk, _): &(Chunk, Option<StoredChunk>)| chunk.bytes().len();
        self.fetches.count(SystemClock.monotonic() - start, &outcome, len);
        outcome
    }

    fn boot_pieces(&self, pieces: &[BootPiece]) -> Result<Vec<Vec<u8>>> {
        self.store.boot_pieces(pieces)
    }
}

#[cfg(test)]
mod tests {
    use model::device::MemoryDevice;

    use super::*;

    #[test]
    fn requests_are_counted_by_kind_and_failures_apart() {
        let counts = Arc::new(Counts::default());
        let device = CountedDevice::new(Arc::new(MemoryDevice::new(vec![0; 8192])), counts.clone());
        device.write(0, &[1; 100]).unwrap();
        device.read(0, &mut [0; 50]).unwrap();
        device.read(8192, &mut [0]).unwrap_err();
        device.flush().unwrap();
        let found = Operation::ALL.map(|operation| {
            let counts = counts.of(operation);
            (counts.requests(), counts.bytes(), counts.errors())
        });
        assert_eq!(found, [(2, 50, 1), (1, 100, 0), (0, 0, 0), (0, 0, 0), (1, 0, 0)]);
    }

    #[test]
    fn a_fetch_falls_into_the_bucket_of_its_time() {
        let fetches = Fetches::default();
        let failed = || Err(model::Error::new(model::Kind::Unavailable, "", ""));
        for millis in [0, 1, 3, 60_000] {
            fetches.count(Duration::from_millis(millis), &failed(), |()| 0);
        }
        let buckets: Vec<u64> = fetches.buckets().collect();
        assert_eq!(buckets, [1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!((fetches.errors(), fetches.total_time().as_millis()), (4, 60_004));
    }
}
