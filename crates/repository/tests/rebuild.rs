//! A catalog that is lost is made anew: what it knows then, and what it says that it cannot know.

mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use env::{ManualClock, RealFileSystem, SystemEntropy};
use model::progress::{Cancel, Silent};
use model::{Error, Kind, Names, Result};
use repository::repository::Machine;
use repository::{RebuildRequest, Rebuilt, Repository, ScrubRequest, rebuild};
use support::{BytesSink, BytesSource, disk, request};

struct Fixture {
    folder: tempfile::TempDir,
    clock: Arc<ManualClock>,
}

impl Fixture {
    fn new() -> Self {
        let clock = Arc::new(ManualClock::default());
        let fixture = Fixture { folder: tempfile::tempdir().unwrap(), clock };
        Repository::open_or_create(&fixture.machine(), &fixture.path()).unwrap();
        fixture
    }

    fn machine(&self) -> Machine {
        Machine {
            file_system: Arc::new(RealFileSystem),
            clock: self.clock.clone(),
            entropy: Arc::new(SystemEntropy),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("repository")
    }

    fn catalog(&self) -> PathBuf {
        self.path().join("catalog.sqlite")
    }

    fn try_open(&self) -> Result<Repository> {
        Repository::open(&self.machine(), &self.path())
    }

    fn open(&self) -> Repository {
        self.try_open().unwrap()
    }

    /// Imports; time goes on by a minute.
    fn import(&self, image: &str, bytes: &[u8]) {
        self.clock.advance(Duration::from_secs(60));
        let mut source = BytesSource::new(bytes);
        self.open().import(&mut source, &request(image, &Cancel::new())).unwrap();
    }

    fn names(&self) -> Names {
        self.open().catalog().names().unwrap()
    }

    fn try_rebuild(&self, even_if_sound: bool) -> Result<Rebuilt> {
        let cancel = Cancel::new();
        let request = RebuildRequest { even_if_sound, progress: &Silent, cancel: &cancel };
        rebuild(&self.machine(), &self.path(), &request)
    }

    fn rebuild(&self) -> Rebuilt {
        self.try_rebuild(false).unwrap()
    }

    fn lose_catalog(&self) {
        for suffix in ["", "-wal", "-shm"] {
            let mut file = self.catalog().into_os_string();
            file.push(suffix);
            let _ = std::fs::remove_file(file);
        }
    }

    fn assert_sound(&self) {
        let cancel = Cancel::new();
        let request = ScrubRequest {
            rate_bytes_per_second: None,
            deep: true,
            progress: &Silent,
            cancel: &cancel,
        };
        let scrubbed = self.open().scrub(&request).unwrap();
        assert!(scrubbed.is_sound(), "{:#?}", scrubbed.findings);
    }

    fn export(&self, reference: &str) -> Vec<u8> {
        let repository = self.open();
        let version = repository.catalog().version(&reference.parse().unwrap()).unwrap();
        let sink = BytesSink::default();
        repository.export(&version.id, Box::new(sink.clone()), &Silent, &Cancel::new()).unwrap();
        sink.take()
    }
}

fn broken(result: Result<Repository>) -> Error {
    result.err().expect("an error")
}

/// Three images, a tag, a label, a clone, a removed version, a hold; all of it exported.
fn furnished() -> (Fixture, Vec<Vec<u8>>) {
    let fixture = Fixture::new();
    let disks = [2, 4, 6].map(|seed| disk(seed, 1 << 20, 1 << 40)).to_vec();
    fixture.import("web", &disks[0]);
    fixture.import("web", &disks[1]);
    fixture.import("db", &disks[2]);
    let repository = fixture.open();
    let catalog = repository.catalog();
    let first = catalog.version(&"web@1".parse().unwrap()).unwrap().id;
    catalog.clone_version(&first, &"copy".parse().unwrap()).unwrap();
    catalog.set_tag(&first, &"stable".parse().unwrap()).unwrap();
    catalog.set_label(&"db".parse().unwrap(), &"arch".parse().unwrap(), Some("amd64")).unwrap();
    catalog.hold(&first, "mirror m", None).unwrap();
    catalog.count_attach(&first).unwrap();
    repository.export_names().unwrap();
    drop(repository);
    (fixture, disks)
}

#[test]
fn a_lost_catalog_is_told_with_the_command_that_makes_it_anew() {
    let (fixture, _) = furnished();
    fixture.lose_catalog();
    let error = broken(fixture.try_open());
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.chain().contains("catalog.sqlite: the file is missing"), "{}", error.chain());
    assert!(error.hint_text().unwrap().contains("larder scrub --rebuild"));
    assert!(!fixture.catalog().exists(), "none is made by looking");
    std::fs::write(fixture.catalog(), "").unwrap();
    assert_eq!(broken(fixture.try_open()).kind(), Kind::Corrupt);
}

