//! The catalog in SQLite under threads, deaths, time and random use.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use catalog::{Catalog, ImageFilter, SqliteCatalog, contract};
use env::{ManualClock, SystemClock};
use model::name::LabelKey;
use model::{ImageName, Kind, Realm, Reference, TagName, VersionId, VersionNumber};
use proptest::prelude::*;

const LONG: Duration = Duration::from_secs(3600);

fn open(path: &Path) -> SqliteCatalog {
    SqliteCatalog::open(path, Arc::new(SystemClock)).unwrap()
}

fn publish(catalog: &dyn Catalog, image: &str) -> VersionId {
    let lease = catalog.begin_lease(LONG).unwrap();
    catalog.publish(lease, &contract::publication(image)).unwrap().id
}

#[test]
fn two_catalogs_on_one_file_publish_at_once_and_nothing_is_lost() {
    const THREADS: u8 = 4;
    const ROUNDS: u8 = 12;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("catalog.sqlite");
    // Opened at once, too: only one of them makes the file.
    let catalogs = std::thread::scope(|scope| {
        let openers = [0, 1].map(|_| scope.spawn(|| open(&path)));
        openers.map(|opener| opener.join().unwrap())
    });
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let catalog = &catalogs[usize::from(thread % 2)];
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let pack = contract::pack(thread * ROUNDS + round + 1);
                    let lease = catalog.begin_lease(LONG).unwrap();
                    let id = catalog.add_pack(lease, &pack).unwrap();
                    let own = contract::publication("shared");
                    let record = catalog.publish(lease, &own).unwrap();
                    assert!(record.latest >= record.id.version);
                    assert_eq!(catalog.pack(id).unwrap().name, pack.name);
                }
            });
        }
    });
    let expected: Vec<u64> = (1..=u64::from(THREADS * ROUNDS)).collect();
    for catalog in &catalogs {
        let image = ImageName::new("shared").unwrap();
        let numbers: Vec<u64> = catalog
            .versions(&image)
            .unwrap()
            .iter()
            .map(|record| record.id.version.get())
            .collect();
        assert_eq!(numbers, expected);
        assert_eq!(catalog.packs().unwrap().len(), expected.len());
    }
}

/// The file that a child of the next test publishes to; unset in an ordinary run.
const CHILD_FILE: &str = "CATALOG_TEST_CHILD_FILE";

/// Not a test of its own: what each child process of the next test does, until it is killed.
#[test]
#[expect(clippy::print_stdout, reason = "how the child tells its parent what was acknowledged")]
fn child_process_that_publishes_until_it_is_killed() {
    let Some(path) = std::env::var_os(CHILD_FILE) else { return };
    let catalog = open(Path::new(&path));
    loop {
        println!("published {}", publish(&catalog, "shared").version);
    }
}

#[test]
fn processes_that_are_killed_lose_nothing_that_was_acknowledged() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("catalog.sqlite");
    let mut acknowledged = BTreeSet::new();
    for _ in 0..3 {
        let children = [0, 1].map(|_| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "child_process_that_publishes_until_it_is_killed", "--nocapture"])
                .env(CHILD_FILE, &path)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        });
        for mut child in children {
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let mut heard = 0;
            while let Some(Ok(line)) = lines.next() {
                if let Some(number) = line.strip_prefix("published ") {
                    assert!(acknowledged.insert(number.parse::<u64>().unwrap()), "twice: {line}");
                    heard += 1;
                }
                if heard == 8 {
                    child.kill().unwrap();
                }
            }
            child.wait().unwrap();
            assert!(heard >= 8);
        }
    }
    let catalog = open(&path);
    let versions = catalog.versions(&ImageName::new("shared").unwrap()).unwrap();
    let numbers: BTreeSet<u64> = versions.iter().map(|record| record.id.version.get()).collect();
    assert!(numbers.is_superset(&acknowledged));
    // A process may die between its transaction and its word; no number is missing all the same.
    assert!(numbers.iter().copied().eq(1..=versions.len() as u64));
}

#[test]
fn what_was_acknowledged_survives_a_process_that_never_closes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("catalog.sqlite");
    let first = open(&path);
    publish(&first, "a");
    // What a process that is killed leaves: a file and a log that nobody copied into it.
    let elsewhere = tempfile::tempdir().unwrap();
    let copy = elsewhere.path().join("catalog.sqlite");
    for suffix in ["", "-wal"] {
        let name = format!("catalog.sqlite{suffix}");
        std::fs::copy(folder.path().join(&name), elsewhere.path().join(&name)).unwrap();
    }
    std::mem::forget(first);
    for path in [&path, &copy] {
        let again = open(path);
        assert_eq!(again.images(&ImageFilter::default()).unwrap().len(), 1);
        assert_eq!(publish(&again, "a").version.get(), 2);
    }
}

