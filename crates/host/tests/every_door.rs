//! A mirror over a real repository against a vector of bytes: written through one door, read through
//! each, with commits, restarts and doors that only read beside the one that writes.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use attach::nbd::Address;
use env::RealFileSystem;
use host::commit::{CommitOptions, Committer};
use host::{AttachRequest, DoorOptions, Owner};
use mirror::{Patience, StateFolder};
use model::device::Device;
use model::progress::Silent;
use model::{ImageName, MirrorName};
use proptest::prelude::*;
use repository::Repository;
use repository::repository::Machine;
use rustix::fs::{FallocateFlags, OFlags};

use crate::client::Guest;
use crate::raw_client::{self as raw, RawClient};

#[path = "../../attach/tests/vhost_user/client.rs"]
#[allow(dead_code, reason = "a client that several tests share")]
mod client;
#[path = "../../attach/tests/nbd/raw_client.rs"]
#[allow(dead_code, reason = "a client that several tests share")]
mod raw_client;

/// Four chunks, and one that is not full.
const LENGTH: u64 = (4 * 64 + 5) * 4096;
const SECTOR: u64 = 512;

/// One of a mirror's doors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    VhostUser,
    Nbd,
    Fuse,
}

const DOORS: [Door; 3] = [Door::VhostUser, Door::Nbd, Door::Fuse];

#[derive(Clone, Debug)]
enum Change {
    Write { seed: u64 },
    Zero,
    Discard,
}

#[derive(Clone, Debug)]
enum Step {
    Change(Change, u64, u64),
    /// The same at a door that only reads; it changes nothing.
    Refused(Change, u64, u64),
    Read(u64, u64),
    Flush,
    Commit,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let sectors = LENGTH / SECTOR;
    let len = prop_oneof![3 => 1..9u64, 2 => 1..80u64, 1 => 1..700u64];
    let range = move || {
        let aligned = (0..sectors / 8, 1..20u64).prop_map(|(at, count)| (at * 8, count * 8));
        prop_oneof![3 => (0..sectors, len.clone()), 1 => aligned]
            .prop_map(move |(at, count)| (at * SECTOR, count.min(sectors - at) * SECTOR))
    };
    let change = || {
        prop_oneof![
            4 => any::<u64>().prop_map(|seed| Change::Write { seed }),
            1 => Just(Change::Zero),
            1 => Just(Change::Discard),
        ]
    };
    prop_oneof![
        6 => (change(), range()).prop_map(|(change, (at, len))| Step::Change(change, at, len)),
        2 => (change(), range()).prop_map(|(change, (at, len))| Step::Refused(change, at, len)),
        6 => range().prop_map(|(at, len)| Step::Read(at, len)),
        1 => Just(Step::Flush),
        1 => Just(Step::Commit),
        1 => Just(Step::Restart),
    ]
}

/// Bytes of which no two blocks are alike.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// A repository with `web@2`, half of it noise, and a folder for mirrors of it.
struct House {
    folder: tempfile::TempDir,
    repository: Repository,
    bytes: Vec<u8>,
}

impl House {
    fn new() -> House {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("repository");
        let (repository, _) = Repository::open_or_create(&Machine::real(), &place).unwrap();
        repository.create_image(&ImageName::new("web").unwrap(), LENGTH).unwrap();
        let mut bytes = vec![0; LENGTH as usize];
        for (index, part) in bytes.chunks_mut(70_000).enumerate().step_by(2) {
            part.copy_from_slice(&noise(index as u64 + 9, part.len()));
        }
        std::fs::create_dir(folder.path().join("mount")).unwrap();
        let house = House { folder, repository, bytes };
        let owner = house.attach("web@1", "making", None);
        owner.mirror().write(0, &house.bytes).unwrap();
        house.commit(&owner);
        owner.stop(true).unwrap();
        house
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Attaches, with the doors of which the given one is the first: those before it stay closed.
    fn attach(&self, reference: &str, name: &str, first: Option<Door>) -> Owner {
        let first = first.map_or(DOORS.len(), position);
        let is_open = |door| position(door) >= first;
        let doors = DoorOptions {
            vhost_user: is_open(Door::VhostUser).then(|| self.path("vhost")),
            nbd: is_open(Door::Nbd).then(|| Address::Unix(self.path("nbd"))),
            fuse: is_open(Door::Fuse).then(|| self.path("mount")),
            read_only: false,
        };
        let state = StateFolder::new(Arc::new(RealFileSystem), self.path("state"));
        let request = AttachRequest {
            reference: Some(reference.parse().unwrap()),
            mirror: MirrorName::new(name).unwrap(),
            doors,
            patience: Patience::Unlimited,
            record: None,
            length: None,
            client: None,
        };
        Owner::start(self.repository.clone(), state, &request).unwrap()
    }

    fn commit(&self, owner: &Owner) -> String {
        let committer = Committer::new(self.repository.clone(), owner.mirror().clone());
        let options = CommitOptions::default();
        let committed = committer.commit(&options, &Silent).unwrap();
        format!("{}@{}", committed.image, committed.version)
    }
}

fn position(door: Door) -> usize {
    DOORS.iter().position(|known| *known == door).unwrap()
}

/// What a door says to a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Done,
    ReadOnly,
    NoSpace,
    /// A door that has one error for all.
    Failed,
}

