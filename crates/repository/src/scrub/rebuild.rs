//! Rebuild: a catalog that is lost is made anew, from the packs and the exported names.
//!
//! ```text
//! packs ── tables, lists ──► places, hooks ─┐
//!       └─ records ────────► young versions ├──► catalog.sqlite.new ──► catalog.sqlite
//! catalog.export ──────────► names ─────────┘     the old one ──► catalog.sqlite.broken-N
//! ```
//!
//! **Invariants**
//! 1. Nothing is removed: what there was of the old catalog is kept aside, with its log.
//! 2. The new catalog appears under its name whole and durable, or not at all.
//! 3. A version is made only where its manifest is there and says what the version holds.
//!
//! **Failure**: after a crash there is the old catalog, none, or the new one; where there is none,
//! every command says so and the next rebuild gets through. Whoever still has the old catalog open
//! writes where nobody reads any more: stop him first.
//!
//! **Not here**: whether chunks are sound. A scrub afterwards says.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use catalog::{Catalog, EntryDigest, LeaseId, SqliteCatalog};
use env::{FileSystem, OpenMode};
use format::pack::PackIndex;
use format::{EntryKind, decode_record};
use model::progress::{Cancel, Progress};
use model::{
    ContentDigest, Error, ImageName, Kind, LayoutDigest, NamedImage, Names, PublicationRecord,
    Realm, Result, VersionId, VersionNumber,
};
use store::{ChunkStore, DirectoryPackStore, PackName, PackStore};

use super::verify::verify;
use crate::chunks::RepositoryChunks;
use crate::names::{export_path, read_export};
use crate::packer::{new_pack, row_of};
use crate::repository::{Machine, catalog_path};
use crate::settings::{FILE_NAME, Settings};

const REBUILD: &str = "rebuild the catalog of";

/// Longer than any rebuild takes. Nobody else sees the new catalog.
const LEASE: Duration = Duration::from_secs(365 * 86_400);

/// How a catalog is made anew.
pub struct RebuildRequest<'a> {
    /// Also where the catalog that is there is sound.
    pub even_if_sound: bool,
    /// Told of the progress.
    pub progress: &'a dyn Progress,
    /// Stops the work.
    pub cancel: &'a Cancel,
}

/// What was made anew, and what could not be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// Packs whose entries the new catalog knows.
    pub pack_count: u64,
    /// Entries in them.
    pub entry_count: u64,
    /// Packs that could not be read, and why.
    pub unreadable_packs: Vec<(String, String)>,
    /// When the names were exported, in microseconds since 1970-01-01 UTC; `None` without an export.
    pub exported_micros: Option<i64>,
    /// Why the export could not be used, where there is one.
    pub export_refused: Option<String>,
    /// Versions as the export tells them.
    pub exported_count: u64,
    /// Versions that were published after the export, from their records; their numbers are likely
    /// ones.
    pub from_records: Vec<VersionId>,
    /// Versions and holds that could not be made, and why.
    pub left_out: Vec<(String, String)>,
    /// Where the old catalog is kept.
    pub kept: Option<PathBuf>,
}

/// What the packs tell beside places.
#[derive(Default)]
struct Told {
    records: Vec<(EntryDigest, PublicationRecord)>,
    manifests: Vec<LayoutDigest>,
    documents: HashSet<EntryDigest>,
}