#[test]
fn a_lease_lives_as_long_as_it_was_told() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::default());
    let path = folder.path().join("catalog.sqlite");
    let catalog = SqliteCatalog::open(&path, clock.clone()).unwrap();
    let minute = Duration::from_secs(60);
    let lease = catalog.begin_lease(minute).unwrap();
    clock.advance(minute - Duration::from_micros(1));
    catalog.add_pack(lease, &contract::pack(1)).unwrap();
    catalog.renew_lease(lease, minute).unwrap();
    clock.advance(minute - Duration::from_micros(1));
    catalog.renew_lease(lease, minute).unwrap();
    clock.advance(minute);
    let late = catalog.publish(lease, &contract::publication("a")).unwrap_err();
    assert_eq!(late.kind(), Kind::Stale);
    assert_eq!(catalog.renew_lease(lease, minute).unwrap_err().kind(), Kind::Stale);
    // The next lease forgets the dead one; what was put under it can still be given up.
    let next = catalog.begin_lease(minute).unwrap();
    clock.advance(minute);
    assert_eq!(catalog.abandon_lease(lease).unwrap(), [contract::pack(1).name]);
    assert!(next > lease);
    let created = clock.clone();
    let lease = catalog.begin_lease(minute).unwrap();
    let record = catalog.publish(lease, &contract::publication("a")).unwrap();
    assert_eq!(record.created, env::Clock::now(created.as_ref()));
}

#[test]
fn six_thousand_images_are_listed_quickly() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = open(&folder.path().join("catalog.sqlite"));
    let first = publish(&catalog, "origin/image");
    fill_with_images(&folder.path().join("catalog.sqlite"), 6000);
    let all = || catalog.images(&ImageFilter::default()).unwrap();
    let some = || {
        let search = Some("TIER=3".to_string());
        catalog.images(&ImageFilter { labels: Vec::new(), search }).unwrap()
    };
    let images = all();
    assert_eq!(images.len(), 6001);
    let last = images.iter().find(|image| image.name.as_str() == "team-9/image-5999").unwrap();
    assert_eq!((last.versions.len(), last.tags.len(), last.labels.len()), (3, 2, 2));
    assert_eq!(some().len(), 600);
    assert_eq!(first.version, VersionNumber::FIRST);
    for (what, list) in [("all", &all as &dyn Fn() -> _), ("searched", &some)] {
        // Other tests run beside this one: what counts is the processor's time, when they leave it alone.
        let mut least = Duration::MAX;
        for _ in 0..100 {
            let before = processor_time();
            let _: Vec<catalog::ImageRecord> = list();
            least = least.min(processor_time() - before);
            if least < Duration::from_millis(100) {
                break;
            }
        }
        assert!(least < Duration::from_millis(100), "{what}: {least:?}");
    }
}

/// What this process has used so far.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap()
}

/// Adds images of three versions, two tags and two labels, from below: each through the trait would
/// be a transaction of its own.
fn fill_with_images(path: &Path, count: i64) {
    use sqlx::{ConnectOptions, sqlite::SqliteConnectOptions};
    let statements = format!(
        "BEGIN;
         CREATE TEMP TABLE n AS WITH RECURSIVE n(i) AS
             (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {count}) SELECT i FROM n;
         INSERT INTO image SELECT 1000 + i, 'team-' || (i % 10) || '/image-' || i, 3 FROM n;
         INSERT INTO version SELECT 1000 + i, v.column1, 0, 1 << 31, 1 << 30, randomblob(32),
             randomblob(32), NULL, NULL, 'import disk-' || i || '.qcow2', 1, NULL, 3 * i + v.column1, 0
             FROM n, (VALUES (1), (2), (3)) v;
         INSERT INTO tag SELECT 1000 + i, t.column1, t.column2
             FROM n, (VALUES ('stable', 2), ('next', 3)) t;
         INSERT INTO label SELECT 1000 + i, 'os', 'debian' FROM n;
         INSERT INTO label SELECT 1000 + i, 'tier', i % 10 FROM n;
         COMMIT"
    );
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut connection = SqliteConnectOptions::new().filename(path).connect().await.unwrap();
        sqlx::raw_sql(sqlx::AssertSqlSafe(statements)).execute(&mut connection).await.unwrap();
        sqlx::Connection::close(connection).await.unwrap();
    });
}

