//! A repository with many clients, beside a model: what each version must hold.
//!
//! Every client imports, commits, clones, removes, holds, collects and reads at random. A version is in
//! the model from when its publication was acknowledged until just before its removal is asked for, so
//! whatever is in the model must read back, byte for byte, at any time.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use catalog::SqliteCatalog;
use env::{RealFileSystem, SeededEntropy, SystemClock};
use model::progress::{Cancel, Silent};
use model::{BLOCK_LEN, Error, ImageName, Kind, Result, VersionId};
use repository::{CollectLimits, CollectRequest, CommitRequest, Repository, Settings};
use store::DirectoryPackStore;

use super::{BytesSink, BytesSource, Difference, disk, request};

/// The images that lives are about.
const IMAGES: [&str; 6] = ["a", "b", "c", "team/d", "team/e", "f"];

/// Blocks of all disks are of this many kinds, so that many are duplicates.
const BLOCK_KINDS: u64 = 40_000;

/// The most versions at a time.
const VERSIONS_MAX: usize = 40;

/// What the versions must hold.
pub type Model = Mutex<BTreeMap<VersionId, Arc<Vec<u8>>>>;

/// Opens the repository in a folder, with random names of this seed.
pub fn open(folder: &Path, seed: u64) -> Repository {
    let packs = DirectoryPackStore::open(Arc::new(RealFileSystem), &folder.join("packs")).unwrap();
    let clock = Arc::new(SystemClock);
    let catalog = SqliteCatalog::open(&folder.join("catalog.sqlite"), clock).unwrap();
    let entropy = Arc::new(SeededEntropy::new(seed));
    Repository::from_parts(Settings::new("t".into()), Arc::new(catalog), Arc::new(packs), entropy)
}

/// One client of a repository.
pub struct Client<'a> {
    pub repository: &'a Repository,
    pub model: &'a Model,
    pub random: SeededEntropy,
    pub name: String,
    /// A version that it holds, and what that must hold though it may be removed.
    pub held: Option<(VersionId, Arc<Vec<u8>>)>,
    /// Bytes of the longest disk.
    pub length_max: usize,
}

