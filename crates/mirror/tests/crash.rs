//! Power is lost, space runs out, operations fail: at every point in turn.

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use env::simulated::SimulatedFileSystem;
use mirror::{Mirror, Sealed};
use model::Kind;
use model::device::Device;
use support::*;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const SECTOR: usize = 512;

/// What a disk may hold after a crash: per sector, every value since the last flush.
#[derive(Clone)]
struct Allowed {
    now: Model,
    /// The disk after each step since the last flush that succeeded, that flush first.
    since: Vec<Model>,
}

impl Allowed {
    fn new(model: Model) -> Allowed {
        Allowed { since: vec![model.clone()], now: model }
    }

    fn step(&mut self, change: impl FnOnce(&mut Model)) {
        change(&mut self.now);
        self.since.push(self.now.clone());
    }

    fn flushed(&mut self) {
        self.since = vec![self.now.clone()];
    }

    fn check(&self, device: &dyn Device, context: &str) -> Model {
        let mut found = Model::default();
        for (start, len) in WINDOWS {
            let mut bytes = vec![0; len as usize];
            device.read(start, &mut bytes).unwrap();
            found.write(start, &bytes);
            let mut disks = Vec::new();
            for model in &self.since {
                let mut expected = vec![0; len as usize];
                model.read(start, &mut expected);
                disks.push(expected);
            }
            for at in (0..bytes.len()).step_by(SECTOR) {
                let end = (at + SECTOR).min(bytes.len());
                let sector = &bytes[at..end];
                assert!(
                    disks.iter().any(|disk| &disk[at..end] == sector),
                    "{context}: sector at {} holds {:?}..., which it never held",
                    start as usize + at,
                    &sector[..8.min(sector.len())]
                );
            }
        }
        found
    }
}

struct Run {
    allowed: Allowed,
    sealed: Option<(Sealed, Model)>,
    /// What the parents of the next commit may hold: before and after a commit that was cut off.
    parents: Vec<Model>,
    commits: u64,
}

/// Runs steps until one fails; that one may have taken effect in part.
fn run_until_failure(mirror: &Arc<Mirror>, steps: &Steps, count: usize, run: &mut Run) -> bool {
    for _ in 0..count {
        let ok = match steps.next() {
            Step::Write(offset, bytes) => {
                run.allowed.step(|model| model.write(offset, &bytes));
                mirror.write(offset, &bytes).is_ok()
            }
            Step::Zero(offset, len) => {
                run.allowed.step(|model| model.write(offset, &vec![0; len as usize]));
                mirror.write_zeroes(offset, len).is_ok()
            }
            Step::Discard(offset, len) => {
                run.allowed.step(|model| model.discard(offset, len));
                mirror.discard(offset, len).is_ok()
            }
            Step::Read(offset, len) => mirror.read(offset, &mut vec![0; len as usize]).is_ok(),
            Step::Prefetch(offset, len) => mirror.prefetch(offset, len).is_ok(),
            Step::Flush | Step::Close => {
                let ok = mirror.flush().is_ok();
                if ok {
                    run.allowed.flushed();
                }
                ok
            }
            Step::Seal | Step::Kill if run.sealed.is_none() => match mirror.seal() {
                Ok(sealed) => {
                    run.sealed = Some((sealed, run.allowed.now.clone()));
                    true
                }
                Err(_) => false,
            },
            Step::Finish | Step::Seal | Step::Kill => finish(mirror, run),
            Step::Abandon => {
                run.sealed.take().into_iter().for_each(|(sealed, _)| mirror.abandon_commit(sealed));
                true
            }
        };
        if !ok {
            return false;
        }
    }
    true
}

fn finish(mirror: &Arc<Mirror>, run: &mut Run) -> bool {
    let Some((sealed, model)) = run.sealed.take() else { return true };
    run.parents.push(model);
    let ok = mirror.finish_commit(sealed, version(run.commits + 1)).is_ok();
    if ok {
        run.commits += 1;
        run.parents.remove(0);
        run.allowed.flushed();
    }
    ok
}

/// The disk is what its parent is, with the changes: nothing is visible that a commit would miss.
fn check_commit(mirror: &Arc<Mirror>, found: &Model, run: &Run, context: &str) {
    let parent = mirror.binding().parent;
    let parent = match parent == version(run.commits) {
        true => &run.parents[0],
        false => {
            assert_eq!(parent, version(run.commits + 1), "{context}");
            run.parents.last().unwrap()
        }
    };
    let mut disk = parent.clone();
    let sealed = mirror.seal().unwrap();
    for (block, bytes) in read_changes(&sealed) {
        match bytes {
            Some(bytes) => drop(disk.blocks.insert(block, bytes)),
            None => drop(disk.blocks.remove(&block)),
        }
    }
    let different = differing(&disk, found);
    assert!(different.is_empty(), "{context}: a commit would miss blocks {different:?}");
}