impl Answer {
    fn of(number: i32) -> Answer {
        match number {
            0 => Answer::Done,
            1 | 30 => Answer::ReadOnly,
            28 => Answer::NoSpace,
            other => panic!("error {other}"),
        }
    }
}

/// Clients at the doors of a mirror.
struct Clients {
    first: Door,
    guest: Option<Guest>,
    nbd: Option<RawClient>,
    file: PathBuf,
}

impl Clients {
    fn connect(house: &House, first: Door) -> Clients {
        let mut guest = (first == Door::VhostUser).then(Guest::new);
        if let Some(guest) = &mut guest {
            guest.connect(&house.path("vhost")).unwrap();
        }
        let nbd = (first != Door::Fuse)
            .then(|| RawClient::transmitting_at(&Address::Unix(house.path("nbd")), true));
        let file = house.path("mount/mirrors/m");
        Clients { first, guest, nbd, file }
    }

    fn doors(&self) -> &'static [Door] {
        &DOORS[position(self.first)..]
    }

    /// Changes the disk through a door.
    fn change(&mut self, door: Door, change: &Change, at: u64, len: u64) -> Answer {
        let data = match change {
            Change::Write { seed } => noise(*seed, len as usize),
            _ => Vec::new(),
        };
        match door {
            Door::VhostUser => {
                let guest = self.guest.as_mut().unwrap();
                let range = client::range(at / SECTOR, (len / SECTOR) as u32, 0);
                let (kind, data) = match change {
                    Change::Write { .. } => (client::WRITE, &data[..]),
                    Change::Zero => (client::WRITE_ZEROES, &range[..]),
                    Change::Discard => (client::DISCARD, &range[..]),
                };
                let sector = if data.len() == range.len() { 0 } else { at / SECTOR };
                match guest.call(kind, sector, data).0 {
                    0 => Answer::Done,
                    // This protocol has one error for all.
                    1 => Answer::Failed,
                    other => panic!("status {other}"),
                }
            }
            Door::Nbd => {
                let command = match change {
                    Change::Write { .. } => raw::WRITE,
                    Change::Zero => raw::WRITE_ZEROES,
                    Change::Discard => raw::TRIM,
                };
                let reply = self.nbd.as_mut().unwrap().call(command, 0, at, len as u32, &data);
                Answer::of(reply.error as i32)
            }
            Door::Fuse => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                let opened = File::options().read(true).write(true).open(&self.file);
                let done = opened.and_then(|file| match change {
                    Change::Write { .. } => file.write_all_at(&data, at),
                    _ => Ok(rustix::fs::fallocate(&file, flags, at, len)?),
                });
                Answer::of(done.map_or_else(|error| error.raw_os_error().unwrap(), |()| 0))
            }
        }
    }

    fn read(&mut self, door: Door, at: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0xee; len as usize];
        match door {
            Door::VhostUser => {
                let answer = self.guest.as_mut().unwrap().call(client::READ, at / SECTOR, &bytes);
                assert_eq!(answer.0, 0);
                bytes = answer.1;
            }
            Door::Nbd => {
                let reply = self.nbd.as_mut().unwrap().call(raw::READ, 0, at, len as u32, &[]);
                assert_eq!(reply.error, 0);
                bytes = reply.data;
            }
            Door::Fuse => {
                let mut options = File::options();
                // Past the page cache every other time.
                if (at / SECTOR).is_multiple_of(2) {
                    options.custom_flags(OFlags::DIRECT.bits() as i32);
                }
                let file = options.read(true).open(&self.file).unwrap();
                file.read_exact_at(&mut bytes, at).unwrap();
            }
        }
        bytes
    }

    /// Flushes through the door that writes; true where it could be done.
    fn flush(&mut self) -> bool {
        match self.first {
            Door::VhostUser => self.guest.as_mut().unwrap().call(client::FLUSH, 0, &[]).0 == 0,
            Door::Nbd => self.nbd.as_mut().unwrap().call(raw::FLUSH, 0, 0, 0, &[]).error == 0,
            Door::Fuse => File::open(&self.file).unwrap().sync_all().is_ok(),
        }
    }

    fn read_all(&mut self, door: Door) -> Vec<u8> {
        let part_len = 256 << 10;
        let parts = (0..LENGTH).step_by(part_len as usize);
        parts.flat_map(|at| self.read(door, at, part_len.min(LENGTH - at))).collect()
    }
}

