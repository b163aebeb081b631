//! Stores that fail, stall and panic; threads that read and write the same blocks.

mod support;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use env::simulated::SimulatedFileSystem;
use mirror::StateFolder;
use model::boot_set::BootPiece;
use model::device::Device;
use model::{
    ChunkDigest, ContentDigest, Error, Kind, LayoutDigest, Manifest, MapDigest, Result, SegmentMap,
};
use store::{Chunk, ChunkStore, MemoryChunkStore, StoredChunk};
use support::*;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    Once,
    ForEver,
    Panic,
}

/// A store whose chunks are counted, held back and withheld.
struct FaultyStore {
    inner: MemoryChunkStore,
    fault: Mutex<Fault>,
    fetches: Mutex<HashMap<ChunkDigest, usize>>,
    held: Mutex<bool>,
    released: Condvar,
    waiting: AtomicUsize,
}

impl FaultyStore {
    fn new(inner: MemoryChunkStore, fault: Fault) -> Arc<Self> {
        Arc::new(FaultyStore {
            inner,
            fault: Mutex::new(fault),
            fetches: Mutex::default(),
            held: Mutex::new(false),
            released: Condvar::new(),
            waiting: AtomicUsize::new(0),
        })
    }

    fn hold(&self, held: bool) {
        *self.held.lock().unwrap() = held;
        self.released.notify_all();
    }
}

impl ChunkStore for FaultyStore {
    fn current_layout(&self, content: ContentDigest) -> Result<Option<LayoutDigest>> {
        self.inner.current_layout(content)
    }

    fn manifest(&self, layout: LayoutDigest) -> Result<Arc<Manifest>> {
        self.inner.manifest(layout)
    }

    fn segment_map(&self, map: MapDigest) -> Result<Arc<SegmentMap>> {
        self.inner.segment_map(map)
    }

    fn chunk_as_stored(&self, chunk: ChunkDigest) -> Result<(Chunk, Option<StoredChunk>)> {
        *self.fetches.lock().unwrap().entry(chunk).or_default() += 1;
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut held = self.held.lock().unwrap();
        while *held {
            held = self.released.wait(held).unwrap();
        }
        drop(held);
        let fault = {
            let mut fault = self.fault.lock().unwrap();
            let now = *fault;
            if matches!(now, Fault::Once | Fault::Panic) {
                *fault = Fault::None;
            }
            now
        };
        match fault {
            Fault::None => self.inner.chunk_as_stored(chunk),
            Fault::Panic => panic!("the store panics"),
            Fault::Once | Fault::ForEver => {
                Err(Error::new(Kind::Unavailable, "fetch the chunk", chunk.to_string()))
            }
        }
    }

    fn boot_pieces(&self, pieces: &[BootPiece]) -> Result<Vec<Vec<u8>>> {
        self.inner.boot_pieces(pieces)
    }
}

fn faulty(fault: Fault) -> (Arc<FaultyStore>, Host, Model) {
    let model = Model::example();
    let (store, binding) = store_of(&model);
    let store = FaultyStore::new(store, fault);
    let disk = Arc::new(SimulatedFileSystem::new());
    let host = Host::with_store(disk, store.clone(), binding);
    (store, host, model)
}

#[test]
fn a_fetch_that_fails_is_an_error_once_and_remembered_as_nothing() {
    let (store, host, model) = faulty(Fault::Once);
    let mirror = host.create().unwrap();
    let mut buffer = vec![0; 4096];
    assert_eq!(mirror.read(0, &mut buffer).unwrap_err().kind(), Kind::Unavailable);
    assert_same(&*mirror, &model, "after one failure");
    assert!(store.fetches.lock().unwrap().values().all(|count| *count <= 2));
}

