//! Commit: what changed upon a version becomes the next version.
//!
//! Only changed blocks are hashed, only new ones stored, only the maps of touched segments written
//! anew. The digests of the blocks that stay come from the lists in the packs.
//!
//! **Failure**: as of an import: the image is as it was, or has the whole new version.

use model::changes::Changes;
use model::progress::Progress;
use model::{BLOCK_LEN, ImageName, Kind, Result, TagName, VersionId};

use catalog::{Condition, Publication, VersionRecord};

use crate::lease::Lease;
use crate::rebuild::{Rebuild, Rebuilt};
use crate::repository::Repository;

/// How often a commit is tried again because collect has laid its parent out anew meanwhile.
const TRIES_MAX: usize = 3;

/// What is to be committed, upon what, as what.
pub struct CommitRequest<'a> {
    /// The version that the changes were made upon.
    pub parent: VersionId,
    /// The image that gets the new version.
    pub image: ImageName,
    /// A tag for it.
    pub tag: Option<TagName>,
    /// Where it comes from, in words.
    pub origin: String,
    /// Told of the progress.
    pub progress: &'a dyn Progress,
}

/// What was committed.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The new version.
    pub version: VersionRecord,
    /// Bytes of changed blocks.
    pub dirty_len: u64,
    /// Plain bytes of blocks that the repository did not have.
    pub new_len: u64,
    /// Bytes that the repository grew by.
    pub stored_len: u64,
    /// The image's latest version before this one, when that is not the parent: what it holds is
    /// not in the new version.
    pub bypassed: Option<VersionId>,
}

impl Repository {
    /// Makes changes the next version of an image. Durable when it returns.
    ///
    /// Cost: reading, hashing and compressing the changed blocks; a list of some 130 KB for each
    /// pack that a touched segment refers to.
    ///
    /// # Errors
    /// `NotFound` where the parent is gone; those of an import.
    pub fn commit(&self, changes: &dyn Changes, request: &CommitRequest) -> Result<Committed> {
        let mut tries = 0;
        loop {
            let lease = self.begin_lease()?;
            let parent = self.catalog.version(&request.parent.clone().into())?;
            let committed = self.commit_upon(&parent, changes, request, lease);
            // What was stored is known now, so that another try costs hashing alone.
            let stale = committed.as_ref().is_err_and(|error| error.kind() == Kind::Stale);
            if !stale || tries == TRIES_MAX || !self.was_laid_out_anew(&parent)? {
                return committed;
            }
            tries += 1;
        }
    }

    fn was_laid_out_anew(&self, version: &VersionRecord) -> Result<bool> {
        let now = self.catalog.version(&version.id.clone().into())?;
        Ok(now.facts.layout != version.facts.layout)
    }

    fn commit_upon(
        &self,
        parent: &VersionRecord,
        changes: &dyn Changes,
        request: &CommitRequest,
        lease: Lease,
    ) -> Result<Committed> {
        let bypassed = self.bypassed(parent, request);
        let manifest = self.manifest_of(parent)?;
        let catalog_len = self.catalog.statistics()?.catalog_len;
        let rebuild = Rebuild::new(self, &manifest, changes, None);
        let rebuilt = self.rebuild(
            parent,
            &rebuild,
            changes,
            &lease,
            (&request.image, &request.origin),
            |len| {
                request.progress.advance(len);
                Ok(())
            },
        )?;
        let Rebuilt { laid_out, facts, record, dirty_len } = rebuilt;
        let version = self.publish(
            lease,
            &Publication {
                image: request.image.clone(),
                facts,
                based_on: Some((request.parent.clone(), parent.facts.layout)),
                condition: Condition::Any,
                tag: request.tag.clone(),
                record,
            },
        )?;
        let grown = self.catalog.statistics()?.catalog_len.saturating_sub(catalog_len);
        Ok(Committed {
            version,
            dirty_len,
            new_len: laid_out.new_block_count * BLOCK_LEN as u64,
            stored_len: laid_out.written.stored_len + grown,
            bypassed,
        })
    }

    fn bypassed(&self, parent: &VersionRecord, request: &CommitRequest) -> Option<VersionId> {
        let same_image = parent.id.image == request.image;
        (same_image && parent.latest != parent.id.version)
            .then(|| VersionId { image: request.image.clone(), version: parent.latest })
    }
}
