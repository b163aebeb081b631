//! What system calls on the files and folders do.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags};

use crate::mounted::{Mounted, image, mirror, names, pattern};

fn open_for_writing(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn errno<T>(result: std::io::Result<T>) -> Option<Errno> {
    result.err().and_then(|error| Errno::from_io_error(&error))
}

#[test]
fn folders_show_images_versions_and_mirrors() {
    let tree = attach::fuse::MemoryTree::default();
    tree.add_version(&image("debian"), vec![1; 10]);
    tree.add_version(&image("debian"), vec![2; 20]);
    tree.add_version(&image("debian/minimal"), vec![3; 30]);
    tree.add_version(&image("a/b/c"), vec![4; 40]);
    tree.add_mirror(&mirror("web"), &image("debian"), vec![5; 50]);
    let mounted = Mounted::new(tree);
    assert_eq!(names(&mounted.path("")), ["a", "debian", "mirrors"]);
    assert_eq!(names(&mounted.path("debian")), ["1", "2", "minimal"]);
    assert_eq!(names(&mounted.path("a")), ["b"]);
    assert_eq!(names(&mounted.path("a/b")), ["c"]);
    assert_eq!(names(&mounted.path("a/b/c")), ["1"]);
    assert_eq!(names(&mounted.path("mirrors")), ["web"]);
    for (path, byte, len) in
        [("debian/1", 1, 10), ("debian/2", 2, 20), ("debian/minimal/1", 3, 30), ("a/b/c/1", 4, 40)]
    {
        assert_eq!(std::fs::read(mounted.path(path)).unwrap(), vec![byte; len]);
    }
    let metadata = std::fs::metadata(mounted.path("debian/1")).unwrap();
    assert_eq!((metadata.len(), metadata.mode() & 0o777), (10, 0o440));
    let again = std::fs::metadata(mounted.path("debian/1")).unwrap();
    assert_eq!(metadata.ino(), again.ino());
    mounted.tree.add_version(&image("debian"), vec![6; 60]);
    assert_eq!(std::fs::read(mounted.path("debian/3")).unwrap(), vec![6; 60]);
}

#[test]
fn a_folder_of_a_thousand_versions_is_listed_whole() {
    let tree = attach::fuse::MemoryTree::default();
    for _ in 0..1000 {
        tree.add_version(&image("debian"), vec![1; 10]);
    }
    let mounted = Mounted::new(tree);
    let expected: std::collections::BTreeSet<_> = (1..=1000).map(|n: u32| n.to_string()).collect();
    let found = names(&mounted.path("debian"));
    assert_eq!(found.len(), 1000);
    assert_eq!(found.into_iter().collect::<std::collections::BTreeSet<_>>(), expected);
}

#[test]
fn names_that_nobody_gave_are_not_found() {
    let mounted = Mounted::with(vec![1; 10]);
    let long = "a".repeat(250);
    for name in [
        "debian/0",
        "debian/01",
        "debian/2",
        "debian/+1",
        "debian/-1",
        "debian/1x",
        "Debian",
        "x",
        "debian/18446744073709551616",
        "mirrors/nothing",
        "mirrors/WEB",
        "mirrors/web ",
        "7",
        "mirrors/..%2f",
        "de",
        "debian/\n",
        "\u{fc}",
        "%00",
        "*",
        ".hidden",
        "-x",
        &long,
    ] {
        let found = std::fs::metadata(mounted.path(name));
        assert_eq!(errno(found), Some(Errno::NOENT), "{name:?}");
    }
    use std::os::unix::ffi::OsStrExt;
    let bytes = mounted.path("").join(std::ffi::OsStr::from_bytes(b"\xff\xfe"));
    assert_eq!(errno(std::fs::metadata(bytes)), Some(Errno::NOENT));
    let below = std::fs::metadata(mounted.path("debian/1/x"));
    assert_eq!(errno(below), Some(Errno::NOTDIR));
}

#[test]
fn versions_refuse_to_be_written() {
    let mounted = Mounted::with(vec![1; 10]);
    let version = mounted.version();
    let open = |flags: i32| OpenOptions::new().read(true).custom_flags(flags).open(&version);
    let write = OpenOptions::new().write(true).open(&version);
    assert_eq!(errno(write), Some(Errno::ROFS));
    let both = OpenOptions::new().read(true).write(true).open(&version);
    assert_eq!(errno(both), Some(Errno::ROFS));
    assert!(open(OFlags::DIRECT.bits() as i32).is_ok());
    let truncate = rustix::fs::open(&version, OFlags::TRUNC, rustix::fs::Mode::empty());
    assert!(truncate.is_err());
    assert_eq!(std::fs::read(&version).unwrap(), vec![1; 10]);
}

#[test]
fn the_tree_cannot_be_changed_through_the_mount() {
    let mounted = Mounted::with(vec![1; 10]);
    let created = File::create(mounted.path("mirrors/new"));
    assert_eq!(errno(created), Some(Errno::ROFS));
    assert_eq!(errno(std::fs::create_dir(mounted.path("new"))), Some(Errno::ROFS));
    assert_eq!(errno(std::fs::remove_file(mounted.mirror())), Some(Errno::ROFS));
    let renamed = std::fs::rename(mounted.mirror(), mounted.path("mirrors/other"));
    assert_eq!(errno(renamed), Some(Errno::ROFS));
    let linked = std::fs::hard_link(mounted.mirror(), mounted.path("mirrors/other"));
    assert_eq!(errno(linked), Some(Errno::ROFS));
    let owner = std::os::unix::fs::chown(mounted.mirror(), Some(1), None);
    assert_eq!(errno(owner), Some(Errno::PERM));
}

#[test]
fn a_mirror_keeps_its_length_and_its_bytes_when_told_to_truncate() {
    let bytes = pattern(100_001, 1);
    let mounted = Mounted::with(bytes.clone());
    let created = File::create(mounted.mirror());
    assert_eq!(errno(created), Some(Errno::PERM));
    let file = open_for_writing(&mounted.mirror());
    for len in [0, 1, 100_000, 100_002, u64::MAX >> 1] {
        assert!(file.set_len(len).is_err(), "{len}");
    }
    file.set_len(100_001).unwrap();
    assert_eq!(std::fs::read(mounted.mirror()).unwrap(), bytes);
    assert_eq!(mounted.mirror_bytes(), bytes);
}

#[test]
fn there_is_no_space_beyond_the_end() {
    let mounted = Mounted::with(vec![1; 10_001]);
    let file = open_for_writing(&mounted.mirror());
    assert_eq!(errno(file.write_at(&[2], 10_001)), Some(Errno::NOSPC));
    assert_eq!(errno(file.write_all_at(&[2; 2], 10_000)), Some(Errno::NOSPC));
    file.write_all_at(&[2], 10_000).unwrap();
    assert_eq!(file.read_at(&mut [0; 10], 10_001).unwrap(), 0);
    assert_eq!(file.read_at(&mut [0; 10], 9_999).unwrap(), 2);
    assert_eq!(file.metadata().unwrap().len(), 10_001);
}

#[test]
fn writes_of_any_alignment_are_read_back() {
    let mut expected = pattern(3 << 20, 2);
    expected.truncate((3 << 20) - 1234);
    let mounted = Mounted::with(expected.clone());
    let mut file = open_for_writing(&mounted.mirror());
    for (offset, len) in [(0, 1), (511, 2), (4095, 4098), (1 << 20, 1_500_000), (3_000_000, 77)] {
        let bytes = pattern(len, offset as u64 + 9);
        file.seek(SeekFrom::Start(offset as u64)).unwrap();
        file.write_all(&bytes).unwrap();
        expected[offset..offset + len].copy_from_slice(&bytes);
        // Without a writeback cache a write that returned has arrived.
        assert_eq!(mounted.mirror_bytes(), expected);
    }
    file.sync_all().unwrap();
    file.rewind().unwrap();
    let mut found = Vec::new();
    file.read_to_end(&mut found).unwrap();
    assert!(found == expected);
}

#[test]
fn direct_reads_and_writes_need_no_page_cache() {
    let mut expected = pattern(1 << 20, 3);
    let mounted = Mounted::with(expected.clone());
    let direct = OFlags::DIRECT.bits() as i32;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(direct)
        .open(mounted.mirror())
        .unwrap();
    let part = pattern(8192, 4);
    file.write_all_at(&part, 12_288).unwrap();
    expected[12_288..12_288 + 8192].copy_from_slice(&part);
    assert!(mounted.mirror_bytes() == expected);
    let mut found = vec![0; 1 << 20];
    file.read_exact_at(&mut found, 0).unwrap();
    assert!(found == expected);
    // A cached reader sees what was written around the cache.
    assert!(std::fs::read(mounted.mirror()).unwrap() == expected);
}

#[test]
fn punched_and_zeroed_ranges_read_as_zeros_to_the_byte() {
    let mut expected = vec![7; 100_001];
    let mounted = Mounted::with(expected.clone());
    let file = open_for_writing(&mounted.mirror());
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let mut check = |mode, offset: usize, len: usize| {
        rustix::fs::fallocate(&file, mode, offset as u64, len as u64).unwrap();
        let end = (offset + len).min(expected.len());
        expected[offset.min(end)..end].fill(0);
        assert_eq!(mounted.mirror_bytes(), expected);
        assert_eq!(std::fs::read(mounted.mirror()).unwrap(), expected);
    };
    check(punch, 1000, 10);
    check(punch, 4097, 8190);
    check(FallocateFlags::ZERO_RANGE, 20_000, 5);
    check(FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, 99_000, 10_000);
    check(punch, 98_000, 100_000);
    check(punch, 200_000, 5);
    for (mode, offset, len) in [
        (FallocateFlags::empty(), 0, 4096),
        (FallocateFlags::KEEP_SIZE, 0, 4096),
        (FallocateFlags::ZERO_RANGE, 100_000, 2),
        (FallocateFlags::COLLAPSE_RANGE, 0, 4096),
    ] {
        assert!(rustix::fs::fallocate(&file, mode, offset, len).is_err(), "{mode:?}");
    }
    assert_eq!(file.metadata().unwrap().len(), 100_001);
    let read_only = File::open(mounted.mirror()).unwrap();
    assert!(rustix::fs::fallocate(&read_only, punch, 0, 1).is_err());
}

#[test]
fn data_and_holes_are_found() {
    let mut bytes = vec![0; 10 * 4096 + 5];
    bytes[2 * 4096..4 * 4096].fill(1);
    bytes[10 * 4096 + 1] = 1;
    let len = bytes.len() as u64;
    let mounted = Mounted::with(bytes);
    for path in [mounted.version(), mounted.mirror()] {
        let file = File::open(path).unwrap();
        let data = |offset| rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(offset));
        let hole = |offset| rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(offset));
        assert_eq!(data(0), Ok(2 * 4096));
        assert_eq!(hole(0), Ok(0));
        assert_eq!(hole(2 * 4096 + 3), Ok(4 * 4096));
        assert_eq!(data(4 * 4096), Ok(10 * 4096));
        assert_eq!(hole(10 * 4096), Ok(len));
        assert_eq!(data(len), Err(Errno::NXIO));
        assert_eq!(hole(len + 1), Err(Errno::NXIO));
        let metadata = file.metadata().unwrap();
        assert!(metadata.blocks() > 0 && metadata.blocks() * 512 < len, "tools look for holes");
    }
}

