//! Opening and making a repository; its parts.
//!
//! ```text
//! DIR/repository.toml   settings: what makes the folder a repository
//! DIR/catalog.sqlite    names, versions, places of entries, hooks, leases
//! DIR/catalog.export    the names once more, in case the database is lost
//! DIR/packs/            bytes
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use catalog::{Catalog, SqliteCatalog};
use env::{Clock, Entropy, FileSystem};
use model::{Error, Kind, Realm, Result};
use store::{DecoratedPackStore, DirectoryPackStore, LinkSpeed, PackStore};

use crate::blob::Turns;
use crate::chunks::RepositoryChunks;
use crate::lease::{ReadersLease, TIME_TO_LIVE};
use crate::lists::PackLists;
use crate::settings::Settings;
use crate::signing::TrustedKey;

/// A repository that is open. Cheap to copy; copies share their caches.
#[derive(Clone)]
pub struct Repository {
    pub(crate) settings: Settings,
    pub(crate) catalog: Arc<dyn Catalog>,
    pub(crate) packs: Arc<dyn PackStore>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) lists: Arc<PackLists>,
    pub(crate) realm: Realm,
    pub(crate) clock: Arc<dyn Clock>,
    /// Where its folder is, if it lies in one.
    pub(crate) home: Option<Home>,
    pub(crate) turns: Arc<Turns>,
    pub(crate) lease_time: Duration,
    pub(crate) readers: Arc<ReadersLease>,
    /// Keys of which one must have signed what is to be attached; none where anything may be.
    pub(crate) trusted: Arc<[TrustedKey]>,
    chunks: Arc<RepositoryChunks>,
}

/// The folder of a repository.
#[derive(Clone)]
pub(crate) struct Home {
    pub(crate) file_system: Arc<dyn FileSystem>,
    pub(crate) folder: PathBuf,
}

/// The parts of the machine that a repository stands on.
#[derive(Clone)]
pub struct Machine {
    /// Files.
    pub file_system: Arc<dyn FileSystem>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
}

impl Machine {
    /// The real one.
    pub fn real() -> Self {
        Machine {
            file_system: Arc::new(env::RealFileSystem),
            clock: Arc::new(env::SystemClock),
            entropy: Arc::new(env::SystemEntropy),
        }
    }
}

impl Repository {
    /// Opens the repository in a folder.
    ///
    /// # Errors
    /// `NotFound` where there is none; `Refused` for one of a newer format; `Corrupt` where its
    /// catalog is lost or damaged: the hint says how to make it anew.
    pub fn open(machine: &Machine, folder: &Path) -> Result<Self> {
        match Settings::read(&*machine.file_system, folder)? {
            Some(settings) => Self::assemble(machine, folder, settings, IsNew::No),
            None => {
                Err(Error::new(Kind::NotFound, "open the repository", folder.display().to_string())
                    .because("there is none in this folder")
                    .hint("`larder import FILE IMAGE` makes one; `--repo` names another folder"))
            }
        }
    }

    /// The same, its packs behind a link: for benches.
    pub fn open_over_link(machine: &Machine, folder: &Path, speed: LinkSpeed) -> Result<Self> {
        let near = Self::open(machine, folder)?;
        let packs = Arc::new(DecoratedPackStore::new(near.packs, speed));
        Ok(Self::from_parts(near.settings, near.catalog, packs, near.entropy))
    }

    /// Opens the repository in a folder, or makes one where the folder is empty or missing. True
    /// where it was made.
    pub fn open_or_create(machine: &Machine, folder: &Path) -> Result<(Self, bool)> {
        if let Some(settings) = Settings::read(&*machine.file_system, folder)? {
            return Ok((Self::assemble(machine, folder, settings, IsNew::No)?, false));
        }
        let settings = Settings::new(machine.entropy.name());
        Self::create(machine, folder, settings).map(|repository| (repository, true))
    }

    /// Makes a repository with these settings in a folder that is empty or missing.
    ///
    /// # Errors
    /// `Refused` where the folder holds something else.
    pub fn create(machine: &Machine, folder: &Path, settings: Settings) -> Result<Self> {
        let subject = folder.display().to_string();
        let operation = "make the repository";
        let failed = |error| Error::io(operation, folder.display().to_string(), error);
        make_folders(&*machine.file_system, folder).map_err(failed)?;
        let mut names = machine.file_system.list(folder).map_err(failed)?;
        // Another process may be making it at this moment: what belongs to a repository is no
        // stranger.
        names.retain(|name| {
            let name = name.to_string_lossy();
            !(name.starts_with("catalog.sqlite")
                || name == "packs"
                || name.starts_with("repository."))
        });
        if !names.is_empty() {
            return Err(Error::new(Kind::Refused, operation, subject)
                .because("the folder is not empty and holds no repository")
                .hint("give an empty or new folder with `--repo`"));
        }
        // The settings last: they are what makes the folder a repository.
        let repository = Self::assemble(machine, folder, settings.clone(), IsNew::Yes)?;
        settings.write(&*machine.file_system, folder)?;
        Ok(repository)
    }

