//! The mirrors of this host, served or not.

use std::path::PathBuf;

use mirror::{Mirror, StateFolder};
use model::progress::Progress;
use model::{Error, Kind, MirrorName, Result};
use repository::Repository;
use serde::{Deserialize, Serialize};

use crate::client;
use crate::commit::{CommitOptions, Committer, Outcome};
use crate::control::{Request, Response, ask};
use crate::doors::{Door, Sight};
use crate::holds;

/// How a mirror is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorStatus {
    /// Its name.
    pub name: String,
    /// The version that its next commit follows.
    pub base: String,
    /// Bytes of its disk.
    pub length_bytes: u64,
    /// Bytes of blocks that changed since the last commit.
    pub dirty_bytes: u64,
    /// Stored bytes that its owner has read from the repository since it attached.
    pub fetched_bytes: u64,
    /// Plain bytes of blocks that came near by that.
    pub fetched_plain_bytes: u64,
    /// Bytes of this host's disk that its base and its changes take.
    pub host_bytes: u64,
    /// The process that serves it; none where nobody does.
    pub served_by: Option<u32>,
    /// Its doors.
    pub exports: Vec<Door>,
}

/// A mirror whose disk has become longer: the keys that programs read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resized {
    /// Its name.
    pub mirror: String,
    /// Bytes that its disk has now.
    pub length_bytes: u64,
    /// Bytes that it had before.
    pub before_bytes: u64,
    /// Who sees it, where it is served.
    pub doors: Vec<Sight>,
}

/// Where the owner of a mirror listens.
pub fn control_socket(state: &StateFolder, name: &MirrorName) -> PathBuf {
    state.mirror_folder(name).join("control")
}

/// Where whoever runs the guest of a mirror listens.
pub fn guest_socket(state: &StateFolder, name: &MirrorName) -> PathBuf {
    state.mirror_folder(name).join("guest")
}

/// Notes in a mirror's folder which repository it is of. Best effort: without the note nothing is
/// checked.
pub(crate) fn note_repository(state: &StateFolder, name: &MirrorName, repository: &Repository) {
    let path = state.mirror_folder(name).join("repository");
    if let Err(error) = std::fs::write(&path, format!("{}\n", repository.settings().id)) {
        tracing::warn!(%error, "cannot note the mirror's repository");
    }
}

/// Two repositories may have versions of one name that hold different bytes.
///
/// # Errors
/// `Refused` where the mirror was made from another repository.
pub(crate) fn check_repository(
    state: &StateFolder,
    name: &MirrorName,
    repository: &Repository,
) -> Result<()> {
    let path = state.mirror_folder(name).join("repository");
    let Ok(noted) = std::fs::read_to_string(path) else { return Ok(()) };
    match noted.trim() == repository.settings().id {
        true => Ok(()),
        false => Err(Error::new(Kind::Refused, "open the mirror", name.as_str())
            .because("it was made from another repository")
            .hint("name that one with `--repo`, or choose another mirror")),
    }
}

/// All mirrors of this host, by name.
pub fn list(state: &StateFolder) -> Result<Vec<MirrorStatus>> {
    let mut names = Mirror::list(state)?;
    names.sort();
    let mut found = Vec::new();
    for name in &names {
        match status(state, name) {
            Ok(status) => found.push(status),
            // It was thrown away in between.
            Err(error) if error.kind() == Kind::NotFound => {}
            // The others are to be seen all the same.
            Err(error) => tracing::warn!("{}", error.chain()),
        }
    }
    Ok(found)
}

fn status(state: &StateFolder, name: &MirrorName) -> Result<MirrorStatus> {
    if let Ok(Some(Response::Status(status))) = ask(&control_socket(state, name), &Request::Status)
    {
        return Ok(*status);
    }
    let summary = Mirror::inspect(state, name)?;
    Ok(MirrorStatus {
        name: name.to_string(),
        base: summary.binding.parent.to_string(),
        length_bytes: summary.length,
        dirty_bytes: summary.dirty_bytes,
        fetched_bytes: 0,
        fetched_plain_bytes: 0,
        host_bytes: summary.host_bytes + summary.fetched_bytes,
        served_by: summary.owner,
        exports: Vec::new(),
    })
}

