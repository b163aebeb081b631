//! Power loss at every step of an import, a commit, a write and an append: the old version or the new one, whole.
//!
//! Packs lie on a simulated disk that forgets and reorders what was not synced. The catalog lies in
//! a real SQLite file, which is opened anew: SQLite's own promise on power loss is taken as it is.

mod support;

use std::path::Path;
use std::sync::Arc;

use catalog::SqliteCatalog;
use env::simulated::SimulatedFileSystem;
use env::{FileSystem, SeededEntropy, SystemClock};
use model::progress::{Cancel, Silent};
use model::{Kind, Result};
use repository::{
    CollectLimits, CollectRequest, Collected, CommitRequest, Repository, Settings, WriteRequest,
};
use store::{DirectoryPackStore, PackStore};
use support::{BytesSink, BytesSource, Difference, disk, request};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

fn open(disk: &SimulatedFileSystem, catalog: &Path, seed: u64) -> Result<Repository> {
    let file_system: Arc<dyn FileSystem> = Arc::new(disk.clone());
    let packs = DirectoryPackStore::open(file_system, Path::new("/packs"))?;
    let catalog = SqliteCatalog::open(catalog, Arc::new(SystemClock))?;
    let settings = Settings::new("test".into());
    let entropy = Arc::new(SeededEntropy::new(seed));
    Ok(Repository::from_parts(settings, Arc::new(catalog), Arc::new(packs), entropy))
}

fn export(repository: &Repository, reference: &str) -> Result<Vec<u8>> {
    let version = repository.catalog().version(&reference.parse()?)?;
    let sink = BytesSink::default();
    repository.export(&version.id, Box::new(sink.clone()), &Silent, &Cancel::new())?;
    Ok(sink.take())
}

/// Runs `change` with the disk failing from its first operation on, then from its second, until it
/// gets through; after each, the machine loses power, and `expected` versions must be what is there.
fn check(error: i32, change: impl Fn(&Repository) -> Result<()>, old: &[u8], new: &[u8]) {
    for step in 0.. {
        let folder = tempfile::tempdir().unwrap();
        let catalog = folder.path().join("catalog.sqlite");
        let disk = SimulatedFileSystem::new();
        let repository = open(&disk, &catalog, step).unwrap();
        let mut source = BytesSource::new(old);
        repository.import(&mut source, &request("web", &Cancel::new())).unwrap();
        disk.fail_from(disk.operation_count() + step, error);
        let changed = change(&repository);
        drop(repository);
        let after = disk.crash(step);
        after.heal();
        let repository = open(&after, &catalog, step + 1000).unwrap();
        assert!(export(&repository, "web@1").unwrap() == old, "the old version, step {step}");
        match export(&repository, "web@2") {
            Ok(bytes) => assert!(bytes == new, "the new version, step {step}"),
            Err(missing) => {
                assert_eq!(missing.kind(), Kind::NotFound, "step {step}: {}", missing.chain());
                assert!(changed.is_err(), "what was acknowledged exists, step {step}");
            }
        }
        // Whatever was left, the next try gets through.
        let mut source = BytesSource::new(new);
        let again = repository.import(&mut source, &request("web", &Cancel::new())).unwrap();
        let reference = again.version.id.to_string();
        assert!(export(&repository, &reference).unwrap() == new, "tried again, step {step}");
        if changed.is_ok() {
            assert!(step > 5, "the disk was used");
            return;
        }
    }
}

#[test]
fn an_import_is_there_whole_or_not_at_all_after_power_loss_at_any_step() {
    let (old, new) = (disk(1, 1 << 20, 1 << 40), disk(2, 36 << 20, 1 << 40));
    for error in [EIO, ENOSPC] {
        check(
            error,
            |repository| {
                let mut source = BytesSource::new(&new);
                repository.import(&mut source, &request("web", &Cancel::new())).map(drop)
            },
            &old,
            &new,
        );
    }
}

#[test]
fn a_commit_is_there_whole_or_not_at_all_after_power_loss_at_any_step() {
    let old = disk(3, 3 << 20, 1 << 40);
    let mut new = old.clone();
    new[100_000..900_000].copy_from_slice(&disk(4, 800_000, 1 << 40));
    check(EIO, |repository| commit(repository, "web@1", &old, &new), &old, &new);
}

