//! A mirror does what a disk in memory does, through commits, restarts and killed processes.

mod support;

use std::sync::Arc;

use env::simulated::SimulatedFileSystem;
use mirror::{Mirror, Sealed};
use model::SEGMENT_LEN;
use model::device::{Device, ExtentKind};
use support::*;

struct Guest {
    disk: SimulatedFileSystem,
    host: Host,
    mirror: Arc<Mirror>,
    model: Model,
    /// What the parent of the next commit holds.
    parent: Model,
    sealed: Option<(Sealed, Model)>,
    commits: u64,
}

impl Guest {
    fn new() -> Guest {
        let model = Model::example();
        let disk = SimulatedFileSystem::new();
        let host = Host::new(Arc::new(disk.clone()), &model);
        let mirror = host.create().unwrap();
        Guest { disk, host, mirror, parent: model.clone(), model, sealed: None, commits: 1 }
    }

    fn run(&mut self, step: Step, context: &str) {
        match step {
            Step::Read(offset, len) => {
                let (mut found, mut expected) = (vec![9; len as usize], vec![0; len as usize]);
                self.mirror.read(offset, &mut found).unwrap();
                self.model.read(offset, &mut expected);
                assert!(found == expected, "{context}");
                assert!(!self.mirror.may_wait(offset, len), "{context}");
            }
            Step::Write(offset, bytes) => {
                self.mirror.write(offset, &bytes).unwrap();
                self.model.write(offset, &bytes);
            }
            Step::Zero(offset, len) => {
                self.mirror.write_zeroes(offset, len).unwrap();
                self.model.write(offset, &vec![0; len as usize]);
            }
            Step::Discard(offset, len) => {
                self.mirror.discard(offset, len).unwrap();
                self.model.discard(offset, len);
            }
            Step::Flush => self.mirror.flush().unwrap(),
            Step::Prefetch(offset, len) => self.mirror.prefetch(offset, len).unwrap(),
            Step::Seal => self.seal(context),
            Step::Finish => self.finish(context),
            Step::Abandon => {
                if let Some((sealed, _)) = self.sealed.take() {
                    self.mirror.abandon_commit(sealed);
                }
            }
            Step::Close => self.close(context),
            Step::Kill => {
                self.sealed = None;
                let disk = self.disk.kill();
                self.restart(disk, context);
            }
        }
    }

    fn seal(&mut self, context: &str) {
        if self.sealed.is_some() {
            return;
        }
        let sealed = self.mirror.seal().unwrap();
        check_changes(&sealed, &self.parent, &self.model, context);
        self.sealed = Some((sealed, self.model.clone()));
    }

    fn finish(&mut self, context: &str) {
        if let Some((sealed, model)) = self.sealed.take() {
            // Whatever was written meanwhile, the sealed changes stand still.
            check_changes(&sealed, &self.parent, &model, context);
            assert_eq!(*sealed.parent(), version(self.commits));
            self.commits += 1;
            self.mirror.finish_commit(sealed, version(self.commits)).unwrap();
            self.parent = model;
        }
    }

    fn close(&mut self, context: &str) {
        self.sealed = None;
        self.mirror.close().unwrap();
        assert!(self.mirror.write(0, &[1]).is_err());
        // All that was closed is durable: power may go.
        let disk = self.disk.crash(self.commits);
        self.restart(disk, context);
    }

    fn restart(&mut self, disk: SimulatedFileSystem, context: &str) {
        let dirty_bytes = self.mirror.statistics().dirty_bytes;
        self.host = self.host.on(Arc::new(disk.clone()));
        self.disk = disk;
        self.mirror = self.host.reopen().unwrap();
        assert_eq!(self.mirror.statistics().dirty_bytes, dirty_bytes, "{context}");
        assert_same(&*self.mirror, &self.model, context);
        assert_eq!(self.mirror.binding().parent, version(self.commits), "{context}");
        assert_eq!(self.mirror.base(), version(1), "{context}");
    }
}

