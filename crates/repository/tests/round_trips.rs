//! What goes in comes out: imports, commits and exports against a model, on real folders.

mod support;

use model::progress::{Cancel, Silent};
use model::source::{DataRun, DiskSource};
use model::{BLOCK_LEN, ImageName, Kind, Reference, Result, SEGMENT_LEN};
use proptest::prelude::*;
use repository::repository::Machine;
use repository::{CommitRequest, Imported, Repository};
use support::{BytesSink, BytesSource, Difference, disk, request};

struct Fixture {
    _folder: tempfile::TempDir,
    repository: Repository,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("repository");
        let (repository, is_new) = Repository::open_or_create(&Machine::real(), &path).unwrap();
        assert!(is_new);
        Fixture { _folder: folder, repository }
    }

    fn import(&self, image: &str, bytes: &[u8]) -> Imported {
        self.import_as(image, bytes, 1 << 20, true)
    }

    fn import_as(&self, image: &str, bytes: &[u8], step: usize, knows_length: bool) -> Imported {
        let mut source = BytesSource { bytes, at: 0, step, knows_length };
        self.repository.import(&mut source, &request(image, &Cancel::new())).unwrap()
    }

    fn export(&self, reference: &str) -> Vec<u8> {
        let version = self.repository.catalog().version(&reference.parse().unwrap()).unwrap();
        let sink = BytesSink::default();
        self.repository
            .export(&version.id, Box::new(sink.clone()), &Silent, &Cancel::new())
            .unwrap();
        sink.take()
    }

    fn commit(&self, parent: &str, old: &[u8], new: &[u8]) -> repository::Committed {
        let parent = self.repository.catalog().version(&parent.parse().unwrap()).unwrap().id;
        let request = CommitRequest {
            image: parent.image.clone(),
            parent,
            tag: None,
            origin: "test".into(),
            progress: &Silent,
        };
        self.repository.commit(&Difference { old, new }, &request).unwrap()
    }
}

#[test]
fn disks_of_any_length_come_back_byte_for_byte() {
    let fixture = Fixture::new();
    for (number, length) in [0, 1, 511, 4095, 4096, 4097, 1 << 20, (20 << 20) + 513, (65 << 20) + 1]
        .into_iter()
        .enumerate()
    {
        let bytes = disk(number as u64, length, 5000);
        let image = format!("image{number}");
        let imported = fixture.import(&image, &bytes);
        assert_eq!(imported.version.facts.length, length as u64);
        assert!(fixture.export(&image) == bytes, "length {length}");
        let streamed = fixture.import_as(&image, &bytes, BLOCK_LEN * 3, false);
        assert_eq!(streamed.content, imported.content, "a stream of {length} bytes");
    }
}

#[test]
fn a_second_import_of_the_same_bytes_stores_next_to_nothing() {
    let fixture = Fixture::new();
    let bytes = disk(1, 40 << 20, 1 << 40);
    let first = fixture.import("a", &bytes);
    let second = fixture.import("b", &bytes);
    assert_eq!(first.content, second.content);
    assert!(first.new_len > 25 << 20, "{first:?}");
    assert!(second.new_len < first.new_len / 100, "{second:?}");
    assert!(second.stored_len < 200_000, "{second:?}");
}

#[test]
fn the_content_digest_does_not_depend_on_what_the_repository_had_seen() {
    let (one, two) = (Fixture::new(), Fixture::new());
    let bytes = disk(2, 10 << 20, 3000);
    two.import("other", &disk(3, 10 << 20, 3000));
    assert_eq!(one.import("a", &bytes).content, two.import("a", &bytes).content);
}

#[test]
fn a_commit_has_the_digest_and_the_bytes_of_an_import_of_the_whole() {
    let fixture = Fixture::new();
    let old = disk(4, (70 << 20) + 100, 1 << 40);
    fixture.import("web", &old);
    let mut new = old.clone();
    new[5000..9000].fill(7);
    new[66 << 20..(66 << 20) + 20_000].fill(0);
    let end = new.len();
    new[end - 10..].fill(9);
    let committed = fixture.commit("web", &old, &new);
    assert_eq!(committed.version.id.version.get(), 2);
    assert!(committed.dirty_len < 10 * BLOCK_LEN as u64, "{committed:?}");
    assert!(committed.stored_len < 100_000, "{committed:?}");
    assert!(fixture.export("web@2") == new);
    assert!(fixture.export("web@1") == old);
    let whole = Fixture::new().import("web", &new);
    assert_eq!(whole.content, committed.version.facts.content);
    assert_eq!(whole.version.facts.data_len, committed.version.facts.data_len);
}

#[test]
fn a_commit_upon_an_old_version_says_what_it_bypasses() {
    let fixture = Fixture::new();
    let old = disk(5, 1 << 20, 100);
    fixture.import("web", &old);
    let mut new = old.clone();
    new[0] ^= 1;
    assert_eq!(fixture.commit("web@1", &old, &new).bypassed, None);
    let bypassed = fixture.commit("web@1", &old, &new).bypassed.unwrap();
    assert_eq!(bypassed.to_string(), "web@2");
}