/// Versions of which some are removed, so that a collect has everything to do: packs that are dead,
/// packs that are mostly dead, chunks that are half dead. Returns what must be readable.
fn make_garbage(repository: &Repository) -> Result<Vec<(String, Vec<u8>)>> {
    let old = disk(3, 3 << 20, 1 << 40);
    let mut new = old.clone();
    for block in (0..new.len() / 4096).filter(|block| block % 8 != 0) {
        new[block * 4096] ^= 0x5a;
    }
    let kept = disk(4, 1 << 20, 1 << 40);
    let mixed = [kept.clone(), disk(5, 4 << 20, 1 << 40)].concat();
    import(repository, "web", &old)?;
    commit(repository, "web@1", &old, &new)?;
    import(repository, "mixed", &mixed)?;
    import(repository, "kept", &kept)?;
    import(repository, "gone", &disk(6, 2 << 20, 1 << 40))?;
    for gone in ["web@1", "mixed@1", "gone@1"] {
        let gone = repository.catalog().version(&gone.parse()?)?.id;
        repository.catalog().remove_version(&gone)?;
    }
    Ok(vec![("web@2".into(), new), ("kept@1".into(), kept)])
}

fn import(repository: &Repository, image: &str, bytes: &[u8]) -> Result<()> {
    repository.import(&mut BytesSource::new(bytes), &request(image, &Cancel::new())).map(drop)
}

fn commit(repository: &Repository, parent: &str, old: &[u8], new: &[u8]) -> Result<()> {
    let parent = repository.catalog().version(&parent.parse()?)?.id;
    let request = CommitRequest {
        image: parent.image.clone(),
        parent,
        tag: None,
        origin: "test".into(),
        progress: &Silent,
    };
    repository.commit(&Difference { old, new }, &request).map(drop)
}

fn collect(repository: &Repository) -> Result<Collected> {
    repository.collect(&CollectRequest {
        limits: CollectLimits::default(),
        waits: true,
        events: &Silent,
        cancel: &Cancel::new(),
    })
}

/// A folder in memory, where there is such: the disk that matters here is the simulated one.
fn memory_folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Power is lost at every step of a collect: what was published reads back, the next collect finishes
/// the work, and no file is left that no row names.
#[test]
fn a_collect_that_loses_power_at_any_step_loses_nothing_and_the_next_one_finishes() {
    let template = memory_folder();
    let made = SimulatedFileSystem::new();
    let repository = open(&made, &template.path().join("catalog.sqlite"), 1).unwrap();
    let versions = make_garbage(&repository).unwrap();
    drop(repository);
    for (error, stride) in [(EIO, 1), (ENOSPC, 7)] {
        for step in (0..).step_by(stride) {
            let folder = memory_folder();
            let catalog = folder.path().join("catalog.sqlite");
            std::fs::copy(template.path().join("catalog.sqlite"), &catalog).unwrap();
            // All of it was synced, so this is a copy.
            let disk = made.crash(0);
            let repository = open(&disk, &catalog, step + 2).unwrap();
            disk.fail_from(disk.operation_count() + step, error);
            let collected = collect(&repository);
            drop(repository);
            let after = disk.crash(step);
            after.heal();
            let repository = open(&after, &catalog, step + 1000).unwrap();
            for (reference, bytes) in &versions {
                let read = export(&repository, reference);
                assert!(read.is_ok_and(|read| read == *bytes), "{reference}, step {step}");
            }
            let again = collect(&repository).unwrap();
            for (reference, bytes) in &versions {
                assert!(
                    export(&repository, reference).unwrap() == *bytes,
                    "{reference}, step {step}"
                );
            }
            let plan = repository.plan_collect(&CollectLimits::default(), &Cancel::new()).unwrap();
            assert!(plan.is_empty(), "step {step}: {plan:?} after {again:?}");
            let packs = DirectoryPackStore::open(Arc::new(after), Path::new("/packs")).unwrap();
            let files = packs.list().unwrap().len();
            assert_eq!(files, repository.catalog().packs().unwrap().len(), "step {step}");
            assert!(packs.unfinished().unwrap().is_empty(), "step {step}");
            if let Ok(collected) = collected {
                assert!(step > 30 && collected.removed_packs > 2, "step {step}: {collected:?}");
                break;
            }
        }
    }
}

/// A write and an append, short ones and long ones, each upon the same disk.
fn check_patch(length: usize, appends: bool) {
    let old = disk(6, 3_000_123, 1 << 40);
    let patch = disk(7, length, 1 << 40);
    let offset = if appends { old.len() } else { 100_001 };
    let mut new = old.clone();
    new.resize(new.len().max(offset + length), 0);
    new[offset..offset + length].copy_from_slice(&patch);
    for error in [EIO, ENOSPC] {
        check(
            error,
            |repository| {
                let cancel = Cancel::new();
                let request = WriteRequest {
                    image: "web".parse()?,
                    origin: "test".into(),
                    progress: &Silent,
                    cancel: &cancel,
                };
                let mut source = patch.as_slice();
                match appends {
                    true => repository.append(&mut source, &request).map(drop),
                    false => repository.write(offset as u64, &mut source, &request).map(drop),
                }
            },
            &old,
            &new,
        );
    }
}