/// The changes, put upon the parent, give the disk.
fn check_changes(sealed: &Sealed, parent: &Model, model: &Model, context: &str) {
    let mut disk = parent.clone();
    let changes = read_changes(sealed);
    assert_eq!(sealed.dirty_bytes(), changes.len() as u64 * LEN);
    for (block, bytes) in changes {
        match bytes {
            Some(bytes) => drop(disk.blocks.insert(block, bytes)),
            None => drop(disk.blocks.remove(&block)),
        }
    }
    let different = differing(&disk, model);
    assert!(different.is_empty(), "{context}: blocks {different:?} are not as committed");
}

fn check_extents(mirror: &Mirror, model: &Model) {
    for (start, len) in WINDOWS {
        let extents = mirror.extents(start, len, usize::MAX).unwrap();
        let mut at = start;
        for extent in extents {
            assert_eq!(extent.offset, at);
            at += extent.len;
            if extent.kind == ExtentKind::Hole {
                let mut bytes = vec![1; extent.len as usize];
                model.read(extent.offset, &mut bytes);
                assert!(
                    model::block::is_zero(&bytes),
                    "data at {} is called a hole",
                    extent.offset
                );
            }
        }
        assert_eq!(at, start + len);
    }
}

#[test]
fn a_mirror_equals_a_disk_in_memory_whatever_happens() {
    for seed in 0..150 {
        let steps = Steps::new(seed);
        let mut guest = Guest::new();
        for number in 0..120 {
            let step = steps.next();
            let context = format!("seed {seed}, step {number}: {}", brief(&step));
            guest.run(step, &context);
        }
        assert_same(&*guest.mirror, &guest.model, &format!("seed {seed}, end"));
        check_extents(&guest.mirror, &guest.model);
    }
}

fn brief(step: &Step) -> String {
    match step {
        Step::Write(offset, bytes) => format!("Write({offset}, {} bytes)", bytes.len()),
        other => format!("{other:?}"),
    }
}

#[test]
fn a_guest_reads_its_own_writes_and_others_see_the_version() {
    let mut guest = Guest::new();
    guest.run(Step::Write(100, vec![9; 10_000]), "write");
    let view = mirror::ReadOnlyView::open(
        &guest.host.state,
        &guest.host.binding,
        guest.host.store.clone(),
    )
    .unwrap();
    assert_same(&view, &Model::example(), "view");
    assert_same(&*guest.mirror, &guest.model, "mirror");
    assert!(view.is_read_only() && view.write(0, &[1]).is_err());
    assert!(view.read(LENGTH, &mut [0]).is_err());
    assert!(guest.mirror.write(LENGTH - 1, &[1, 2]).is_err());
    assert!(guest.mirror.read(u64::MAX, &mut [0, 0]).is_err());
}

#[test]
fn a_long_write_at_any_offset_is_read_back() {
    let mut guest = Guest::new();
    let pattern = |len: u64| (0..len).map(|at| (at % 251) as u8).collect::<Vec<u8>>();
    let ends_with_the_disk = LENGTH - (200 << 10) - 77;
    for (offset, len) in
        [(100, 300 << 10), (SEGMENT_LEN - 5000, (512 << 10) + 9000), (ends_with_the_disk, 204_877)]
    {
        guest.mirror.write(offset, &pattern(len)).unwrap();
        guest.model.write(offset, &pattern(len));
    }
    let mut found = vec![0; LENGTH as usize];
    let mut expected = found.clone();
    guest.mirror.read(0, &mut found).unwrap();
    guest.model.read(0, &mut expected);
    assert!(found == expected);
}

#[test]
fn a_write_of_whole_blocks_and_a_trim_never_fetch() {
    let guest = Guest::new();
    guest.mirror.write(LEN, &vec![1; 3 * LEN as usize]).unwrap();
    guest.mirror.write_zeroes(8 * LEN, 2 * LEN).unwrap();
    guest.mirror.discard(12 * LEN + 1, 2 * LEN).unwrap();
    // The last block is partial: all of it that there is counts as whole.
    guest.mirror.write(LENGTH - 1234, &[5; 1234]).unwrap();
    assert_eq!(guest.mirror.statistics().fetched_bytes, 0);
    assert_eq!(guest.mirror.statistics().dirty_bytes, 7 * LEN);
    assert!(guest.mirror.may_wait(0, 1) && !guest.mirror.may_wait(LEN, 3 * LEN));
    guest.mirror.write(0, &[1]).unwrap();
    assert!(guest.mirror.statistics().fetched_bytes > 0);
}