impl Client<'_> {
    fn below(&self, end: u64) -> u64 {
        // The low bits of such a sequence are its worst.
        (self.random.next() >> 11) % end
    }

    /// Does one thing at random.
    pub fn step(&mut self) {
        let is_full = self.model.lock().unwrap().len() >= VERSIONS_MAX;
        match self.below(20) {
            0..2 => self.import(),
            2..8 if !is_full => self.commit(),
            8..10 => self.clone_version(),
            10..14 => self.remove(),
            14 => self.hold(),
            15 => self.read_held(),
            16..19 => self.read(),
            _ if is_full => self.remove(),
            _ => self.collect(),
        }
    }

    fn pick(&self) -> Option<(VersionId, Arc<Vec<u8>>)> {
        let model = self.model.lock().unwrap();
        if model.is_empty() {
            return None;
        }
        let (version, bytes) = model.iter().nth(self.below(model.len() as u64) as usize)?;
        Some((version.clone(), bytes.clone()))
    }

    fn image(&self) -> ImageName {
        ImageName::new(IMAGES[self.below(IMAGES.len() as u64) as usize]).unwrap()
    }

    fn import(&self) {
        let length = 1 + self.below(self.length_max as u64) as usize;
        let bytes = match self.pick() {
            Some((_, bytes)) if self.below(2) == 0 => self.changed(&bytes),
            _ => disk(self.random.next(), length, BLOCK_KINDS),
        };
        let cancel = Cancel::new();
        let image = self.image();
        let imported = self
            .repository
            .import(&mut BytesSource::new(&bytes), &request(image.as_str(), &cancel))
            .unwrap();
        self.model.lock().unwrap().insert(imported.version.id, Arc::new(bytes));
    }

    /// A disk with some blocks changed here and there, or a stretch of them, or another end.
    fn changed(&self, bytes: &[u8]) -> Vec<u8> {
        let mut changed = bytes.to_vec();
        let block_count = bytes.len().div_ceil(BLOCK_LEN) as u64;
        if block_count == 0 {
            return disk(self.random.next(), BLOCK_LEN, BLOCK_KINDS);
        }
        for _ in 0..1 + self.below(30) {
            let first = self.below(block_count) as usize * BLOCK_LEN;
            let len = (1 + self.below(4) as usize) * BLOCK_LEN;
            let end = (first + len).min(changed.len());
            let fresh = disk(self.random.next(), end - first, 1 << 40);
            changed[first..end].copy_from_slice(&fresh);
        }
        if self.below(8) == 0 {
            changed.truncate(1 + self.below(changed.len() as u64) as usize);
        }
        changed
    }

    fn commit(&self) {
        let Some((parent, old)) = self.pick() else { return };
        let new = self.changed(&old);
        let image = if self.below(4) == 0 { self.image() } else { parent.image.clone() };
        let request = CommitRequest {
            parent: parent.clone(),
            image,
            tag: None,
            origin: "test".into(),
            progress: &Silent,
        };
        match self.repository.commit(&Difference { old: &old, new: &new }, &request) {
            Ok(committed) => {
                self.model.lock().unwrap().insert(committed.version.id, Arc::new(new));
            }
            Err(error) => self.expect_gone(&parent, &error),
        }
    }

    fn clone_version(&self) {
        let Some((from, bytes)) = self.pick() else { return };
        match self.repository.catalog().clone_version(&from, &self.image()) {
            Ok(version) => {
                self.model.lock().unwrap().insert(version.id, bytes);
            }
            Err(error) if error.kind() == Kind::Exists => {}
            Err(error) => self.expect_gone(&from, &error),
        }
    }

    fn remove(&self) {
        let Some((version, _)) = self.pick() else { return };
        self.model.lock().unwrap().remove(&version);
        if let Err(error) = self.repository.catalog().remove_version(&version) {
            assert_eq!(error.kind(), Kind::NotFound, "{}", error.chain());
        }
    }

    fn hold(&mut self) {
        let Some((version, bytes)) = self.pick() else { return };
        self.release();
        match self.repository.catalog().hold(&version, &self.name, None) {
            Ok(_) => self.held = Some((version, bytes)),
            Err(error) => self.expect_gone(&version, &error),
        }
    }

    /// Ends the hold, if there is one.
    pub fn release(&mut self) {
        self.held = None;
        self.repository.catalog().release(&self.name).unwrap();
    }

    /// Reads what is held as a mirror does: by a layout that it asks for anew when something is gone.
    fn read_held(&self) {
        let Some((version, bytes)) = &self.held else { return };
        let holds = self.repository.catalog().holds().unwrap();
        let held = holds.iter().find(|hold| hold.holder == self.name).unwrap();
        let mut last = None;
        for _ in 0..5 {
            match read_by(self.repository, held.content, bytes.len()) {
                Ok(read) => return assert!(read == **bytes, "{version}, held"),
                Err(error) => last = Some(error),
            }
        }
        panic!("{version}, held: {}", last.unwrap().chain());
    }

    fn read(&self) {
        let Some((version, bytes)) = self.pick() else { return };
        match export(self.repository, &version) {
            Ok(read) => assert!(read == *bytes, "{version}"),
            Err(error) => self.expect_gone(&version, &error),
        }
    }

    fn collect(&self) {
        match collect(self.repository, self.below(2) == 0) {
            Ok(()) => {}
            Err(error) => assert_eq!(error.kind(), Kind::Refused, "{}", error.chain()),
        }
    }

    /// An error is right only where somebody has removed the version meanwhile.
    fn expect_gone(&self, version: &VersionId, error: &Error) {
        let is_gone = !self.model.lock().unwrap().contains_key(version);
        assert!(is_gone, "{version}: {}", error.chain());
        assert!(matches!(error.kind(), Kind::NotFound | Kind::Stale), "{}", error.chain());
    }
}

