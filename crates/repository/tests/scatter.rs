//! After many commits of random blocks: a collect brings together what reading in order needs, and
//! there is nothing left to do for the next.

#![expect(clippy::print_stdout, reason = "numbers and seeds, shown where a test fails")]

mod support;

use std::collections::HashSet;

use env::SeededEntropy;
use model::progress::{Cancel, Silent};
use model::{BLOCK_LEN, SEGMENT_LEN};
use repository::{CollectLimits, CommitRequest, Repository};
use store::ChunkStore;
use support::lives::{collect, export, open};
use support::{BytesSource, Difference, disk, request};

const DISK_LEN: usize = 16 << 20;

/// Blocks that each commit changes: one in 34.
const CHANGED_BLOCKS: usize = 120;

/// How many chunks reading a version in order touches, for each MiB.
fn touches_per_mib(repository: &Repository, reference: &str) -> f64 {
    let version = repository.catalog().version(&reference.parse().unwrap()).unwrap();
    let chunks = repository.chunks();
    let mut touched = HashSet::new();
    for entry in chunks.manifest(version.facts.layout).unwrap().segments() {
        for run in chunks.segment_map(entry.map).unwrap().runs() {
            for block in run.first_block..run.end_block() {
                let offset = u64::from(entry.segment) * SEGMENT_LEN + u64::from(block) * 4096;
                touched.insert((offset >> 20, run.chunk));
            }
        }
    }
    touched.len() as f64 / (version.facts.length >> 20) as f64
}

struct History {
    repository: Repository,
    versions: Vec<Vec<u8>>,
}

/// A disk and commits of random blocks onto it.
fn history(folder: &std::path::Path, commits: u64) -> History {
    let repository = open(folder, 1);
    let cancel = Cancel::new();
    let mut versions = vec![disk(1, DISK_LEN, 1 << 40)];
    repository.import(&mut BytesSource::new(&versions[0]), &request("web", &cancel)).unwrap();
    let random = SeededEntropy::new(7);
    for number in 1..=commits {
        let old = versions.last().unwrap();
        let mut new = old.clone();
        let fresh = disk(1000 + 2 * number, CHANGED_BLOCKS * BLOCK_LEN, 1 << 40);
        for block in fresh.chunks(BLOCK_LEN) {
            let at = (random.next() >> 11) as usize % (DISK_LEN / BLOCK_LEN) * BLOCK_LEN;
            new[at..at + BLOCK_LEN].copy_from_slice(block);
        }
        let parent = repository.catalog().version(&"web".parse().unwrap()).unwrap().id;
        let request = CommitRequest {
            image: parent.image.clone(),
            parent,
            tag: None,
            origin: "test".into(),
            progress: &Silent,
        };
        repository.commit(&Difference { old, new: &new }, &request).unwrap();
        versions.push(new);
    }
    History { repository, versions }
}

fn is_done(repository: &Repository) -> bool {
    let plan = repository.plan_collect(&CollectLimits::default(), &Cancel::new()).unwrap();
    println!("{:?} {:?} {:?}", plan.dead, plan.repack, plan.recut);
    plan.is_empty()
}

fn pack_len(repository: &Repository) -> u64 {
    repository.catalog().statistics().unwrap().pack_len
}

#[test]
fn with_all_versions_kept_the_newest_reads_nearly_as_a_fresh_import_and_none_reads_worse() {
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let History { repository, versions } = history(folder.path(), 30);
    let fresh = touches_per_mib(&repository, "web@1");
    let before: Vec<f64> =
        (1..=31).map(|number| touches_per_mib(&repository, &format!("web@{number}"))).collect();
    let len = pack_len(&repository);
    collect(&repository, true).unwrap();
    let after: Vec<f64> =
        (1..=31).map(|number| touches_per_mib(&repository, &format!("web@{number}"))).collect();
    println!("fresh {fresh}\nbefore {before:.1?}\nafter {after:.1?}");
    println!("bytes {len} {}", pack_len(&repository));
    assert!(after[30] <= 2.0 * fresh && after[30] * 2.0 < before[30]);
    assert!(after.iter().zip(&before).all(|(after, before)| *after <= before * 1.25 + 1.0));
    assert!(pack_len(&repository) <= len + len / 50);
    for (bytes, number) in versions.iter().zip(1..).step_by(3) {
        let id =
            repository.catalog().version(&format!("web@{number}").parse().unwrap()).unwrap().id;
        assert!(export(&repository, &id).unwrap() == *bytes, "web@{number}");
    }
    assert!(is_done(&repository));
}

#[test]
fn with_the_newest_kept_alone_its_bytes_and_its_reads_are_nearly_those_of_a_fresh_import() {
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let History { repository, versions } = history(folder.path(), 30);
    let fresh = touches_per_mib(&repository, "web@1");
    for version in repository.catalog().versions(&"web".parse().unwrap()).unwrap() {
        if version.id.version.get() != 31 {
            repository.catalog().remove_version(&version.id).unwrap();
        }
    }
    let before = (touches_per_mib(&repository, "web"), pack_len(&repository));
    collect(&repository, true).unwrap();
    let after = (touches_per_mib(&repository, "web"), pack_len(&repository));
    let again = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let other = open(again.path(), 3);
    let last = versions.last().unwrap();
    other.import(&mut BytesSource::new(last), &request("web", &Cancel::new())).unwrap();
    println!("fresh {fresh} {}, before {before:?}, after {after:?}", pack_len(&other));
    assert!(after.0 <= 2.0 * fresh);
    assert!(after.1 * 100 <= pack_len(&other) * 125);
    let id = repository.catalog().version(&"web".parse().unwrap()).unwrap().id;
    assert!(export(&repository, &id).unwrap() == *last);
    assert!(is_done(&repository));
}
