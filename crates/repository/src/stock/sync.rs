//! Keeping a stock as it should be: the wanted sets, the first in rank first, within a limit.
//!
//! ```text
//! stocked, wanted no more or in another layout ─► removed
//! wanted, by rank ─► stocked already? kept
//!                └─► room? fetched, verified, stocked
//!                └─► none: whatever is last in rank goes; nothing is behind it? left out, and the end
//! ```
//!
//! **Invariant**: the stock takes no more than the limit when a sync ends; while one is at work, not
//! more than the limit and what a collect copies.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use catalog::{EntryDigest, ImageFilter, VersionRecord};
use model::boot_set::BOOT;
use model::progress::{Cancel, Progress, Silent};
use model::{ContentDigest, Error, ImageName, Kind, LayoutDigest, Result, VersionKind};

use super::blob::SetBlob;
use super::{Stock, name_of};
use crate::collect::{CollectLimits, CollectRequest};
use crate::import::ImportRequest;
use crate::repository::Repository;

/// What a set takes beyond its pieces and itself, at most, for a version of a few GiB.
const PARTS_LEN: u64 = 1 << 20;

/// What a host's stock is to hold.
pub struct SyncRequest<'a> {
    /// Where sets come from.
    pub from: &'a Repository,
    /// The versions whose sets are wanted.
    pub wanted: Wanted,
    /// Bytes of disk that the stock may take.
    pub limit_len: u64,
    /// Told of the plain bytes that are stocked.
    pub progress: &'a dyn Progress,
    /// Stops it.
    pub cancel: &'a Cancel,
}

/// Whose sets are wanted.
pub enum Wanted {
    /// Those of these versions.
    Versions(Vec<VersionRecord>),
    /// Those of the latest version of each image that passes, and of the tagged ones.
    Images(ImageFilter),
}

/// What a sync did. Lengths in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// Contents that are wanted.
    pub wanted: u64,
    /// Those of them without a set: nobody has booted them yet.
    pub without_set: u64,
    /// Sets that the stock holds now.
    pub stocked: u64,
    /// Sets that came.
    pub added: u64,
    /// Sets that went.
    pub evicted: u64,
    /// Wanted sets that did not fit.
    pub left_out: u64,
    /// Wanted sets that could not be read.
    pub failed: u64,
    /// Stored bytes that were read from the repository.
    pub fetched_len: u64,
    /// Plain bytes of the sets' blocks in the stock.
    pub plain_len: u64,
    /// What the stock takes on disk, all counted.
    pub stored_len: u64,
}

/// What tells whether a stocked set is the one that is wanted.
type Key = (LayoutDigest, EntryDigest);

impl Stock {
    /// Makes the stock what is wanted. Most used first, then newest.
    ///
    /// # Errors
    /// `Refused` while another sync is at work; those of the repository's catalog; `Full`, `Cancelled`.
    /// What was stocked until then stays. A set that cannot be read is left out and counted.
    pub fn sync(&self, request: &SyncRequest) -> Result<Synced> {
        let _lock = self.lock()?;
        let mut synced = Synced::default();
        let wanted = ranked(request.from, &request.wanted)?;
        synced.wanted = wanted.len() as u64;
        let mut work =
            Work { stock: self, request, synced, stocked: self.stocked()?, freed: false };
        work.keep_only(&wanted)?;
        // Where the limit is lower than before, or something else takes the room.
        work.make_room(0, &wanted)?;
        for (rank, version) in wanted.iter().enumerate() {
            request.cancel.check("sync", "the stock")?;
            if !work.bring(version, &wanted[rank + 1..])? {
                work.synced.left_out = (wanted.len() - rank) as u64;
                break;
            }
        }
        work.collect()?;
        work.finish()
    }

    /// What is stocked, by content.
    fn stocked(&self) -> Result<HashMap<ImageName, Option<Key>>> {
        let images = self.repository.catalog().images(&ImageFilter::default())?;
        let mut stocked = HashMap::new();
        for image in images {
            let reference =
                model::Reference { image: image.name.clone(), selector: model::Selector::Latest };
            let version = self.repository.catalog().version(&reference)?;
            // What cannot be read is stocked anew.
            let set = super::StockedSet::open(&self.repository, &version).ok();
            let key = set.and_then(|set| Some((set.layout()?, set.set_digest()?)));
            stocked.insert(image.name, key);
        }
        Ok(stocked)
    }
}

/// One sync at work.
struct Work<'a> {
    stock: &'a Stock,
    request: &'a SyncRequest<'a>,
    synced: Synced,
    stocked: HashMap<ImageName, Option<Key>>,
    /// Something was removed whose bytes are there still.
    freed: bool,
}

