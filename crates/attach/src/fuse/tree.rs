//! What the mount shows: images, their versions, and mirrors.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::device::{Device, MemoryDevice};
use model::{Error, ImageName, Kind, MirrorName, Result, VersionId, VersionNumber};

/// What a FUSE mount shows. Calls come from many threads at once and may take as long as they
/// need; none of them may touch the mount itself.
///
/// Names reach the tree only when they are well-formed.
pub trait Tree: Send + Sync {
    /// All images. Called when a folder is listed.
    ///
    /// # Errors
    /// `Unavailable` where they cannot be told now.
    fn images(&self) -> Result<Vec<ImageName>>;

    /// The versions of an image.
    ///
    /// # Errors
    /// `NotFound` where there is no such image.
    fn versions(&self, image: &ImageName) -> Result<Vec<VersionNumber>>;

    /// Bytes of a version. The answer is remembered: a version never changes.
    ///
    /// # Errors
    /// `NotFound` where there is no such version.
    fn version_length(&self, version: &VersionId) -> Result<u64>;

    /// Opens a version for reading. Called at the first open of its file; the device is dropped
    /// at the last release.
    ///
    /// # Errors
    /// `NotFound` where there is no such version.
    fn open_version(&self, version: &VersionId) -> Result<Arc<dyn Device>>;

    /// True where the files of versions may be opened for writing, by those who only map them for
    /// themselves and have no other way to ask for that. Writes, truncations and punched holes are
    /// refused all the same.
    fn versions_are_mapped(&self) -> bool {
        false
    }

    /// True where nothing in it is ever written: the kernel is told so, and spares a note of each read.
    fn is_read_only(&self) -> bool {
        false
    }

    /// The most bytes that the kernel reads ahead; none: as much as it likes.
    fn read_ahead_len_max(&self) -> Option<u32> {
        None
    }

    /// The mirrors that the mount shows.
    ///
    /// # Errors
    /// `Unavailable` where they cannot be told now.
    fn mirrors(&self) -> Result<Vec<MirrorName>>;

    /// Bytes of a mirror. Asked for while its file is not open, so an implementation that can
    /// tell without opening it should.
    ///
    /// # Errors
    /// `NotFound` where there is no such mirror.
    fn mirror_length(&self, mirror: &MirrorName) -> Result<u64> {
        self.open_mirror(mirror).map(|device| device.length())
    }

    /// Opens a mirror. Called at the first open of its file; the device is dropped at the last
    /// release. It may become longer meanwhile, not shorter.
    ///
    /// # Errors
    /// `NotFound` where there is no such mirror, `Refused` where another has it.
    fn open_mirror(&self, mirror: &MirrorName) -> Result<Arc<dyn Device>>;

    /// CLONE: makes a new image from the mirror's base and binds the mirror to it, dirty state and
    /// all. Gives the version that the mirror stands on from now on.
    ///
    /// # Errors
    /// `Exists` where the image exists already.
    fn clone_mirror(&self, mirror: &MirrorName, image: &ImageName) -> Result<VersionId>;

    /// COMMIT: makes what was written the next version of the mirror's image.
    ///
    /// # Errors
    /// `Full` where there is no space for it; nothing is lost then.
    fn commit_mirror(&self, mirror: &MirrorName) -> Result<VersionId>;
}

/// A tree in memory: what tests of the door run on.
#[derive(Debug, Default)]
pub struct MemoryTree {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    images: BTreeMap<ImageName, Vec<Arc<MemoryDevice>>>,
    mirrors: BTreeMap<MirrorName, (ImageName, Arc<MemoryDevice>)>,
    versions_are_mapped: bool,
}

impl State {
    fn mirror(&self, name: &MirrorName) -> Result<(ImageName, Arc<MemoryDevice>)> {
        let missing = || Error::new(Kind::NotFound, "find the mirror", name.to_string());
        self.mirrors.get(name).cloned().ok_or_else(missing)
    }
}

