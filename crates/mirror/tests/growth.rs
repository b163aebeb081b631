//! A mirror's disk grows: through random lives, power loss and kills at every operation, beside
//! writers and commits.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use env::simulated::SimulatedFileSystem;
use mirror::{Mirror, Sealed};
use model::block::LENGTH_MAX;
use model::changes::Changes;
use model::device::{Device, ExtentKind};
use model::{Kind, SEGMENT_LEN};
use support::*;

const EIO: i32 = 5;

/// Lengths that a disk takes on, one after the other: a little, to a block's end, into the next
/// segments, past a page of the table of live states.
const LENGTHS: [u64; 7] = [
    LENGTH,
    LENGTH + 100,
    (LENGTH + 100).next_multiple_of(LEN),
    4 * SEGMENT_LEN - 7,
    5 * SEGMENT_LEN + 3 * LEN + 511,
    1500 * SEGMENT_LEN,
    5000 * SEGMENT_LEN + 9,
];

struct Guest {
    disk: SimulatedFileSystem,
    host: Host,
    mirror: Arc<Mirror>,
    model: Model,
    parent: Model,
    sealed: Option<(Sealed, Model, u64)>,
    /// Which of `LENGTHS` the disk has.
    grown: usize,
    commits: u64,
}

impl Guest {
    fn new() -> Guest {
        let model = Model::example();
        let disk = SimulatedFileSystem::new();
        let host = Host::new(Arc::new(disk.clone()), &model);
        let mirror = host.create().unwrap();
        let parent = model.clone();
        Guest { disk, host, mirror, model, parent, sealed: None, grown: 0, commits: 1 }
    }

    fn length(&self) -> u64 {
        LENGTHS[self.grown]
    }

    /// Ranges around the ends that the disk has had, and around its first bytes.
    fn range(&self, steps: &Steps) -> (u64, u64) {
        let anchor = match steps.below(LENGTHS.len() as u64 + 1) as usize {
            0 => 0,
            number => LENGTHS[number - 1],
        };
        let start = anchor.saturating_sub(steps.below(3 * LEN)).min(self.length() - 1);
        let start = if steps.below(2) == 0 { start / LEN * LEN } else { start };
        (start, (1 + steps.below(4 * LEN)).min(self.length() - start))
    }

    fn step(&mut self, steps: &Steps, context: &str) {
        let (offset, len) = self.range(steps);
        match steps.below(24) {
            0..9 => {
                let bytes: Vec<u8> =
                    (0..len).map(|at| ((offset + at / 512) % 250) as u8 + 1).collect();
                self.mirror.write(offset, &bytes).unwrap();
                self.model.write(offset, &bytes);
            }
            9..11 => {
                self.mirror.write_zeroes(offset, len).unwrap();
                self.model.write(offset, &vec![0; len as usize]);
            }
            11..13 => {
                self.mirror.discard(offset, len).unwrap();
                self.model.discard(offset, len);
            }
            13 => self.mirror.flush().unwrap(),
            14 => self.mirror.prefetch(offset, len).unwrap(),
            15 | 16 if self.grown + 1 < LENGTHS.len() => {
                let before = self.mirror.grow(LENGTHS[self.grown + 1]).unwrap();
                assert_eq!(before, self.length(), "{context}");
                self.grown += 1;
            }
            17 if self.sealed.is_none() => {
                let sealed = self.mirror.seal().unwrap();
                self.sealed = Some((sealed, self.model.clone(), self.length()));
            }
            18 => self.finish(context),
            19 => {
                self.sealed = None;
                self.mirror.close().unwrap();
                self.restart(self.disk.crash(offset), context);
            }
            20 => {
                self.sealed = None;
                self.restart(self.disk.kill(), context);
            }
            _ => self.check(offset, len, context),
        }
    }

    fn finish(&mut self, context: &str) {
        let Some((sealed, model, length)) = self.sealed.take() else { return };
        assert_eq!(sealed.length(), length, "{context}");
        let mut disk = self.parent.clone();
        for (block, bytes) in read_changes(&sealed) {
            assert!(block < length.div_ceil(LEN), "{context}: block {block}");
            match bytes {
                Some(bytes) => drop(disk.blocks.insert(block, bytes)),
                None => drop(disk.blocks.remove(&block)),
            }
        }
        assert!(differing(&disk, &model).is_empty(), "{context}: {:?}", differing(&disk, &model));
        self.commits += 1;
        self.mirror.finish_commit(sealed, version(self.commits)).unwrap();
        self.parent = model;
    }

