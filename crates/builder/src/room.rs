//! How much the files of a first stage may take: they are in a folder of the host, not on a disk of
//! their own.
//!
//! **Invariants**: what is asked often is cheap: files are counted only when the host's disk has lost
//! as much as the image may still grow.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};

use crate::tree::Tree;

/// Room for an image's files.
pub(crate) struct Room<'a> {
    tree: &'a Tree,
    max: u64,
    /// With less than this free on the host the files are counted.
    count_below: Cell<u64>,
}

impl<'a> Room<'a> {
    /// Room for this many bytes.
    pub(crate) fn new(tree: &'a Tree, max: u64) -> Room<'a> {
        let room = Room { tree, max, count_below: Cell::new(u64::MAX) };
        room.is_left();
        room
    }

    /// False once the files take more.
    pub(crate) fn is_left(&self) -> bool {
        let free = self.tree.free_len();
        if free >= self.count_below.get() {
            return true;
        }
        // Files that go while one counts are not counted.
        let len = len_of(self.tree.folder(), &mut BTreeSet::new()).unwrap_or(0);
        self.count_below.set(free.saturating_sub(self.max.saturating_sub(len)));
        len <= self.max
    }
}

/// Bytes that all files of a folder take; of several names of a file one counts.
fn len_of(folder: BorrowedFd, linked: &mut BTreeSet<(u64, u64)>) -> io::Result<u64> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let again = rustix::fs::openat(folder, ".", flags, Mode::empty())?;
    let mut sum = 0;
    for entry in Dir::new(again)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let Ok(facts) = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        let is_folder = FileType::from_raw_mode(facts.st_mode) == FileType::Directory;
        if is_folder || facts.st_nlink < 2 || linked.insert((facts.st_dev, facts.st_ino)) {
            // The kernel counts in units of 512 bytes.
            sum += facts.st_blocks as u64 * 512;
        }
        if is_folder && let Ok(inner) = rustix::fs::openat(folder, name, flags, Mode::empty()) {
            sum += len_of(inner.as_fd(), linked)?;
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_ends_with_what_the_files_take_and_links_take_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let tree = Tree::open(folder.path()).unwrap();
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        std::fs::write(folder.path().join("sub/file"), vec![1; 1 << 20]).unwrap();
        std::fs::hard_link(folder.path().join("sub/file"), folder.path().join("other")).unwrap();
        std::fs::File::create(folder.path().join("hole")).unwrap().set_len(1 << 40).unwrap();
        let len = len_of(tree.folder(), &mut BTreeSet::new()).unwrap();
        assert!((1 << 20..2 << 20).contains(&len), "{len}");
        let room = |max| Room { tree: &tree, max, count_below: Cell::new(u64::MAX) };
        assert!(room(2 << 20).is_left());
        assert!(!room(1000).is_left());
    }
}
