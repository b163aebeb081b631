//! The blob interface beside a model: vectors of bytes, one for each version.

mod support;

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use env::SeededEntropy;
use model::block::LENGTH_MAX;
use model::progress::{Cancel, Silent};
use model::{Error, ImageName, Kind, Reference, Result, SEGMENT_LEN, VersionNumber};
use proptest::prelude::*;
use repository::repository::Machine;
use repository::{CommitRequest, Repository, WriteRequest, Written};
use support::{BytesSink, BytesSource, Difference, disk, request};

struct Fixture {
    folder: tempfile::TempDir,
    repository: Repository,
}

static CANCEL: Cancel = Cancel::new();

fn name(image: &str) -> ImageName {
    ImageName::new(image).unwrap()
}

fn write_request(image: &str) -> WriteRequest<'static> {
    let origin = "test".to_string();
    WriteRequest { image: name(image), origin, progress: &Silent, cancel: &CANCEL }
}

fn write(repository: &Repository, image: &str, offset: u64, bytes: &[u8]) -> Result<Written> {
    repository.write(offset, &mut Cursor::new(bytes), &write_request(image))
}

fn append(repository: &Repository, image: &str, bytes: &[u8]) -> Result<Written> {
    repository.append(&mut Cursor::new(bytes), &write_request(image))
}

fn read(repository: &Repository, reference: &str, offset: u64, len: u64) -> Result<Vec<u8>> {
    let reader = repository.open_version(&reference.parse::<Reference>()?)?;
    let mut bytes = vec![1; len as usize];
    reader.read_at(offset, &mut bytes)?;
    let sink = BytesSink::default();
    reader.read(offset, len, Box::new(sink.clone()), &Silent, &CANCEL)?;
    assert!(sink.take() == bytes, "both ways of reading give the same");
    Ok(bytes)
}

fn whole(repository: &Repository, reference: &str) -> Vec<u8> {
    let length = repository.open_version(&reference.parse().unwrap()).unwrap().length();
    read(repository, reference, 0, length).unwrap()
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    env::Entropy::fill(&SeededEntropy::new(seed), &mut bytes);
    bytes
}

fn patched(old: &[u8], offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut new = old.to_vec();
    if !bytes.is_empty() {
        new.resize(new.len().max(offset + bytes.len()), 0);
        new[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    new
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("repository");
        let (repository, _) = Repository::open_or_create(&Machine::real(), &path).unwrap();
        Fixture { folder, repository }
    }

    /// The repository as another process has it: nothing is shared but the disk.
    fn open_again(&self) -> Repository {
        Repository::open(&Machine::real(), &self.folder.path().join("repository")).unwrap()
    }

    fn import(&self, image: &str, bytes: &[u8]) {
        let cancel = Cancel::new();
        self.repository.import(&mut BytesSource::new(bytes), &request(image, &cancel)).unwrap();
    }

    /// A version is what an import of its bytes would have made.
    fn check(&self, version: &str, expected: &[u8]) {
        let repository = &self.repository;
        assert!(whole(repository, version) == expected, "{version} has other bytes");
        let fresh = Fixture::new();
        fresh.import("fresh", expected);
        let made = repository.catalog().version(&version.parse().unwrap()).unwrap().facts;
        let imported = fresh.repository.catalog().version(&"fresh".parse().unwrap()).unwrap().facts;
        assert_eq!((made.content, made.length), (imported.content, imported.length), "{version}");
        assert_eq!(made.data_len, imported.data_len, "{version}");
    }
}

#[test]
fn long_patches_at_any_alignment_are_laid_upon_the_latest_version() {
    let fixture = Fixture::new();
    let segment = SEGMENT_LEN as usize;
    let mut current = disk(1, 2 * segment + 5000, 1 << 40);
    fixture.import("web", &current);
    let long = noise(2, segment + (9 << 20) + 77);
    for (number, (offset, bytes)) in [
        // Whole segments, mixed ones, edges; behind the end; beyond a gap; zeros.
        (segment, &long[..segment]),
        (segment - 4096 * 3, &long[..]),
        (12_345, &long[..600_001]),
        (3 * segment + 1, &long[..300_000]),
        (4 * segment + 511, &long[..(1 << 20) + 1]),
        (7, &vec![0; segment + 300_000][..]),
    ]
    .into_iter()
    .enumerate()
    {
        let written = write(&fixture.repository, "web", offset as u64, bytes).unwrap();
        current = patched(&current, offset, bytes);
        assert_eq!(written.version.id.version.get(), number as u64 + 2);
        assert_eq!((written.offset, written.len), (offset as u64, bytes.len() as u64));
        assert_eq!(written.version.facts.parent.unwrap().version.get(), number as u64 + 1);
        fixture.check("web", &current);
    }
}

#[test]
fn appends_go_behind_the_end_wherever_it_is() {
    let fixture = Fixture::new();
    fixture.repository.create_image(&name("log"), 0).unwrap();
    let mut current = Vec::new();
    for (seed, len) in [1, 0, 4095, 70_000, 300_001, 5, 1 << 20, 999].into_iter().enumerate() {
        let bytes = noise(seed as u64, len);
        let written = append(&fixture.repository, "log", &bytes).unwrap();
        assert_eq!(written.offset, current.len() as u64);
        current.extend_from_slice(&bytes);
        fixture.check("log", &current);
    }
}

/// Runs something when the stream is at its end: between upload and publishing.
struct ThenAtEnd<'a, F: FnMut() + Send>(Cursor<&'a [u8]>, F);