/// Changes the model as the disk was changed. What a discard leaves in blocks that it covers in part
/// is theirs still; a hole that is punched in a file is zeros throughout.
fn apply(bytes: &mut [u8], door: Door, change: &Change, at: u64, len: u64) {
    let (start, end) = (at as usize, (at + len) as usize);
    match change {
        Change::Write { seed } => bytes[start..end].copy_from_slice(&noise(*seed, end - start)),
        Change::Discard if door != Door::Fuse => {
            let last = if end == bytes.len() { end } else { end / 4096 * 4096 };
            let first = start.next_multiple_of(4096);
            if first < last {
                bytes[first..last].fill(0);
            }
        }
        _ => bytes[start..end].fill(0),
    }
}

fn live(house: &House, first: Door, steps: &[Step]) {
    let mut bytes = house.bytes.clone();
    let mut parent = "web@2".to_string();
    let mut owner = house.attach(&parent, "m", Some(first));
    let mut clients = Clients::connect(house, first);
    for step in steps {
        match step {
            Step::Change(change, at, len) => {
                assert_eq!(clients.change(first, change, *at, *len), Answer::Done, "{step:?}");
                apply(&mut bytes, first, change, *at, *len);
            }
            Step::Refused(change, at, len) => {
                for door in &clients.doors()[1..] {
                    let answer = clients.change(*door, change, *at, *len);
                    assert_eq!(answer, Answer::ReadOnly, "{door:?}: {step:?}");
                }
            }
            Step::Read(at, len) => {
                for door in clients.doors() {
                    let expected = &bytes[*at as usize..(at + len) as usize];
                    assert!(clients.read(*door, *at, *len) == expected, "{door:?}: {step:?}");
                }
            }
            Step::Flush => assert!(clients.flush()),
            Step::Commit => parent = house.commit(&owner),
            Step::Restart => {
                drop(clients);
                owner.stop(false).unwrap();
                owner = house.attach(&parent, "m", Some(first));
                clients = Clients::connect(house, first);
            }
        }
    }
    for door in clients.doors() {
        assert!(clients.read_all(*door) == bytes, "{door:?} in the end");
    }
    drop(clients);
    owner.stop(true).unwrap();
}

fn check(first: Door) {
    let house = House::new();
    let config = ProptestConfig { cases: 16, ..ProptestConfig::default() };
    proptest!(config, |(steps in prop::collection::vec(step(), 1..40))| {
        live(&house, first, &steps);
    });
}

#[test]
fn a_disk_that_vhost_user_writes_and_nbd_and_fuse_read_equals_its_model() {
    check(Door::VhostUser);
}

#[test]
fn a_disk_that_nbd_writes_and_fuse_reads_equals_its_model() {
    check(Door::Nbd);
}

#[test]
fn a_disk_that_fuse_writes_equals_its_model() {
    check(Door::Fuse);
}

