//! Collect: what nothing refers to goes, what something refers to stays, whoever is at work meanwhile.

mod support;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use catalog::SqliteCatalog;
use env::{Clock, ManualClock, RealFileSystem, SeededEntropy, SystemClock};
use model::progress::{Cancel, Silent};
use model::{Kind, Result};
use repository::collect::{CollectEvents, CollectStep};
use repository::{CollectLimits, CollectRequest, Collected, CommitRequest, Repository, Settings};
use store::{DirectoryPackStore, PackStore};
use support::{BytesSink, BytesSource, Difference, disk, request};

fn open_at(folder: &Path, clock: Arc<dyn Clock>, seed: u64) -> Repository {
    let packs = DirectoryPackStore::open(Arc::new(RealFileSystem), &folder.join("packs")).unwrap();
    let catalog = SqliteCatalog::open(&folder.join("catalog.sqlite"), clock).unwrap();
    let entropy = Arc::new(SeededEntropy::new(seed));
    Repository::from_parts(Settings::new("t".into()), Arc::new(catalog), Arc::new(packs), entropy)
}

fn open(folder: &Path) -> Repository {
    open_at(folder, Arc::new(SystemClock), 1)
}

fn import(repository: &Repository, image: &str, bytes: &[u8]) -> String {
    let cancel = Cancel::new();
    let imported = repository.import(&mut BytesSource::new(bytes), &request(image, &cancel));
    imported.unwrap().version.id.to_string()
}

fn export(repository: &Repository, reference: &str) -> Result<Vec<u8>> {
    let version = repository.catalog().version(&reference.parse()?)?;
    let sink = BytesSink::default();
    repository.export(&version.id, Box::new(sink.clone()), &Silent, &Cancel::new())?;
    Ok(sink.take())
}

fn commit(repository: &Repository, parent: &str, old: &[u8], new: &[u8]) -> String {
    let parent = repository.catalog().version(&parent.parse().unwrap()).unwrap().id;
    let request = CommitRequest {
        image: parent.image.clone(),
        parent,
        tag: None,
        origin: "test".into(),
        progress: &Silent,
    };
    let committed = repository.commit(&Difference { old, new }, &request).unwrap();
    committed.version.id.to_string()
}

fn remove(repository: &Repository, reference: &str) {
    let version = repository.catalog().version(&reference.parse().unwrap()).unwrap();
    repository.catalog().remove_version(&version.id).unwrap();
}

fn collect_with(
    repository: &Repository,
    limits: CollectLimits,
    events: &dyn CollectEvents,
) -> Result<Collected> {
    let cancel = Cancel::new();
    repository.collect(&CollectRequest { limits, waits: true, events, cancel: &cancel })
}

fn collect(repository: &Repository) -> Collected {
    collect_with(repository, CollectLimits::default(), &Silent).unwrap()
}

fn plan(repository: &Repository) -> repository::CollectPlan {
    repository.plan_collect(&CollectLimits::default(), &Cancel::new()).unwrap()
}

fn bytes_of_packs(folder: &Path) -> u64 {
    std::fs::read_dir(folder.join("packs"))
        .unwrap()
        .map(|f| f.unwrap().metadata().unwrap().len())
        .sum()
}

/// Calls a function once, when a collect comes to a step.
struct At<F>(CollectStep, Mutex<Option<F>>);

impl<F: FnOnce() + Send> CollectEvents for At<F> {
    fn step(&self, step: CollectStep) {
        if std::mem::discriminant(&step) == std::mem::discriminant(&self.0)
            && let Some(call) = self.1.lock().unwrap().take()
        {
            call();
        }
    }
}

fn at<F: FnOnce() + Send>(step: CollectStep, call: F) -> At<F> {
    At(step, Mutex::new(Some(call)))
}

