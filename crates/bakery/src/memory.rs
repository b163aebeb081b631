//! The file whose pages a resumed guest maps.
//!
//! ```text
//! all of the machine is on this host ─► the file of its base itself, held so that nothing goes away
//! otherwise ──────────────────────────► a mount that shows the version: a page that is not here is
//!                                       fetched while the guest's processor waits for it
//! ```
//!
//! QEMU opens the file for reading and writing even where it maps it for itself alone, and would punch
//! holes for a balloon; the mount refuses writes, truncations and holes. Where it is given the base's
//! own file, nothing but QEMU stands between the guest and its siblings' memory: so machines have no
//! device that gives memory back (see `qemu::balloon`).
//!
//! **Failure**: a page that cannot be fetched ends the guest that needs it (SIGBUS), never shows
//! zeros.

use std::fs::File;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use attach::fuse::{FuseMount, Tree};
use mirror::{BackingFile, ReadOnlyView};
use model::boot_set::FirstRead;
use model::device::{Device, Extent, WholeFile};
use model::{BLOCK_LEN, Error, ImageName, Kind, MirrorName, Result, VersionId, VersionNumber};
use rustix::fs::Advice;

use crate::machine_file::{MachineFile, path_of};
use crate::working_set::RecordedReads;

/// What the kernel reads around a page that is missing, in bytes, where the working set is known.
const READ_AHEAD_LEN: u32 = 16 << 10;

/// What a resumed guest maps, as long as it lives.
pub struct MemorySource {
    path: PathBuf,
    fds: Vec<Arc<OwnedFd>>,
    kept: Kept,
    failure: Arc<FirstFailure>,
}

/// Why a page could not be brought: the first time it happened. The guest that needed it was killed for
/// it and cannot tell.
#[derive(Default)]
struct FirstFailure(Mutex<Option<(Kind, String)>>);

impl FirstFailure {
    fn note(&self, error: &Error) {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        noted.get_or_insert_with(|| (error.kind(), error.chain()));
    }
}