/// Makes the catalog of the repository in a folder anew.
///
/// Cost: the index of every pack read, some 130 KB each; the manifest of every version.
///
/// # Errors
/// `NotFound` where there is no repository; `Refused` where its catalog is sound, of a newer format
/// or another program's, or where somebody else rebuilds; `Full` and `Unavailable` from the disk. The
/// catalog is as it was then.
pub fn rebuild(machine: &Machine, folder: &Path, request: &RebuildRequest) -> Result<Rebuilt> {
    let subject = folder.display().to_string();
    let file_system = &*machine.file_system;
    let Some(settings) = Settings::read(file_system, folder)? else {
        return Err(Error::new(Kind::NotFound, REBUILD, subject)
            .because("there is no repository in this folder")
            .hint(format!("what makes a folder a repository is its `{FILE_NAME}`")));
    };
    let failed = |error| Error::io(REBUILD, subject.clone(), error);
    let lock = file_system.open(&folder.join(FILE_NAME), OpenMode::Read).map_err(failed)?;
    if !lock.try_lock().map_err(failed)? {
        return Err(Error::new(Kind::Refused, REBUILD, subject)
            .because("another larder does so at this moment"));
    }
    refuse_sound(machine, folder, request)?;
    let aside = Aside { file_system, folder };
    aside.remove_new();
    let rebuild = Rebuild { machine, folder, settings, request };
    let made = rebuild.make(&aside.new_path());
    let rebuilt = made.and_then(|mut rebuilt| {
        rebuilt.kept = aside.put_in_place(!rebuilt.left_out.is_empty()).map_err(failed)?;
        Ok(rebuilt)
    });
    if rebuilt.is_err() {
        aside.remove_new();
    }
    rebuilt
}

/// `Refused` where the catalog is sound and nobody said that it must go.
fn refuse_sound(machine: &Machine, folder: &Path, request: &RebuildRequest) -> Result<()> {
    let path = catalog_path(folder);
    let opened = SqliteCatalog::open_existing(&path, machine.clock.clone());
    let checked = opened.and_then(|catalog| {
        catalog.check_pages()?;
        // Rows that say what no catalog says are damage, too.
        catalog.names()?;
        catalog.packs().map(drop)
    });
    match checked {
        Err(error) if error.kind() == Kind::Corrupt => Ok(()),
        Err(error) => Err(error),
        Ok(()) if request.even_if_sound => Ok(()),
        Ok(()) => Err(Error::new(Kind::Refused, REBUILD, folder.display().to_string())
            .because("the catalog is there and sound")
            .hint("`larder scrub` looks for other damage; `--even-if-sound` makes it anew")),
    }
}

struct Rebuild<'a> {
    machine: &'a Machine,
    folder: &'a Path,
    settings: Settings,
    request: &'a RebuildRequest<'a>,
}

