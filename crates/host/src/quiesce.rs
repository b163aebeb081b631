//! A guest whose file systems stand still while its disk is sealed.
//!
//! ```text
//! greet the agent ─► flush (the guest runs) ─► freeze ─► seal ─► thaw ─► upload
//! ```
//!
//! Where a guest is run by `larder run`, QEMU listens for those who speak with its agent on a socket in
//! the mirror's folder; for others the socket is named.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use guest::GuestAgent;
use mirror::{Mirror, Sealed, StateFolder};
use model::device::Device;
use model::{Error, Kind, MirrorName, Result};

use crate::control::{NearPath, listen_private};

/// How a guest stood still.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Stillness {
    /// How many file systems.
    pub(crate) file_system_count: u64,
    /// For how long.
    pub(crate) time: Duration,
}

/// Where one speaks with the agent of a guest that `larder run` runs.
pub fn agent_socket(state: &StateFolder, name: &MirrorName) -> PathBuf {
    socket_in(&state.mirror_folder(name))
}

pub(crate) fn socket_in(folder: &Path) -> PathBuf {
    folder.join("agent")
}

/// Makes the socket on which QEMU listens for those who speak with the guest's agent, for this user
/// alone. One that was left there is replaced.
///
/// # Errors
/// What the system says.
pub fn listen_for_agent(state: &StateFolder, name: &MirrorName) -> Result<UnixListener> {
    let path = agent_socket(state, name);
    let failed = |error| Error::io("listen on", path.display().to_string(), error);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    listen_private(&path).map_err(failed)
}

/// Greets the agent behind a socket.
///
/// # Errors
/// `NotFound` where nobody listens; those of [`GuestAgent::greet`].
pub(crate) fn greet(socket: &Path) -> Result<GuestAgent> {
    let near = NearPath::of(socket);
    let connected = near.and_then(|near| UnixStream::connect(&near.path));
    let stream = connected.map_err(|error| {
        Error::new(Kind::NotFound, "speak with the guest agent at", socket.display().to_string())
            .because("nobody listens there")
            .caused_by(error)
            .hint(
                "`larder run` gives a guest such a socket; of a guest that you run yourself, name \
                 its agent's with `--agent-socket PATH`",
            )
    })?;
    GuestAgent::greet(stream)
}

/// Seals a mirror while its guest's file systems stand still.
///
/// # Errors
/// Those of the agent and of a seal. The guest goes on in any case, and nothing is sealed.
pub(crate) fn seal(mirror: &Arc<Mirror>, agent: GuestAgent) -> Result<(Sealed, Stillness)> {
    // What the guest has written before is durable before it is held.
    mirror.flush()?;
    let frozen = agent.freeze()?;
    let file_system_count = frozen.file_system_count();
    let sealed = mirror.seal();
    let thawed = frozen.thaw();
    // The error that matters is the first.
    let sealed = sealed?;
    Ok((sealed, Stillness { file_system_count, time: thawed? }))
}
