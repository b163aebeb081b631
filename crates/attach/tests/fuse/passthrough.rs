//! Versions that one file holds whole: the kernel reads them without us, or else through us.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use attach::fuse::{MemoryTree, Tree};
use model::device::{Device, Extent, WholeFile};
use model::{Error, ImageName, Kind, MirrorName, Result, VersionId, VersionNumber};
use rustix::mm::{MapFlags, ProtFlags};

use crate::mounted::{Mounted, image, mount_tree, pattern, run, wait_until};

const LEN: usize = 4 << 20;

/// What is asked of the one version's device, and who holds its file.
#[derive(Default)]
struct Counts {
    read_count: AtomicU64,
    hold_count: AtomicU64,
    is_whole: AtomicBool,
    fails: AtomicBool,
}

/// One version, in memory and in a file.
struct Versions {
    memory: MemoryTree,
    file: PathBuf,
    counts: Arc<Counts>,
}

struct Version {
    bytes: Arc<dyn Device>,
    file: PathBuf,
    counts: Arc<Counts>,
}

struct Held(File, Arc<Counts>);

impl WholeFile for Held {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.1.hold_count.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Device for Version {
    fn length(&self) -> u64 {
        self.bytes.length()
    }
    fn is_read_only(&self) -> bool {
        true
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.counts.read_count.fetch_add(1, Ordering::SeqCst);
        self.bytes.read(offset, buffer)
    }
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.bytes.write(offset, bytes)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.bytes.write_zeroes(offset, len)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.bytes.discard(offset, len)
    }
    fn flush(&self) -> Result<()> {
        self.bytes.flush()
    }
    fn prefetch(&self, offset: u64, len: u64) -> Result<()> {
        self.bytes.prefetch(offset, len)
    }
    fn extents(&self, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>> {
        self.bytes.extents(offset, len, max)
    }
    fn whole_file(&self) -> Result<Option<Box<dyn WholeFile>>> {
        if self.counts.fails.load(Ordering::SeqCst) {
            return Err(Error::new(Kind::Full, "hold", "the version"));
        }
        if !self.counts.is_whole.load(Ordering::SeqCst) {
            return Ok(None);
        }
        self.counts.hold_count.fetch_add(1, Ordering::SeqCst);
        Ok(Some(Box::new(Held(File::open(&self.file).unwrap(), self.counts.clone()))))
    }
}

impl Tree for Versions {
    fn images(&self) -> Result<Vec<ImageName>> {
        self.memory.images()
    }
    fn versions(&self, image: &ImageName) -> Result<Vec<VersionNumber>> {
        self.memory.versions(image)
    }
    fn version_length(&self, version: &VersionId) -> Result<u64> {
        self.memory.version_length(version)
    }
    fn open_version(&self, version: &VersionId) -> Result<Arc<dyn Device>> {
        let bytes = self.memory.open_version(version)?;
        Ok(Arc::new(Version { bytes, file: self.file.clone(), counts: self.counts.clone() }))
    }
    fn mirrors(&self) -> Result<Vec<MirrorName>> {
        Ok(Vec::new())
    }
    fn open_mirror(&self, mirror: &MirrorName) -> Result<Arc<dyn Device>> {
        self.memory.open_mirror(mirror)
    }
    fn clone_mirror(&self, mirror: &MirrorName, image: &ImageName) -> Result<VersionId> {
        self.memory.clone_mirror(mirror, image)
    }
    fn commit_mirror(&self, mirror: &MirrorName) -> Result<VersionId> {
        self.memory.commit_mirror(mirror)
    }
}

/// A mount of one version that `file` holds too.
struct Shown {
    counts: Arc<Counts>,
    path: PathBuf,
    bytes: Vec<u8>,
    _mount: attach::fuse::FuseMount,
    _folder: tempfile::TempDir,
    scratch: tempfile::TempDir,
}

impl Shown {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let bytes = pattern(LEN, 21);
        std::fs::write(scratch.path().join("data"), &bytes).unwrap();
        let file = scratch.path().join("data");
        Self::of(scratch, file, bytes)
    }

    fn of(scratch: tempfile::TempDir, file: PathBuf, bytes: Vec<u8>) -> Self {
        let memory = MemoryTree::default();
        memory.add_version(&image("debian"), bytes.clone());
        let counts = Arc::new(Counts::default());
        counts.is_whole.store(true, Ordering::SeqCst);
        let (folder, mount) =
            mount_tree(Arc::new(Versions { memory, file, counts: counts.clone() }));
        let path = mount.folder().join("debian/1");
        Shown { counts, path, bytes, _mount: mount, _folder: folder, scratch }
    }

    fn read_count(&self) -> u64 {
        self.counts.read_count.load(Ordering::SeqCst)
    }

    fn hold_count(&self) -> u64 {
        self.counts.hold_count.load(Ordering::SeqCst)
    }

    fn wait_until_let_go(&self) {
        wait_until("the file is let go", || self.hold_count() == 0);
    }
}

fn first_block(path: &Path) -> Vec<u8> {
    let mut block = vec![0; 4096];
    File::open(path).unwrap().read_exact_at(&mut block, 0).unwrap();
    block
}

