//! A mirror's changes become a version.
//!
//! ```text
//! (the guest stands still) seal (guest waits: pause_ms) ─► repository.commit ─► finish: dirty bits restart
//!                                        └─ failed ──► all stays dirty
//! ```

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use env::{Clock, SystemClock};
use guest::GuestAgent;
use mirror::{Mirror, Sealed};
use model::progress::Progress;
use model::{Error, ImageName, Kind, Result, TagName, VersionId};
use repository::turns::Line;
use repository::{CommitRequest, Repository};
use serde::{Deserialize, Serialize};

use crate::quiesce::{self, Stillness};

/// Commits of fewer changed bytes do not step back behind guests: they take less of a processor than a
/// guest notices, and would wait long where all are busy.
const STEP_BACK_LEN_MIN: u64 = 4 << 20;

/// What is wanted of a commit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommitOptions {
    /// A new image that the mirror is bound to first, as a clone of its parent.
    pub to: Option<String>,
    /// A tag for the new version.
    pub tag: Option<String>,
    /// Have the guest's file systems stand still while the changes are sealed.
    #[serde(default)]
    pub quiesce: bool,
    /// Where the guest's agent is spoken with; without it, where `larder run` puts that.
    #[serde(default)]
    pub agent_socket: Option<PathBuf>,
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
    /// How many of the guest's file systems stood still, where that was asked for.
    #[serde(default)]
    pub frozen_file_systems: Option<u64>,
    /// How long they did, in milliseconds.
    #[serde(default)]
    pub frozen_ms: Option<f64>,
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
    /// Where the agent of a guest that `larder run` runs is spoken with.
    agent_socket: PathBuf,
    steps_back: bool,
    is_open: Mutex<bool>,
}

impl Committer {
    /// A committer of a mirror that this process owns. Its long commits step back behind guests.
    pub fn new(repository: Repository, mirror: Arc<Mirror>) -> Self {
        let agent_socket = quiesce::socket_in(mirror.folder());
        Committer { repository, mirror, agent_socket, steps_back: true, is_open: Mutex::new(true) }
    }

    /// The same for a mirror that no guest uses.
    #[must_use]
    pub fn at_full_speed(self) -> Self {
        Committer { steps_back: false, ..self }
    }

    /// Makes the changes of the mirror the next version of its image. Durable when it returns.
    ///
    /// # Errors
    /// Those of the repository; then the mirror keeps all its changes. Those of the guest's agent where
    /// the guest is to stand still; then nothing has happened.
    pub fn commit(&self, options: &CommitOptions, progress: &dyn Progress) -> Result<Outcome> {
        let _turn = self.take_turn("commit")?;
        let tag = options.tag.as_deref().map(TagName::new).transpose()?;
        let to = options.to.as_deref().map(ImageName::new).transpose()?;
        let socket = options.agent_socket.as_deref().unwrap_or(&self.agent_socket);
        // First of all: a guest that has no agent has no say in what happens otherwise.
        let agent = options.quiesce.then(|| quiesce::greet(socket)).transpose()?;
        if let Some(image) = to {
            self.rebind(&image)?;
        }
        self.seal_and_publish(tag, agent, progress)
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

    fn seal(&self, agent: Option<GuestAgent>) -> Result<(Sealed, Option<Stillness>)> {
        match agent {
            None => Ok((self.mirror.seal()?, None)),
            Some(agent) => {
                let (sealed, stillness) = quiesce::seal(&self.mirror, agent)?;
                Ok((sealed, Some(stillness)))
            }
        }
    }

    fn seal_and_publish(
        &self,
        tag: Option<TagName>,
        agent: Option<GuestAgent>,
        progress: &dyn Progress,
    ) -> Result<Outcome> {
        let start = SystemClock.monotonic();
        let (sealed, stillness) = self.seal(agent)?;
        let (parent, pause) = (sealed.parent().clone(), sealed.pause());
        let request = CommitRequest {
            parent: parent.clone(),
            image: parent.image.clone(),
            tag,
            origin: format!("commit {}", self.mirror.name()),
            progress,
        };
        let len = sealed.dirty_bytes();
        let takes_turn = self.steps_back && len >= STEP_BACK_LEN_MIN;
        let turn = takes_turn.then(|| Line::of_commit(len).turn());
        let committed = self.repository.commit(&sealed, &request);
        drop(turn);
        // Dropped on the way out, the sealed changes are dirty again.
        let committed = committed.map_err(|error| self.explain(error, &parent))?;
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
            frozen_file_systems: stillness.map(|stillness| stillness.file_system_count),
            frozen_ms: stillness.map(|stillness| stillness.time.as_secs_f64() * 1000.0),
            seconds: (SystemClock.monotonic() - start).as_secs_f64(),
            bypassed: committed.bypassed.map(|version| version.to_string()),
        })
    }
}