/// What keeps the bytes there.
enum Kept {
    File(#[expect(dead_code, reason = "it holds the base")] BackingFile),
    Mount(#[expect(dead_code, reason = "it serves the version")] Mutex<FuseMount>),
    Copy(Arc<OwnedFd>),
}

impl MemorySource {
    /// The file of a machine's version. `folder` is empty, and the mount's where there is one. Where it
    /// is known what a resume needs, little else is read.
    ///
    /// # Errors
    /// Those of the host's disk, and of mounting.
    pub fn open(
        view: &Arc<ReadOnlyView>,
        version: &VersionId,
        folder: &Path,
        is_set_known: bool,
    ) -> Result<Self> {
        if let Some(file) = view.hold_file()?
            && let Some(fd) = file.fd()
        {
            let fd = fd.try_clone_to_owned();
            let fd = Arc::new(fd.map_err(|error| Error::io("hold", version.to_string(), error))?);
            let (path, fds, failure) = (path_of(&fd), vec![fd], Arc::default());
            return Ok(MemorySource { path, fds, kept: Kept::File(file), failure });
        }
        let device: Arc<dyn Device> = view.clone();
        // What is needed is on its way then; more would only wait for what is not.
        let read_ahead_len_max = is_set_known.then_some(READ_AHEAD_LEN);
        Self::mount(version, device, read_ahead_len_max, folder)
    }

    /// A copy of a machine's memory, for one guest alone, which this process can read: for a guest that
    /// is to be suspended again.
    ///
    /// # Errors
    /// Those of reading the version; `Full` where memory is short.
    pub fn copied(view: &ReadOnlyView, memory_len: u64) -> Result<Self> {
        let memory = MachineFile::memory_of(view, memory_len)?.memory();
        let (path, fds) = (path_of(&memory), vec![memory.clone()]);
        Ok(MemorySource { path, fds, kept: Kept::Copy(memory), failure: Arc::default() })
    }

    /// The memory, where it is a copy for one guest alone.
    pub fn copy(&self) -> Option<&Arc<OwnedFd>> {
        match &self.kept {
            Kept::Copy(memory) => Some(memory),
            _ => None,
        }
    }

    /// A mount of a machine's version that notes which blocks are read, one by one.
    ///
    /// # Errors
    /// Those of mounting.
    pub fn recorded(
        view: &Arc<ReadOnlyView>,
        version: &VersionId,
        folder: &Path,
    ) -> Result<(Self, Arc<RecordedReads>)> {
        let reads = Arc::new(RecordedReads::new(view.clone()));
        let device: Arc<dyn Device> = reads.clone();
        // What the kernel reads on its own account is nothing that the guest needs.
        let read_ahead_len_max = Some(BLOCK_LEN as u32);
        Ok((Self::mount(version, device, read_ahead_len_max, folder)?, reads))
    }

    fn mount(
        version: &VersionId,
        device: Arc<dyn Device>,
        read_ahead_len_max: Option<u32>,
        folder: &Path,
    ) -> Result<Self> {
        let failure = Arc::<FirstFailure>::default();
        let device = Arc::new(Watched { device, failure: failure.clone() });
        let tree = OneMachine { version: version.clone(), device, read_ahead_len_max };
        let mount = FuseMount::mount(folder, Arc::new(tree))?;
        let image = mount.folder().join(version.image.as_str());
        let path = image.join(version.version.to_string());
        Ok(MemorySource { path, fds: Vec::new(), kept: Kept::Mount(Mutex::new(mount)), failure })
    }

    /// The file; its first bytes are the memory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Descriptors that the path needs.
    pub fn fds(&self) -> &[Arc<OwnedFd>] {
        &self.fds
    }

    /// Brings pages into the kernel's memory before they are asked for, in this order. They are help
    /// only: what cannot be read is left to who needs it.
    pub fn warm(&self, reads: &[FirstRead]) {
        let path = match self.fds.first() {
            Some(fd) => path_of(fd),
            None => self.path.clone(),
        };
        let Ok(file) = File::open(path) else { return };
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::Random);
        let mut scratch = Vec::new();
        for read in reads {
            let offset = read.first_block * BLOCK_LEN as u64;
            let len = read.block_count as usize * BLOCK_LEN;
            if self.is_complete() {
                let len = NonZeroU64::new(len as u64);
                let _ = rustix::fs::fadvise(&file, offset, len, Advice::WillNeed);
                continue;
            }
            scratch.resize(len.max(scratch.len()), 0);
            if file.read_exact_at(&mut scratch[..len], offset).is_err() {
                return;
            }
        }
    }

    /// Why a guest that has ended may have: a page of it could not be brought. None where all could.
    ///
    /// # Errors
    /// That one.
    pub fn check_brought(&self, subject: &str) -> Result<()> {
        let noted = self.failure.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*noted {
            Some((kind, reason)) => Err(Error::new(*kind, "resume", subject)
                .because(format!("its memory could not be read: {reason}"))
                .hint("`larder scrub` tells what is damaged; what was baked can be baked anew")),
            None => Ok(()),
        }
    }

    /// True where all of it was on this host.
    pub fn is_complete(&self) -> bool {
        !self.fds.is_empty()
    }
}

/// A device whose failed reads are noted.
struct Watched {
    device: Arc<dyn Device>,
    failure: Arc<FirstFailure>,
}

impl Device for Watched {
    fn length(&self) -> u64 {
        self.device.length()
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.device.read(offset, buffer).inspect_err(|error| self.failure.note(error))
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.device.write(offset, bytes)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.device.write_zeroes(offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.device.discard(offset, len)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn prefetch(&self, offset: u64, len: u64) -> Result<()> {
        self.device.prefetch(offset, len)
    }

    fn may_wait(&self, offset: u64, len: u64) -> bool {
        self.device.may_wait(offset, len)
    }

    fn whole_file(&self) -> Result<Option<Box<dyn WholeFile>>> {
        self.device.whole_file()
    }

    fn extents(&self, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>> {
        self.device.extents(offset, len, max)
    }
}

/// A tree of one version.
struct OneMachine {
    version: VersionId,
    device: Arc<dyn Device>,
    read_ahead_len_max: Option<u32>,
}

impl OneMachine {
    fn missing(subject: impl Into<String>) -> Error {
        Error::new(Kind::NotFound, "find", subject).because("this mount shows one machine")
    }

    fn check(&self, version: &VersionId) -> Result<()> {
        (*version == self.version).then_some(()).ok_or_else(|| Self::missing(version.to_string()))
    }
}

impl Tree for OneMachine {
    fn images(&self) -> Result<Vec<ImageName>> {
        Ok(vec![self.version.image.clone()])
    }

    fn versions(&self, image: &ImageName) -> Result<Vec<VersionNumber>> {
        match *image == self.version.image {
            true => Ok(vec![self.version.version]),
            false => Err(Self::missing(image.as_str())),
        }
    }

    fn version_length(&self, version: &VersionId) -> Result<u64> {
        self.check(version).map(|()| self.device.length())
    }

    fn open_version(&self, version: &VersionId) -> Result<Arc<dyn Device>> {
        self.check(version).map(|()| self.device.clone())
    }

    fn versions_are_mapped(&self) -> bool {
        true
    }

    fn read_ahead_len_max(&self) -> Option<u32> {
        self.read_ahead_len_max
    }

    fn mirrors(&self) -> Result<Vec<MirrorName>> {
        Ok(Vec::new())
    }

    fn open_mirror(&self, mirror: &MirrorName) -> Result<Arc<dyn Device>> {
        Err(Self::missing(mirror.as_str()))
    }

    fn clone_mirror(&self, mirror: &MirrorName, _image: &ImageName) -> Result<VersionId> {
        Err(Self::missing(mirror.as_str()))
    }

    fn commit_mirror(&self, mirror: &MirrorName) -> Result<VersionId> {
        Err(Self::missing(mirror.as_str()))
    }
}