    fn restart(&mut self, disk: SimulatedFileSystem, context: &str) {
        self.host = self.host.on(Arc::new(disk.clone()));
        self.disk = disk;
        let summary = self.host.state.inspect(&name("web")).unwrap();
        assert_eq!(summary.length, self.length(), "{context}");
        self.mirror = self.host.reopen().unwrap();
        assert_eq!(self.mirror.length(), self.length(), "{context}");
        assert_eq!(self.mirror.binding().length, LENGTH, "{context}");
    }

    fn check(&self, offset: u64, len: u64, context: &str) {
        let (mut found, mut expected) = (vec![9; len as usize], vec![0; len as usize]);
        self.mirror.read(offset, &mut found).unwrap();
        self.model.read(offset, &mut expected);
        assert!(found == expected, "{context}: {len} bytes at {offset}");
        let mut at = offset;
        for extent in self.mirror.extents(offset, len, usize::MAX).unwrap() {
            assert_eq!(extent.offset, at, "{context}");
            at += extent.len;
            if extent.kind == ExtentKind::Hole {
                let mut bytes = vec![1; extent.len as usize];
                self.model.read(extent.offset, &mut bytes);
                assert!(model::block::is_zero(&bytes), "{context}: data at {}", extent.offset);
            }
        }
        assert_eq!(at, offset + len, "{context}");
    }

    fn check_all(&self, context: &str) {
        for anchor in [0].into_iter().chain(LENGTHS).filter(|anchor| *anchor <= self.length()) {
            let start = anchor.saturating_sub(8 * LEN);
            self.check(start, (16 * LEN).min(self.length() - start), context);
        }
    }
}

#[test]
fn a_disk_that_grows_equals_one_in_memory_whatever_happens() {
    for seed in 0..100 {
        let steps = Steps::new(seed);
        let mut guest = Guest::new();
        for number in 0..150 {
            guest.step(&steps, &format!("seed {seed}, step {number}"));
        }
        guest.check_all(&format!("seed {seed}, end"));
    }
}

#[test]
fn a_disk_never_becomes_shorter_nor_longer_than_a_disk_can_be() {
    let guest = Guest::new();
    guest.mirror.grow(LENGTH + LEN).unwrap();
    let refused = guest.mirror.grow(LENGTH).unwrap_err();
    assert_eq!(refused.kind(), Kind::Refused);
    let text = refused.chain();
    assert!(text.contains(&LENGTH.to_string()) && refused.hint_text().is_some(), "{text}");
    assert_eq!(guest.mirror.grow(LENGTH_MAX + 1).unwrap_err().kind(), Kind::Invalid);
    let operations = guest.disk.operation_count();
    assert_eq!(guest.mirror.grow(LENGTH + LEN).unwrap(), LENGTH + LEN);
    assert_eq!(guest.disk.operation_count(), operations, "it has that length");
    assert!(guest.mirror.read(LENGTH + LEN, &mut [0]).is_err());
    guest.mirror.grow(LENGTH_MAX).unwrap();
    guest.mirror.write(LENGTH_MAX - 1, &[7]).unwrap();
    let mut last = [0; 2];
    guest.mirror.read(LENGTH_MAX - 2, &mut last).unwrap();
    assert_eq!(last, [0, 7]);
    guest.mirror.close().unwrap();
    assert_eq!(guest.mirror.grow(LENGTH_MAX).unwrap(), LENGTH_MAX);
}

#[test]
fn what_is_added_is_a_hole_that_is_not_fetched() {
    let guest = Guest::new();
    guest.mirror.grow(5 * SEGMENT_LEN).unwrap();
    let start = LENGTH.next_multiple_of(LEN);
    assert!(!guest.mirror.may_wait(start, SEGMENT_LEN));
    let extents = guest.mirror.extents(start, SEGMENT_LEN, 9).unwrap();
    assert_eq!((extents.len(), extents[0].kind), (1, ExtentKind::Hole));
    let mut bytes = vec![1; SEGMENT_LEN as usize];
    guest.mirror.read(start, &mut bytes).unwrap();
    assert!(model::block::is_zero(&bytes));
    guest.mirror.write(start + LEN + 5, &[3]).unwrap();
    assert_eq!(guest.mirror.statistics().fetched_bytes, 0);
}