#[test]
fn without_a_store_a_guest_reads_its_own_writes_and_errors_elsewhere() {
    let (store, host, model) = faulty(Fault::ForEver);
    let mirror = host.create().unwrap();
    mirror.write(4096, &[7; 4096]).unwrap();
    assert_eq!(mirror.write(1, &[7]).unwrap_err().kind(), Kind::Unavailable);
    let mut buffer = vec![0; 4096];
    for _ in 0..3 {
        assert!(mirror.read(0, &mut buffer).is_err());
        assert!(mirror.read(100, &mut buffer).is_err());
        assert!(mirror.prefetch(0, 4096).is_err());
    }
    mirror.read(4096, &mut buffer).unwrap();
    assert_eq!(buffer, [7; 4096]);
    mirror.flush().unwrap();
    *store.fault.lock().unwrap() = Fault::None;
    let mut model = model;
    model.write(4096, &[7; 4096]);
    assert_same(&*mirror, &model, "when the store is back");
}

#[test]
fn readers_of_one_chunk_share_one_fetch() {
    let (store, host, model) = faulty(Fault::None);
    let mirror = host.create().unwrap();
    let view = mirror::ReadOnlyView::open(&host.state, &host.binding, store.clone()).unwrap();
    store.hold(true);
    std::thread::scope(|scope| {
        for number in 0..16u64 {
            let (mirror, view, model) = (&mirror, &view, &model);
            scope.spawn(move || {
                let (mut found, mut expected) = (vec![0; 512], vec![0; 512]);
                let device: &dyn Device = if number % 2 == 0 { &**mirror } else { view };
                device.read(number * 512, &mut found).unwrap();
                model.read(number * 512, &mut expected);
                assert_eq!(found, expected);
            });
        }
        while store.waiting.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        // A write of other blocks goes on while the store stalls: no lock is held.
        mirror.write(8 * 4096, &[3; 8192]).unwrap();
        mirror.flush().unwrap();
        drop(mirror.seal().unwrap());
        store.hold(false);
    });
    let fetches = store.fetches.lock().unwrap();
    assert!(fetches.values().all(|count| *count == 1), "{fetches:?}");
}

#[test]
fn a_read_of_several_chunks_has_them_under_way_at_once() {
    let (store, host, model) = faulty(Fault::None);
    let mirror = host.create().unwrap();
    let (start, len) = WINDOWS[0];
    store.hold(true);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut found, mut expected) = (vec![0; len as usize], vec![0; len as usize]);
            mirror.read(start, &mut found).unwrap();
            model.read(start, &mut expected);
            assert!(found == expected);
        });
        while store.waiting.load(Ordering::SeqCst) < 2 {
            std::thread::yield_now();
        }
        store.hold(false);
    });
    let fetches = store.fetches.lock().unwrap();
    assert!(fetches.values().all(|count| *count == 1), "{fetches:?}");
}

#[test]
fn a_store_that_panics_takes_one_reader_down_and_not_the_others() {
    let (store, host, model) = faulty(Fault::Panic);
    let mirror = host.create().unwrap();
    let panicked = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let read = std::panic::AssertUnwindSafe(|| mirror.read(0, &mut [0; 4096]));
                match std::panic::catch_unwind(read) {
                    Ok(result) => result.unwrap(),
                    Err(_) => drop(panicked.fetch_add(1, Ordering::SeqCst)),
                }
            });
        }
    });
    assert_eq!(panicked.load(Ordering::SeqCst), 1);
    assert_same(&*mirror, &model, "afterwards");
    assert!(store.fetches.lock().unwrap().values().all(|count| *count <= 2));
}