impl Rebuild<'_> {
    /// Makes the new catalog, whole, under a name of its own.
    fn make(&self, path: &Path) -> Result<Rebuilt> {
        let mut rebuilt = Rebuilt::default();
        let file_system = self.machine.file_system.clone();
        let packs: Arc<dyn PackStore> =
            Arc::new(DirectoryPackStore::open(file_system, &self.folder.join("packs"))?);
        let catalog: Arc<dyn Catalog> =
            Arc::new(SqliteCatalog::open(path, self.machine.clock.clone())?);
        let lease = catalog.begin_lease(LEASE)?;
        let told = self.add_packs(&*catalog, &*packs, lease, &mut rebuilt)?;
        let realm = Realm::default_realm();
        let chunks = RepositoryChunks::new(catalog.clone(), packs, realm).without_versions();
        let names = self.names(&chunks, told, &mut rebuilt)?;
        catalog.restore_names(&names)?;
        catalog.abandon_lease(lease)?;
        Ok(rebuilt)
    }

    /// Makes all packs known. They are nobody's: what no version refers to is for collect.
    fn add_packs(
        &self,
        catalog: &dyn Catalog,
        packs: &dyn PackStore,
        lease: LeaseId,
        rebuilt: &mut Rebuilt,
    ) -> Result<Told> {
        let mut names = packs.list()?;
        names.sort_unstable();
        let mut told = Told::default();
        self.request.progress.expect(None);
        for name in &names {
            self.request.cancel.check(REBUILD, &self.folder.display().to_string())?;
            let len = packs.len(name)?;
            let read = |offset, len| packs.read(name, offset, len);
            let index = match PackIndex::read(len, read) {
                Ok(index) => index,
                Err(error) => {
                    rebuilt.unreadable_packs.push((name.to_string(), error.chain()));
                    continue;
                }
            };
            let digests = (0..index.entries().len()).flat_map(|entry| index.block_digests(entry));
            let realm = Realm::default_realm();
            catalog.move_entries(lease, &new_pack(name, &realm, len, index.entries(), digests))?;
            rebuilt.pack_count += 1;
            rebuilt.entry_count += index.entries().len() as u64;
            listen(packs, name, &index, &mut told);
            self.request.progress.advance(len);
        }
        Ok(told)
    }

    /// The names that the new catalog gets.
    fn names(&self, chunks: &RepositoryChunks, told: Told, rebuilt: &mut Rebuilt) -> Result<Names> {
        let mut names = self.exported(rebuilt);
        let mut layouts = Layouts { chunks, manifests: told.manifests, by_content: None };
        let mut known = HashSet::new();
        for image in &mut names.images {
            known.extend(image.versions.iter().filter_map(|version| version.record));
            let versions = std::mem::take(&mut image.versions);
            for mut version in versions {
                match layouts.find(version.content, version.layout)? {
                    Ok(layout) => {
                        version.layout = layout;
                        rebuilt.exported_count += 1;
                        image.versions.push(version);
                    }
                    Err(reason) => {
                        let id = VersionId { image: image.name.clone(), version: version.number };
                        rebuilt.left_out.push((id.to_string(), reason));
                    }
                }
            }
            let there: HashSet<VersionNumber> =
                image.versions.iter().map(|version| version.number).collect();
            image.tags.retain(|_, number| there.contains(number));
        }
        let holds = std::mem::take(&mut names.holds);
        for mut hold in holds {
            match layouts.find(hold.content, hold.layout)? {
                Ok(layout) => {
                    hold.layout = layout;
                    names.holds.push(hold);
                }
                Err(reason) => {
                    rebuilt
                        .left_out
                        .push((format!("{} held by {}", hold.version, hold.holder), reason));
                }
            }
        }
        let documents = std::mem::take(&mut names.documents).into_iter();
        names.documents =
            documents.filter(|document| told.documents.contains(&document.digest)).collect();
        let records = told.records.into_iter().filter(|(digest, _)| !known.contains(digest));
        let young = young_records(&names, rebuilt.exported_micros, records.collect());
        self.add_young(&mut names, young, &mut layouts, rebuilt)?;
        Ok(names)
    }

    fn exported(&self, rebuilt: &mut Rebuilt) -> Names {
        match read_export(&*self.machine.file_system, self.folder) {
            Ok(None) => Names::default(),
            Ok(Some((header, _))) if header.repository != self.settings.id => {
                rebuilt.export_refused = Some("it is another repository's".to_string());
                Names::default()
            }
            Ok(Some((header, names))) => {
                rebuilt.exported_micros = Some(header.created_micros);
                names
            }
            Err(error) => {
                rebuilt.export_refused = Some(error.chain());
                Names::default()
            }
        }
    }

    /// Adds versions that only their records tell of.
    fn add_young(
        &self,
        names: &mut Names,
        young: Vec<(EntryDigest, PublicationRecord)>,
        layouts: &mut Layouts,
        rebuilt: &mut Rebuilt,
    ) -> Result<()> {
        let mut images: BTreeMap<ImageName, NamedImage> =
            names.images.drain(..).map(|image| (image.name.clone(), image)).collect();
        for (digest, PublicationRecord { image: name, mut version, .. }) in young {
            let image = images.entry(name.clone()).or_insert_with(|| NamedImage {
                name: name.clone(),
                last_version: 0,
                labels: BTreeMap::new(),
                tags: BTreeMap::new(),
                versions: Vec::new(),
            });
            let next = version.number.get().max(image.last_version.saturating_add(1));
            let Some(number) = VersionNumber::new(next) else { continue };
            let id = VersionId { image: name, version: number };
            match layouts.find(version.content, version.layout)? {
                Ok(layout) => {
                    version.layout = layout;
                    version.number = number;
                    version.record = Some(digest);
                    image.last_version = next;
                    image.versions.push(version);
                    rebuilt.from_records.push(id);
                }
                Err(reason) => rebuilt.left_out.push((id.to_string(), reason)),
            }
        }
        images.retain(|_, image| image.last_version > 0);
        names.images = images.into_values().collect();
        Ok(())
    }
}

