//! Owners: which mirror they take, and what is true once they have answered.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use attach::nbd::Address;
use env::RealFileSystem;
use host::commit::{CommitOptions, Committer};
use host::mirrors::control_socket;
use host::{AttachRequest, DoorOptions, Owner};
use mirror::{Mirror, Patience, StateFolder};
use model::device::Device;
use model::progress::Silent;
use model::{ImageName, Kind, MirrorName, Result};
use repository::Repository;
use repository::repository::Machine;
use repository::turns::Line;

/// A new repository with an image `web` of zeros.
fn repository_in(folder: &Path, length: u64) -> Repository {
    let (repository, _) = Repository::open_or_create(&Machine::real(), folder).unwrap();
    repository.create_image(&ImageName::new("web").unwrap(), length).unwrap();
    repository
}

fn name() -> MirrorName {
    MirrorName::new("m").unwrap()
}

fn start(repository: &Repository, state: &StateFolder, folder: &Path) -> Result<Owner> {
    let nbd = Some(Address::Unix(folder.join("nbd")));
    let request = AttachRequest {
        reference: Some("web".parse().unwrap()),
        mirror: name(),
        doors: DoorOptions { nbd, ..DoorOptions::default() },
        patience: Patience::Unlimited,
        record: None,
        length: None,
        client: None,
    };
    Owner::start(repository.clone(), state.clone(), &request)
}

fn state_in(folder: &Path) -> StateFolder {
    StateFolder::new(Arc::new(RealFileSystem), folder.join("state"))
}

#[test]
fn a_mirror_is_not_put_upon_another_repositorys_version_of_the_same_name() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_in(folder.path());
    let [one, other] = [("one", 1 << 20), ("other", 2 << 20)]
        .map(|(n, len)| repository_in(&folder.path().join(n), len));
    start(&one, &state, folder.path()).unwrap().stop(false).unwrap();
    let refused = start(&other, &state, folder.path()).err().unwrap();
    assert_eq!(refused.kind(), Kind::Refused, "{}", refused.chain());
    assert!(refused.hint_text().is_some());
    // Nor upon another version of its own repository.
    let owner = start(&one, &state, folder.path()).unwrap();
    let version = one.catalog().version(&"web@1".parse().unwrap()).unwrap().id;
    owner.mirror().write(0, &[1]).unwrap();
    owner.stop(false).unwrap();
    let clone = one.catalog().clone_version(&version, &ImageName::new("copy").unwrap()).unwrap();
    let request = AttachRequest {
        reference: Some(clone.id.into()),
        mirror: name(),
        doors: DoorOptions::default(),
        patience: Patience::Unlimited,
        record: None,
        length: None,
        client: None,
    };
    let refused = Owner::start(one.clone(), state.clone(), &request).err().unwrap();
    assert_eq!(refused.kind(), Kind::Refused, "{}", refused.chain());
    let owner = start(&one, &state, folder.path()).unwrap();
    assert_eq!(owner.status().dirty_bytes, 4096, "its changes are there still");
    owner.stop(true).unwrap();
}

#[test]
fn a_mirror_whose_version_was_removed_opens_again_and_says_how_to_save_it() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_in(folder.path());
    let repository = repository_in(&folder.path().join("repository"), 1 << 20);
    let owner = start(&repository, &state, folder.path()).unwrap();
    owner.mirror().write(0, &[7; 4096]).unwrap();
    owner.stop(false).unwrap();
    repository.catalog().remove_image(&ImageName::new("web").unwrap()).unwrap();
    let request = AttachRequest {
        reference: Some("web@1".parse().unwrap()),
        mirror: name(),
        doors: DoorOptions::default(),
        patience: Patience::Unlimited,
        record: None,
        length: None,
        client: None,
    };
    let owner = Owner::start(repository.clone(), state, &request).unwrap();
    let mut block = [0; 4096];
    owner.mirror().read(0, &mut block).unwrap();
    assert_eq!(block, [7; 4096]);
    let committer = Committer::new(repository, owner.mirror().clone());
    let error = committer.commit(&CommitOptions::default(), &Silent).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.hint_text().is_some_and(|hint| hint.contains("web@1")), "{}", error.chain());
    owner.stop(false).unwrap();
}

#[test]
fn a_mirror_holds_its_version_until_it_is_thrown_away() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_in(folder.path());
    let repository = repository_in(&folder.path().join("repository"), 1 << 20);
    let holds = || repository.catalog().holds().unwrap();
    let owner = start(&repository, &state, folder.path()).unwrap();
    let [hold] = &holds()[..] else { panic!("one hold") };
    assert!(hold.version.to_string() == "web@1" && hold.holder.contains("mirror"), "{hold:?}");
    owner.stop(false).unwrap();
    assert_eq!(holds().len(), 1, "a mirror that is not served reads on some day");
    // As a crash between making a mirror and holding its version leaves it.
    repository.catalog().release(&holds()[0].holder).unwrap();
    start(&repository, &state, folder.path()).unwrap().stop(false).unwrap();
    assert_eq!(holds().len(), 1);
    host::mirrors::detach(&state, &name(), true, || Ok(repository.clone())).unwrap();
    assert!(holds().is_empty());
    start(&repository, &state, folder.path()).unwrap().stop(true).unwrap();
    assert!(holds().is_empty());
}

/// A repository whose `web@2` holds the bytes returned.
fn repository_with_bytes(folder: &Path, state: &StateFolder) -> (Repository, Vec<u8>) {
    let repository = repository_in(&folder.join("repository"), 8 << 20);
    let owner = start(&repository, state, folder).unwrap();
    let bytes: Vec<u8> = (0..8 << 20).map(|at: u32| (at / 4096 % 251) as u8).collect();
    owner.mirror().write(0, &bytes).unwrap();
    let committer = Committer::new(repository.clone(), owner.mirror().clone());
    committer.commit(&CommitOptions::default(), &Silent).unwrap();
    owner.stop(true).unwrap();
    (repository, bytes)
}

