//! What each request does, on types of ours; `door` translates from and to `fuser`'s.
//!
//! **Invariants**: no lock of this module is held while a tree or device is called; lengths come
//! from the device, never from what a request claims.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fuser::Errno;
use model::device::{Device, Extent, ExtentKind};
use model::{ImageName, Kind, MirrorName, VersionId, VersionNumber};
use rustix::fs::FallocateFlags;

use super::errno::errno_of;
use super::files::{Files, OpenFile};
use super::ioctl::{self, Command};
use super::nodes::{Node, Nodes};
use super::passthrough::{Offer, Register};
use super::tree::Tree;

type Answer<T> = Result<T, Errno>;

/// The most extents asked for at a time while seeking.
const SEEK_EXTENTS_MAX: usize = 16;

/// What a node looks like.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    /// Its inode number.
    pub(crate) number: u64,
    /// What it is.
    pub(crate) node: Node,
    /// Bytes, for files.
    pub(crate) len: u64,
}

/// What a folder held when it was opened: names and nodes.
pub(crate) type Listing = Vec<(String, Node)>;

/// A name that the kernel is to drop: its folder's number, and itself.
pub(crate) type Dropped = (u64, String);

/// The file system behind one mount.
pub(crate) struct Core {
    /// Whether complete versions may be passed through.
    pub(crate) offer: Offer,
    tree: Arc<dyn Tree>,
    nodes: Mutex<Nodes>,
    files: Files,
    listings: Mutex<HashMap<u64, Arc<Listing>>>,
    next_listing: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Turns an error of a tree or device into an errno.
fn answer<T>(result: model::Result<T>) -> Answer<T> {
    result.map_err(|error| errno_of(&error))
}

impl Core {
    /// A file system that shows `tree`.
    pub(crate) fn new(tree: Arc<dyn Tree>) -> Self {
        Core {
            offer: Offer::default(),
            tree,
            nodes: Mutex::default(),
            files: Files::default(),
            listings: Mutex::default(),
            next_listing: AtomicU64::new(1),
        }
    }

    /// See [`Tree::read_ahead_len_max`].
    pub(crate) fn read_ahead_len_max(&self) -> Option<u32> {
        self.tree.read_ahead_len_max()
    }

    fn node(&self, number: u64) -> Answer<Node> {
        lock(&self.nodes).get(number).ok_or(Errno::ESTALE)
    }

    fn file(&self, handle: u64) -> Answer<Arc<OpenFile>> {
        self.files.get(handle).ok_or(Errno::EBADF)
    }

    /// Looks a name up and remembers its number.
    pub(crate) fn lookup(&self, parent: u64, name: &str) -> Answer<Look> {
        let node = self.find(&self.node(parent)?, name)?;
        // The length first: it tells whether a version exists, and what does not exist must leave
        // no number behind.
        let number = lock(&self.nodes).number(&node);
        let len = self.length(number, &node)?;
        let number = lock(&self.nodes).remember(&node);
        Ok(Look { number, node, len })
    }

    fn find(&self, parent: &Node, name: &str) -> Answer<Node> {
        match parent {
            Node::Root if name == "mirrors" => Ok(Node::Mirrors),
            Node::Root => self.find_folder(name.to_string()),
            Node::Folder(folder) => match version_number(name) {
                Some(version) => {
                    let image = ImageName::new(folder).map_err(|_| Errno::ENOENT)?;
                    Ok(Node::Version(VersionId { image, version }))
                }
                None => self.find_folder(format!("{folder}/{name}")),
            },
            Node::Mirrors => {
                let mirror = MirrorName::new(name).map_err(|_| Errno::ENOENT)?;
                let known = answer(self.tree.mirrors())?.contains(&mirror);
                if known { Ok(Node::Mirror(mirror)) } else { Err(Errno::ENOENT) }
            }
            Node::Version(_) | Node::Mirror(_) => Err(Errno::ENOTDIR),
        }
    }

    fn find_folder(&self, path: String) -> Answer<Node> {
        let image = ImageName::new(&path).map_err(|_| Errno::ENOENT)?;
        match self.tree.versions(&image) {
            Ok(_) => return Ok(Node::Folder(path)),
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) => return Err(errno_of(&error)),
        }
        let images = answer(self.tree.images())?;
        let below = |image: &ImageName| below(image.as_str(), &path).is_some();
        if images.iter().any(below) { Ok(Node::Folder(path)) } else { Err(Errno::ENOENT) }
    }