/// A mapping of a whole file.
struct Map {
    start: *mut std::ffi::c_void,
    len: usize,
}

impl Map {
    fn new(file: &File, writable: bool, flags: MapFlags) -> Map {
        let len = file.metadata().unwrap().len() as usize;
        let mut protection = ProtFlags::READ;
        protection.set(ProtFlags::WRITE, writable);
        // SAFETY: no address is asked for, so nothing that exists is replaced.
        let start = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), len, protection, flags, file, 0).unwrap()
        };
        Map { start, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping has `len` bytes and lives as long as `self`; the file's length never
        // changes, and the tests that write to it otherwise do so between two calls.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast(), self.len) }
    }

    fn sync(&self) {
        // SAFETY: the range is the mapping's own.
        unsafe { rustix::mm::msync(self.start, self.len, MsyncFlags::SYNC).unwrap() };
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the range is the mapping's own, and nobody borrows it any more.
        unsafe { rustix::mm::munmap(self.start, self.len).unwrap() };
    }
}

#[test]
fn mappings_for_reading_hold_the_bytes() {
    let bytes = pattern(3_000_001, 5);
    let mounted = Mounted::with(bytes.clone());
    for flags in [MapFlags::SHARED, MapFlags::PRIVATE] {
        for path in [mounted.version(), mounted.mirror()] {
            let mut map = Map::new(&File::open(path).unwrap(), false, flags);
            assert!(map.bytes() == bytes);
        }
    }
}

