//! A mirror's changes become a version.
//!
//! ```text
//! seal (guest waits: pause_ms) ─► repository.commit ─► finish: dirty bits restart
//!                                        └─ failed ──► all stays dirty
//! ```

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use env::{Clock, SystemClock};
use mirror::Mirror;
use model::progress::Progress;
use model::{Error, ImageName, Kind, Result, TagName, VersionId};
use repository::{CommitRequest, Repository};
use serde::{Deserialize, Serialize};

/// What is wanted of a commit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommitOptions {
    /// A new image that the mirror is bound to first, as a clone of its parent.
    pub to: Option<String>,
    /// A tag for the new version.
    pub tag: Option<String>,
}

/// What came of it: the keys that programs read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The image.
    pub image: String,
    /// The new version's number.
    pub version: u64,
    /// The version that the changes were made upon.
    pub parent: String,
    /// The new version's identity.
    pub digest: String,
    /// Bytes of changed blocks.
    pub dirty_bytes: u64,
    /// Plain bytes of blocks that the repository did not have.
    pub new_bytes: u64,
    /// Bytes that the repository grew by.
    pub stored_bytes: u64,
    /// How long the doors were held, in milliseconds.
    pub pause_ms: f64,
    /// How long all of it took.
    pub seconds: f64,
    /// The image's latest version before this one, where that was not the parent: what it holds is
    /// not in the new version.
    pub bypassed: Option<String>,
}

/// Makes commits and clones of one mirror, one at a time: each starts from the parent that the one
/// before it has left.
pub struct Committer {
    repository: Repository,
    mirror: Arc<Mirror>,
    is_open: Mutex<bool>,
}

impl Committer {
    /// A committer of a mirror that this process owns.
    pub fn new(repository: Repository, mirror: Arc<Mirror>) -> Self {
        Committer { repository, mirror, is_open: Mutex::new(true) }
    }

    /// Makes the changes of the mirror the next version of its image. Durable when it returns.
    ///
    /// # Errors
    /// Those of the repository; then the mirror keeps all its changes.
    pub fn commit(&self, options: &CommitOptions, progress: &dyn Progress) -> Result<Outcome> {
        let _turn = self.take_turn("commit")?;
        let tag = options.tag.as_deref().map(TagName::new).transpose()?;
        let to = options.to.as_deref().map(ImageName::new).transpose()?;
        if let Some(image) = to {
            self.rebind(&image)?;
        }
        self.seal_and_publish(tag, progress)
    }

    /// Binds the mirror, changes and all, to a new image that is a clone of its parent.
    pub fn clone_to(&self, image: &ImageName) -> Result<VersionId> {
        let _turn = self.take_turn("clone")?;
        self.rebind(image)
    }

    /// Waits for what is under way and refuses what comes after: the mirror is about to be let go.
    pub fn close(&self) {
        *self.is_open.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }

    fn take_turn(&self, operation: &'static str) -> Result<MutexGuard<'_, bool>> {
        let is_open = self.is_open.lock().unwrap_or_else(PoisonError::into_inner);
        match *is_open {
            true => Ok(is_open),
            false => Err(Error::new(Kind::Unavailable, operation, self.mirror.name().as_str())
                .because("its owner is ending")
                .hint("try again")),
        }
    }

    fn rebind(&self, image: &ImageName) -> Result<VersionId> {
        let parent = self.mirror.binding().parent;
        let version = self.repository.catalog().clone_version(&parent, image)?;
        self.mirror.rebind(version.id.clone()).inspect_err(|_| {
            // The same call must be possible again. The error that matters is the first.
            let _ = self.repository.catalog().remove_version(&version.id);
        })?;
        Ok(version.id)
    }

    /// A mirror whose parent was removed has no place to go; its bytes can be saved all the same.
    fn explain(&self, error: Error, parent: &VersionId) -> Error {
        let found = self.repository.catalog().version(&parent.clone().into());
        let name = self.mirror.name();
        match found.is_err_and(|missing| missing.kind() == Kind::NotFound) {
            true => Error::new(Kind::NotFound, "commit", name.as_str())
                .because(format!("{parent}, which it stands on, was removed"))
                .hint(format!("attach {parent} with `--fuse DIR`, import DIR/mirrors/{name}")),
            false => error,
        }
    }

    fn seal_and_publish(&self, tag: Option<TagName>, progress: &dyn Progress) -> Result<Outcome> {
        let start = SystemClock.monotonic();
        let sealed = self.mirror.seal()?;
        let (parent, pause) = (sealed.parent().clone(), sealed.pause());
        let request = CommitRequest {
            parent: parent.clone(),
            image: parent.image.clone(),
            tag,
            origin: format!("commit {}", self.mirror.name()),
            progress,
        };
        // Dropped on the way out, the sealed changes are dirty again.
        let committed =
            self.repository.commit(&sealed, &request).map_err(|e| self.explain(e, &parent))?;
        let version = &committed.version;
        self.mirror.finish_commit(sealed, version.id.clone()).map_err(|error| {
            Error::new(error.kind(), "finish the commit of", self.mirror.name().as_str())
                .because(format!("{} exists, but the mirror could not note it", version.id))
                .hint("its next commit will hold these changes once more")
                .caused_by(error)
        })?;
        Ok(Outcome {
            image: version.id.image.to_string(),
            version: version.id.version.get(),
            parent: parent.to_string(),
            digest: version.facts.content.to_string(),
            dirty_bytes: committed.dirty_len,
            new_bytes: committed.new_len,
            stored_bytes: committed.stored_len,
            pause_ms: pause.as_secs_f64() * 1000.0,
            seconds: (SystemClock.monotonic() - start).as_secs_f64(),
            bypassed: committed.bypassed.map(|version| version.to_string()),
        })
    }
}