/// Commits a mirror: through its owner where one serves it, here where nobody does.
pub fn commit(
    state: &StateFolder,
    name: &MirrorName,
    options: &CommitOptions,
    open_repository: impl FnOnce() -> Result<Repository>,
    progress: &dyn Progress,
) -> Result<Outcome> {
    check_exists(state, name, "commit")?;
    match ask(&control_socket(state, name), &Request::Commit(options.clone()))? {
        Some(Response::Committed(outcome)) => return Ok(*outcome),
        Some(_) => return Err(Error::new(Kind::Bug, "commit", name.as_str())),
        None => {}
    }
    if options.quiesce {
        return Err(Error::new(Kind::Refused, "commit", name.as_str())
            .because("nobody serves it, so no guest uses it that could stand still")
            .hint("commit without `--quiesce`"));
    }
    let repository = open_repository()?;
    check_repository(state, name, &repository)?;
    let mirror = Mirror::reopen(state, name, |_| Ok(repository.chunks()))?;
    let committer = Committer::new(repository, mirror.clone()).at_full_speed();
    let outcome = committer.commit(options, progress)?;
    mirror.close()?;
    Ok(outcome)
}

/// Makes the disk of a mirror longer: through its owner where one serves it, here where nobody does.
/// Durable when it returns.
///
/// # Errors
/// `NotFound` where there is no such mirror; those of [`Mirror::grow`].
pub fn resize(
    state: &StateFolder,
    name: &MirrorName,
    length: u64,
    open_repository: impl FnOnce() -> Result<Repository>,
) -> Result<Resized> {
    check_exists(state, name, "resize")?;
    match ask(&control_socket(state, name), &Request::Resize { length_bytes: length })? {
        Some(Response::Resized(resized)) => return Ok(*resized),
        Some(_) => return Err(Error::new(Kind::Bug, "resize", name.as_str())),
        None => {}
    }
    let repository = open_repository()?;
    check_repository(state, name, &repository)?;
    let mirror = Mirror::reopen(state, name, |_| Ok(repository.chunks()))?;
    let grown = mirror.grow(length);
    mirror.close()?;
    let (mirror, doors) = (name.to_string(), Vec::new());
    Ok(Resized { mirror, length_bytes: length, before_bytes: grown?, doors })
}

/// Ends the serving of a mirror; throws it away if asked to. True where somebody served it.
///
/// A mirror whose repository cannot be opened is thrown away all the same: its hold stays there.
pub fn detach(
    state: &StateFolder,
    name: &MirrorName,
    discard: bool,
    open_repository: impl FnOnce() -> Result<Repository>,
) -> Result<bool> {
    check_exists(state, name, "detach")?;
    let was_served = ask(&control_socket(state, name), &Request::Detach { discard })?.is_some();
    if !was_served {
        client::forget(state, name)?;
    }
    if !was_served && discard {
        let released = open_repository().and_then(|repository| {
            check_repository(state, name, &repository)?;
            holds::release(state, name, repository.catalog())
        });
        if let Err(error) = released {
            tracing::warn!("its version is held still: {}", error.chain());
        }
        Mirror::discard(state, name)?;
    }
    Ok(was_served)
}

fn check_exists(state: &StateFolder, name: &MirrorName, operation: &'static str) -> Result<()> {
    if Mirror::exists(state, name)? {
        return Ok(());
    }
    let mut names: Vec<String> = Mirror::list(state)?.iter().map(ToString::to_string).collect();
    names.sort();
    let error = Error::new(Kind::NotFound, operation, name.as_str()).because("no such mirror here");
    Err(match names.is_empty() {
        true => error.hint("this host has no mirrors; `larder attach` makes one"),
        false => error.hint(format!("this host has: {}", names.join(" "))),
    })
}