/// Attaches `web@2`, without a door.
fn recorded(record: Option<&str>) -> AttachRequest {
    AttachRequest {
        reference: Some("web@2".parse().unwrap()),
        patience: Patience::Unlimited,
        mirror: name(),
        doors: DoorOptions::default(),
        record: record.map(str::to_string),
        length: None,
        client: None,
    }
}

#[test]
fn what_a_mirror_records_is_brought_to_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_in(folder.path());
    let (repository, bytes) = repository_with_bytes(folder.path(), &state);
    let owner = Owner::start(repository.clone(), state.clone(), &recorded(Some("boot"))).unwrap();
    let mut buffer = vec![0; 256 << 10];
    owner.mirror().read(6 << 20, &mut buffer).unwrap();
    owner.mirror().read(1 << 20, &mut buffer).unwrap();
    owner.stop(true).unwrap();
    let version = repository.catalog().version(&"web@2".parse().unwrap()).unwrap();
    let found = repository.boot_set(&version, "boot").unwrap().unwrap();
    assert_eq!(found.record.boots, 1);
    let firsts: Vec<u64> = found.set.reads().iter().map(|read| read.read.first_block).collect();
    assert_eq!((firsts[0], found.set.block_count()), ((6 << 20) / 4096, 128));
    // Another host, where nothing is present yet.
    let elsewhere = StateFolder::new(Arc::new(RealFileSystem), folder.path().join("elsewhere"));
    let owner = Owner::start(repository.clone(), elsewhere.clone(), &recorded(None)).unwrap();
    let start = std::time::Instant::now();
    while owner.mirror().statistics().prefetched_bytes < 512 << 10 {
        assert!(start.elapsed().as_secs() < 60, "{:?}", owner.mirror().statistics());
        std::thread::yield_now();
    }
    owner.mirror().read(6 << 20, &mut buffer).unwrap();
    assert!(buffer == bytes[6 << 20..][..256 << 10]);
    owner.stop(false).unwrap();
    let report = host::report::Report::read(&elsewhere, &name()).unwrap();
    assert_eq!((report.prefetched_bytes, report.prefetch_used_bytes), (512 << 10, 256 << 10));
    assert_eq!((report.waits, report.from_chunks_bytes), (0, 0));
    assert!(report.fetched_bytes > 0 && report.read_bytes == 256 << 10);
}

/// Takes all turns of a line, as commits that go on until nobody holds the other end of `until`.
fn take_all_turns(line: Line, until: &Arc<Mutex<Receiver<()>>>) {
    let (tell, is_taken) = channel();
    loop {
        let (tell, until) = (tell.clone(), until.clone());
        std::thread::spawn(move || {
            let turn = line.try_turn();
            tell.send(turn.is_some()).unwrap();
            if turn.is_some() {
                let _ = until.lock().unwrap().recv();
            }
        });
        if !is_taken.recv().unwrap() {
            return;
        }
    }
}

#[test]
fn a_detach_waits_for_no_commit_before_it_keeps_the_working_set() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_in(folder.path());
    let (repository, _) = repository_with_bytes(folder.path(), &state);
    let (_commits_go_on, until) = channel();
    let until = Arc::new(Mutex::new(until));
    [Line::Short, Line::Long].iter().for_each(|line| take_all_turns(*line, &until));
    let owner = Owner::start(repository.clone(), state, &recorded(Some("run:x"))).unwrap();
    owner.mirror().read(0, &mut [0; 4096]).unwrap();
    let (tell, is_detached) = channel();
    std::thread::spawn(move || tell.send(owner.stop(true)));
    is_detached.recv_timeout(Duration::from_secs(60)).expect("it waits for commits").unwrap();
    let version = repository.catalog().version(&"web@2".parse().unwrap()).unwrap();
    assert!(repository.boot_set(&version, "run:x").unwrap().is_some());
}

#[test]
fn when_a_detach_is_answered_the_mirror_is_free_or_gone() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_in(folder.path());
    let repository = repository_in(&folder.path().join("repository"), 1 << 20);
    for discard in [false, true] {
        let owner = start(&repository, &state, folder.path()).unwrap();
        let ending = std::thread::spawn(move || {
            owner.wait();
            owner.stop(false)
        });
        let mut stream = UnixStream::connect(control_socket(&state, &name())).unwrap();
        writeln!(stream, "{{\"detach\":{{\"discard\":{discard}}}}}").unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        assert_eq!(answer, "\"detaching\"\n");
        assert_eq!(Mirror::exists(&state, &name()).unwrap(), !discard);
        if !discard {
            assert_eq!(Mirror::inspect(&state, &name()).unwrap().owner, None);
        }
        ending.join().unwrap().unwrap();
    }
}

#[test]
fn a_disk_of_length_0_is_attached_and_committed() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_in(folder.path());
    let repository = repository_in(&folder.path().join("repository"), 0);
    let owner = start(&repository, &state, folder.path()).unwrap();
    let mirror = owner.mirror();
    mirror.read(0, &mut []).unwrap();
    mirror.write(0, &[]).unwrap();
    assert!(mirror.read(0, &mut [0]).is_err());
    let committer = Committer::new(repository.clone(), mirror.clone());
    let outcome = committer.commit(&CommitOptions::default(), &Silent).unwrap();
    assert_eq!((outcome.version, outcome.dirty_bytes), (2, 0));
    owner.stop(true).unwrap();
}
