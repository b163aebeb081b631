//! Unix sockets to listen on, and the files by which they are found.
//!
//! **Invariants**: a socket file is replaced only where nobody answers behind it, and removed only
//! while it is still the one that was made.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use model::{Error, Kind, Result};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Listens on a path.
///
/// # Errors
/// `Refused` where somebody listens there already, or where a file that is no socket is in the way.
pub(crate) fn listen(path: &Path) -> Result<UnixListener> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(path)?;
            UnixListener::bind(path)
        }
        other => other,
    };
    listener.map_err(|error| Error::io("listen on", path.display().to_string(), error))
}

/// Which file a path was when it was made.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    made: (u64, u64),
}

impl SocketFile {
    /// Notes the file that is there now.
    pub(crate) fn note(path: &Path) -> Option<Self> {
        Some(SocketFile { path: path.to_path_buf(), made: identity(path)? })
    }

    /// Removes it, unless another has taken its place.
    pub(crate) fn remove(self) {
        if identity(&self.path) == Some(self.made) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// What is said where another process has the address.
pub(crate) fn in_use(subject: String) -> Error {
    Error::new(Kind::Refused, "listen on", subject)
        .because("it is in use by another process")
        .hint("stop the other server, or choose another address")
}

/// Removes the socket file of a server that is gone.
///
/// # Errors
/// `Refused` where somebody listens behind it, or where it is not a socket.
fn remove_stale(path: &Path) -> Result<()> {
    let subject = || path.display().to_string();
    let failed = |error: io::Error| Error::io("listen on", subject(), error);
    let metadata = std::fs::symlink_metadata(path).map_err(failed)?;
    if !metadata.file_type().is_socket() {
        return Err(Error::new(Kind::Refused, "listen on", subject())
            .because("a file that is not a socket is in the way"));
    }
    // Not blocking: a listener whose queue is full is a listener.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    let target = SocketAddrUnix::new(path);
    match probe.and_then(|probe| rustix::net::connect(&probe, &target?)) {
        Err(Errno::CONNREFUSED) => std::fs::remove_file(path).map_err(failed),
        Err(Errno::NOENT) => Ok(()),
        Ok(()) | Err(Errno::AGAIN) => Err(in_use(subject())),
        Err(error) => Err(failed(error.into())),
    }
}