#[test]
fn the_kernel_reads_a_whole_version_without_us() {
    let shown = Shown::new();
    assert!(std::fs::read(&shown.path).unwrap() == shown.bytes);
    let path = shown.path.display();
    for flags in ["", " iflag=direct"] {
        let copy = shown.scratch.path().join("copy");
        run(&format!("dd if={path} of={} bs=1M status=none{flags}", copy.display()));
        assert!(std::fs::read(copy).unwrap() == shown.bytes, "dd{flags}");
    }
    let data = shown.scratch.path().join("data");
    run(&format!("qemu-img compare -T none -f raw -F raw {path} {}", data.display()));
    assert_eq!(shown.read_count(), 0, "somebody asked us");
    assert!(File::options().write(true).open(&shown.path).is_err());
    shown.wait_until_let_go();
}

#[test]
fn a_file_is_held_while_it_is_open_and_let_go_soon_after() {
    let shown = Shown::new();
    let first = File::open(&shown.path).unwrap();
    let second = File::open(&shown.path).unwrap();
    assert_eq!(shown.hold_count(), 1, "all opens share one");
    drop(first);
    let mut block = [0; 4096];
    second.read_exact_at(&mut block, 4096).unwrap();
    assert!(block == shown.bytes[4096..8192]);
    assert_eq!(shown.hold_count(), 1);
    drop(second);
    shown.wait_until_let_go();
    assert!(first_block(&shown.path) == shown.bytes[..4096]);
    shown.wait_until_let_go();
}

#[test]
fn a_mapping_holds_the_file_when_every_handle_is_closed() {
    let shown = Shown::new();
    let file = File::open(&shown.path).unwrap();
    // SAFETY: a new mapping, at an address of the kernel's choice, of a file that nobody writes.
    let mapping = unsafe {
        let none = std::ptr::null_mut();
        rustix::mm::mmap(none, LEN, ProtFlags::READ, MapFlags::SHARED, &file, 0).unwrap()
    };
    drop(file);
    // Another name comes and goes the same way behind it: what is waited for has had its turn.
    for _ in 0..20 {
        assert!(first_block(&shown.path) == shown.bytes[..4096]);
    }
    assert_eq!(shown.hold_count(), 1, "let go under a mapping");
    // SAFETY: the mapping is LEN bytes long and lives until the call below.
    let bytes = unsafe { std::slice::from_raw_parts(mapping.cast::<u8>(), LEN) };
    assert!(bytes == shown.bytes);
    // SAFETY: the mapping made above, of which nothing is used any more.
    unsafe { rustix::mm::munmap(mapping, LEN).unwrap() };
    shown.wait_until_let_go();
    assert_eq!(shown.read_count(), 0);
}

#[test]
fn how_a_file_is_read_holds_from_its_first_open_to_its_last_release() {
    let shown = Shown::new();
    shown.counts.is_whole.store(false, Ordering::SeqCst);
    let first = File::open(&shown.path).unwrap();
    shown.counts.is_whole.store(true, Ordering::SeqCst);
    assert!(first_block(&shown.path) == shown.bytes[..4096]);
    assert_eq!(shown.hold_count(), 0, "it was opened through us");
    assert!(shown.read_count() > 0);
    drop(first);
    let read_count = || {
        let before = shown.read_count();
        // Not out of the page cache of the opens before.
        let path = shown.path.display();
        run(&format!("dd if={path} of=/dev/null bs=1M iflag=direct status=none"));
        shown.read_count() - before
    };
    wait_until("it is passed through", || read_count() == 0);
    shown.wait_until_let_go();
}

#[test]
fn a_version_whose_file_cannot_be_held_is_read_through_us() {
    let shown = Shown::new();
    shown.counts.fails.store(true, Ordering::SeqCst);
    assert!(std::fs::read(&shown.path).unwrap() == shown.bytes);
    assert!(shown.read_count() > 0);
}

#[test]
fn a_file_on_file_systems_stacked_too_deep_is_read_through_us() {
    // A mount that passes files through is itself as deep as may be.
    let bytes = pattern(LEN, 22);
    let below = Mounted::with(bytes.clone());
    let shown = Shown::of(tempfile::tempdir().unwrap(), below.version(), bytes);
    assert!(std::fs::read(&shown.path).unwrap() == shown.bytes);
    assert!(shown.read_count() > 0);
    assert_eq!(shown.hold_count(), 0);
    assert!(first_block(&shown.path) == shown.bytes[..4096]);
}

#[test]
fn an_unmount_lets_the_file_go() {
    let shown = Shown::new();
    let weak: Weak<Counts> = Arc::downgrade(&shown.counts);
    let file = File::open(&shown.path).unwrap();
    let Shown { _mount: mount, counts, _folder, scratch: _scratch, .. } = shown;
    mount.unmount().unwrap();
    let mut block = [0; 4096];
    file.read_exact_at(&mut block, 0).unwrap();
    assert_eq!(counts.hold_count.load(Ordering::SeqCst), 1, "it is open still");
    drop(file);
    drop(counts);
    wait_until("the file is let go", || weak.upgrade().is_none());
}