#[test]
fn what_nothing_refers_to_goes_and_the_rest_stays() {
    let folder = tempfile::tempdir().unwrap();
    let repository = open(folder.path());
    let (kept, gone) = (disk(1, 20 << 20, 1 << 40), disk(2, 20 << 20, 1 << 40));
    import(&repository, "kept", &kept);
    import(&repository, "gone", &gone);
    assert!(plan(&repository).is_empty(), "{:?}", plan(&repository));
    remove(&repository, "gone");
    let before = bytes_of_packs(folder.path());
    let planned = plan(&repository);
    assert!(planned.removable_len * 5 > before * 2, "{planned:?}");
    assert_eq!(bytes_of_packs(folder.path()), before, "a plan changes nothing");
    let collected = collect(&repository);
    assert_eq!(bytes_of_packs(folder.path()), before - collected.removed_len);
    assert!(collected.removed_len.abs_diff(planned.removable_len) < 4096, "{collected:?}");
    assert!(export(&repository, "kept").unwrap() == kept);
    assert!(plan(&repository).is_empty(), "{:?}", plan(&repository));
    let statistics = repository.catalog().statistics().unwrap();
    assert_eq!(statistics.pack_len, bytes_of_packs(folder.path()));
}

#[test]
fn an_empty_repository_is_collected() {
    let folder = tempfile::tempdir().unwrap();
    let repository = open(folder.path());
    assert!(plan(&repository).is_empty());
    assert_eq!(collect(&repository).removed_len, 0);
}

#[test]
fn little_memory_means_more_walks_and_the_same_plan() {
    let folder = tempfile::tempdir().unwrap();
    let repository = open(folder.path());
    let bytes = disk(1, 24 << 20, 1 << 40);
    import(&repository, "kept", &bytes);
    import(&repository, "gone", &disk(2, 24 << 20, 1 << 40));
    remove(&repository, "gone");
    let whole = plan(&repository);
    let limits = CollectLimits { memory_len: 1000, ..CollectLimits::default() };
    let narrow = repository.plan_collect(&limits, &Cancel::new()).unwrap();
    assert_eq!(whole.removable_len, narrow.removable_len);
    assert_eq!((whole.dead, whole.live_len), (narrow.dead, narrow.live_len));
    collect_with(&repository, limits, &Silent).unwrap();
    assert!(export(&repository, "kept").unwrap() == bytes);
}

#[test]
fn packs_that_are_mostly_dead_are_copied() {
    let folder = tempfile::tempdir().unwrap();
    let repository = open(folder.path());
    // One pack holds both: most of it is the second disk's.
    let small = disk(1, 1 << 20, 1 << 40);
    let large = [small.clone(), disk(2, 10 << 20, 1 << 40)].concat();
    import(&repository, "large", &large);
    import(&repository, "small", &small);
    remove(&repository, "large");
    let before = bytes_of_packs(folder.path());
    let collected = collect(&repository);
    assert!(collected.plan.repack.count >= 1, "{collected:?}");
    assert!(bytes_of_packs(folder.path()) < before / 4);
    assert!(export(&repository, "small").unwrap() == small);
    assert!(plan(&repository).is_empty(), "{:?}", plan(&repository));
    // What was copied is found as a duplicate.
    let cancel = Cancel::new();
    let again = repository.import(&mut BytesSource::new(&small), &request("again", &cancel));
    assert_eq!(again.unwrap().new_len, 0);
}

#[test]
fn many_small_packs_are_joined() {
    let folder = tempfile::tempdir().unwrap();
    let repository = open(folder.path());
    let mut bytes = disk(1, 1 << 20, 1 << 40);
    import(&repository, "web", &bytes);
    for number in 0..12u8 {
        let old = bytes.clone();
        bytes[usize::from(number) * 40_000] ^= 1;
        commit(&repository, &format!("web@{}", number + 1), &old, &bytes);
    }
    let before = repository.catalog().packs().unwrap().len();
    let collected = collect(&repository);
    assert!(repository.catalog().packs().unwrap().len() < before / 3, "{collected:?}");
    assert!(export(&repository, "web").unwrap() == bytes);
    assert!(plan(&repository).is_empty(), "{:?}", plan(&repository));
}