fn read_by(
    repository: &Repository,
    content: model::ContentDigest,
    length: usize,
) -> Result<Vec<u8>> {
    use store::ChunkStore;
    let chunks = repository.chunks();
    let gone = || Error::new(Kind::NotFound, "read", "a hold");
    let layout = chunks.current_layout(content)?.ok_or_else(gone)?;
    let mut bytes = vec![0; length.next_multiple_of(BLOCK_LEN)];
    for entry in chunks.manifest(layout)?.segments() {
        let start = u64::from(entry.segment) * model::SEGMENT_LEN;
        for run in chunks.segment_map(entry.map)?.runs() {
            let chunk = chunks.chunk(run.chunk)?;
            let at = start as usize + run.first_block as usize * BLOCK_LEN;
            let blocks = chunk.blocks(run.first_in_chunk, run.block_count)?;
            bytes[at..at + blocks.len()].copy_from_slice(blocks);
        }
    }
    bytes.truncate(length);
    Ok(bytes)
}

/// Reads a version whole.
pub fn export(repository: &Repository, version: &VersionId) -> Result<Vec<u8>> {
    let sink = BytesSink::default();
    repository.export(version, Box::new(sink.clone()), &Silent, &Cancel::new())?;
    Ok(sink.take())
}

/// Collects once.
pub fn collect(repository: &Repository, waits: bool) -> Result<()> {
    let (limits, cancel) = (CollectLimits::default(), Cancel::new());
    let request = CollectRequest { limits, waits, events: &Silent, cancel: &cancel };
    repository.collect(&request).map(drop)
}

/// Collects until there is nothing to do; panics where that does not come soon.
pub fn collect_all(repository: &Repository) {
    for _ in 0..4 {
        collect(repository, true).unwrap();
        let plan = repository.plan_collect(&CollectLimits::default(), &Cancel::new()).unwrap();
        if plan.is_empty() {
            return;
        }
    }
    let plan = repository.plan_collect(&CollectLimits::default(), &Cancel::new()).unwrap();
    panic!("there is always more to collect: {plan:?}");
}

/// Bytes of all files of a repository, whose connections must be closed.
pub fn bytes_of(folder: &Path) -> u64 {
    let len = |path: &Path| -> u64 {
        std::fs::read_dir(path)
            .unwrap()
            .map(|file| file.unwrap().metadata().unwrap())
            .filter(std::fs::Metadata::is_file)
            .map(|file| file.len())
            .sum()
    };
    len(folder) + len(&folder.join("packs"))
}

/// Lives a life alone, collects all that can be, checks every version that is left. Returns the bytes
/// of the repository and of a fresh one with the same versions.
pub fn soak(folder: &Path, seed: u64, steps: u64, length_max: usize) -> (u64, u64) {
    let model = Model::default();
    let repository = open(&folder.join("lived"), seed);
    let random = SeededEntropy::new(seed);
    let name = "mirror".to_string();
    let mut client =
        Client { repository: &repository, model: &model, random, name, held: None, length_max };
    for _ in 0..steps {
        client.step();
    }
    client.release();
    collect_all(&repository);
    let versions = model.into_inner().unwrap();
    let fresh = open(&folder.join("fresh"), seed + 2);
    for (version, bytes) in &versions {
        assert!(export(&repository, version).unwrap() == **bytes, "{version}");
        let cancel = Cancel::new();
        let request = request(version.image.as_str(), &cancel);
        fresh.import(&mut BytesSource::new(bytes), &request).unwrap();
    }
    let packs = repository.catalog().packs().unwrap().len();
    assert_eq!(std::fs::read_dir(folder.join("lived/packs")).unwrap().count(), packs);
    drop((repository, fresh));
    (bytes_of(&folder.join("lived")), bytes_of(&folder.join("fresh")))
}