impl<F: FnMut() + Send> Read for ThenAtEnd<'_, F> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.0.read(buffer)?;
        if read == 0 {
            (self.1)();
        }
        Ok(read)
    }
}

#[test]
fn an_append_whose_end_moves_while_it_is_stored_goes_behind_the_new_end() {
    let fixture = Fixture::new();
    let segment = SEGMENT_LEN as usize;
    for (number, moved) in [4096, segment, 3 * 4096, 777, 1].into_iter().enumerate() {
        let image = format!("log{number}");
        let old = disk(3, 10_000, 1 << 40);
        fixture.import(&image, &old);
        let bytes = noise(number as u64, segment + 500_000);
        let between = noise(99, moved);
        let mut other = Some(|| drop(append(&fixture.repository, &image, &between).unwrap()));
        let mut source =
            ThenAtEnd(Cursor::new(&bytes), || other.take().into_iter().for_each(|other| other()));
        let written = fixture.repository.append(&mut source, &write_request(&image)).unwrap();
        assert_eq!(written.offset, (old.len() + moved) as u64);
        fixture.check(&image, &[&old[..], &between[..], &bytes[..]].concat());
    }
}

#[test]
fn two_halves_of_one_block_both_survive() {
    let fixture = Fixture::new();
    fixture.repository.create_image(&name("web"), 4096).unwrap();
    // Two repositories: writers of two processes, who take no turns.
    let other = fixture.open_again();
    for round in 0..20u64 {
        let halves = [noise(2 * round, 2048), noise(2 * round + 1, 2048)];
        std::thread::scope(|scope| {
            scope.spawn(|| write(&fixture.repository, "web", 0, &halves[0]).unwrap());
            scope.spawn(|| write(&other, "web", 2048, &halves[1]).unwrap());
        });
        assert!(whole(&fixture.repository, "web") == halves.concat(), "round {round}");
    }
}