    fn length(&self, number: u64, node: &Node) -> Answer<u64> {
        if let Some(len) = self.files.open_length(number) {
            return Ok(len);
        }
        match node {
            Node::Version(version) => answer(self.tree.version_length(version)),
            Node::Mirror(mirror) => answer(self.tree.mirror_length(mirror)),
            Node::Root | Node::Folder(_) | Node::Mirrors => Ok(0),
        }
    }

    /// What a number looks like now.
    pub(crate) fn look(&self, number: u64) -> Answer<Look> {
        let node = self.node(number)?;
        let len = self.length(number, &node)?;
        Ok(Look { number, node, len })
    }

    /// Refuses what would change an inode; a truncation to the length that it has is no change.
    pub(crate) fn change(&self, number: u64, len: Option<u64>, owner: bool) -> Answer<Look> {
        let look = self.look(number)?;
        if owner || len.is_some_and(|len| len != look.len) {
            return Err(Errno::EPERM);
        }
        Ok(look)
    }

    /// The kernel forgets lookups.
    pub(crate) fn forget(&self, number: u64, count: u64) {
        lock(&self.nodes).forget(number, count);
        self.files.forgotten(number, |number| self.is_remembered(number));
    }

    fn is_remembered(&self, number: u64) -> bool {
        lock(&self.nodes).get(number).is_some()
    }

    /// Opens a file, whose device may be handed to the kernel with `register`. Gives its handle, the
    /// file, and whether pages cached at earlier opens are still right.
    ///
    /// They are for versions, and for a mirror that this mount writes and had open already: all its
    /// writes went through the same pages. Dropping them needlessly would make the open wait for
    /// every read that is under way. A mirror that another door writes starts afresh at each open.
    /// The kernel drops them behind our answer, so an open that races with the first one may still
    /// find its own reads waited for.
    pub(crate) fn open(
        &self,
        number: u64,
        writable: bool,
        truncate: bool,
        register: &Register<'_>,
    ) -> Answer<(u64, Arc<OpenFile>, bool)> {
        let node = self.node(number)?;
        if truncate {
            return Err(Errno::EPERM);
        }
        let tree = &self.tree;
        let mut first = false;
        let opened = match &node {
            Node::Version(_) if writable && !tree.versions_are_mapped() => {
                return Err(Errno::EROFS);
            }
            Node::Version(version) => {
                let open = || tree.open_version(version);
                let pass = |device: &dyn Device| self.offer.pass(device, register);
                self.files.open(number, node.clone(), false, open, pass)
            }
            Node::Mirror(mirror) => {
                let open = || {
                    first = true;
                    tree.open_mirror(mirror)
                };
                self.files.open(number, node.clone(), writable, open, |_| None)
            }
            Node::Root | Node::Folder(_) | Node::Mirrors => return Err(Errno::EISDIR),
        };
        let (handle, file) = answer(opened)?;
        let read_only = file.device.is_read_only();
        if writable && read_only && matches!(node, Node::Mirror(_)) {
            drop(file);
            self.release(handle);
            return Err(Errno::EROFS);
        }
        let keep_cache = match &node {
            Node::Version(_) => true,
            _ => !first && !read_only,
        };
        Ok((handle, file, keep_cache))
    }

    /// Closes a handle. Gives the name that the kernel is to drop, so that it forgets a file which
    /// was passed through.
    pub(crate) fn release(&self, handle: u64) -> Option<Dropped> {
        let number = self.files.release(handle, |number| self.is_remembered(number))?;
        match self.node(number) {
            Ok(Node::Version(VersionId { image, version })) => {
                let folder = self.number(&Node::Folder(image.to_string()));
                Some((folder, version.to_string()))
            }
            _ => None,
        }
    }