impl Work<'_> {
    /// Removes what is stocked and not wanted.
    fn keep_only(&mut self, wanted: &[VersionRecord]) -> Result<()> {
        let names: HashSet<ImageName> =
            wanted.iter().map(|version| name_of(version.facts.content)).collect::<Result<_>>()?;
        let gone: Vec<ImageName> =
            self.stocked.keys().filter(|name| !names.contains(name)).cloned().collect();
        gone.iter().try_for_each(|name| self.evict(name))
    }

    fn evict(&mut self, name: &ImageName) -> Result<()> {
        self.stock.repository.catalog().remove_image(name)?;
        self.stocked.remove(name);
        self.synced.evicted += 1;
        self.freed = true;
        Ok(())
    }

    /// Stocks the set of a version, unless it is there. False where there is no room for it.
    fn bring(&mut self, version: &VersionRecord, behind: &[VersionRecord]) -> Result<bool> {
        let from = self.request.from;
        let Some(record) = from.boot_set_record(version, BOOT)? else {
            self.synced.without_set += 1;
            return Ok(true);
        };
        let name = name_of(version.facts.content)?;
        match self.stocked.get(&name) {
            Some(Some(key)) if *key == (version.facts.layout, record.digest) => return Ok(true),
            Some(_) => self.evict(&name)?,
            None => {}
        }
        let chunks = Arc::new(from.chunks().another());
        let stocked = self.fetch(version, record, &chunks, &name, behind);
        self.synced.fetched_len += chunks.read_len();
        match stocked {
            Ok(has_room) => Ok(has_room),
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::NotFound) => {
                tracing::warn!(version = %version.id, "not stocked: {}", error.chain());
                self.synced.failed += 1;
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    fn fetch(
        &mut self,
        version: &VersionRecord,
        record: catalog::BootSetRecord,
        chunks: &Arc<crate::RepositoryChunks>,
        name: &ImageName,
        behind: &[VersionRecord],
    ) -> Result<bool> {
        let set = Arc::new(chunks.boot_set(record.digest)?);
        let found = crate::FoundBootSet { record, set };
        let sizes = self.request.from.boot_set_sizes(&found)?;
        if !self.make_room(sizes.stored_len + PARTS_LEN, behind)? {
            return Ok(false);
        }
        let mut blob = SetBlob::new(chunks.clone(), version, &found)?;
        let imported = self.stock.repository.import(
            &mut blob,
            &ImportRequest {
                image: name.clone(),
                tag: None,
                origin: format!("boot working set of {}", version.id),
                kind: VersionKind::Disk,
                progress: self.request.progress,
                cancel: self.request.cancel,
            },
        )?;
        let key = (version.facts.layout, found.record.digest);
        self.stocked.insert(name.clone(), Some(key));
        self.synced.added += 1;
        tracing::debug!(version = %version.id, new = imported.stored_len, "stocked");
        Ok(true)
    }

    /// Makes room for that many bytes: what is last in rank goes first. False where it cannot be.
    fn make_room(&mut self, len: u64, behind: &[VersionRecord]) -> Result<bool> {
        let mut behind = behind.iter().rev();
        loop {
            if self.stock.stored_len()? + len <= self.request.limit_len {
                return Ok(true);
            }
            if self.freed {
                self.collect()?;
                continue;
            }
            let is_stocked = |content: ContentDigest| {
                let name = name_of(content).ok()?;
                self.stocked.contains_key(&name).then_some(name)
            };
            let Some(last) = behind.find_map(|version| is_stocked(version.facts.content)) else {
                return Ok(false);
            };
            self.evict(&last)?;
        }
    }

    /// Gives back the bytes of what was removed.
    fn collect(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.freed) {
            return Ok(());
        }
        let collected = self.stock.repository.collect(&CollectRequest {
            limits: CollectLimits::default(),
            waits: true,
            events: &Silent,
            cancel: self.request.cancel,
        });
        match collected {
            // A stock whose parts are damaged is a help no more.
            Err(error) if error.kind() == Kind::Corrupt => Err(Error::new(
                Kind::Corrupt,
                "sync the stock in",
                self.stock.folder.display().to_string(),
            )
            .because("it is damaged")
            .hint("remove that folder: the next sync fills it anew")
            .caused_by(error)),
            other => other.map(drop),
        }
    }

    fn finish(mut self) -> Result<Synced> {
        // Rounding and the catalog's own bytes may have gone beyond what was foreseen.
        let statistics = self.stock.repository.statistics()?;
        self.synced.stocked = self.stocked.len() as u64;
        self.synced.stored_len = statistics.stored_len;
        self.synced.plain_len = statistics.data_len;
        Ok(self.synced)
    }
}

/// The versions that are wanted, each content once: the most used first, then the newest.
fn ranked(from: &Repository, wanted: &Wanted) -> Result<Vec<VersionRecord>> {
    let mut versions = match wanted {
        Wanted::Versions(versions) => versions.clone(),
        Wanted::Images(filter) => {
            let mut versions = Vec::new();
            for image in from.catalog().images(filter)? {
                let latest = image.versions.last().copied();
                let named = from.catalog().versions(&image.name)?;
                versions.extend(named.into_iter().filter(|version| {
                    Some(version.id.version) == latest || !version.tags.is_empty()
                }));
            }
            versions
        }
    };
    versions.sort_by(|a, b| {
        (b.attach_count, b.created, &a.id.image).cmp(&(a.attach_count, a.created, &b.id.image))
    });
    let mut seen = HashSet::new();
    versions.retain(|version| seen.insert(version.facts.content));
    Ok(versions)
}