/// Each thread owns every n-th piece of 100 bytes, so threads share blocks and segments. It checks
/// that nobody else changes its bytes, while a commit runs now and then.
#[test]
fn threads_that_write_parts_of_the_same_blocks_never_lose_a_byte() {
    const THREADS: u64 = 4;
    const PIECE: u64 = 100;
    const ROUNDS: u64 = 400;
    const COMMITS: u64 = 40;
    let (_, host, model) = faulty(Fault::None);
    let mirror = host.create().unwrap();
    let (start, len) = WINDOWS[1];
    let (finished, commits) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let commits = &commits;
        let writers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (mirror, mut own) = (&mirror, model.clone());
                scope.spawn(move || {
                    let steps = Steps::new(thread);
                    let pieces = len / PIECE / THREADS;
                    let mut rounds = 0;
                    while rounds < ROUNDS || commits.load(Ordering::SeqCst) < COMMITS {
                        rounds += 1;
                        let piece = steps.below(pieces) * THREADS + thread;
                        let offset = start + piece * PIECE;
                        let bytes = vec![steps.below(255) as u8 + 1; PIECE as usize];
                        mirror.write(offset, &bytes).unwrap();
                        own.write(offset, &bytes);
                        let check = start + (steps.below(pieces) * THREADS + thread) * PIECE;
                        let (mut found, mut expected) = ([0; PIECE as usize], [0; PIECE as usize]);
                        mirror.read(check, &mut found).unwrap();
                        own.read(check, &mut expected);
                        assert_eq!(found, expected, "thread {thread} at {check}");
                    }
                })
            })
            .collect();
        let committer = scope.spawn(|| {
            let mut number = 1;
            while !finished.load(Ordering::SeqCst) {
                let sealed = mirror.seal().unwrap();
                let before = read_changes(&sealed);
                assert_eq!(before, read_changes(&sealed), "sealed changes stand still");
                if number % 3 == 0 {
                    mirror.abandon_commit(sealed);
                } else {
                    mirror.finish_commit(sealed, version(number + 1)).unwrap();
                }
                mirror.flush().unwrap();
                number += 1;
                commits.fetch_add(1, Ordering::SeqCst);
            }
        });
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        finished.store(true, Ordering::SeqCst);
        committer.join().unwrap();
    });
}

#[test]
fn zeros_and_writes_of_other_bytes_meet_in_one_segment() {
    let (_, host, _) = faulty(Fault::None);
    let mirror = host.create().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let mirror = &mirror;
            scope.spawn(move || {
                // Each thread owns half a block at each end of its range and the blocks between.
                let start = thread * 3 * 4096 + 2048;
                for round in 1..200u8 {
                    mirror.write(start, &[round; 3 * 4096]).unwrap();
                    let mut bytes = [0; 3 * 4096];
                    mirror.read(start, &mut bytes).unwrap();
                    assert_eq!(bytes, [round; 3 * 4096]);
                    mirror.write_zeroes(start, 3 * 4096).unwrap();
                    mirror.discard(start, 3 * 4096).unwrap();
                    mirror.read(start, &mut bytes).unwrap();
                    assert_eq!(bytes, [0; 3 * 4096]);
                }
            });
        }
        scope.spawn(|| (0..50).for_each(|_| mirror.flush().unwrap()));
    });
}

#[test]
fn the_background_fetches_ahead_of_reads_in_order() {
    let mut store = MemoryChunkStore::new(16);
    let bytes: Vec<u8> = (0..8u32 << 20).map(|at| (at / 4096 * 7 + at % 13) as u8 | 1).collect();
    let (content, layout) = store.add_bytes(&bytes);
    let binding =
        mirror::Binding { parent: version(1), content, layout, length: bytes.len() as u64 };
    let folder = tempfile::tempdir().unwrap();
    let state = StateFolder::new(Arc::new(env::RealFileSystem), folder.path());
    let mirror = mirror::Mirror::create(&state, &name("ahead"), binding, Arc::new(store)).unwrap();
    let mut buffer = vec![0; 65536];
    for at in 0..4u64 {
        mirror.read(at * 65536, &mut buffer).unwrap();
        assert!(buffer == bytes[at as usize * 65536..][..65536]);
    }
    while mirror.may_wait(512 << 10, 4096) {
        std::thread::yield_now();
    }
    let mut all = vec![0; bytes.len()];
    mirror.read(0, &mut all).unwrap();
    assert!(all == bytes);
    mirror.close().unwrap();
}