#[test]
fn many_threads_read_while_one_writes() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = open(&folder.path().join("catalog.sqlite"));
    publish(&catalog, "a");
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..12)
            .map(|_| {
                scope.spawn(|| {
                    let mut seen = 0;
                    while seen < 20 {
                        let record = catalog.version(&"a".parse().unwrap()).unwrap();
                        assert!(record.id.version.get() >= seen);
                        assert_eq!(record.id.version, record.latest);
                        seen = record.id.version.get();
                        let pack = contract::pack(1);
                        let digests: Vec<_> = pack.entries.iter().map(|e| e.digest).collect();
                        catalog.locate(&Realm::default_realm(), &digests).unwrap();
                    }
                })
            })
            .collect();
        for _ in 0..20 {
            publish(&catalog, "a");
        }
        for reader in readers {
            reader.join().unwrap();
        }
    });
}

/// What the random test below does to names.
#[derive(Clone, Debug)]
enum Deed {
    Publish(usize, Option<usize>),
    Clone(usize, u64, usize),
    Tag(usize, u64, usize),
    Label(usize, usize, Option<String>),
    RemoveVersion(usize, u64),
    RemoveImage(usize),
    Attach(usize, u64),
    Reopen,
}

const IMAGES: [&str; 3] = ["a", "b", "team/c"];
const TAGS: [&str; 2] = ["stable", "next"];

fn deed() -> impl Strategy<Value = Deed> {
    let (image, number, tag) = (0..IMAGES.len(), 1..5_u64, 0..TAGS.len());
    prop_oneof![
        6 => (image.clone(), prop::option::of(tag.clone())).prop_map(|(i, t)| Deed::Publish(i, t)),
        2 => (image.clone(), number.clone(), image.clone()).prop_map(|(i, n, j)| Deed::Clone(i, n, j)),
        3 => (image.clone(), number.clone(), tag.clone()).prop_map(|(i, n, t)| Deed::Tag(i, n, t)),
        2 => (image.clone(), tag, prop::option::of("\\PC{0,8}"))
            .prop_map(|(i, k, v)| Deed::Label(i, k, v)),
        4 => (image.clone(), number.clone()).prop_map(|(i, n)| Deed::RemoveVersion(i, n)),
        1 => image.clone().prop_map(Deed::RemoveImage),
        2 => (image, number).prop_map(|(i, n)| Deed::Attach(i, n)),
        1 => Just(Deed::Reopen),
    ]
}

/// What the catalog should say.
#[derive(Default)]
struct Model {
    last: BTreeMap<usize, u64>,
    images: BTreeMap<usize, ModelImage>,
}

#[derive(Default)]
struct ModelImage {
    attaches_by_version: BTreeMap<u64, u64>,
    tags: BTreeMap<usize, u64>,
    labels: BTreeMap<usize, String>,
}

impl Model {
    fn has(&self, image: usize, number: u64) -> bool {
        self.images.get(&image).is_some_and(|i| i.attaches_by_version.contains_key(&number))
    }

    fn add(&mut self, image: usize) -> u64 {
        let last = self.last.entry(image).or_default();
        *last += 1;
        self.images.entry(image).or_default().attaches_by_version.insert(*last, 0);
        *last
    }

