//! A booted guest becomes two versions at once: its disk, and the machine that stands on it.
//!
//! ```text
//! changes ─► disk laid out ─► its content digest ─► source (memory, state, record) ─► laid out
//!                                    one transaction: both exist, the disk as the machine's parent
//! ```
//!
//! The disk comes first, so that pages of memory which hold blocks of it are found to be known.
//!
//! **Failure**: as of an import: there are two new versions, or none.

use model::changes::Changes;
use model::progress::{Cancel, Progress};
use model::source::DiskSource;
use model::{
    BLOCK_LEN, ContentDigest, ImageName, Kind, Reference, Result, Selector, TagName, VersionId,
    VersionKind, VersionNumber,
};

use catalog::{Condition, Publication, VersionRecord};

use crate::import::ImportRequest;
use crate::rebuild::{Rebuild, Rebuilt};
use crate::repository::Repository;

/// How often it is tried again because the disk's parent was laid out anew meanwhile.
const TRIES_MAX: usize = 3;

/// What is to be published, upon what, as what.
pub struct MachineRequest<'a> {
    /// The version that the guest's changes were made upon.
    pub parent: VersionId,
    /// The image that gets the disk.
    pub disk_image: ImageName,
    /// The image that gets the machine.
    pub image: ImageName,
    /// A tag for the machine.
    pub tag: Option<TagName>,
    /// Where they come from, in words.
    pub origin: String,
    /// Told of the progress.
    pub progress: &'a dyn Progress,
    /// Stops it.
    pub cancel: &'a Cancel,
    /// The zstd level of the machine's entries, where it is above the repository's own.
    pub compression_level: Option<i32>,
}

/// What was published.
#[derive(Clone, Debug)]
pub struct PublishedMachine {
    /// The machine.
    pub machine: VersionRecord,
    /// Its disk.
    pub disk: VersionRecord,
    /// Bytes of the disk's changed blocks.
    pub disk_dirty_len: u64,
    /// Bytes that the repository grew by for the disk.
    pub disk_stored_len: u64,
    /// Plain bytes of the machine's blocks that the repository did not have.
    pub new_len: u64,
    /// Bytes that the repository grew by for the machine.
    pub stored_len: u64,
}

impl Repository {
    /// Makes a guest's changes a version, and its memory the machine that stands on it. `source` is
    /// told the disk's content and gives the machine's bytes. Durable when it returns.
    ///
    /// # Errors
    /// Those of a commit and of an import.
    pub fn publish_machine(
        &self,
        changes: &dyn Changes,
        source: &mut dyn FnMut(ContentDigest) -> Result<Box<dyn DiskSource>>,
        request: &MachineRequest,
    ) -> Result<PublishedMachine> {
        let mut tries = 0;
        loop {
            let parent = self.catalog.version(&request.parent.clone().into())?;
            let published = self.publish_machine_upon(&parent, changes, source, request);
            let stale = published.as_ref().is_err_and(|error| error.kind() == Kind::Stale);
            if !stale || tries == TRIES_MAX {
                return published;
            }
            tries += 1;
        }
    }

    fn publish_machine_upon(
        &self,
        parent: &VersionRecord,
        changes: &dyn Changes,
        source: &mut dyn FnMut(ContentDigest) -> Result<Box<dyn DiskSource>>,
        request: &MachineRequest,
    ) -> Result<PublishedMachine> {
        let lease = self.begin_lease()?;
        let manifest = self.manifest_of(parent)?;
        let catalog_len = || self.catalog.statistics().map(|statistics| statistics.catalog_len);
        let len_before = catalog_len()?;
        let rebuild = Rebuild::new(self, &manifest, changes, None);
        let labels = (&request.disk_image, request.origin.as_str());
        let disk = self.rebuild(parent, &rebuild, changes, &lease, labels, |len| {
            request.progress.advance(len);
            request.cancel.check("store", request.image.as_str())
        })?;
        let len_between = catalog_len()?;
        let mut source = source(disk.facts.content)?;
        let import = ImportRequest {
            image: request.image.clone(),
            tag: request.tag.clone(),
            origin: request.origin.clone(),
            kind: VersionKind::Machine,
            progress: request.progress,
            cancel: request.cancel,
        };
        let expected = self.expected_version(&request.disk_image)?;
        let mut denser = self.clone();
        if let Some(level) = request.compression_level {
            let own = denser.settings.compression_level;
            denser.settings.compression_level = level.max(own);
        }
        let (laid_out, facts, record) =
            denser.lay_out_source(&mut *source, &import, Some(&expected), &lease)?;
        let Rebuilt { laid_out: disk_laid_out, facts: disk_facts, record: disk_record, dirty_len } =
            disk;
        let published = self.catalog.publish_machine(
            lease.id(),
            &Publication {
                image: request.disk_image.clone(),
                facts: disk_facts,
                based_on: Some((request.parent.clone(), parent.facts.layout)),
                tag: None,
                condition: Condition::Any,
                record: disk_record,
            },
            &Publication {
                image: request.image.clone(),
                facts,
                based_on: None,
                tag: request.tag.clone(),
                condition: Condition::Any,
                record,
            },
        );
        let [disk, machine] = published?;
        lease.ended();
        self.export_names_if_old();
        Ok(PublishedMachine {
            machine,
            disk,
            disk_dirty_len: dirty_len,
            disk_stored_len: disk_laid_out.written.stored_len
                + len_between.saturating_sub(len_before),
            new_len: laid_out.new_block_count * BLOCK_LEN as u64,
            stored_len: laid_out.written.stored_len + catalog_len()?.saturating_sub(len_between),
        })
    }

    /// The version that an image gets next, unless another writer is quicker.
    fn expected_version(&self, image: &ImageName) -> Result<VersionId> {
        let latest = Reference { image: image.clone(), selector: Selector::Latest };
        let version = match self.catalog.version(&latest) {
            Ok(latest) => VersionNumber::new(latest.latest.get() + 1).unwrap_or(latest.latest),
            Err(error) if error.kind() == Kind::NotFound => VersionNumber::FIRST,
            Err(error) => return Err(error),
        };
        Ok(VersionId { image: image.clone(), version })
    }
}
