//! Devices that wait, fail and panic.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use attach::fuse::Tree;
use model::device::{Device, Extent, ExtentKind};
use model::{Error, ImageName, Kind, MirrorName, Result, VersionId, VersionNumber};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use crate::mounted::{mirror, mount_tree, wait_until};

const LENGTH: u64 = 64 << 20;

/// What a mirror's name says is what its device does.
#[derive(Default)]
struct Gate {
    waiting_count: AtomicUsize,
    flush_count: AtomicUsize,
    open_count: AtomicUsize,
    read_len: AtomicUsize,
    opened: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn wait(&self) {
        self.waiting_count.fetch_add(1, Ordering::SeqCst);
        let mut opened = self.opened.lock().unwrap();
        while !*opened {
            opened = self.changed.wait(opened).unwrap();
        }
    }

    fn open(&self) {
        *self.opened.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

/// Opens the gate even where a test fails: what waits for ever would hold the process for ever.
struct OpenAtEnd<'a>(&'a Gate);

impl Drop for OpenAtEnd<'_> {
    fn drop(&mut self) {
        self.0.open();
    }
}

struct Scripted {
    name: MirrorName,
    gate: Arc<Gate>,
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.gate.open_count.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Scripted {
    fn act(&self) -> Result<()> {
        let fail = |kind| Err(Error::new(kind, "read", "the disk"));
        match self.name.as_str() {
            "slow" => self.gate.wait(),
            "panics" => panic!("on purpose"),
            "full" => return fail(Kind::Full),
            "stale" => return fail(Kind::Stale),
            "refused" => return fail(Kind::Refused),
            "invalid" => return fail(Kind::Invalid),
            "corrupt" => return fail(Kind::Corrupt),
            "unavailable" => return fail(Kind::Unavailable),
            _ => {}
        }
        Ok(())
    }
}

impl Device for Scripted {
    fn length(&self) -> u64 {
        LENGTH
    }
    fn is_read_only(&self) -> bool {
        self.name.as_str() == "read-only"
    }
    fn read(&self, _offset: u64, buffer: &mut [u8]) -> Result<()> {
        buffer.fill(7);
        self.gate.read_len.fetch_add(buffer.len(), Ordering::SeqCst);
        self.act()
    }
    fn write(&self, _offset: u64, _bytes: &[u8]) -> Result<()> {
        self.act()
    }
    fn write_zeroes(&self, _offset: u64, _len: u64) -> Result<()> {
        self.act()
    }
    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        self.act()
    }
    fn flush(&self) -> Result<()> {
        self.gate.flush_count.fetch_add(1, Ordering::SeqCst);
        self.act()
    }
    fn prefetch(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }
    fn extents(&self, offset: u64, len: u64, _max: usize) -> Result<Vec<Extent>> {
        self.act()?;
        Ok(vec![Extent { offset, len, kind: ExtentKind::Data }])
    }
}

const NAMES: [&str; 10] = [
    "slow",
    "panics",
    "full",
    "stale",
    "refused",
    "invalid",
    "corrupt",
    "unavailable",
    "read-only",
    "plain",
];

struct ScriptedTree(Arc<Gate>);

impl Tree for ScriptedTree {
    fn images(&self) -> Result<Vec<ImageName>> {
        panic!("on purpose");
    }
    fn versions(&self, image: &ImageName) -> Result<Vec<VersionNumber>> {
        Err(Error::new(Kind::Unavailable, "ask for", image.to_string()))
    }
    fn version_length(&self, version: &VersionId) -> Result<u64> {
        Err(Error::new(Kind::NotFound, "ask for", version.to_string()))
    }
    fn open_version(&self, version: &VersionId) -> Result<Arc<dyn Device>> {
        Err(Error::new(Kind::NotFound, "open", version.to_string()))
    }
    fn mirrors(&self) -> Result<Vec<MirrorName>> {
        Ok(NAMES.iter().map(|name| mirror(name)).collect())
    }
    fn mirror_length(&self, _mirror: &MirrorName) -> Result<u64> {
        Ok(LENGTH)
    }
    fn open_mirror(&self, mirror: &MirrorName) -> Result<Arc<dyn Device>> {
        self.0.open_count.fetch_add(1, Ordering::SeqCst);
        Ok(Arc::new(Scripted { name: mirror.clone(), gate: self.0.clone() }))
    }
    fn clone_mirror(&self, _: &MirrorName, image: &ImageName) -> Result<VersionId> {
        Err(Error::new(Kind::Full, "clone", image.to_string()))
    }
    fn commit_mirror(&self, mirror: &MirrorName) -> Result<VersionId> {
        Err(Error::new(Kind::Full, "commit", mirror.to_string()))
    }
}

/// The same, of which the kernel may read one page ahead.
struct PageByPage(ScriptedTree);

impl Tree for PageByPage {
    fn read_ahead_len_max(&self) -> Option<u32> {
        Some(4096)
    }
    fn images(&self) -> Result<Vec<ImageName>> {
        self.0.images()
    }
    fn versions(&self, image: &ImageName) -> Result<Vec<VersionNumber>> {
        self.0.versions(image)
    }
    fn version_length(&self, version: &VersionId) -> Result<u64> {
        self.0.version_length(version)
    }
    fn open_version(&self, version: &VersionId) -> Result<Arc<dyn Device>> {
        self.0.open_version(version)
    }
    fn mirrors(&self) -> Result<Vec<MirrorName>> {
        self.0.mirrors()
    }
    fn mirror_length(&self, mirror: &MirrorName) -> Result<u64> {
        self.0.mirror_length(mirror)
    }
    fn open_mirror(&self, mirror: &MirrorName) -> Result<Arc<dyn Device>> {
        self.0.open_mirror(mirror)
    }
    fn clone_mirror(&self, mirror: &MirrorName, image: &ImageName) -> Result<VersionId> {
        self.0.clone_mirror(mirror, image)
    }
    fn commit_mirror(&self, mirror: &MirrorName) -> Result<VersionId> {
        self.0.commit_mirror(mirror)
    }
}