#[test]
fn a_private_mapping_keeps_its_changes_to_itself() {
    let bytes = pattern(100_001, 6);
    let mounted = Mounted::with(bytes.clone());
    for path in [mounted.version(), mounted.mirror()] {
        let mut map = Map::new(&File::open(&path).unwrap(), true, MapFlags::PRIVATE);
        map.bytes()[5000..6000].fill(9);
        assert!(std::fs::read(path).unwrap() == bytes);
    }
}

#[test]
fn what_is_stored_through_a_shared_mapping_arrives_with_msync_and_with_close() {
    let mut expected = pattern(1_000_001, 7);
    let mounted = Mounted::with(expected.clone());
    let file = open_for_writing(&mounted.mirror());
    let mut map = Map::new(&file, true, MapFlags::SHARED);
    map.bytes()[5000..15_000].fill(9);
    expected[5000..15_000].fill(9);
    *map.bytes().last_mut().unwrap() = 8;
    *expected.last_mut().unwrap() = 8;
    map.sync();
    assert!(mounted.mirror_bytes() == expected);
    // A write around the mapping is seen in it.
    file.write_all_at(&[3; 10], 70_000).unwrap();
    expected[70_000..70_010].fill(3);
    assert!(map.bytes() == expected);
    map.bytes()[500_000] = 77;
    expected[500_000] = 77;
    drop(map);
    drop(file);
    assert!(mounted.mirror_bytes() == expected);
}