    /// Reads into `buffer` and gives it, shorter where the file ends.
    pub(crate) fn read<'b>(
        &self,
        handle: u64,
        offset: u64,
        buffer: &'b mut [u8],
    ) -> Answer<&'b [u8]> {
        let file = self.file(handle)?;
        let left = file.device.length().saturating_sub(offset);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = &mut buffer[..len];
        if len > 0 {
            answer(file.device.read(offset, buffer))?;
        }
        Ok(buffer)
    }

    /// Writes all of `bytes`. Beyond the end there is no space, as on a block device.
    pub(crate) fn write(&self, handle: u64, offset: u64, bytes: &[u8]) -> Answer<()> {
        let file = self.writable(handle)?;
        let end = offset.checked_add(bytes.len() as u64).ok_or(Errno::EFBIG)?;
        if end > file.device.length() {
            return Err(Errno::ENOSPC);
        }
        answer(file.device.write(offset, bytes))
    }

    fn writable(&self, handle: u64) -> Answer<Arc<OpenFile>> {
        let file = self.file(handle)?;
        if file.writable { Ok(file) } else { Err(Errno::EBADF) }
    }

    /// Makes what was written durable.
    pub(crate) fn flush(&self, handle: u64) -> Answer<()> {
        let file = self.file(handle)?;
        if file.writable { answer(file.device.flush()) } else { Ok(()) }
    }

    /// Makes a range zeros. A hole may be punched beyond the end; nothing may be allocated.
    pub(crate) fn allocate(&self, handle: u64, offset: u64, len: u64, mode: i32) -> Answer<()> {
        let file = self.writable(handle)?;
        let mode = FallocateFlags::from_bits_retain(mode as u32);
        let keep_size = mode.contains(FallocateFlags::KEEP_SIZE);
        let length = file.device.length();
        let end = offset.checked_add(len).ok_or(Errno::EFBIG)?;
        let kind = mode - FallocateFlags::KEEP_SIZE;
        let punches = kind == FallocateFlags::PUNCH_HOLE && keep_size;
        if kind != FallocateFlags::ZERO_RANGE && !punches {
            return Err(Errno::EOPNOTSUPP);
        }
        if end > length && !keep_size {
            return Err(Errno::ENOSPC);
        }
        let end = end.min(length);
        if offset < end {
            answer(file.device.write_zeroes(offset, end - offset))?;
        }
        Ok(())
    }

    /// The next byte at or behind `offset` that lies in data, or in a hole; the end of the file
    /// counts as a hole.
    pub(crate) fn seek(&self, handle: u64, offset: u64, wanted: ExtentKind) -> Answer<u64> {
        let file = self.file(handle)?;
        let device = file.device.as_ref();
        let length = device.length();
        if offset >= length {
            return Err(Errno::ENXIO);
        }
        match next_extent(device, offset, length, wanted)? {
            Some(found) => Ok(found),
            None if wanted == ExtentKind::Hole => Ok(length),
            None => Err(Errno::ENXIO),
        }
    }

    /// Carries out CLONE or COMMIT. Gives what the caller's structure holds afterwards.
    pub(crate) fn control(&self, handle: u64, number: u32, input: &[u8]) -> Answer<Vec<u8>> {
        let command = Command::parse(number, input)?;
        let file = self.file(handle)?;
        let Node::Mirror(mirror) = &file.node else { return Err(Errno::ENOTTY) };
        if !file.writable {
            return Err(Errno::EBADF);
        }
        let version = match command {
            Command::Clone(image) => answer(self.tree.clone_mirror(mirror, &image))?,
            Command::Commit => answer(self.tree.commit_mirror(mirror))?,
        };
        Ok(ioctl::encode(&version))
    }

    /// Opens a folder: lists it once, so that reading it in parts is consistent.
    pub(crate) fn open_folder(&self, number: u64) -> Answer<u64> {
        let listing = Arc::new(self.list(&self.node(number)?)?);
        let handle = self.next_listing.fetch_add(1, Ordering::Relaxed);
        lock(&self.listings).insert(handle, listing);
        Ok(handle)
    }

    /// What an open folder holds.
    pub(crate) fn listing(&self, handle: u64) -> Answer<Arc<Listing>> {
        lock(&self.listings).get(&handle).cloned().ok_or(Errno::EBADF)
    }

    /// Closes a folder.
    pub(crate) fn release_folder(&self, handle: u64) {
        lock(&self.listings).remove(&handle);
    }

    /// The number of a node that is listed, without remembering it.
    pub(crate) fn number(&self, node: &Node) -> u64 {
        lock(&self.nodes).number(node)
    }

    /// What a listed node looks like, remembered as by a lookup; `None` for the look where its
    /// length cannot be told.
    pub(crate) fn look_listed(&self, node: &Node) -> (u64, Option<Look>) {
        let number = self.number(node);
        let len = self.length(number, node).ok();
        let number = lock(&self.nodes).remember(node);
        (number, len.map(|len| Look { number, node: node.clone(), len }))
    }

    fn list(&self, folder: &Node) -> Answer<Listing> {
        match folder {
            Node::Root => {
                let images = answer(self.tree.images())?;
                let mut listing = vec![("mirrors".to_string(), Node::Mirrors)];
                listing.extend(folders(images.iter().map(ImageName::as_str), ""));
                Ok(listing)
            }
            Node::Folder(path) => {
                let images = answer(self.tree.images())?;
                let mut listing = Listing::new();
                if let Some(image) = images.iter().find(|image| image.as_str() == path) {
                    for version in answer(self.tree.versions(image))? {
                        let node = Node::Version(VersionId { image: image.clone(), version });
                        listing.push((version.to_string(), node));
                    }
                }
                let inner = images.iter().filter_map(|image| below(image.as_str(), path));
                listing.extend(folders(inner, path));
                Ok(listing)
            }
            Node::Mirrors => {
                let mirrors = answer(self.tree.mirrors())?;
                Ok(mirrors.into_iter().map(|m| (m.to_string(), Node::Mirror(m))).collect())
            }
            Node::Version(_) | Node::Mirror(_) => Err(Errno::ENOTDIR),
        }
    }
}