#[test]
fn files_that_no_row_names_go_unless_their_writer_is_at_work() {
    let folder = tempfile::tempdir().unwrap();
    let repository = open(folder.path());
    let bytes = disk(1, 1 << 20, 1 << 40);
    import(&repository, "web", &bytes);
    let store =
        DirectoryPackStore::open(Arc::new(RealFileSystem), &folder.path().join("packs")).unwrap();
    let name = |digit: &str| store::PackName::new(&digit.repeat(32)).unwrap();
    store.put(&name("a"), b"left by a writer that died").unwrap();
    std::fs::write(folder.path().join("packs").join(format!("{}.new", "b".repeat(32))), b"half")
        .unwrap();
    let writer = repository.catalog().begin_lease(Duration::from_secs(3600)).unwrap();
    let cancel = Cancel::new();
    let no_wait = CollectRequest {
        limits: CollectLimits::default(),
        waits: false,
        events: &Silent,
        cancel: &cancel,
    };
    assert_eq!(repository.collect(&no_wait).unwrap().removed_len, 0);
    repository.catalog().abandon_lease(writer).unwrap();
    assert_eq!(plan(&repository).orphans.count, 2);
    assert_eq!(repository.collect(&no_wait).unwrap().removed_len, 30);
    assert_eq!(store.list().unwrap().len(), repository.catalog().packs().unwrap().len());
    assert!(store.unfinished().unwrap().is_empty());
    assert!(export(&repository, "web").unwrap() == bytes);
}

#[test]
fn a_version_made_between_the_looks_keeps_what_it_found() {
    for step in [
        CollectStep::Looking,
        CollectStep::Copying { packs: 0 },
        CollectStep::Condemned,
        CollectStep::Removing { packs: 0 },
    ] {
        let folder = tempfile::tempdir().unwrap();
        let repository = open(folder.path());
        let bytes = disk(1, 20 << 20, 1 << 40);
        import(&repository, "kept", &disk(2, 1 << 20, 1 << 40));
        import(&repository, "gone", &bytes);
        remove(&repository, "gone");
        let other = open_at(folder.path(), Arc::new(SystemClock), 2);
        // It knows the lists of the packs that are about to go.
        let other_bytes = bytes.clone();
        let late = at(step, move || {
            import(&other, "late", &other_bytes);
        });
        collect_with(&repository, CollectLimits::default(), &late).unwrap();
        assert!(export(&repository, "late").unwrap() == bytes, "{step:?}");
        collect(&repository);
        assert!(export(&repository, "late").unwrap() == bytes, "{step:?}");
        assert!(plan(&repository).is_empty(), "{:?}", plan(&repository));
    }
}

#[test]
fn an_import_that_began_before_is_waited_for_and_a_dead_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::default());
    let repository = open_at(folder.path(), clock.clone(), 1);
    import(&repository, "gone", &disk(1, 1 << 20, 1 << 40));
    remove(&repository, "gone");
    let stopped = repository.catalog().begin_lease(Duration::from_secs(600)).unwrap();
    let waited = at(CollectStep::Waiting { leases: 0 }, || clock.advance(Duration::from_secs(601)));
    let collected = collect_with(&repository, CollectLimits::default(), &waited);
    assert!(waited.1.lock().unwrap().is_none(), "it waited");
    // The clock jumped over the collect's own lease as well: it says so, and removes nothing.
    assert_eq!(collected.unwrap_err().kind(), Kind::Stale);
    assert!(collect(&repository).removed_packs > 0);
    assert!(repository.catalog().renew_lease(stopped, Duration::from_secs(1)).is_err());
    assert_eq!(bytes_of_packs(folder.path()), 0);
}