/// Runs with power lost after `cut` operations; true where the run got through before.
fn power_loss(version: &Host, seed: u64, cut: u64) -> bool {
    let context = format!("seed {seed}, power lost after {cut} operations");
    let model = Model::example();
    let disk = SimulatedFileSystem::new();
    let host = version.on(Arc::new(disk.clone()));
    let mirror = host.create().unwrap();
    let steps = Steps::new(seed);
    let mut run = Run {
        allowed: Allowed::new(model.clone()),
        sealed: None,
        parents: vec![model],
        commits: 1,
    };
    disk.fail_from(disk.operation_count() + cut, EIO);
    let through = run_until_failure(&mirror, &steps, 30, &mut run);
    let after = disk.crash(seed ^ cut);
    // What the process does while it dies must not reach the disk that is looked at.
    run.sealed = None;
    let host = host.on(Arc::new(after));
    let mirror = host.reopen().unwrap_or_else(|error| panic!("{context}: {}", error.chain()));
    let found = run.allowed.check(&*mirror, &context);
    check_commit(&mirror, &found, &run, &context);
    let killed = through || cut.is_multiple_of(4);
    if killed {
        kill_instead(version, seed, cut);
    }
    through
}

/// The same cut, but only the process dies: all that was answered is there.
fn kill_instead(version: &Host, seed: u64, cut: u64) {
    let context = format!("seed {seed}, killed after {cut} operations");
    let model = Model::example();
    let disk = SimulatedFileSystem::new();
    let host = version.on(Arc::new(disk.clone()));
    let mirror = host.create().unwrap();
    let steps = Steps::new(seed);
    let mut run = Run {
        allowed: Allowed::new(model.clone()),
        sealed: None,
        parents: vec![model],
        commits: 1,
    };
    disk.fail_from(disk.operation_count() + cut, EIO);
    run_until_failure(&mirror, &steps, 30, &mut run);
    let after = disk.kill();
    run.sealed = None;
    let host = host.on(Arc::new(after));
    let mirror = host.reopen().unwrap_or_else(|error| panic!("{context}: {}", error.chain()));
    // Only the step that was cut off may be old, new or a mix.
    let last = run.allowed.since.len().saturating_sub(2);
    run.allowed.since.drain(..last);
    let found = run.allowed.check(&*mirror, &context);
    check_commit(&mirror, &found, &run, &context);
}

#[test]
fn power_may_be_lost_after_any_operation() {
    let version = Host::new(Arc::new(SimulatedFileSystem::new()), &Model::example());
    for seed in 0..12 {
        let mut cut = 0;
        while !power_loss(&version, seed, cut) {
            cut += 1;
        }
        assert!(cut > 50, "seed {seed} ended after {cut} operations");
    }
}

#[test]
fn a_mirror_that_is_being_made_exists_whole_or_not_at_all() {
    let model = Model::example();
    for cut in 0.. {
        let disk = SimulatedFileSystem::new();
        let host = Host::new(Arc::new(disk.clone()), &model);
        disk.fail_from(cut, EIO);
        let made = host.create();
        for after in [disk.crash(cut), disk.kill()] {
            let host = host.on(Arc::new(after));
            let exists = host.state.exists(&name("web")).unwrap();
            assert!(exists || made.is_err(), "cut {cut}");
            let mirror = if exists { host.reopen().unwrap() } else { host.create().unwrap() };
            assert_same(&*mirror, &model, &format!("cut {cut}"));
        }
        if made.is_ok() {
            return;
        }
    }
}

