//! What the pipeline of an import promises: all steps at once, and nothing done twice.

mod support;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use catalog::{EntryRecord, Location};
use env::SeededEntropy;
use format::entry::{Encoding, EntryKind};
use model::progress::Cancel;
use model::source::{DataRun, DiskSource};
use model::{BLOCK_LEN, Error, Kind, Result};
use repository::repository::Machine;
use repository::{Imported, Repository};
use support::{BytesSource, request};

const CHUNK_LEN: usize = 64 * BLOCK_LEN;

struct Fixture {
    folder: tempfile::TempDir,
    repository: Repository,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("repository");
        let (repository, _) = Repository::open_or_create(&Machine::real(), &path).unwrap();
        Fixture { folder, repository }
    }

    /// The same repository as another process finds it: with nothing in memory.
    fn reopen(&mut self) {
        let path = self.folder.path().join("repository");
        self.repository = Repository::open(&Machine::real(), &path).unwrap();
    }

    fn import(&self, image: &str, bytes: &[u8]) -> Imported {
        let mut source = BytesSource::new(bytes);
        self.repository.import(&mut source, &request(image, &Cancel::new())).unwrap()
    }

    fn chunks(&self) -> Vec<EntryRecord> {
        let entries = self.repository.catalog().entries(None, 100_000).unwrap();
        let records = entries.into_iter().map(|(_, Location { entry, .. })| entry);
        records.filter(|entry| entry.kind == EntryKind::Chunk as u8).collect()
    }
}

/// Bytes that no compressor makes shorter.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let random = SeededEntropy::new(seed);
    (0..len / 8).flat_map(|_| random.next().to_le_bytes()).collect()
}

/// Text that every compressor makes shorter, each block unlike any other.
fn text(len: usize) -> Vec<u8> {
    (0..len / BLOCK_LEN)
        .flat_map(|block| {
            let line = format!("line of block {block}; ").into_bytes();
            line.into_iter().cycle().take(BLOCK_LEN)
        })
        .collect()
}

/// Noise without end, until a pack is there; an error when none comes.
struct UntilPacked {
    packs: PathBuf,
    random: SeededEntropy,
    at: u64,
    len_max: u64,
    seen: bool,
}

impl DiskSource for UntilPacked {
    fn length_hint(&self) -> Option<u64> {
        None
    }

    fn data_len_hint(&self) -> Option<u64> {
        None
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<Option<DataRun>> {
        let there = || std::fs::read_dir(&self.packs).is_ok_and(|mut all| all.next().is_some());
        if there() {
            self.seen = true;
            return Ok(None);
        }
        if self.at >= self.len_max {
            // Enough was read for two packs; whoever packs only what was read to the end never will.
            let deadline = Instant::now() + Duration::from_secs(60);
            while !there() {
                if Instant::now() > deadline {
                    return Err(Error::new(Kind::Bug, "wait for", "a pack"));
                }
                std::thread::yield_now();
            }
            self.seen = true;
            return Ok(None);
        }
        let len = buffer.len().min(1 << 20);
        for bytes in buffer[..len].chunks_mut(BLOCK_LEN) {
            bytes.fill(7);
            bytes[..8].copy_from_slice(&self.random.next().to_le_bytes());
        }
        let run = DataRun { offset: self.at, len };
        self.at += len as u64;
        Ok(Some(run))
    }

    fn length(&self) -> u64 {
        self.at
    }
}

#[test]
fn packs_are_written_while_the_disk_is_still_read() {
    let fixture = Fixture::new();
    let mut source = UntilPacked {
        packs: fixture.folder.path().join("repository/packs"),
        random: SeededEntropy::new(1),
        at: 0,
        len_max: 128 << 20,
        seen: false,
    };
    fixture.repository.import(&mut source, &request("a", &Cancel::new())).unwrap();
    assert!(source.seen);
}

#[test]
fn what_does_not_compress_is_stored_plain_and_what_does_is_compressed() {
    let fixture = Fixture::new();
    let bytes = [noise(2, 4 * CHUNK_LEN), text(4 * CHUNK_LEN)].concat();
    fixture.import("a", &bytes);
    let chunks = fixture.chunks();
    let plain = chunks.iter().filter(|chunk| chunk.encoding == Encoding::Plain as u8);
    assert!(plain.clone().all(|chunk| chunk.stored_len == chunk.plain_len));
    assert_eq!((chunks.len(), plain.count()), (8, 4));
}

#[test]
fn duplicates_make_no_chunk_and_so_nothing_to_compress() {
    let mut fixture = Fixture::new();
    let bytes = [noise(3, 20 * CHUNK_LEN), text(80 * CHUNK_LEN)].concat();
    fixture.import("a", &bytes);
    let before = fixture.chunks();
    fixture.reopen();
    // The same blocks at other places, and each of them twice.
    let moved = [&bytes[5 * BLOCK_LEN..], &[0; 3 * BLOCK_LEN], &bytes[..]].concat();
    let imported = fixture.import("b", &moved);
    assert_eq!(imported.new_len, 0);
    assert_eq!(fixture.chunks(), before);
}

#[test]
fn what_lies_in_a_short_pack_behind_a_named_one_is_found() {
    let mut fixture = Fixture::new();
    // A full pack, then one of so few blocks that none of them is a hook.
    let full = noise(4, 64 * CHUNK_LEN);
    let short = (100..)
        .map(|seed| noise(seed, 8 * BLOCK_LEN))
        .find(|bytes| bytes.chunks(BLOCK_LEN).all(|block| !model::BlockDigest::of(block).is_hook()))
        .unwrap();
    let bytes = [full, short].concat();
    fixture.import("a", &bytes);
    assert_eq!(fixture.chunks().len(), 65);
    fixture.reopen();
    assert_eq!(fixture.import("b", &bytes).new_len, 0);
}
