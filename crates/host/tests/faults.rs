//! A store that fails, once and for ever, is slow, gives wrong bytes, goes away and comes back: under
//! a real client that verifies.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use attach::nbd::Address;
use catalog::SqliteCatalog;
use env::{RealFileSystem, SystemClock, SystemEntropy};
use host::commit::{CommitOptions, Committer};
use host::{AttachRequest, DoorOptions, Owner};
use mirror::{Patience, StateFolder};
use model::device::Device;
use model::progress::Silent;
use model::{ImageName, Kind, MirrorName};
use repository::repository::{Machine, catalog_path};
use repository::{Repository, Settings};
use store::{DecoratedPackStore, DirectoryPackStore, Fault, Lasting, LinkSpeed};

const LEN: usize = 8 << 20;

struct Faulty {
    folder: tempfile::TempDir,
    store: Arc<DecoratedPackStore>,
    repository: Repository,
    bytes: Vec<u8>,
}

impl Faulty {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn attach(&self, name: &str, patience: Patience) -> Owner {
        let state = StateFolder::new(Arc::new(RealFileSystem), self.path("state"));
        let request = AttachRequest {
            reference: Some("web@2".parse().unwrap()),
            mirror: MirrorName::new(name).unwrap(),
            doors: DoorOptions {
                nbd: Some(Address::Unix(self.path("nbd"))),
                ..DoorOptions::default()
            },
            patience,
            record: None,
            length: None,
            client: None,
        };
        Owner::start(self.repository.clone(), state, &request).unwrap()
    }
}

/// Bytes of which no two blocks are alike.
fn noise() -> Vec<u8> {
    let mut state = 7_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u8
    };
    (0..LEN).map(|_| next()).collect()
}

/// A repository behind a decorated store, with `web@2` in it.
fn faulty() -> Faulty {
    let folder = tempfile::tempdir().unwrap();
    let place: &Path = &folder.path().join("repository");
    let (near, _) = Repository::open_or_create(&Machine::real(), place).unwrap();
    let settings: Settings = near.settings().clone();
    near.create_image(&ImageName::new("web").unwrap(), LEN as u64).unwrap();
    let state = StateFolder::new(Arc::new(RealFileSystem), folder.path().join("making"));
    let request = AttachRequest {
        reference: Some("web".parse().unwrap()),
        mirror: MirrorName::new("making").unwrap(),
        doors: DoorOptions::default(),
        patience: Patience::Unlimited,
        record: None,
        length: None,
        client: None,
    };
    let owner = Owner::start(near.clone(), state, &request).unwrap();
    let bytes = noise();
    owner.mirror().write(0, &bytes).unwrap();
    let committer = Committer::new(near.clone(), owner.mirror().clone());
    committer.commit(&CommitOptions::default(), &Silent).unwrap();
    owner.stop(true).unwrap();
    let engine = DirectoryPackStore::open(Arc::new(RealFileSystem), &place.join("packs")).unwrap();
    let store = Arc::new(DecoratedPackStore::new(Arc::new(engine), LinkSpeed::default()));
    let catalog = SqliteCatalog::open(&catalog_path(place), Arc::new(SystemClock)).unwrap();
    let catalog = Arc::new(catalog);
    let repository =
        Repository::from_parts(settings, catalog, store.clone(), Arc::new(SystemEntropy));
    Faulty { folder, store, repository, bytes }
}

#[test]
fn fio_verifies_over_a_store_that_goes_away_comes_back_is_slow_and_gives_wrong_bytes() {
    let faulty = faulty();
    let owner = faulty.attach("m", Patience::Unlimited);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (faulty, is_over, owner) = (&faulty, &is_over, &owner);
        let disturber = scope.spawn(move || {
            let slow = Fault::Slow(Duration::from_millis(5));
            let kinds = [
                (Fault::Away, Lasting::Always),
                (Fault::WrongBytes, Lasting::Once),
                (slow, Lasting::Always),
            ];
            for (fault, lasting) in kinds.into_iter().cycle() {
                faulty.store.break_with(fault, lasting);
                std::thread::park_timeout(Duration::from_millis(20));
                faulty.store.mend();
                std::thread::park_timeout(Duration::from_millis(20));
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
            }
        });
        let reader = scope.spawn(move || {
            // The second half is fetched while the first is written to, by parts of blocks too.
            let mut part = vec![0; 12_288];
            for offset in (LEN / 2..LEN - part.len()).rev().step_by(part.len()) {
                owner.mirror().read(offset as u64, &mut part).unwrap();
                assert!(part == faulty.bytes[offset..offset + part.len()], "at {offset}");
            }
        });
        let uri = format!("nbd+unix:///m?socket={}", faulty.path("nbd").display());
        let output = Command::new("fio")
            .current_dir(faulty.path(""))
            .args(["--name=verify", "--ioengine=nbd", "--rw=randwrite", "--bsrange=512-16k"])
            .args(["--bs_unaligned=0", "--iodepth=16", "--fsync=32", "--verify=crc32c"])
            .args(["--verify_fatal=1", &format!("--size={}", LEN / 2), &format!("--uri={uri}")])
            .output()
            .unwrap();
        let read = reader.join();
        is_over.store(true, Ordering::SeqCst);
        disturber.join().unwrap();
        read.unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    });
    owner.stop(true).unwrap();
}

#[test]
fn wrong_bytes_that_stay_wrong_are_an_error_that_names_them_and_never_reach_a_guest() {
    let faulty = faulty();
    let owner = faulty.attach("m", Patience::Unlimited);
    faulty.store.break_with(Fault::WrongBytes, Lasting::Always);
    let mut block = [0; 4096];
    for offset in [0, LEN as u64 / 2] {
        let error = owner.mirror().read(offset, &mut block).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{}", error.chain());
    }
    // A missing pack is not waited for either: it is not the store that is away.
    faulty.store.break_with(Fault::Missing, Lasting::Always);
    let error = owner.mirror().read(0, &mut block).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "{}", error.chain());
    faulty.store.mend();
    owner.mirror().read(0, &mut block).unwrap();
    assert!(block == faulty.bytes[..4096]);
    owner.stop(true).unwrap();
}

#[test]
fn each_mirror_of_a_base_waits_by_its_own_policy() {
    let faulty = faulty();
    let state = StateFolder::new(Arc::new(RealFileSystem), faulty.path("state"));
    let [patient, hasty] =
        [Patience::Unlimited, Patience::Limited(Duration::ZERO)].map(|patience| {
            let request = AttachRequest {
                reference: Some("web".parse().unwrap()),
                mirror: MirrorName::new(&format!("{patience:?}").to_lowercase()[..7]).unwrap(),
                doors: DoorOptions::default(),
                patience,
                record: None,
                length: None,
                client: None,
            };
            Owner::start(faulty.repository.clone(), state.clone(), &request).unwrap()
        });
    faulty.store.break_with(Fault::Away, Lasting::Always);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let mut block = [0; 4096];
            patient.mirror().read(0, &mut block).map(|()| block)
        });
        while state.reachability().outages().waiting_count == 0 {
            std::thread::yield_now();
        }
        // The same chunk of the same base.
        let error = hasty.mirror().read(0, &mut [0; 4096]).unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(!waits.is_finished());
        faulty.store.mend();
        assert!(waits.join().unwrap().unwrap() == faulty.bytes[..4096]);
    });
    let outages = state.reachability().outages();
    assert_eq!((outages.count, outages.is_lost), (1, false));
    for owner in [patient, hasty] {
        owner.stop(true).unwrap();
    }
}
