//! The stock: boot working sets that a host keeps, so that its guests boot without the repository.
//!
//! ```text
//! repository ─► wanted versions, by rank ─► sync ─► STATE/stock: a repository of its own
//!                                                     boot-<content>@1 = blocks of the set, in order,
//!                                                     then manifest, maps, sources, frame, index
//! attach ─► find(content) ─► StockedSet ─► manifest, maps, set, pieces
//! ```
//!
//! The stock is a repository, so blocks that sets share are there once, and compressed; each stocked
//! set is a blob in it. Everything read from it is named by a digest and hashed, and blocks are
//! verified against the version's maps, as if they came from afar.
//!
//! **Failure**: what is damaged or missing in the stock is a miss: whoever asked goes to the repository.
//! A sync that is killed leaves what it has stocked, and what it was writing to the next one.
//!
//! **Not here**: whose guests boot when (`host`).
//!
//! **Source**: Squirrel (Razavi, Ion, Kielmann, HPDC 2014): the boot working sets of all images on all
//! hosts, deduplicated and compressed.

mod blob;
mod read;
mod sync;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use env::{File, OpenMode};
use model::{ContentDigest, Error, ImageName, Kind, Reference, Result, Selector};

pub use self::read::StockedSet;
pub use self::sync::{SyncRequest, Synced, Wanted};
use crate::repository::{Machine, Repository};

/// A host's stock.
#[derive(Clone)]
pub struct Stock {
    repository: Repository,
    machine: Machine,
    folder: PathBuf,
}

impl Stock {
    /// Opens the stock in a folder; `None` where there is none.
    ///
    /// # Errors
    /// Those of a repository: do without the stock.
    pub fn open(machine: &Machine, folder: &Path) -> Result<Option<Stock>> {
        match Repository::open(machine, folder) {
            Ok(repository) => Ok(Some(Self::of(repository, machine, folder))),
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens the stock in a folder, or makes one.
    pub fn open_or_create(machine: &Machine, folder: &Path) -> Result<Stock> {
        let (repository, _) = Repository::open_or_create(machine, folder)?;
        Ok(Self::of(repository, machine, folder))
    }

    fn of(repository: Repository, machine: &Machine, folder: &Path) -> Stock {
        Stock { repository, machine: machine.clone(), folder: folder.to_path_buf() }
    }

    /// What is stocked for a content; `None` where nothing is, or it cannot be read. Cost: one question
    /// to the stock's catalog, one or two chunks.
    pub fn find(&self, content: ContentDigest) -> Option<StockedSet> {
        let found = self.find_or_fail(content);
        found.unwrap_or_else(|error| {
            tracing::warn!("not from the stock: {}", error.chain());
            None
        })
    }

    fn find_or_fail(&self, content: ContentDigest) -> Result<Option<StockedSet>> {
        let reference = Reference { image: name_of(content)?, selector: Selector::Latest };
        match self.repository.catalog().version(&reference) {
            Ok(version) => StockedSet::open(&self.repository, &version).map(Some),
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Bytes that it takes on disk, all counted.
    pub fn stored_len(&self) -> Result<u64> {
        Ok(self.repository.statistics()?.stored_len)
    }

    /// The right to change the stock, until the file is dropped: one sync at a time.
    fn lock(&self) -> Result<Arc<dyn File>> {
        let path = self.folder.with_extension("lock");
        let subject = || self.folder.display().to_string();
        let failed = |error| Error::io("sync the stock in", subject(), error);
        let file = self.machine.file_system.open(&path, OpenMode::OpenOrCreate).map_err(failed)?;
        match file.try_lock().map_err(failed)? {
            true => Ok(file),
            false => Err(Error::new(Kind::Refused, "sync the stock in", subject())
                .because("another sync is at work")
                .hint("it does the same; let it end")),
        }
    }
}

/// Under what name the set of a content is stocked.
fn name_of(content: ContentDigest) -> Result<ImageName> {
    ImageName::new(&format!("boot-{content}"))
}