/// Hears what a pack tells beside places. What cannot be read is left for a scrub to find.
fn listen(packs: &dyn PackStore, name: &PackName, index: &PackIndex, told: &mut Told) {
    for entry in index.entries() {
        match entry.kind {
            EntryKind::Manifest => told.manifests.push(LayoutDigest(entry.digest)),
            EntryKind::Document => drop(told.documents.insert(entry.digest)),
            EntryKind::Record => {
                let stored = packs.read(name, entry.offset, entry.stored_len as usize);
                let record = stored
                    .map_err(|error| error.chain())
                    .and_then(|stored| verify(&row_of(entry), &stored))
                    .and_then(|verified| {
                        decode_record(&verified.plain).map_err(|error| error.to_string())
                    });
                match record {
                    Ok(record) => told.records.push((entry.digest, record)),
                    Err(reason) => tracing::warn!(%reason, pack = %name, "cannot read a record"),
                }
            }
            _ => {}
        }
    }
}

/// The records of publications that the export cannot know, in the order of publishing.
///
/// A record that is older than the export and not in it was removed before the export, or never
/// published; unless its number had not been given by then: that one was on its way.
fn young_records(
    names: &Names,
    exported_micros: Option<i64>,
    mut records: Vec<(EntryDigest, PublicationRecord)>,
) -> Vec<(EntryDigest, PublicationRecord)> {
    let last: HashMap<&ImageName, u64> =
        names.images.iter().map(|image| (&image.name, image.last_version)).collect();
    records.retain(|(_, record)| {
        let given = last.get(&record.image).copied().unwrap_or(0);
        exported_micros.is_none_or(|exported| record.version.created_micros > exported)
            || record.version.number.get() > given
    });
    records.sort_by_key(|(digest, record)| {
        (record.version.created_micros, record.version.number, *digest)
    });
    // The same publication tried twice: the first try did not get through.
    let key = |record: &PublicationRecord| {
        (record.image.clone(), record.version.number, record.version.content)
    };
    let latest: HashMap<_, EntryDigest> =
        records.iter().map(|(digest, record)| (key(record), *digest)).collect();
    records.retain(|(digest, record)| latest.get(&key(record)) == Some(digest));
    records
}

/// Layouts, found by what they hold.
struct Layouts<'a> {
    chunks: &'a RepositoryChunks,
    manifests: Vec<LayoutDigest>,
    by_content: Option<HashMap<ContentDigest, LayoutDigest>>,
}

impl Layouts<'_> {
    /// The layout, if its manifest is whole and holds the content; otherwise another of the content;
    /// otherwise why there is none.
    fn find(
        &mut self,
        content: ContentDigest,
        layout: LayoutDigest,
    ) -> Result<Result<LayoutDigest, String>> {
        let reason = match self.chunks.manifest(layout) {
            Ok(manifest) if manifest.content() == content => return Ok(Ok(layout)),
            Ok(_) => "its manifest holds something else".to_string(),
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Corrupt) => error.chain(),
            Err(error) => return Err(error),
        };
        // Collect may have laid it out anew since the export. Looked for only where one is missing.
        let by_content = self.by_content.get_or_insert_with(|| {
            let content_of = |layout: &LayoutDigest| {
                Some((self.chunks.manifest(*layout).ok()?.content(), *layout))
            };
            self.manifests.iter().filter_map(content_of).collect()
        });
        Ok(by_content.get(&content).copied().ok_or(reason))
    }
}

/// The files of the catalog, old and new.
struct Aside<'a> {
    file_system: &'a dyn FileSystem,
    folder: &'a Path,
}

/// What SQLite keeps beside a database.
const BESIDE: [&str; 3] = ["-wal", "-shm", "-journal"];

