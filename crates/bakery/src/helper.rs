//! The helper gets into the disk of a guest that is about to be baked.
//!
//! The installer wants a file: for as long as it works the mirror is shown as one, in a mount, before
//! the guest is started. What it writes is the mirror's, as if the guest had written it.

use std::path::Path;
use std::sync::Arc;

use attach::fuse::{FuseMount, Tree};
use guest::helper::install;
use mirror::Mirror;
use model::device::Device;
use model::{Error, ImageName, Kind, MirrorName, Result, VersionId, VersionNumber};

/// Installs the helper into a mirror that no guest uses. False where the disk has no file system that
/// it could be put into; `folder` is empty, and the mount's.
///
/// # Errors
/// Those of mounting, and of a file system that is damaged.
pub fn install_into(mirror: &Arc<Mirror>, folder: &Path) -> Result<bool> {
    let tree = OneMirror { mirror: mirror.clone() };
    let mount = FuseMount::mount(folder, Arc::new(tree))?;
    let file = mount.folder().join("mirrors").join(mirror.name().as_str());
    let installed = match install::install(&file) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == Kind::NotFound => {
            tracing::warn!("no helper: {}", error.chain());
            Ok(false)
        }
        Err(error) => Err(error),
    };
    mount.unmount()?;
    installed
}

/// A tree of one mirror.
struct OneMirror {
    mirror: Arc<Mirror>,
}

impl OneMirror {
    fn missing<T>(subject: impl Into<String>) -> Result<T> {
        Err(Error::new(Kind::NotFound, "find", subject).because("this mount shows one mirror"))
    }
}

impl Tree for OneMirror {
    fn images(&self) -> Result<Vec<ImageName>> {
        Ok(Vec::new())
    }

    fn versions(&self, image: &ImageName) -> Result<Vec<VersionNumber>> {
        Self::missing(image.as_str())
    }

    fn version_length(&self, version: &VersionId) -> Result<u64> {
        Self::missing(version.to_string())
    }

    fn open_version(&self, version: &VersionId) -> Result<Arc<dyn Device>> {
        Self::missing(version.to_string())
    }

    fn mirrors(&self) -> Result<Vec<MirrorName>> {
        Ok(vec![self.mirror.name().clone()])
    }

    fn mirror_length(&self, mirror: &MirrorName) -> Result<u64> {
        self.open_mirror(mirror).map(|device| device.length())
    }

    fn open_mirror(&self, mirror: &MirrorName) -> Result<Arc<dyn Device>> {
        match mirror == self.mirror.name() {
            true => Ok(self.mirror.clone()),
            false => Self::missing(mirror.as_str()),
        }
    }

    fn clone_mirror(&self, mirror: &MirrorName, _image: &ImageName) -> Result<VersionId> {
        Self::missing(mirror.as_str())
    }

    fn commit_mirror(&self, mirror: &MirrorName) -> Result<VersionId> {
        Self::missing(mirror.as_str())
    }
}