impl MemoryTree {
    /// Adds a version to an image and makes the image where there is none.
    pub fn add_version(&self, image: &ImageName, bytes: Vec<u8>) -> VersionId {
        let mut state = self.state();
        let versions = state.images.entry(image.clone()).or_default();
        versions.push(Arc::new(MemoryDevice::read_only(bytes)));
        version_id(image, versions.len())
    }

    /// Lets versions be opened for writing, by those who only map them.
    pub fn let_versions_be_mapped(&self) {
        self.state().versions_are_mapped = true;
    }

    /// Adds a mirror that belongs to an image and holds these bytes.
    pub fn add_mirror(&self, mirror: &MirrorName, image: &ImageName, bytes: Vec<u8>) {
        let device = Arc::new(MemoryDevice::new(bytes));
        self.state().mirrors.insert(mirror.clone(), (image.clone(), device));
    }

    /// All bytes of a mirror.
    ///
    /// # Errors
    /// `NotFound` where there is no such mirror.
    pub fn mirror_bytes(&self, mirror: &MirrorName) -> Result<Vec<u8>> {
        self.state().mirror(mirror).map(|(_, device)| device.to_vec())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn version(&self, version: &VersionId) -> Result<Arc<MemoryDevice>> {
        let index = usize::try_from(version.version.get() - 1).unwrap_or(usize::MAX);
        let state = self.state();
        let found = state.images.get(&version.image).and_then(|versions| versions.get(index));
        found
            .cloned()
            .ok_or_else(|| Error::new(Kind::NotFound, "find the version", version.to_string()))
    }
}

fn version_id(image: &ImageName, count: usize) -> VersionId {
    let version = VersionNumber::new(count as u64).unwrap_or(VersionNumber::FIRST);
    VersionId { image: image.clone(), version }
}

impl Tree for MemoryTree {
    fn versions_are_mapped(&self) -> bool {
        self.state().versions_are_mapped
    }

    fn images(&self) -> Result<Vec<ImageName>> {
        Ok(self.state().images.keys().cloned().collect())
    }

    fn versions(&self, image: &ImageName) -> Result<Vec<VersionNumber>> {
        let state = self.state();
        let versions = state
            .images
            .get(image)
            .ok_or_else(|| Error::new(Kind::NotFound, "find the image", image.to_string()))?;
        Ok((1..=versions.len() as u64).filter_map(VersionNumber::new).collect())
    }

    fn version_length(&self, version: &VersionId) -> Result<u64> {
        self.version(version).map(|device| device.length())
    }

    fn open_version(&self, version: &VersionId) -> Result<Arc<dyn Device>> {
        self.version(version).map(|device| device as Arc<dyn Device>)
    }

    fn mirrors(&self) -> Result<Vec<MirrorName>> {
        Ok(self.state().mirrors.keys().cloned().collect())
    }

    fn open_mirror(&self, mirror: &MirrorName) -> Result<Arc<dyn Device>> {
        self.state().mirror(mirror).map(|(_, device)| device as Arc<dyn Device>)
    }

    fn clone_mirror(&self, mirror: &MirrorName, image: &ImageName) -> Result<VersionId> {
        let mut state = self.state();
        let (base, device) = state.mirror(mirror)?;
        if state.images.contains_key(image) {
            return Err(Error::new(Kind::Exists, "clone", image.to_string()));
        }
        let first = state
            .images
            .get(&base)
            .and_then(|versions| versions.last().cloned())
            .ok_or_else(|| Error::new(Kind::NotFound, "clone", base.to_string()))?;
        state.images.insert(image.clone(), vec![first]);
        state.mirrors.insert(mirror.clone(), (image.clone(), device));
        Ok(version_id(image, 1))
    }

    fn commit_mirror(&self, mirror: &MirrorName) -> Result<VersionId> {
        let (image, device) = self.state().mirror(mirror)?;
        Ok(self.add_version(&image, device.to_vec()))
    }
}