#[test]
fn names_that_were_exported_come_back_exactly() {
    let (fixture, disks) = furnished();
    let names = fixture.names();
    fixture.lose_catalog();
    let rebuilt = fixture.rebuild();
    assert_eq!((rebuilt.exported_count, rebuilt.from_records.len()), (4, 0), "{rebuilt:?}");
    assert_eq!((rebuilt.pack_count, rebuilt.kept), (3, None));
    assert_eq!(fixture.names(), names);
    fixture.assert_sound();
    assert!(fixture.export("web:stable") == disks[0] && fixture.export("copy") == disks[0]);
    // Numbers go on, and duplicates are found as before.
    fixture.import("web", &disks[2]);
    assert!(fixture.export("web@3") == disks[2]);
    assert!(fixture.open().statistics().unwrap().unique_len <= 3 << 20);
}

#[test]
fn versions_that_are_younger_than_the_export_come_from_their_records() {
    let (fixture, disks) = furnished();
    fixture.import("web", &disks[2]);
    fixture.import("young", &disks[0]);
    let before = fixture.names();
    let repository = fixture.open();
    let first = repository.catalog().version(&"web@1".parse().unwrap()).unwrap().id;
    repository.catalog().clone_version(&first, &"late".parse().unwrap()).unwrap();
    drop(repository);
    fixture.lose_catalog();
    let rebuilt = fixture.rebuild();
    let from_records: Vec<String> = rebuilt.from_records.iter().map(ToString::to_string).collect();
    assert_eq!(from_records, ["web@3", "young@1"]);
    assert_eq!(fixture.names(), before, "all but the clone, which has no record");
    assert!(fixture.export("young") == disks[0] && fixture.export("web@3") == disks[2]);
    fixture.assert_sound();
}

#[test]
fn without_an_export_every_record_is_a_version() {
    for is_there in [false, true] {
        let (fixture, disks) = furnished();
        let export = fixture.path().join("catalog.export");
        std::fs::remove_file(&export).unwrap();
        if is_there {
            std::fs::write(&export, b"LNAM rubbish").unwrap();
        }
        fixture.lose_catalog();
        let rebuilt = fixture.rebuild();
        let from_records: Vec<String> =
            rebuilt.from_records.iter().map(ToString::to_string).collect();
        assert_eq!(from_records, ["web@1", "web@2", "db@1"]);
        assert_eq!(rebuilt.exported_micros, None);
        assert!(fixture.export("web@2") == disks[1]);
        fixture.assert_sound();
    }
}

#[test]
fn what_was_removed_before_the_export_stays_removed() {
    let (fixture, _) = furnished();
    let repository = fixture.open();
    let second = repository.catalog().version(&"web@2".parse().unwrap()).unwrap().id;
    repository.catalog().remove_version(&second).unwrap();
    fixture.clock.advance(Duration::from_secs(9));
    repository.export_names().unwrap();
    drop(repository);
    let names = fixture.names();
    fixture.lose_catalog();
    assert!(fixture.rebuild().from_records.is_empty());
    assert_eq!(fixture.names(), names);
}