#[test]
fn a_try_in_vain_stores_the_data_once() {
    let fixture = Fixture::new();
    let other = fixture.open_again();
    fixture.import("web", &disk(5, 1 << 20, 1 << 40));
    let start = std::sync::Barrier::new(2);
    let run = |repository: Repository, seed: u64| -> Vec<Written> {
        start.wait();
        let noise = |number| noise(seed * 1000 + number, 9000);
        (0..30).map(|n| write(&repository, "web", 8192 * seed, &noise(n)).unwrap()).collect()
    };
    let outcomes = std::thread::scope(|scope| {
        let one = scope.spawn(|| run(other, 1));
        let mut all = run(fixture.repository.clone(), 2);
        all.extend(one.join().unwrap());
        all
    });
    assert!(outcomes.iter().any(|written| written.try_count > 1), "nobody was in the way");
    for written in &outcomes {
        // 9000 bytes touch three blocks at most; other edges may come with another try.
        let most = 3 * 4096 + u64::from(written.try_count - 1) * 2 * 4096;
        assert!(written.new_len <= most, "{written:?}");
    }
}

#[test]
fn every_version_is_its_parent_with_its_writers_patch() {
    let fixture = Fixture::new();
    let start = disk(7, 300_000, 1 << 40);
    fixture.import("web", &start);
    // What each version's writer wrote: version, offset, bytes.
    let log: Mutex<BTreeMap<VersionNumber, (u64, Vec<u8>)>> = Mutex::default();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut read = 0;
                    while !ended.load(Ordering::SeqCst) || read == 0 {
                        let reader =
                            fixture.repository.open_version(&"web".parse().unwrap()).unwrap();
                        let mut bytes = vec![0; reader.length() as usize];
                        reader.read_at(0, &mut bytes).unwrap();
                        let mut again = vec![0; bytes.len()];
                        reader.read_at(0, &mut again).unwrap();
                        assert!(bytes == again, "a version that is read stays as it is");
                        read += 1;
                    }
                })
            })
            .collect();
        let writers: Vec<_> = (0..6u64)
            .map(|writer| {
                // Some share a process, some do not.
                let repository = match writer % 3 {
                    0 => fixture.open_again(),
                    _ => fixture.repository.clone(),
                };
                let log = &log;
                scope.spawn(move || {
                    let random = SeededEntropy::new(writer);
                    for step in 0..8 {
                        let len = match random.next() % 8 {
                            0 => 300_000 + random.next() % 300_000,
                            1 => 0,
                            _ => 1 + random.next() % 20_000,
                        };
                        let bytes = noise(writer * 100 + step, len as usize);
                        let written = match random.next() % 3 {
                            0 => append(&repository, "web", &bytes),
                            _ => write(&repository, "web", random.next() % 400_000, &bytes),
                        }
                        .unwrap();
                        let number = written.version.id.version;
                        let known = log.lock().unwrap().insert(number, (written.offset, bytes));
                        assert!(known.is_none(), "{number} was given twice");
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        ended.store(true, Ordering::SeqCst);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
    let mut expected = start;
    for (number, (offset, bytes)) in log.into_inner().unwrap() {
        expected = patched(&expected, offset as usize, &bytes);
        let version = format!("web@{number}");
        let record = fixture.repository.catalog().version(&version.parse().unwrap()).unwrap();
        assert_eq!(record.facts.parent.unwrap().version.get() + 1, number.get());
        assert!(whole(&fixture.repository, &version) == expected, "{version}");
    }
    fixture.check("web", &expected);
}

#[test]
fn sixty_four_writers_of_one_image_all_get_through() {
    let fixture = Fixture::new();
    fixture.repository.create_image(&name("web"), 64 * 100).unwrap();
    let second = fixture.open_again();
    std::thread::scope(|scope| {
        for writer in 0..64u64 {
            let repository = if writer % 2 == 0 { &fixture.repository } else { &second };
            scope.spawn(move || {
                write(repository, "web", writer * 100, &[writer as u8 + 1; 100]).unwrap()
            });
        }
    });
    let expected: Vec<u8> = (0..64u8).flat_map(|writer| [writer + 1; 100]).collect();
    assert!(whole(&fixture.repository, "web") == expected);
    let latest = fixture.repository.catalog().version(&"web".parse().unwrap()).unwrap().latest;
    assert_eq!(latest.get(), 65);
}

/// A stream that fails, or panics, behind its last byte.
struct Ends<'a> {
    bytes: Cursor<&'a [u8]>,
    panics: bool,
}

impl Read for Ends<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self.bytes.read(buffer)? {
            0 if self.panics => panic!("on purpose"),
            0 => Err(std::io::Error::other(
                Error::new(Kind::Invalid, "read", "disk.raw").because("it became shorter"),
            )),
            read => Ok(read),
        }
    }
}

#[test]
fn a_writer_that_fails_or_dies_leaves_nothing_and_blocks_nobody() {
    let fixture = Fixture::new();
    let old = disk(8, 500_000, 1 << 40);
    fixture.import("web", &old);
    let before = fixture.repository.statistics().unwrap();
    for len in [1000, 20 << 20] {
        for panics in [false, true] {
            let bytes = noise(9, len);
            let repository = fixture.repository.clone();
            let outcome = std::thread::scope(|scope| {
                let writer = scope.spawn(|| {
                    let mut source = Ends { bytes: Cursor::new(&bytes), panics };
                    repository.write(5, &mut source, &write_request("web"))
                });
                writer.join()
            });
            // A long stream is read on a thread of its own: that it died is an error.
            match (outcome, panics) {
                (Err(_), panics) => assert!(panics),
                (Ok(outcome), true) => assert_eq!(outcome.unwrap_err().kind(), Kind::Bug),
                (Ok(outcome), false) => {
                    assert_eq!(outcome.unwrap_err().chain(), "read disk.raw: it became shorter");
                }
            }
            let now = fixture.repository.statistics().unwrap();
            assert_eq!(now.version_count, before.version_count);
            assert_eq!(now.unique_len, before.unique_len, "{len} bytes, panics: {panics}");
        }
    }
    let written = write(&fixture.repository, "web", 5, b"next").unwrap();
    assert_eq!(written.version.id.version.get(), 2);
    fixture.check("web", &patched(&old, 5, b"next"));
}

#[test]
fn requests_that_cannot_be_are_refused() {
    let fixture = Fixture::new();
    let repository = &fixture.repository;
    assert_eq!(write(repository, "none", 0, b"x").unwrap_err().kind(), Kind::NotFound);
    assert_eq!(append(repository, "none", b"x").unwrap_err().kind(), Kind::NotFound);
    repository.create_image(&name("web"), 10_000).unwrap();
    repository.create_image(&name("full"), LENGTH_MAX).unwrap();
    for (offset, len) in [(u64::MAX, 1), (LENGTH_MAX, 1), (LENGTH_MAX - 300_000, 300_001)] {
        let error = write(repository, "web", offset, &vec![1; len]).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{offset}: {}", error.chain());
    }
    assert_eq!(append(repository, "full", b"x").unwrap_err().kind(), Kind::Invalid);
    write(repository, "full", LENGTH_MAX - 1, b"x").unwrap();
    assert_eq!(read(repository, "full", LENGTH_MAX - 2, 2).unwrap(), [0, b'x']);
    for (offset, len) in [(10_001, 0), (0, 10_001), (9_999, 2), (u64::MAX, 2)] {
        let error = read(repository, "web", offset, len).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.chain().ends_with("it has 10000 bytes"), "{}", error.chain());
    }
    assert!(read(repository, "web", 10_000, 0).unwrap().is_empty());
    let latest = repository.catalog().version(&"web".parse().unwrap()).unwrap().latest;
    assert_eq!(latest.get(), 1);
}

