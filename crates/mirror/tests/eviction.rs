//! Bases under a limit: what goes, when, and that nobody reads a hole where bytes were.

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use env::FileSystem;
use env::simulated::SimulatedFileSystem;
use mirror::{Binding, Mirror, ReadOnlyView, StateFolder};
use model::device::Device;
use model::{BLOCK_LEN, SEGMENT_LEN};
use store::{ChunkStore, MemoryChunkStore};
use support::*;

const EIO: i32 = 5;

/// Every block of the windows has other bytes than those of another seed.
fn model_of(seed: u8) -> Model {
    let mut model = Model::example();
    model.blocks.values_mut().for_each(|block| block[100] = seed);
    model
}

/// Versions of `count` contents in one store.
struct Versions {
    store: Arc<dyn ChunkStore>,
    bindings: Vec<Binding>,
    models: Vec<Model>,
}

impl Versions {
    fn new(count: u8) -> Versions {
        let mut store = MemoryChunkStore::new(4);
        let models: Vec<Model> = (0..count).map(model_of).collect();
        let bindings = models.iter().map(|model| {
            let (content, layout) = store.add(LENGTH, &model.blocks);
            Binding { parent: version(1), content, layout, length: LENGTH }
        });
        let bindings = bindings.collect();
        Versions { store: Arc::new(store), bindings, models }
    }

    fn create(&self, state: &StateFolder, number: usize, text: &str) -> Arc<Mirror> {
        let binding = self.bindings[number].clone();
        Mirror::create(state, &name(text), binding, self.store.clone()).unwrap()
    }

    fn view(&self, state: &StateFolder, number: usize) -> ReadOnlyView {
        ReadOnlyView::open(state, &self.bindings[number], self.store.clone()).unwrap()
    }

    fn exists(&self, disk: &dyn FileSystem, number: usize) -> bool {
        disk.exists(&self.folder(number)).unwrap()
    }

    fn folder(&self, number: usize) -> PathBuf {
        Path::new("/state/bases").join(self.bindings[number].content.to_string())
    }

    fn data_bytes(&self, disk: &dyn FileSystem, number: usize) -> u64 {
        let data = disk.open(&self.folder(number).join("data"), env::OpenMode::Read);
        data.unwrap().allocated_bytes().unwrap()
    }
}

fn state_on(disk: &SimulatedFileSystem) -> StateFolder {
    StateFolder::without_background(Arc::new(disk.clone()), "/state")
}

/// Bytes that one whole base of the examples takes, presence and all.
fn bytes_of_one() -> u64 {
    let (disk, versions) = (SimulatedFileSystem::new(), Versions::new(1));
    let state = state_on(&disk);
    versions.view(&state, 0).prefetch(0, LENGTH).unwrap();
    state.base_bytes().unwrap()
}

#[test]
fn a_mirror_whose_version_is_larger_than_the_limit_reads_right_and_the_limit_holds() {
    let whole = bytes_of_one();
    for limit in [whole / 8, whole / 3, whole / 2, whole * 3 / 4, whole + 64 * LEN] {
        let (disk, versions) = (SimulatedFileSystem::new(), Versions::new(1));
        let state = state_on(&disk);
        let mirror = versions.create(&state, 0, "web");
        state.limit_bases(limit);
        let (steps, mut model) = (Steps::new(limit), versions.models[0].clone());
        for step in 0..400 {
            let (offset, len) = steps.range();
            if steps.below(4) == 0 {
                let bytes = vec![step as u8; len as usize];
                mirror.write(offset, &bytes).unwrap();
                model.write(offset, &bytes);
            }
            let (offset, len) = steps.range();
            let (mut found, mut expected) = (vec![0; len as usize], vec![0; len as usize]);
            mirror.read(offset, &mut found).unwrap();
            model.read(offset, &mut expected);
            assert!(found == expected, "limit {limit}, step {step}, at {offset}");
            let taken = state.base_bytes().unwrap();
            assert!(taken <= limit.max(8 * LEN), "limit {limit}, step {step}: {taken}");
        }
        assert_same(&*mirror, &model, "in the end");
        let numbers = state.base_numbers().unwrap();
        assert_eq!(numbers.evicted_segments == 0, limit > whole, "limit {limit}: {numbers:?}");
    }
}

