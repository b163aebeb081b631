//! Who serves the disks of guests: handed in by whoever composes the program.

use std::sync::Arc;

use guest::Drive;
use mirror::Mirror;
use model::{MirrorName, Result, VersionId};

/// Makes mirrors of versions and serves them to guests.
pub trait Disks: Sync {
    /// Makes a mirror and serves it to one guest.
    ///
    /// # Errors
    /// `NotFound` where the version is gone, `Exists` where a mirror has the name.
    fn serve(&self, version: &VersionId, name: &MirrorName) -> Result<Box<dyn ServedDisk>>;

    /// Throws away mirrors whose names begin so and that nobody serves: what killed processes left.
    fn sweep(&self, prefix: &str) -> Result<()>;
}

/// A mirror that is served to a guest. Dropped, it is served no more.
pub trait ServedDisk: Send {
    /// How the guest reaches it.
    fn drive(&self) -> Drive;

    /// The mirror, where this process owns it.
    fn mirror(&self) -> Option<&Arc<Mirror>>;

    /// Ends the serving; throws the mirror away if asked to.
    fn end(self: Box<Self>, discard: bool) -> Result<()>;
}