#[test]
fn an_import_that_fails_leaves_nothing_behind() {
    struct Fails<'a>(BytesSource<'a>);
    impl DiskSource for Fails<'_> {
        fn length_hint(&self) -> Option<u64> {
            self.0.length_hint()
        }
        fn data_len_hint(&self) -> Option<u64> {
            None
        }
        fn read(&mut self, buffer: &mut [u8]) -> Result<Option<DataRun>> {
            self.0.read(buffer)?.map(Some).ok_or_else(|| {
                model::Error::new(Kind::Corrupt, "read", "the disk").because("it shrank")
            })
        }
        fn length(&self) -> u64 {
            self.0.length()
        }
    }
    let fixture = Fixture::new();
    let bytes = disk(6, 50 << 20, 1 << 40);
    let source = BytesSource::new(&bytes);
    let cancel = Cancel::new();
    let error = fixture.repository.import(&mut Fails(source), &request("a", &cancel)).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    let counted = fixture.repository.catalog().statistics().unwrap();
    assert_eq!((counted.version_count, counted.pack_count, counted.entry_count), (0, 0, 0));
    let reference: Reference = "a".parse().unwrap();
    assert_eq!(
        fixture.repository.catalog().version(&reference).unwrap_err().kind(),
        Kind::NotFound
    );
}

#[test]
fn a_cancelled_import_leaves_nothing_behind() {
    let fixture = Fixture::new();
    let bytes = disk(7, 50 << 20, 1 << 40);
    let cancel = Cancel::new();
    cancel.cancel();
    let mut source = BytesSource::new(&bytes);
    let error = fixture.repository.import(&mut source, &request("a", &cancel)).unwrap_err();
    assert_eq!(error.kind(), Kind::Cancelled);
    assert_eq!(fixture.repository.catalog().statistics().unwrap().pack_count, 0);
}

#[test]
fn an_empty_image_of_any_length_costs_next_to_nothing() {
    let fixture = Fixture::new();
    let image = ImageName::new("huge").unwrap();
    let version = fixture.repository.create_image(&image, 16 << 40).unwrap();
    assert_eq!(version.facts.length, 16 << 40);
    assert!(fixture.repository.statistics().unwrap().stored_len < 1 << 20);
    let again = fixture.repository.create_image(&image, 1).unwrap_err();
    assert_eq!(again.kind(), Kind::Exists);
    assert!(fixture.repository.create_image(&ImageName::new("x").unwrap(), u64::MAX).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn commits_upon_commits_equal_the_model(
        seed in 0u64..1000,
        length in 1usize..(3 << 20),
        edits in prop::collection::vec((any::<u32>(), 1usize..200_000, 0u8..3, 0i64..3), 1..6),
    ) {
        let fixture = Fixture::new();
        let mut current = disk(seed, length, 400);
        fixture.import("web", &current);
        let mut versions = vec![current.clone()];
        for (at, len, byte, resize) in edits {
            let mut next = current.clone();
            match resize {
                1 => next.resize(current.len() + len, 0),
                2 => next.truncate((current.len() / 2).max(1)),
                _ => {}
            }
            let at = at as usize % next.len();
            let end = (at + len).min(next.len());
            next[at..end].fill(byte);
            let committed = fixture.commit("web", &current, &next);
            prop_assert_eq!(committed.version.facts.length, next.len() as u64);
            current = next;
            versions.push(current.clone());
        }
        for (number, bytes) in versions.iter().enumerate() {
            let exported = fixture.export(&format!("web@{}", number + 1));
            prop_assert!(exported == *bytes, "version {}", number + 1);
        }
        let last = fixture.repository.catalog().version(&"web".parse().unwrap()).unwrap();
        let whole = Fixture::new().import("web", &current);
        prop_assert_eq!(whole.content, last.facts.content);
        prop_assert_eq!(whole.version.facts.data_len, last.facts.data_len);
    }
}

#[test]
fn segments_are_as_long_as_the_tests_assume() {
    assert_eq!(SEGMENT_LEN, 64 << 20);
}

#[test]
fn a_repository_is_made_once_by_whoever_comes_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/b/repository");
    std::thread::scope(|scope| {
        for number in 0..6 {
            let path = &path;
            scope.spawn(move || {
                let (repository, _) = Repository::open_or_create(&Machine::real(), path).unwrap();
                let image = ImageName::new(&format!("image{number}")).unwrap();
                repository.create_image(&image, 4096).unwrap();
            });
        }
    });
    let repository = Repository::open(&Machine::real(), &path).unwrap();
    assert_eq!(repository.statistics().unwrap().image_count, 6);
    let names = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names.into_iter().all(|name| !name.to_string_lossy().ends_with(".new")));
}

#[test]
fn a_folder_that_holds_something_else_becomes_no_repository() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("letter.txt"), "dear").unwrap();
    let error = Repository::open_or_create(&Machine::real(), folder.path()).err().unwrap();
    assert_eq!(error.kind(), Kind::Refused);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}