#[test]
fn threads_that_read_and_write_while_everything_is_evicted_never_read_a_hole_that_was_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let versions = Versions::new(2);
    let real = Arc::new(env::RealFileSystem);
    let state = StateFolder::new(real, folder.path().join("state"));
    state.limit_bases(200 << 10);
    let mirrors = [versions.create(&state, 0, "a"), versions.create(&state, 1, "b")];
    let stop = AtomicBool::new(false);
    let evicted = || state.base_numbers().unwrap().evicted_segments;
    std::thread::scope(|scope| {
        for thread in 0..6u64 {
            let (mirror, model) =
                (&mirrors[thread as usize % 2], &versions.models[thread as usize % 2]);
            let (stop, state, evicted) = (&stop, &state, &evicted);
            scope.spawn(move || {
                let steps = Steps::new(thread);
                // How often the threads meet is the scheduler's to say: they go on until enough went.
                let mut step = 0;
                while step < 1500 || step % 50 != 0 || evicted() < 25 {
                    assert!(step < 1_000_000, "{:?}", state.base_numbers());
                    step += 1;
                    let (offset, len) = steps.range();
                    let (mut found, mut expected) = (vec![0; len as usize], vec![0; len as usize]);
                    mirror.read(offset, &mut found).unwrap();
                    model.read(offset, &mut expected);
                    if found != expected {
                        stop.store(true, Ordering::SeqCst);
                        panic!("thread {thread}, step {step}, at {offset}");
                    }
                    // What it was already: everyone's model stays the same. Not everywhere: what is
                    // in the overlay is not read from the base again.
                    if offset < LENGTH / 8 && steps.below(6) == 0 {
                        mirror.write(offset, &expected).unwrap();
                    }
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                }
            });
        }
    });
    let numbers = state.base_numbers().unwrap();
    assert!(numbers.evicted_segments >= 25, "{numbers:?}");
    assert!(numbers.bytes <= 200 << 10, "{numbers:?}");
}

#[test]
fn power_may_be_lost_at_any_step_of_an_eviction() {
    let versions = Versions::new(1);
    for cut in 0.. {
        let disk = SimulatedFileSystem::new();
        let state = state_on(&disk);
        let mirror = versions.create(&state, 0, "web");
        mirror.prefetch(0, 12 * LEN).unwrap();
        mirror.prefetch(SEGMENT_LEN, 12 * LEN).unwrap();
        mirror.close().unwrap();
        drop(mirror);
        let store = versions.store.clone();
        let mirror = Mirror::reopen(&state, &name("web"), |_| Ok(store)).unwrap();
        state.limit_bases(state.base_bytes().unwrap());
        let end = disk.operation_count() + cut;
        disk.fail_from(end, EIO);
        let read = mirror.read(LENGTH - 8 * LEN, &mut vec![0; 4 * BLOCK_LEN]);
        let is_through = disk.operation_count() < end;
        for seed in 0..6 {
            for (after, how) in
                [(disk.crash(seed), "power"), (disk.unplug(seed), "disk"), (disk.kill(), "process")]
            {
                let state = state_on(&after);
                let store = versions.store.clone();
                let mirror = Mirror::reopen(&state, &name("web"), |_| Ok(store)).unwrap();
                assert_same(&*mirror, &versions.models[0], &format!("{how} lost, cut {cut}"));
            }
        }
        if is_through {
            disk.heal();
            read.unwrap();
            assert!(state.base_numbers().unwrap().evicted_segments > 0);
            return;
        }
    }
}

#[test]
fn bits_of_blocks_that_only_the_page_cache_had_do_not_count_once_the_disk_was_away() {
    let versions = Versions::new(1);
    let (mut lost, mut kept) = (0, 0);
    for seed in 0..20 {
        let disk = SimulatedFileSystem::new();
        let state = state_on(&disk);
        let mirror = versions.create(&state, 0, "web");
        mirror.prefetch(0, LENGTH).unwrap();
        let reopen = |after: SimulatedFileSystem| {
            let store = versions.store.clone();
            let mirror = Mirror::reopen(&state_on(&after), &name("web"), |_| Ok(store)).unwrap();
            assert_same(&*mirror, &versions.models[0], &format!("seed {seed}"));
            mirror.statistics().fetched_bytes
        };
        lost += reopen(disk.unplug(seed));
        kept += reopen(disk.kill());
    }
    assert!(lost > 0);
    assert_eq!(kept, 0, "a killed process loses nothing");
}