#[test]
fn any_operation_may_fail_once_and_the_mirror_goes_on() {
    let version = Host::new(Arc::new(SimulatedFileSystem::new()), &Model::example());
    for error in [EIO, ENOSPC] {
        for at in 0.. {
            let context = format!("error {error} at operation {at}");
            let model = Model::example();
            let disk = SimulatedFileSystem::new();
            let host = version.on(Arc::new(disk.clone()));
            let mirror = host.create().unwrap();
            let steps = Steps::new(at % 5);
            let mut run = Run {
                allowed: Allowed::new(model.clone()),
                sealed: None,
                parents: vec![model],
                commits: 1,
            };
            let fault = disk.operation_count() + at;
            disk.fail_once_at(fault, error);
            run_until_failure(&mirror, &steps, 40, &mut run);
            let came = disk.operation_count() > fault;
            disk.heal();
            // What failed may have happened in part; what comes after happens whole.
            let found = run.allowed.check(&*mirror, &context);
            run.allowed = Allowed::new(found);
            let offset = WINDOWS[1].0 + 77;
            mirror.write(offset, &[3; 9000]).unwrap();
            run.allowed.step(|model| model.write(offset, &[3; 9000]));
            assert_same(&*mirror, &run.allowed.now, &context);
            if mirror.flush().is_ok() {
                run.allowed.flushed();
                let host = host.on(Arc::new(disk.crash(at)));
                assert_same(&*host.reopen().unwrap(), &run.allowed.now, &context);
            } else {
                // A sync failed: no flush is answered well any more, but nothing is made up.
                assert_eq!(mirror.flush().unwrap_err().kind(), Kind::Unavailable, "{context}");
            }
            if !came {
                break;
            }
        }
    }
}

#[test]
fn on_a_full_disk_writes_fail_and_reads_go_on() {
    for extra in (0..40).map(|pages| pages * LEN) {
        let model = Model::example();
        let disk = SimulatedFileSystem::new();
        let host = Host::new(Arc::new(disk.clone()), &model);
        let mirror = host.create().unwrap();
        mirror.write(0, &[8; 4096]).unwrap();
        mirror.flush().unwrap();
        let mut run = Allowed::new(model);
        run.step(|model| model.write(0, &[8; 4096]));
        run.flushed();
        disk.limit_space(disk.used_bytes() + extra);
        let mut failed = BTreeSet::new();
        for at in 0..30u64 {
            let (offset, len) = (WINDOWS[1].0 + at * 3072 % (19 * LEN), 5120);
            run.step(|model| model.write(offset, &vec![at as u8 + 1; len]));
            if let Err(error) = mirror.write(offset, &vec![at as u8 + 1; len]) {
                assert_eq!(error.kind(), Kind::Full, "{}", error.chain());
                failed.insert(at);
            }
            if let Err(error) = mirror.flush() {
                assert_eq!(error.kind(), Kind::Full, "{}", error.chain());
            }
        }
        assert!(!failed.is_empty() || extra > 20 * LEN);
        let found = run.check(&*mirror, "while full");
        disk.heal();
        mirror.write(WINDOWS[2].0, &[1]).unwrap();
        let mut expected = found;
        expected.write(WINDOWS[2].0, &[1]);
        mirror.flush().unwrap();
        let host = host.on(Arc::new(disk.crash(extra)));
        assert_same(&*host.reopen().unwrap(), &expected, "after room was made");
    }
}

#[test]
fn a_base_keeps_what_was_checkpointed_and_fetches_the_rest_again() {
    let model = Model::example();
    for seed in 0..20 {
        let disk = SimulatedFileSystem::new();
        let host = Host::new(Arc::new(disk.clone()), &model);
        let mirror = host.create().unwrap();
        mirror.prefetch(0, 24 * LEN).unwrap();
        let fetched = mirror.statistics().fetched_bytes;
        mirror.close().unwrap();
        let again = host.reopen().unwrap();
        again.prefetch(WINDOWS[1].0, 24 * LEN).unwrap();
        let more = again.statistics().fetched_bytes;
        assert!(fetched > 0 && more > 0);

        let host = host.on(Arc::new(disk.kill()));
        let killed = host.reopen().unwrap();
        assert_same_in(&*killed, &model, 0..2);
        assert_eq!(killed.statistics().fetched_bytes, 0, "kill -9 loses no block");

        let host = host.on(Arc::new(disk.crash(seed)));
        let crashed = host.reopen().unwrap();
        assert_same_in(&*crashed, &model, 0..1);
        assert_eq!(crashed.statistics().fetched_bytes, 0, "the checkpoint counts");
        assert_same_in(&*crashed, &model, 0..3);
        assert!(crashed.statistics().fetched_bytes >= more, "what was not checkpointed does not");
    }
}

fn assert_same_in(device: &dyn Device, model: &Model, windows: std::ops::Range<usize>) {
    for (start, len) in &WINDOWS[windows] {
        let (mut found, mut expected) = (vec![0; *len as usize], vec![0; *len as usize]);
        device.read(*start, &mut found).unwrap();
        model.read(*start, &mut expected);
        assert!(found == expected, "window at {start}");
    }
}