#[test]
fn a_catalog_cut_anywhere_is_told_or_right_and_is_rebuilt() {
    let (fixture, disks) = furnished();
    let names = fixture.names();
    let sound = std::fs::read(fixture.catalog()).unwrap();
    let mut told = 0;
    for len in (0..sound.len()).step_by(sound.len() / 13) {
        std::fs::write(fixture.catalog(), &sound[..len]).unwrap();
        let listed = fixture.try_open().and_then(|repository| repository.catalog().names());
        match listed {
            Ok(listed) => assert_eq!(listed, names),
            Err(error) => {
                told += 1;
                assert_eq!(error.kind(), Kind::Corrupt, "{len}: {}", error.chain());
                assert!(error.hint_text().unwrap().contains("--rebuild"), "{}", error.chain());
            }
        }
        // A cut that takes away nothing that is used is no damage.
        let kept = fixture.try_rebuild(true).unwrap().kept.unwrap();
        assert_eq!(std::fs::read(&kept).unwrap(), sound[..len], "what there was is kept");
        assert_eq!(fixture.names(), names);
    }
    assert!(told > 8, "{told}");
    assert!(fixture.export("db") == disks[2]);
}

#[test]
fn a_sound_catalog_is_not_rebuilt_unless_told_so() {
    let (fixture, _) = furnished();
    let names = fixture.names();
    let error = fixture.try_rebuild(false).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused);
    assert!(error.hint_text().unwrap().contains("--even-if-sound"));
    assert!(!fixture.path().join("catalog.sqlite.new").exists());
    let rebuilt = fixture.try_rebuild(true).unwrap();
    assert!(rebuilt.kept.unwrap().ends_with("catalog.sqlite.broken-1"));
    assert_eq!(fixture.names(), names);
    assert!(fixture.try_rebuild(true).unwrap().kept.unwrap().ends_with("catalog.sqlite.broken-2"));
}

#[test]
fn a_version_whose_manifest_is_lost_is_left_out_and_named_and_the_export_is_kept() {
    let (fixture, disks) = furnished();
    let repository = fixture.open();
    let pack_of = |reference: &str| {
        let catalog = repository.catalog();
        let layout = catalog.version(&reference.parse().unwrap()).unwrap().facts.layout;
        let places = catalog.locate(&model::Realm::default_realm(), &[layout.0]).unwrap();
        fixture.path().join("packs").join(&places[0].as_ref().unwrap().pack_name)
    };
    let packs = [pack_of("db@1"), pack_of("web@2")];
    drop(repository);
    fixture.lose_catalog();
    std::fs::remove_file(&packs[0]).unwrap();
    std::fs::write(&packs[1], b"no pack").unwrap();
    let rebuilt = fixture.rebuild();
    let left_out: Vec<&str> = rebuilt.left_out.iter().map(|(what, _)| what.as_str()).collect();
    assert_eq!(left_out, ["db@1", "web@2"]);
    assert_eq!(rebuilt.unreadable_packs.len(), 1);
    assert!(fixture.export("web@1") == disks[0]);
    assert!(fixture.path().join("catalog.export.kept-1").exists());
    // The number of what is left out is not given again.
    fixture.import("web", &disks[2]);
    assert!(fixture.export("web@3") == disks[2]);
}

#[test]
fn the_export_follows_publications_by_an_hour_at_most() {
    let fixture = Fixture::new();
    let export = fixture.path().join("catalog.export");
    fixture.import("web", &disk(1, 1 << 20, 1 << 40));
    let first = std::fs::read(&export).unwrap();
    fixture.import("web", &disk(2, 1 << 20, 1 << 40));
    assert_eq!(std::fs::read(&export).unwrap(), first);
    fixture.clock.advance(Duration::from_secs(3600));
    fixture.import("web", &disk(3, 1 << 20, 1 << 40));
    assert_ne!(std::fs::read(&export).unwrap(), first);
    let names = std::fs::read_dir(fixture.path()).unwrap();
    let left =
        names.filter(|name| name.as_ref().unwrap().file_name().to_string_lossy().ends_with(".new"));
    assert_eq!(left.count(), 0);
}