#[test]
fn what_nobody_uses_goes_first_and_whole_then_what_was_read_longest_ago() {
    let whole = bytes_of_one();
    let (disk, versions) = (SimulatedFileSystem::new(), Versions::new(5));
    let state = state_on(&disk);
    // 0 was thrown away, 1 is detached, 2 was only looked at, 3 is in use.
    for (number, text) in [(0, "gone"), (1, "detached")] {
        let mirror = versions.create(&state, number, text);
        mirror.prefetch(0, LENGTH).unwrap();
        mirror.close().unwrap();
    }
    Mirror::discard(&state, &name("gone")).unwrap();
    versions.view(&state, 2).prefetch(0, LENGTH).unwrap();
    let used = versions.create(&state, 3, "used");
    used.prefetch(0, LENGTH).unwrap();
    let newest = versions.create(&state, 4, "newest");
    state.limit_bases(4 * whole + 32 * LEN);
    newest.prefetch(0, LENGTH).unwrap();
    assert_eq!([0, 1, 2, 3].map(|n| versions.exists(&disk, n)), [false, true, true, true]);
    state.limit_bases(3 * whole + 24 * LEN);
    newest.read(0, &mut [0; 1]).unwrap();
    let fetch_anew = |mirror: &Mirror| {
        assert_same(mirror, &versions.models[3], "in use");
    };
    // Nothing new is fetched, so nothing has to go yet.
    fetch_anew(&used);
    assert!(versions.exists(&disk, 2));
    drop(newest);
    let again = versions.view(&state, 0);
    again.prefetch(0, LENGTH).unwrap();
    assert_eq!([1, 2, 3].map(|n| versions.exists(&disk, n)), [true, false, true]);
    assert!(versions.data_bytes(&disk, 1) < versions.data_bytes(&disk, 3), "detached before used");
    assert!(state.base_bytes().unwrap() <= 3 * whole + 24 * LEN);
}

#[test]
fn a_held_file_and_what_another_process_has_open_stay_whole() {
    let whole = bytes_of_one();
    let (disk, versions) = (SimulatedFileSystem::new(), Versions::new(3));
    let (here, there) = (state_on(&disk), state_on(&disk));
    let held = versions.view(&here, 0);
    held.prefetch(0, LENGTH).unwrap();
    let file = held.hold_file().unwrap().unwrap();
    let elsewhere = versions.view(&there, 1);
    elsewhere.prefetch(0, LENGTH).unwrap();
    here.limit_bases(2 * whole);
    let third = versions.view(&here, 2);
    assert_same(&third, &versions.models[2], "past the base");
    assert!(here.base_numbers().unwrap().refused > 0);
    assert!(third.hold_file().unwrap().is_none());
    assert_eq!(versions.data_bytes(&disk, 0), versions.data_bytes(&disk, 1));
    assert_same(&elsewhere, &versions.models[1], "open elsewhere");
    // A mark of a process that was killed counts; the machine's next start ends it.
    let killed = disk.kill();
    let state = state_on(&killed);
    state.limit_bases(2 * whole);
    let opened = versions.view(&state, 0);
    versions.view(&state, 2).prefetch(0, LENGTH).unwrap();
    assert_eq!(versions.data_bytes(&killed, 0), versions.data_bytes(&disk, 0));
    drop((opened, file));
}