/// The rest of an image's name below a folder.
fn below<'n>(image: &'n str, folder: &str) -> Option<&'n str> {
    image.strip_prefix(folder)?.strip_prefix('/')
}

/// The folders that names, relative to `parent`, begin with; each once.
fn folders<'n>(names: impl Iterator<Item = &'n str>, parent: &str) -> Listing {
    let first: BTreeSet<&str> = names.filter_map(|name| name.split('/').next()).collect();
    let path = |name: &str| match parent {
        "" => name.to_string(),
        parent => format!("{parent}/{name}"),
    };
    first.into_iter().map(|name| (name.to_string(), Node::Folder(path(name)))).collect()
}

/// The version that a file name means: digits without leading zeros, no other spelling.
fn version_number(name: &str) -> Option<VersionNumber> {
    let number = name.parse().ok().and_then(VersionNumber::new)?;
    (number.to_string() == name).then_some(number)
}

fn next_extent(
    device: &dyn Device,
    mut offset: u64,
    length: u64,
    wanted: ExtentKind,
) -> Answer<Option<u64>> {
    while offset < length {
        let extents = answer(device.extents(offset, length - offset, SEEK_EXTENTS_MAX))?;
        if let Some(found) = extents.iter().find(|extent| extent.kind == wanted) {
            return Ok(Some(found.offset.max(offset)));
        }
        let end = extents.last().map_or(offset, |Extent { offset, len, .. }| offset + len);
        if end <= offset {
            return Err(Errno::EIO);
        }
        offset = end;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use model::device::MemoryDevice;

    use super::*;

    #[test]
    fn only_plain_numbers_are_versions() {
        assert_eq!(version_number("7").map(VersionNumber::get), Some(7));
        for name in ["", "0", "07", "+7", "-7", " 7", "7 ", "7x", "99999999999999999999"] {
            assert_eq!(version_number(name), None, "{name}");
        }
    }

    #[test]
    fn a_seek_finds_data_and_holes_beyond_many_extents() {
        let mut bytes = vec![0; 100 * 4096];
        bytes[99 * 4096] = 1;
        bytes[4096..8192].fill(1);
        let device = MemoryDevice::new(bytes);
        let length = device.length();
        let check = |offset, wanted, expected| {
            let found = next_extent(&device, offset, length, wanted).unwrap();
            assert_eq!(found, expected, "{wanted:?} from {offset}");
        };
        check(0, ExtentKind::Data, Some(4096));
        check(0, ExtentKind::Hole, Some(0));
        check(4097, ExtentKind::Data, Some(4097));
        check(4097, ExtentKind::Hole, Some(8192));
        check(8192, ExtentKind::Data, Some(99 * 4096));
        check(99 * 4096, ExtentKind::Hole, None);
    }
}
