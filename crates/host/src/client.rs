//! Attaching by this host's daemon, where one runs.
//!
//! **Failure**: a daemon that is killed or upgraded serves its mirrors again when it is back; whoever
//! waits for a mirror's end goes on waiting meanwhile.

use std::path::Path;
use std::time::Duration;

use env::RealFileSystem;
use mirror::StateFolder;
use model::{Error, Kind, MirrorName, Result};

use crate::control::{AttachOrder, Request, Response, ask};
use crate::daemon::{daemon_socket, lock};
use crate::mirrors::control_socket;
use crate::owner::{AttachRequest, Ready};
use crate::records::{self, Record};

/// How long somebody who waits for a mirror rests while its daemon is away.
const REST: Duration = Duration::from_millis(100);

/// Has this host's daemon make or open a mirror and serve it. `None` where no daemon runs.
///
/// # Errors
/// Those of the daemon: of an attach, and `Refused` where it serves another repository.
pub fn attach(
    state: &StateFolder,
    repository: &Path,
    request: &AttachRequest,
) -> Result<Option<Ready>> {
    let Some(reference) = &request.reference else {
        return Err(Error::new(Kind::Invalid, "attach", request.mirror.as_str())
            .because("no version is named"));
    };
    let repository = std::path::absolute(repository)
        .map_err(|error| Error::io("attach", request.mirror.as_str(), error))?;
    let order = AttachOrder {
        reference: reference.to_string(),
        repository,
        record: Record::new(request)?,
        length_bytes: request.length,
    };
    match ask(&daemon_socket(state), &Request::Attach(Box::new(order)))? {
        Some(Response::Attached(ready)) => Ok(Some(*ready)),
        None => Ok(None),
        Some(_) => Err(Error::new(Kind::Bug, "attach", request.mirror.as_str())),
    }
}

/// Waits until a mirror that a daemon serves is detached, whatever happens to the daemon meanwhile.
pub fn wait_for_detach(state: &StateFolder, name: &MirrorName) -> Result<()> {
    loop {
        // An owner that went away without a word is a daemon that was killed.
        if let Ok(Some(Response::Detaching)) = ask(&control_socket(state, name), &Request::Wait) {
            return Ok(());
        }
        let noted = records::read(&RealFileSystem, state)?;
        if !noted.iter().any(|record| record.mirror == name.as_str()) {
            return Ok(());
        }
        std::thread::park_timeout(REST);
    }
}

/// Sees to it that no daemon, one that runs or a later one, takes the mirror up again.
///
/// # Errors
/// Those of the state folder.
pub(crate) fn forget(state: &StateFolder, name: &MirrorName) -> Result<()> {
    loop {
        let is_noted = |record: &Record| record.mirror == name.as_str();
        if !records::read(&RealFileSystem, state)?.iter().any(is_noted) {
            return Ok(());
        }
        let detach = Box::new(Request::Detach { discard: false });
        let request = Request::Mirror { name: name.to_string(), request: detach };
        if ask(&daemon_socket(state), &request)?.is_some() {
            return Ok(());
        }
        // No daemon listens: with its lock held none starts.
        match lock(&RealFileSystem, state) {
            Ok(_lock) => {
                let mut noted = records::read(&RealFileSystem, state)?;
                noted.retain(|record| !is_noted(record));
                return records::write(&RealFileSystem, state, &noted);
            }
            // One is starting, or ending.
            Err(error) if error.kind() == Kind::Refused => std::thread::park_timeout(REST),
            Err(error) => return Err(error),
        }
    }
}