impl Aside<'_> {
    fn new_path(&self) -> PathBuf {
        self.folder.join("catalog.sqlite.new")
    }

    /// Removes what an earlier try has left. Best effort: SQLite says so where it cannot be used.
    fn remove_new(&self) {
        let new = self.new_path();
        let _ = self.file_system.remove_file(&new);
        for suffix in BESIDE {
            let _ = self.file_system.remove_file(&with_suffix(&new, suffix));
        }
    }

    /// Keeps the old catalog aside and puts the new one in its place. Returns where the old one is.
    fn put_in_place(&self, keep_export: bool) -> std::io::Result<Option<PathBuf>> {
        let (new, path) = (self.new_path(), catalog_path(self.folder));
        self.file_system.open(&new, OpenMode::ReadWrite)?.sync()?;
        if self.file_system.exists(&with_suffix(&new, "-wal"))? {
            // It could not be copied into the file: the disk is full, as a rule.
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        let number = self.free_number()?;
        let kept = with_suffix(&path, &format!(".broken-{number}"));
        if keep_export && self.file_system.exists(&export_path(self.folder))? {
            // The next export knows no more of what was left out.
            let export = export_path(self.folder);
            let bytes = self.file_system.read_file(&export, format::names::NAMES_LEN_MAX)?;
            let copy = with_suffix(&export, &format!(".kept-{number}"));
            self.file_system.replace(&copy, &bytes)?;
        }
        // The file before its log: a log must never stand beside a file that is not its own.
        let mut is_kept = false;
        for suffix in ["", "-wal", "-shm", "-journal"] {
            let old = with_suffix(&path, suffix);
            if self.file_system.exists(&old)? {
                self.file_system.rename(&old, &with_suffix(&kept, suffix))?;
                is_kept = true;
            }
        }
        self.file_system.sync_folder(self.folder)?;
        self.file_system.rename(&new, &path)?;
        self.file_system.sync_folder(self.folder)?;
        Ok(is_kept.then_some(kept))
    }

    /// A number under which nothing is kept yet.
    fn free_number(&self) -> std::io::Result<u64> {
        let names = self.file_system.list(self.folder)?;
        let taken = names.iter().filter_map(|name| {
            let name = name.to_str()?;
            let (_, rest) = name.split_once(".broken-").or_else(|| name.split_once(".kept-"))?;
            rest.split('-').next()?.parse::<u64>().ok()
        });
        Ok(taken.max().unwrap_or(0) + 1)
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::NamedVersion;

    fn record(
        image: &str,
        number: u64,
        content: u8,
        created: i64,
    ) -> (EntryDigest, PublicationRecord) {
        let version = NamedVersion {
            number: VersionNumber::new(number).unwrap(),
            kind: model::VersionKind::Disk,
            length: 0,
            data_len: 0,
            content: ContentDigest([content; 32]),
            layout: LayoutDigest([content; 32]),
            parent: None,
            origin: String::new(),
            created_micros: created,
            record: None,
            attach_count: 0,
        };
        let image = ImageName::new(image).unwrap();
        let record = PublicationRecord { realm: Realm::default_realm(), image, version };
        ([created as u8; 32], record)
    }

    fn check(exported: Option<i64>, records: &[(u64, u8, i64)], expected: &[i64]) {
        let image = NamedImage {
            name: ImageName::new("web").unwrap(),
            last_version: 3,
            labels: BTreeMap::new(),
            tags: BTreeMap::new(),
            versions: Vec::new(),
        };
        let images = exported.map(|_| image).into_iter().collect();
        let names = Names { images, ..Names::default() };
        let records = records
            .iter()
            .map(|&(number, content, created)| record("web", number, content, created));
        let young = young_records(&names, exported, records.collect());
        let created: Vec<i64> =
            young.iter().map(|(_, record)| record.version.created_micros).collect();
        assert_eq!(created, expected);
    }

    #[test]
    fn records_count_that_the_export_cannot_know() {
        check(None, &[(2, 1, 20), (1, 2, 10)], &[10, 20]);
        // Younger than the export; removed before it; on its way while it was written.
        check(Some(50), &[(4, 1, 60), (2, 2, 40), (4, 3, 45)], &[45, 60]);
        // A try that did not get through, and the next one with the same bytes.
        check(Some(50), &[(4, 1, 60), (4, 1, 70)], &[70]);
        // Two writers that expected the same number.
        check(Some(50), &[(4, 1, 60), (4, 2, 61)], &[60, 61]);
    }
}