/// A file system of a few MiB in place of a house's state folder; unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None`, said on stderr, for a user who may not mount.
    fn mount(folder: PathBuf) -> Option<SmallDisk> {
        std::fs::create_dir_all(&folder).unwrap();
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", "size=12m", "larder-test"]).arg(&folder);
        if command.status().unwrap().success() {
            return Some(SmallDisk(folder));
        }
        assert!(!rustix::process::geteuid().is_root());
        let _told = std::io::stderr().write_all(b"not tested: needs root\n");
        None
    }

    /// Takes all but so many bytes.
    fn fill(&self, rest: u64) {
        let facts = rustix::fs::statvfs(&self.0).unwrap();
        let len = (facts.f_bavail * facts.f_frsize).saturating_sub(rest);
        std::fs::write(self.0.join("filler"), vec![1; len as usize]).unwrap();
    }

    /// Takes what was given back meanwhile, too: bases give way to what guests write.
    fn fill_again(&self, rest: u64) {
        let facts = rustix::fs::statvfs(&self.0).unwrap();
        let len = (facts.f_bavail * facts.f_frsize).saturating_sub(rest);
        let mut filler = File::options().append(true).open(self.0.join("filler")).unwrap();
        // The larger the writes, the less of the rest is there by now.
        let _full = filler.write_all(&vec![1; len as usize]);
    }

    fn make_room(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Writes until the state disk is full: that is told by the door's own error, what was taken is read
/// back, a flush that could not be done can be done once there is room, and it is all there then.
fn check_full_disk(first: Door) {
    let house = House::new();
    let Some(disk) = SmallDisk::mount(house.path("state")) else { return };
    let refusal = if first == Door::VhostUser { Answer::Failed } else { Answer::NoSpace };
    let mut owner = house.attach("web@2", "m", Some(first));
    let mut clients = Clients::connect(&house, first);
    // Everything is here: what a full disk does to a fetch is another matter.
    assert!(clients.read_all(first) == house.bytes);
    let mut bytes = house.bytes.clone();
    let mut refused_count = 0;
    // What there is no room for differs: the log, a block, some of a long write.
    for (round, rest) in [0, 4096, 20_000, 300_000, 0].into_iter().enumerate() {
        disk.fill(rest);
        for at in (round as u64 * 4096..LENGTH).step_by(5 * 16384) {
            let len = 16384.min(LENGTH - at);
            let change = Change::Write { seed: at + rest };
            disk.fill_again(rest);
            let answer = clients.change(first, &change, at, len);
            let range = at as usize..(at + len) as usize;
            if answer == Answer::Done {
                apply(&mut bytes, first, &change, at, len);
            } else {
                assert_eq!(answer, refusal, "{rest} bytes were free");
                refused_count += 1;
                // Of a write that failed each block is the old one or the new.
                let found = clients.read(first, at, len);
                let new = noise(at + rest, len as usize);
                let blocks = found.chunks(4096).zip(bytes[range.clone()].chunks(4096));
                for ((found, old), new) in blocks.zip(new.chunks(4096)) {
                    assert!(found == old || found == new, "{rest} bytes were free");
                }
                bytes[range].copy_from_slice(&found);
            }
        }
        for door in clients.doors() {
            assert!(clients.read_all(*door) == bytes, "{door:?} while the disk is full");
        }
        // It may or may not fit into the log.
        let _flushed = clients.flush();
        disk.make_room();
        let change = Change::Write { seed: 5 };
        assert_eq!(clients.change(first, &change, 8192, 16384), Answer::Done);
        apply(&mut bytes, first, &change, 8192, 16384);
        assert!(clients.flush(), "there is room again");
        for door in clients.doors() {
            assert!(clients.read_all(*door) == bytes, "{door:?} when there is room again");
        }
        drop(clients);
        owner.stop(false).unwrap();
        owner = house.attach("web@2", "m", Some(first));
        clients = Clients::connect(&house, first);
        assert!(clients.read_all(first) == bytes, "after a restart");
    }
    assert!(refused_count > 5, "{refused_count} writes were refused: this tests little");
    drop(clients);
    owner.stop(true).unwrap();
}

#[test]
fn a_full_state_disk_is_told_at_the_vhost_user_door_and_nothing_is_lost() {
    check_full_disk(Door::VhostUser);
}

#[test]
fn a_full_state_disk_is_told_at_the_nbd_door_and_nothing_is_lost() {
    check_full_disk(Door::Nbd);
}

#[test]
fn a_full_state_disk_is_told_at_the_fuse_door_and_nothing_is_lost() {
    check_full_disk(Door::Fuse);
}

/// What has to be fetched is answered though there is no room to keep it.
#[test]
fn reads_of_what_is_not_here_go_on_while_the_state_disk_is_full() {
    for first in DOORS {
        let house = House::new();
        let Some(disk) = SmallDisk::mount(house.path("state")) else { return };
        let owner = house.attach("web@2", "m", Some(first));
        let mut clients = Clients::connect(&house, first);
        disk.fill(0);
        for door in clients.doors() {
            assert!(clients.read_all(*door) == house.bytes, "{door:?}");
        }
        disk.make_room();
        assert!(clients.read_all(first) == house.bytes);
        drop(clients);
        owner.stop(true).unwrap();
    }
}