#[test]
fn processes_that_share_a_base_never_pull_bytes_from_under_each_other() {
    let whole = bytes_of_one();
    let (disk, versions) = (SimulatedFileSystem::new(), Versions::new(2));
    let states: Vec<StateFolder> = (0..3).map(|_| state_on(&disk)).collect();
    states.iter().for_each(|state| state.limit_bases(whole));
    let has_evicted = |state: &StateFolder| {
        let numbers = state.base_numbers().unwrap();
        numbers.evicted_segments + numbers.evicted_bases > 0
    };
    std::thread::scope(|scope| {
        for (number, state) in states.iter().enumerate() {
            let (versions, states) = (&versions, &states);
            scope.spawn(move || {
                let steps = Steps::new(number as u64);
                // What others have open stays, and when they have it is the scheduler's to say: they go on
                // until something went.
                let mut round = 0;
                while round < 30 || !states.iter().any(has_evicted) {
                    assert!(round < 10_000, "{:?}", state.base_numbers());
                    round += 1;
                    let which = steps.below(2) as usize;
                    let view = versions.view(state, which);
                    for step in 0..10 {
                        let (offset, len) = steps.range();
                        let mut found = vec![0; len as usize];
                        let mut expected = found.clone();
                        view.read(offset, &mut found).unwrap();
                        versions.models[which].read(offset, &mut expected);
                        assert!(found == expected, "{number}, round {round}, step {step}");
                    }
                }
            });
        }
    });
    // Looked at when all have ended: what one evicts and another fetches meanwhile would count twice.
    // What two bases that were just opened take by themselves is not asked for before.
    let taken = states[0].base_bytes().unwrap();
    assert!(taken <= whole + 2 * 8 * LEN, "{taken} of {whole}");
}

#[test]
fn a_full_disk_takes_from_bases_before_it_fails_a_guest() {
    let versions = Versions::new(2);
    let disk = SimulatedFileSystem::new();
    let state = state_on(&disk);
    let detached = versions.create(&state, 0, "detached");
    detached.prefetch(0, LENGTH).unwrap();
    detached.close().unwrap();
    drop(detached);
    let mirror = versions.create(&state, 1, "web");
    mirror.write(0, &[1; BLOCK_LEN]).unwrap();
    disk.limit_space(disk.used_bytes());
    assert_same_but(&mirror, &versions.models[1]);
    mirror.write(SEGMENT_LEN, &vec![2; 8 * BLOCK_LEN]).unwrap();
    mirror.flush().unwrap();
    assert!(state.base_numbers().unwrap().evicted_bytes > 0);
}

fn assert_same_but(mirror: &Mirror, model: &Model) {
    let mut model = model.clone();
    model.write(0, &[1; BLOCK_LEN]);
    assert_same(mirror, &model, "on a full disk");
}

#[test]
fn bytes_are_taken_from_the_file_that_has_them_and_do_not_count_once_they_were_evicted() {
    let folder = tempfile::tempdir().unwrap();
    let state = StateFolder::without_background(Arc::new(env::RealFileSystem), folder.path());
    let versions = Versions::new(1);
    let mirror = versions.create(&state, 0, "web");
    let (block, expected) = versions.models[0].blocks.iter().next().unwrap();
    let at = block * LEN;
    let mut taken = Vec::new();
    let mut take = |file: std::os::fd::BorrowedFd<'_>, offset: u64, len: usize| {
        taken = vec![0; len];
        let file = std::fs::File::from(file.try_clone_to_owned()?);
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut taken, offset)?;
        Ok(len)
    };
    assert_eq!(mirror.take_from_file(at, BLOCK_LEN, &mut take), 0, "nothing was fetched yet");
    mirror.read(at, &mut [0; BLOCK_LEN]).unwrap();
    assert_eq!(mirror.take_from_file(at + 5, BLOCK_LEN - 5, &mut take), BLOCK_LEN - 5);
    assert_eq!(taken, expected[5..]);
    let count = mirror.take_from_file(at, BLOCK_LEN, &mut |_, _, len| {
        state.limit_bases(8 * LEN);
        for other in versions.models[0].blocks.keys().rev().take(64) {
            mirror.read(other * LEN, &mut [0; 1]).unwrap();
        }
        assert!(state.base_numbers().unwrap().evicted_segments > 0);
        Ok(len)
    });
    assert_eq!(count, 0, "it was evicted while it was taken");
    mirror.read(at, &mut [0; BLOCK_LEN]).unwrap();
    mirror.write(at, &[7; 1]).unwrap();
    assert_eq!(mirror.take_from_file(at, BLOCK_LEN, &mut |_, _, len| Ok(len)), 0, "written");
    let behind = mirror.length();
    assert_eq!(mirror.take_from_file(behind, 1, &mut |_, _, len| Ok(len)), 0, "behind the end");
}