/// Writes, grows, writes behind the old end, flushes. Says how far it came.
fn live_and_grow(mirror: &Mirror, model: &mut Model) -> Option<u32> {
    let longer = LENGTHS[4];
    let mut done = 0;
    let mut step = |result: model::Result<()>| {
        done += 1;
        result.ok().ok_or(done)
    };
    let mut run = || -> Result<(), u32> {
        step(mirror.write(LENGTH - 9, &[5; 9]))?;
        step(mirror.flush())?;
        step(mirror.grow(longer).map(drop))?;
        step(mirror.write(LENGTH, &[6; 5000]))?;
        step(mirror.write(longer - 700, &[7; 700]))?;
        step(mirror.flush())
    };
    let failed = run().err();
    let reached = failed.unwrap_or(7);
    if reached > 2 {
        model.write(LENGTH - 9, &[5; 9]);
    }
    if reached > 6 {
        model.write(LENGTH, &[6; 5000]);
        model.write(longer - 700, &[7; 700]);
    }
    failed
}

#[test]
fn growth_is_there_whole_or_not_at_all_after_power_loss_or_a_kill_at_any_operation() {
    let version = Host::new(Arc::new(SimulatedFileSystem::new()), &Model::example());
    for cut in 0.. {
        let mut through = false;
        for killed in [false, true] {
            let context = format!("cut {cut}, killed {killed}");
            let disk = SimulatedFileSystem::new();
            let host = version.on(Arc::new(disk.clone()));
            let mirror = host.create().unwrap();
            let mut model = Model::example();
            disk.fail_from(disk.operation_count() + cut, EIO);
            let failed = live_and_grow(&mirror, &mut model);
            let told = mirror.length();
            let host = host.on(Arc::new(if killed { disk.kill() } else { disk.crash(cut) }));
            let again = host.reopen().unwrap_or_else(|e| panic!("{context}: {}", e.chain()));
            let length = again.length();
            assert!([LENGTH, LENGTHS[4]].contains(&length), "{context}: {length}");
            assert!(length >= told, "{context}: {told} was told, {length} is there");
            assert_eq!(host.state.inspect(&name("web")).unwrap().length, length, "{context}");
            if failed.is_none_or(|step| step > 2) {
                let mut found = [0; 9];
                again.read(LENGTH - 9, &mut found).unwrap();
                assert_eq!(found, [5; 9], "{context}");
            }
            if failed.is_none() {
                let mut found = vec![0; 5000];
                again.read(LENGTH, &mut found).unwrap();
                assert_eq!(found, [6; 5000], "{context}");
            }
            // It goes on from there.
            assert_eq!(again.grow(LENGTHS[4]).unwrap(), length, "{context}");
            again.write(LENGTHS[4] - 1, &[9]).unwrap();
            again.flush().unwrap();
            again.close().unwrap();
            assert_eq!(host.reopen().unwrap().length(), LENGTHS[4], "{context}");
            through = failed.is_none();
        }
        if through {
            assert!(cut > 12, "it ended after {cut} operations");
            return;
        }
    }
}

#[test]
fn a_disk_grows_beside_writers_at_its_end_and_commits() {
    let guest = Guest::new();
    let mirror = &guest.mirror;
    let (stop, length) = (AtomicBool::new(false), AtomicU64::new(LENGTH));
    std::thread::scope(|scope| {
        // Each writes its own sectors behind the first end, as soon as they are there, and reads
        // them back; another makes the last block of the disk zeros up to the end that it knows.
        for thread in 0..2u64 {
            let (stop, length) = (&stop, &length);
            scope.spawn(move || {
                let mut wrote = Vec::new();
                let mut at = (LENGTH / 512 + 1 + thread) * 512;
                while !stop.load(Ordering::SeqCst) {
                    if at + 512 <= length.load(Ordering::SeqCst) {
                        mirror.write(at, &[thread as u8 + 1; 512]).unwrap();
                        wrote.push(at);
                        at += 1024;
                    } else {
                        std::thread::yield_now();
                    }
                }
                for at in wrote {
                    let mut found = [0; 512];
                    mirror.read(at, &mut found).unwrap();
                    assert_eq!(found, [thread as u8 + 1; 512], "{at}");
                }
            });
        }
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                let start = LENGTH / LEN * LEN;
                mirror.write_zeroes(start, LENGTH - start).unwrap();
            }
        });
        let mut commits = 1;
        for step in 1..=60 {
            let next = LENGTH + step * 1531;
            let sealed = (step % 5 == 0).then(|| mirror.seal().unwrap());
            mirror.grow(next).unwrap();
            length.store(next, Ordering::SeqCst);
            if let Some(sealed) = sealed {
                assert!(sealed.length() < next);
                commits += 1;
                mirror.finish_commit(sealed, version(commits)).unwrap();
            }
        }
        stop.store(true, Ordering::SeqCst);
    });
}