    /// Does a deed here and there; both must agree on whether it succeeds.
    fn apply(&mut self, catalog: &dyn Catalog, deed: &Deed) {
        match deed {
            Deed::Publish(image, tag) => {
                let number = self.add(*image);
                let lease = catalog.begin_lease(LONG).unwrap();
                let mut wanted = contract::publication(IMAGES[*image]);
                wanted.tag = tag.map(|tag| TagName::new(TAGS[tag]).unwrap());
                assert_eq!(catalog.publish(lease, &wanted).unwrap().id, id(*image, number));
                if let Some(tag) = tag {
                    self.images.get_mut(image).unwrap().tags.insert(*tag, number);
                }
            }
            Deed::Clone(from, number, to) => {
                let done = catalog.clone_version(&id(*from, *number), &name(*to));
                assert_eq!(done.is_ok(), self.has(*from, *number) && !self.images.contains_key(to));
                if let Ok(record) = done {
                    assert_eq!(record.id, id(*to, self.add(*to)));
                }
            }
            Deed::Tag(image, number, tag) => {
                let tag_name = TagName::new(TAGS[*tag]).unwrap();
                let done = catalog.set_tag(&id(*image, *number), &tag_name);
                assert_eq!(done.is_ok(), self.has(*image, *number));
                if done.is_ok() {
                    self.images.get_mut(image).unwrap().tags.insert(*tag, *number);
                }
            }
            Deed::Label(image, key, value) => {
                let key_name = LabelKey::new(TAGS[*key]).unwrap();
                let done = catalog.set_label(&name(*image), &key_name, value.as_deref());
                assert_eq!(done.is_ok(), self.images.contains_key(image));
                match (self.images.get_mut(image), value) {
                    (Some(found), Some(value)) => found.labels.insert(*key, value.clone()),
                    (Some(found), None) => found.labels.remove(key),
                    (None, _) => None,
                };
            }
            Deed::RemoveVersion(image, number) => {
                let done = catalog.remove_version(&id(*image, *number));
                assert_eq!(done.is_ok(), self.has(*image, *number));
                if let Some(found) = self.images.get_mut(image) {
                    found.attaches_by_version.remove(number);
                    found.tags.retain(|_, tagged| tagged != number);
                    if found.attaches_by_version.is_empty() {
                        self.images.remove(image);
                    }
                }
            }
            Deed::RemoveImage(image) => {
                let expected = self.images.remove(image);
                match catalog.remove_image(&name(*image)) {
                    Ok(gone) => {
                        let numbers = expected.unwrap().attaches_by_version.into_keys();
                        assert_eq!(gone, numbers.map(|n| id(*image, n)).collect::<Vec<_>>());
                    }
                    Err(error) => assert!(error.kind() == Kind::NotFound && expected.is_none()),
                }
            }
            Deed::Attach(image, number) => {
                let done = catalog.count_attach(&id(*image, *number));
                assert_eq!(done.is_ok(), self.has(*image, *number));
                if done.is_ok() {
                    let found = self.images.get_mut(image).unwrap();
                    *found.attaches_by_version.get_mut(number).unwrap() += 1;
                }
            }
            Deed::Reopen => {}
        }
    }

    fn compare(&self, catalog: &dyn Catalog) {
        let listed = catalog.images(&ImageFilter::default()).unwrap();
        let names: BTreeSet<&str> = listed.iter().map(|image| image.name.as_str()).collect();
        assert_eq!(names, self.images.keys().map(|&image| IMAGES[image]).collect());
        for (&image, expected) in &self.images {
            let records = catalog.versions(&name(image)).unwrap();
            let counts = records.iter().map(|r| (r.id.version.get(), r.attach_count)).collect();
            assert_eq!(expected.attaches_by_version, counts);
            let listed = listed.iter().find(|found| found.name == name(image)).unwrap();
            let tags: BTreeMap<TagName, u64> =
                listed.tags.iter().map(|(tag, number)| (tag.clone(), number.get())).collect();
            let expected_tags = expected
                .tags
                .iter()
                .map(|(&tag, &number)| (TagName::new(TAGS[tag]).unwrap(), number))
                .collect();
            assert_eq!(tags, expected_tags);
            for (tag, number) in tags {
                let reference =
                    Reference { image: name(image), selector: model::Selector::Tag(tag.clone()) };
                let found = catalog.version(&reference).unwrap();
                assert_eq!(found.id, id(image, number));
                assert!(found.tags.contains(&tag));
            }
            let labels: BTreeMap<LabelKey, String> = expected
                .labels
                .iter()
                .map(|(&key, value)| (LabelKey::new(TAGS[key]).unwrap(), value.clone()))
                .collect();
            assert_eq!(listed.labels, labels);
            assert!(records.iter().all(|record| record.labels == labels));
        }
    }
}

fn name(image: usize) -> ImageName {
    ImageName::new(IMAGES[image]).unwrap()
}

fn id(image: usize, number: u64) -> VersionId {
    VersionId { image: name(image), version: VersionNumber::new(number).unwrap() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn names_agree_with_a_model_whatever_is_done(deeds in prop::collection::vec(deed(), 1..40)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("catalog.sqlite");
        let mut catalog = open(&path);
        let mut model = Model::default();
        for deed in &deeds {
            if matches!(deed, Deed::Reopen) {
                drop(catalog);
                catalog = open(&path);
            }
            model.apply(&catalog, deed);
        }
        model.compare(&catalog);
    }
}