#[test]
fn a_write_beside_a_mirror_goes_upon_what_it_commits() {
    let fixture = Fixture::new();
    let old = disk(11, 100_000, 1 << 40);
    fixture.import("web", &old);
    let new = patched(&old, 5000, b"of a guest");
    let commit = CommitRequest {
        parent: fixture.repository.catalog().version(&"web".parse().unwrap()).unwrap().id,
        image: name("web"),
        tag: None,
        origin: "test".into(),
        progress: &Silent,
    };
    let mut other = Some(|| {
        let changes = Difference { old: &old, new: &new };
        fixture.repository.commit(&changes, &commit).unwrap()
    });
    // The commit is published between the write's upload and its publishing.
    let mut source =
        ThenAtEnd(Cursor::new(b"of a writer"), || drop(other.take().map(|commit| commit())));
    let written = fixture.repository.write(9000, &mut source, &write_request("web")).unwrap();
    assert_eq!(written.version.id.version.get(), 3);
    fixture.check("web", &patched(&new, 9000, b"of a writer"));
}

#[test]
fn a_cancelled_write_leaves_nothing_behind() {
    let fixture = Fixture::new();
    fixture.repository.create_image(&name("web"), 10).unwrap();
    let before = fixture.repository.statistics().unwrap().unique_len;
    let cancel = Cancel::new();
    let bytes = noise(1, 20 << 20);
    let mut source = ThenAtEnd(Cursor::new(&bytes), || cancel.cancel());
    let request = WriteRequest { cancel: &cancel, ..write_request("web") };
    let error = fixture.repository.write(0, &mut source, &request).unwrap_err();
    assert_eq!(error.kind(), Kind::Cancelled);
    assert_eq!(fixture.repository.statistics().unwrap().unique_len, before);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn writes_appends_and_clones_equal_the_model(
        seed in 0u64..1000,
        length in 0usize..700_000,
        steps in prop::collection::vec(
            (0u8..4, 0usize..900_000, prop_oneof![0usize..9000, 250_000usize..600_000], any::<bool>()),
            1..8,
        ),
    ) {
        let fixture = Fixture::new();
        let repository = &fixture.repository;
        let mut current = disk(seed, length, 400);
        fixture.import("a0", &current);
        let mut image = "a0".to_string();
        let mut versions = vec![("a0@1".to_string(), current.clone())];
        for (number, (verb, offset, len, zeros)) in steps.into_iter().enumerate() {
            let bytes = if zeros { vec![0; len] } else { disk(seed + number as u64, len, 300) };
            match verb {
                0 => {
                    let from = repository.catalog().version(&image.parse().unwrap()).unwrap().id;
                    image = format!("a{}", number + 1);
                    repository.catalog().clone_version(&from, &name(&image)).unwrap();
                }
                1 => {
                    append(repository, &image, &bytes).unwrap();
                    current.extend_from_slice(&bytes);
                }
                _ => {
                    write(repository, &image, offset as u64, &bytes).unwrap();
                    current = patched(&current, offset, &bytes);
                }
            }
            let id = repository.catalog().version(&image.parse().unwrap()).unwrap().id;
            versions.push((id.to_string(), current.clone()));
        }
        for (version, bytes) in &versions {
            let (from, to) = (bytes.len() / 3, bytes.len() - bytes.len() / 5);
            let part = read(repository, version, from as u64, (to - from) as u64).unwrap();
            prop_assert!(part == bytes[from..to], "a part of {version}");
        }
        let (last, bytes) = &versions[versions.len() - 1];
        fixture.check(last, bytes);
    }
}

#[test]
fn readers_that_come_together_share_a_lease_until_the_last_of_them_goes() {
    let folder = tempfile::tempdir().unwrap();
    let (repository, _) = Repository::open_or_create(&Machine::real(), folder.path()).unwrap();
    repository.create_image(&name("web"), 4096).unwrap();
    let alive = || repository.catalog().leases_before(catalog::Mark(i64::MAX)).unwrap();
    let open = || repository.open_version(&"web".parse().unwrap()).unwrap();
    let (first, second) = (open(), open());
    assert_eq!(alive(), 1);
    drop(first);
    assert_eq!(alive(), 1);
    drop(second);
    assert_eq!(alive(), 0);
    let _third = open();
    assert_eq!(alive(), 1);
}