#[test]
fn several_opens_share_one_file() {
    let mounted = Mounted::with(vec![1; 10_000]);
    let reader = File::open(mounted.mirror()).unwrap();
    let writer = open_for_writing(&mounted.mirror());
    let mut byte = [0];
    reader.read_exact_at(&mut byte, 5000).unwrap();
    writer.write_all_at(&[9], 5000).unwrap();
    reader.read_exact_at(&mut byte, 5000).unwrap();
    assert_eq!(byte, [9]);
    drop(writer);
    reader.read_exact_at(&mut byte, 5000).unwrap();
    assert_eq!(byte, [9]);
}

#[test]
fn many_threads_read_and_write_at_once() {
    let len = 4 << 20;
    let mounted = Mounted::with(vec![0; len]);
    let path = mounted.mirror();
    std::thread::scope(|scope| {
        for thread in 0..16u8 {
            let path = &path;
            scope.spawn(move || {
                let file = open_for_writing(path);
                let share = len / 16;
                let base = share * usize::from(thread);
                for round in 1..=8u8 {
                    let bytes = vec![thread * 8 + round; share - 1];
                    file.write_all_at(&bytes, base as u64).unwrap();
                    let mut found = vec![0; share - 1];
                    file.read_exact_at(&mut found, base as u64).unwrap();
                    assert!(found == bytes, "thread {thread} round {round}");
                }
            });
        }
    });
    let bytes = mounted.mirror_bytes();
    assert!((0..16).all(|thread| bytes[thread * len / 16] == thread as u8 * 8 + 8));
}

#[test]
fn a_version_that_is_mapped_opens_for_writing_and_takes_none() {
    let tree = attach::fuse::MemoryTree::default();
    let bytes = pattern(1 << 20, 7);
    tree.add_version(&image("machine"), bytes.clone());
    tree.let_versions_be_mapped();
    let mounted = Mounted::new(tree);
    let path = mounted.path("machine/1");
    let file = open_for_writing(&path);
    assert!(file.write_at(b"x", 0).is_err());
    assert!(file.set_len(4096).is_err());
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    assert!(rustix::fs::fallocate(&file, punch, 0, 4096).is_err());
    assert!(rustix::fs::fallocate(&file, FallocateFlags::ZERO_RANGE, 0, 4096).is_err());
    assert!(OpenOptions::new().write(true).truncate(true).open(&path).is_err());
    // SAFETY: a new private mapping of a file that stays mounted; it is read and written below within
    // its length only, and unmapped before the file is closed.
    let first = unsafe {
        let length = bytes.len();
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let start =
            rustix::mm::mmap(std::ptr::null_mut(), length, access, MapFlags::PRIVATE, &file, 0)
                .unwrap();
        let mapped = std::slice::from_raw_parts_mut(start.cast::<u8>(), length);
        assert!(*mapped == bytes[..]);
        mapped[0] = !mapped[0];
        let first = mapped[0];
        rustix::mm::munmap(start, length).unwrap();
        first
    };
    assert_eq!(first, !bytes[0]);
    assert!(std::fs::read(&path).unwrap() == bytes, "what was written to the mapping stays there");
}