#[test]
fn trimmed_blocks_and_those_left_behind_give_their_space_back() {
    let mut guest = Guest::new();
    guest.run(Step::Write(0, vec![1; 20 * LEN as usize]), "write");
    let full = guest.mirror.statistics().host_bytes;
    guest.run(Step::Discard(10 * LEN, 10 * LEN), "discard");
    assert_eq!(guest.mirror.statistics().host_bytes, full - 10 * LEN);
    guest.run(Step::Seal, "seal");
    guest.run(Step::Write(0, vec![2; 10 * LEN as usize]), "again");
    guest.run(Step::Flush, "flush");
    assert_eq!(guest.mirror.statistics().host_bytes, full, "sealed bytes are kept");
    guest.run(Step::Finish, "finish");
    assert_eq!(guest.mirror.statistics().host_bytes, full - 10 * LEN);
    assert_eq!(guest.mirror.statistics().dirty_bytes, 10 * LEN);
}

#[test]
fn a_clone_takes_the_dirty_state_along() {
    let mut guest = Guest::new();
    guest.run(Step::Write(5, vec![1; 9]), "write");
    guest.mirror.rebind(version(40)).unwrap();
    assert_eq!(*guest.mirror.seal().unwrap().parent(), version(40));
    guest.commits = 40;
    guest.run(Step::Kill, "kill");
    guest.run(Step::Close, "close");
    assert_eq!(guest.mirror.statistics().dirty_bytes, LEN);
}

#[test]
fn a_mirror_has_one_owner() {
    let guest = Guest::new();
    let refused = guest.host.reopen().err().unwrap();
    assert_eq!(refused.kind(), model::Kind::Refused);
    let text = refused.chain();
    assert!(text.contains("web") && text.contains(&std::process::id().to_string()), "{text}");
    let summary = guest.host.state.inspect(&name("web")).unwrap();
    assert_eq!(summary.owner, Some(std::process::id()));
    assert_eq!(guest.host.state.discard(&name("web")).unwrap_err().kind(), model::Kind::Refused);
    assert_eq!(guest.host.create().err().unwrap().kind(), model::Kind::Refused);
    guest.mirror.close().unwrap();
    assert_eq!(guest.host.create().err().unwrap().kind(), model::Kind::Exists);
    let again = guest.host.reopen().unwrap();
    again.write(0, &[1]).unwrap();
    let summary = guest.host.state.inspect(&name("web")).unwrap();
    assert_eq!((summary.dirty_bytes, summary.base), (LEN, version(1)));
    again.close().unwrap();
    assert_eq!(guest.host.state.list().unwrap(), [name("web")]);
    guest.host.state.discard(&name("web")).unwrap();
    assert_eq!(guest.host.state.list().unwrap(), []);
    assert_eq!(guest.host.reopen().err().unwrap().kind(), model::Kind::NotFound);
    assert_same(&*guest.host.create().unwrap(), &Model::example(), "a new one");
}

#[test]
fn a_second_seal_waits_for_the_first() {
    let guest = Guest::new();
    guest.mirror.write(0, &[1; 4096]).unwrap();
    let first = guest.mirror.seal().unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let mirror = &guest.mirror;
        scope.spawn(move || {
            let second = mirror.seal().unwrap();
            sender.send(second.dirty_bytes()).unwrap();
        });
        mirror.write(LEN, &[1; 4096]).unwrap();
        assert!(receiver.try_recv().is_err());
        mirror.finish_commit(first, version(2)).unwrap();
        assert_eq!(receiver.recv().unwrap(), LEN);
    });
}