    fn assemble(
        machine: &Machine,
        folder: &Path,
        settings: Settings,
        is_new: IsNew,
    ) -> Result<Self> {
        let packs = DirectoryPackStore::open(machine.file_system.clone(), &folder.join("packs"))?;
        let (path, clock) = (catalog_path(folder), machine.clock.clone());
        let catalog = match is_new {
            IsNew::Yes => SqliteCatalog::open(&path, clock)?,
            // A catalog that is lost must not be taken for one that is empty.
            IsNew::No => SqliteCatalog::open_existing(&path, clock)?,
        };
        let entropy = machine.entropy.clone();
        let repository = Self::from_parts(settings, Arc::new(catalog), Arc::new(packs), entropy);
        Ok(repository.at(machine, folder))
    }

    /// Says in which folder the repository lies, and on which machine: its names are exported there.
    #[must_use]
    pub fn at(mut self, machine: &Machine, folder: &Path) -> Self {
        let (file_system, folder) = (machine.file_system.clone(), folder.to_path_buf());
        self.home = Some(Home { file_system, folder });
        self.clock = machine.clock.clone();
        self
    }

    /// Joins a catalog and a store to a repository, which lies in no folder until [`Repository::at`]
    /// says so.
    pub fn from_parts(
        settings: Settings,
        catalog: Arc<dyn Catalog>,
        packs: Arc<dyn PackStore>,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        let realm = Realm::default_realm();
        let lists = Arc::new(PackLists::new(catalog.clone(), packs.clone()));
        let chunks = RepositoryChunks::new(catalog.clone(), packs.clone(), realm.clone());
        let (clock, chunks) = (Arc::new(env::SystemClock), Arc::new(chunks));
        let (home, lease_time) = (None, TIME_TO_LIVE);
        let (turns, readers) = (Arc::default(), Arc::default());
        Repository {
            settings,
            catalog,
            packs,
            entropy,
            lists,
            realm,
            clock,
            home,
            turns,
            lease_time,
            readers,
            trusted: Arc::default(),
            chunks,
        }
    }

    /// The same, with leases that die `lease_time` after a process that no longer renews them. All who
    /// work on a repository may differ.
    #[must_use]
    pub fn with_lease_time(self, lease_time: Duration) -> Self {
        Repository { lease_time, readers: Arc::default(), ..self }
    }

    /// The same, for a host that attaches only what one of these keys has signed.
    #[must_use]
    pub fn trusting(self, keys: &[TrustedKey]) -> Self {
        Repository { trusted: keys.into(), ..self }
    }

    /// The settings it was made with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Its names: every question and every change that is about names alone goes there.
    pub fn catalog(&self) -> &dyn Catalog {
        &*self.catalog
    }

    /// Its bytes, verified; errors do not say which versions they touch.
    pub(crate) fn plain_chunks(&self) -> RepositoryChunks {
        RepositoryChunks::new(self.catalog.clone(), self.packs.clone(), self.realm.clone())
            .without_versions()
    }

    /// Its bytes, verified.
    pub fn chunks(&self) -> Arc<RepositoryChunks> {
        self.chunks.clone()
    }
}

/// Whether a repository is being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IsNew {
    Yes,
    No,
}

/// Makes a folder and those above it, their names durable: what is acknowledged inside must not go
/// with them.
fn make_folders(file_system: &dyn FileSystem, folder: &Path) -> std::io::Result<()> {
    let mut made = Vec::new();
    for above in folder.ancestors().filter(|above| !above.as_os_str().is_empty()) {
        if file_system.exists(above)? {
            break;
        }
        made.push(above);
    }
    file_system.create_folders(folder)?;
    made.iter().filter_map(|folder| folder.parent()).try_for_each(|f| file_system.sync_folder(f))
}

/// Where the catalog of the repository in `folder` lies.
pub fn catalog_path(folder: &Path) -> PathBuf {
    folder.join("catalog.sqlite")
}