#[test]
fn a_mapped_page_is_read_without_its_neighbours_where_a_tree_limits_the_kernel() {
    if !rustix::process::geteuid().is_root() {
        // Only root may tell the kernel.
        return;
    }
    let touch = |tree: Arc<dyn Tree>, gate: &Gate| {
        let (_scratch, mount) = mount_tree(tree);
        let file = File::open(mount.folder().join("mirrors/plain")).unwrap();
        let (len, access, flags) = (LENGTH as usize, ProtFlags::READ, MapFlags::PRIVATE);
        // SAFETY: a new private mapping of a file that stays mounted, of which one byte within its
        // length is read before it goes.
        unsafe {
            let start =
                rustix::mm::mmap(std::ptr::null_mut(), len, access, flags, &file, 0).unwrap();
            assert_eq!(start.cast::<u8>().add(len / 2).read_volatile(), 7);
            rustix::mm::munmap(start, len).unwrap();
        }
        gate.read_len.load(Ordering::SeqCst)
    };
    let gate = Arc::new(Gate::default());
    assert_eq!(touch(Arc::new(PageByPage(ScriptedTree(gate.clone()))), &gate), 4096);
    let gate = Arc::new(Gate::default());
    assert!(touch(Arc::new(ScriptedTree(gate.clone())), &gate) > 64 << 10);
}

#[test]
fn reads_that_wait_hold_up_nobody_else() {
    let gate = Arc::new(Gate::default());
    let (_scratch, mount) = mount_tree(Arc::new(ScriptedTree(gate.clone())));
    let slow = mount.folder().join("mirrors/slow");
    let count = 40;
    // Open before the others: the kernel drops cached pages behind a first open, and waits there
    // for reads of others that came in between.
    let _first = File::open(&slow).unwrap();
    std::thread::scope(|scope| {
        let _open = OpenAtEnd(&gate);
        for index in 0..count {
            let slow = &slow;
            scope.spawn(move || {
                let file = File::open(slow).unwrap();
                let mut byte = [0];
                file.read_exact_at(&mut byte, index << 20).unwrap();
                assert_eq!(byte, [7]);
            });
        }
        wait_until("all readers wait", || {
            gate.waiting_count.load(Ordering::SeqCst) >= count as usize
        });
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(mount.folder().join("mirrors/plain"))
            .unwrap();
        for index in 0..100 {
            let mut bytes = vec![0; 100_000];
            file.read_exact_at(&mut bytes, index * 100_000).unwrap();
            file.write_all_at(&bytes, index * 100_000).unwrap();
        }
        file.sync_all().unwrap();
        assert_eq!(std::fs::read_dir(mount.folder().join("mirrors")).unwrap().count(), NAMES.len());
    });
}

#[test]
fn each_kind_of_error_has_its_errno_and_a_panic_ends_one_request() {
    let gate = Arc::new(Gate::default());
    let (_scratch, mount) = mount_tree(Arc::new(ScriptedTree(gate.clone())));
    let path = |name: &str| mount.folder().join("mirrors").join(name);
    for (name, errno) in [
        ("panics", Errno::IO),
        ("full", Errno::NOSPC),
        ("stale", Errno::STALE),
        ("refused", Errno::ACCESS),
        ("invalid", Errno::INVAL),
        ("corrupt", Errno::IO),
        ("unavailable", Errno::IO),
    ] {
        let file = OpenOptions::new().read(true).write(true).open(path(name)).unwrap();
        for _ in 0..10 {
            let write = Errno::from_io_error(&file.write_at(&[1], 5).unwrap_err());
            assert_eq!(write, Some(errno), "{name}");
            let flush = Errno::from_io_error(&file.sync_all().unwrap_err());
            assert_eq!(flush, Some(errno), "{name}");
            assert!(file.read_at(&mut [0], 5).is_err(), "{name}");
            let data = rustix::fs::SeekFrom::Data(0);
            assert_eq!(rustix::fs::seek(&file, data), Err(errno), "{name}");
        }
    }
    let images = std::fs::read_dir(mount.folder()).unwrap_err();
    assert_eq!(Errno::from_io_error(&images), Some(Errno::IO));
    let image = std::fs::metadata(mount.folder().join("debian")).unwrap_err();
    assert_eq!(Errno::from_io_error(&image), Some(Errno::IO));
    let read_only = OpenOptions::new().write(true).open(path("read-only")).unwrap_err();
    assert_eq!(Errno::from_io_error(&read_only), Some(Errno::ROFS));
    assert_eq!(std::fs::read(path("plain")).unwrap().len() as u64, LENGTH);
}

#[test]
fn a_sync_flushes_the_device_and_the_last_close_drops_it() {
    let gate = Arc::new(Gate::default());
    let (_scratch, mount) = mount_tree(Arc::new(ScriptedTree(gate.clone())));
    let path = mount.folder().join("mirrors/plain");
    let first = OpenOptions::new().write(true).open(&path).unwrap();
    let second = File::open(&path).unwrap();
    assert_eq!(gate.open_count.load(Ordering::SeqCst), 1);
    first.sync_all().unwrap();
    first.sync_data().unwrap();
    assert_eq!(gate.flush_count.load(Ordering::SeqCst), 2);
    drop(first);
    drop(second);
    wait_until("the device is dropped", || gate.open_count.load(Ordering::SeqCst) == 0);
    let missing = OpenOptions::new().write(true).open(mount.folder().join("mirrors/none"));
    assert!(missing.is_err());
}
