//! Which errno an error becomes.

use fuser::Errno;
use model::{Error, Kind};

/// The errno for an error that ends here; logs what an administrator should know about.
pub(crate) fn errno_of(error: &Error) -> Errno {
    let errno = match error.kind() {
        Kind::NotFound => Errno::ENOENT,
        Kind::Exists => Errno::EEXIST,
        Kind::Stale => Errno::ESTALE,
        Kind::Refused => Errno::EACCES,
        Kind::Invalid => Errno::EINVAL,
        Kind::Full => Errno::ENOSPC,
        Kind::Cancelled => Errno::EINTR,
        Kind::Unavailable | Kind::Corrupt | Kind::Bug => Errno::EIO,
    };
    match error.kind() {
        Kind::NotFound | Kind::Exists | Kind::Invalid | Kind::Refused | Kind::Cancelled => {
            tracing::debug!(error = error.chain(), "answered a FUSE request with an error");
        }
        _ => tracing::warn!(error = error.chain(), "a FUSE request failed"),
    }
    errno
}