#[test]
fn a_collect_that_was_interrupted_leaves_marks_and_the_next_one_finishes() {
    let folder = tempfile::tempdir().unwrap();
    let repository = open(folder.path());
    let bytes = disk(1, 2 << 20, 1 << 40);
    import(&repository, "kept", &bytes);
    import(&repository, "gone", &disk(2, 2 << 20, 1 << 40));
    remove(&repository, "gone");
    let cancel = Cancel::new();
    let events = at(CollectStep::Condemned, || cancel.cancel());
    let limits = CollectLimits::default();
    let request = CollectRequest { limits, waits: true, events: &events, cancel: &cancel };
    assert_eq!(repository.collect(&request).unwrap_err().kind(), Kind::Cancelled);
    let packs = repository.catalog().packs().unwrap();
    assert!(packs.iter().any(|pack| pack.condemned.is_some()));
    assert!(export(&repository, "kept").unwrap() == bytes);
    assert!(collect(&repository).removed_packs > 0);
    assert!(plan(&repository).is_empty());
}

#[test]
fn marks_upon_packs_that_are_in_use_are_taken_off() {
    let folder = tempfile::tempdir().unwrap();
    let repository = open(folder.path());
    let bytes = disk(1, 2 << 20, 1 << 40);
    import(&repository, "web", &bytes);
    let packs: Vec<_> = repository.catalog().packs().unwrap().iter().map(|p| p.id).collect();
    let died = repository.catalog().begin_collect(Duration::from_secs(60)).unwrap();
    repository.catalog().condemn(died, &packs).unwrap();
    repository.catalog().abandon_lease(died).unwrap();
    assert_eq!(collect(&repository).removed_packs, 0);
    assert!(repository.catalog().packs().unwrap().iter().all(|pack| pack.condemned.is_none()));
    assert!(export(&repository, "web").unwrap() == bytes);
}

#[test]
fn what_cannot_be_read_stops_the_collect_and_names_the_versions() {
    let folder = tempfile::tempdir().unwrap();
    let repository = open(folder.path());
    import(&repository, "web", &disk(1, 2 << 20, 1 << 40));
    repository
        .catalog()
        .clone_version(
            &repository.catalog().version(&"web".parse().unwrap()).unwrap().id,
            &"copy".parse().unwrap(),
        )
        .unwrap();
    import(&repository, "gone", &disk(2, 2 << 20, 1 << 40));
    remove(&repository, "gone");
    let first = repository.catalog().packs().unwrap().remove(0);
    let file = folder.path().join("packs").join(&first.name);
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, b"short").unwrap();
    let repository = open_at(folder.path(), Arc::new(SystemClock), 3);
    let error = collect_with(&repository, CollectLimits::default(), &Silent).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    let text = error.chain();
    assert!(text.contains("web@1, copy@1 cannot be read"), "{text}");
    assert!(error.hint_text().unwrap().contains("larder scrub"));
    std::fs::write(&file, bytes).unwrap();
    assert!(collect(&repository).removed_packs > 0);
}

#[test]
fn a_dead_pack_that_is_damaged_or_lost_is_removed_too() {
    let folder = tempfile::tempdir().unwrap();
    let repository = open(folder.path());
    let bytes = disk(1, 2 << 20, 1 << 40);
    import(&repository, "kept", &bytes);
    let known: Vec<_> = repository.catalog().packs().unwrap();
    import(&repository, "gone", &disk(2, 40 << 20, 1 << 40));
    remove(&repository, "gone");
    let packs = repository.catalog().packs().unwrap();
    let mut dead = packs.iter().filter(|pack| !known.contains(pack));
    let path = |name: &str| folder.path().join("packs").join(name);
    std::fs::write(path(&dead.next().unwrap().name), b"damaged").unwrap();
    std::fs::remove_file(path(&dead.next().unwrap().name)).unwrap();
    collect(&repository);
    assert_eq!(repository.catalog().packs().unwrap(), known);
    assert_eq!(
        repository.catalog().statistics().unwrap().entry_count,
        known.iter().map(|p| p.entry_count).sum::<u64>()
    );
    assert!(export(&repository, "kept").unwrap() == bytes);
}
