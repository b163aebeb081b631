//! A mirror's changes become a version.
//!
//! ```text
//! seal (guest waits: pause_ms) ─► repository.commit ─► finish: dirty bits restart
//!                                        └─ failed ──► abandon: all stays dirty
//! ```

use std::sync::Arc;

use env::{Clock, SystemClock};
use mirror::Mirror;
use model::progress::Progress;
use model::{ImageName, Result, TagName, VersionId};
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

/// Makes the changes of a mirror the next version of its image.
///
/// # Errors
/// Those of the repository; then the mirror keeps all its changes.
pub fn commit(
    repository: &Repository,
    mirror: &Arc<Mirror>,
    options: &CommitOptions,
    progress: &dyn Progress,
) -> Result<Outcome> {
    let start = SystemClock.monotonic();
    let tag = options.tag.as_deref().map(TagName::new).transpose()?;
    if let Some(image) = &options.to {
        clone(repository, mirror, &ImageName::new(image)?)?;
    }
    let parent = mirror.binding().parent;
    let sealed = mirror.seal()?;
    let pause = sealed.pause();
    let request = CommitRequest {
        parent: parent.clone(),
        image: parent.image.clone(),
        tag,
        origin: format!("commit {}", mirror.name()),
        progress,
    };
    let committed = match repository.commit(&sealed, &request) {
        Ok(committed) => committed,
        Err(error) => {
            mirror.abandon_commit(sealed);
            return Err(error);
        }
    };
    let version = &committed.version;
    mirror.finish_commit(sealed, version.id.clone())?;
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

/// Binds a mirror, changes and all, to a new image that is a clone of its parent.
pub fn clone(
    repository: &Repository,
    mirror: &Arc<Mirror>,
    image: &ImageName,
) -> Result<VersionId> {
    let version = repository.catalog().clone_version(&mirror.binding().parent, image)?;
    mirror.rebind(version.id.clone())?;
    Ok(version.id)
}