#[test]
fn a_write_is_there_whole_or_not_at_all_after_power_loss_at_any_step() {
    check_patch(10_000, false);
    check_patch(1_500_000, false);
}

#[test]
fn an_append_is_there_whole_or_not_at_all_after_power_loss_at_any_step() {
    check_patch(10_000, true);
    check_patch(1_500_000, true);
}

#[test]
fn what_an_import_left_that_failed_does_not_stand_in_the_way_of_the_next() {
    let new = disk(5, 70 << 20, 1 << 40);
    let folder = tempfile::tempdir().unwrap();
    let disk = SimulatedFileSystem::new();
    let repository = open(&disk, &folder.path().join("catalog.sqlite"), 1).unwrap();
    let import = || {
        let mut source = BytesSource::new(&new);
        repository.import(&mut source, &request("web", &Cancel::new()))
    };
    // Late enough that packs were written, made visible and put among the lists in memory.
    let mut failed = 0;
    for step in (8..60).step_by(3) {
        disk.fail_from(disk.operation_count() + step, ENOSPC);
        let outcome = import();
        disk.heal();
        let Err(error) = outcome else { break };
        assert_eq!(error.kind(), Kind::Full, "step {step}: {}", error.chain());
        failed += 1;
    }
    assert!(failed > 1, "the disk was full in the middle of an import");
    let version = import().unwrap().version.id.to_string();
    assert!(export(&repository, &version).unwrap() == new);
}

/// Zeroes the stored bytes of every chunk and map of a repository's packs.
fn spoil(disk: &SimulatedFileSystem) {
    let packs = Path::new("/packs");
    for name in disk.list(packs).unwrap() {
        let file = disk.open(&packs.join(&name), env::OpenMode::ReadWrite).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let index = format::PackIndex::read(bytes.len() as u64, |offset, len| {
            Ok::<_, format::FormatError>(bytes[offset as usize..][..len].to_vec())
        });
        for entry in index.unwrap().entries() {
            if entry.kind != format::EntryKind::Record {
                file.write_all_at(&vec![0; entry.stored_len as usize], entry.offset).unwrap();
            }
        }
        file.sync().unwrap();
    }
}

#[test]
fn a_repair_that_is_cut_short_at_any_step_is_finished_by_the_next() {
    let (old, new) = (common(1), common(2));
    let donor_folder = tempfile::tempdir().unwrap();
    let donor =
        open(&SimulatedFileSystem::new(), &donor_folder.path().join("c.sqlite"), 7).unwrap();
    for bytes in [&disk(9, 1 << 20, 1 << 40), &old, &new] {
        let mut source = BytesSource::new(bytes);
        donor.import(&mut source, &request("web", &Cancel::new())).unwrap();
    }
    for error in [EIO, ENOSPC] {
        for step in 0.. {
            let folder = tempfile::tempdir().unwrap();
            let catalog = folder.path().join("catalog.sqlite");
            let disk = SimulatedFileSystem::new();
            let repository = open(&disk, &catalog, step).unwrap();
            for bytes in [&old, &new] {
                let mut source = BytesSource::new(bytes);
                repository.import(&mut source, &request("web", &Cancel::new())).unwrap();
            }
            spoil(&disk);
            let cancel = Cancel::new();
            let scrub = repository::ScrubRequest {
                rate_bytes_per_second: None,
                deep: false,
                progress: &Silent,
                cancel: &cancel,
            };
            disk.fail_from(disk.operation_count() + step * 5, error);
            let repaired = repository.repair(&scrub, Some(&donor));
            let is_through = repaired.as_ref().is_ok_and(|report| {
                use repository::scrub::finding::Outcome;
                report.findings.iter().all(|f| matches!(f.outcome, Outcome::Restored(_)))
            });
            drop(repository);
            let after = disk.crash(step);
            after.heal();
            let repository = open(&after, &catalog, step + 1000).unwrap();
            // Whatever was left: what can be read is right.
            for (reference, bytes) in [("web@1", &old), ("web@2", &new)] {
                if let Ok(exported) = export(&repository, reference) {
                    assert!(exported == *bytes, "{reference}, step {step}");
                } else {
                    assert!(!is_through, "{reference}, step {step}");
                }
            }
            repository.repair(&scrub, Some(&donor)).unwrap();
            let found = repository.scrub(&scrub).unwrap();
            assert!(found.is_sound(), "step {step}: {:#?}", found.findings);
            for (reference, bytes) in [("web@1", &old), ("web@2", &new)] {
                assert!(export(&repository, reference).unwrap() == *bytes, "step {step}");
            }
            if is_through {
                assert!(step > 3, "the disk was used");
                break;
            }
        }
    }
}

/// A small disk that does not compress away.
fn common(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; 300_000];
    env::Entropy::fill(&SeededEntropy::new(seed), &mut bytes);
    bytes
}
