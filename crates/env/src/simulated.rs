//! A disk in memory that forgets and reorders what was not synced, fills up and fails on demand.
//!
//! ```text
//! write ----> page cache ----sync----> medium
//!             kill(): kept             crash(seed): each 512-byte sector that was not synced is
//!                                      what it was at the last sync, or any value it had since;
//!                                      each length and each name likewise, on its own
//! ```
//!
//! **Invariants**: after `crash`, a sector holds bytes that were written to it as a whole, a name
//! stands for a file that it stood for at some time since its folder was last synced, and what was
//! synced is there. The boot id is another. After `kill`, everything is as it was written.
//!
//! **Failure**: [`SimulatedFileSystem::fail_from`] and [`SimulatedFileSystem::fail_once_at`] count
//! every operation, reads too. An operation that fails has done nothing.
//!
//! **Not here**: links, permissions, times, and the order that a journal would keep: this disk is
//! harsher than those that exist.

mod inode;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::inode::{Inode, PAGE_LEN, remember};
use crate::entropy::SeededEntropy;
use crate::file_system::{File, FileSystem, OpenMode, Space};

/// A file system in memory. Clones share it.
#[derive(Clone, Debug)]
pub struct SimulatedFileSystem {
    disk: Arc<Mutex<Disk>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Folder,
    File(u64),
}

#[derive(Clone, Copy, Debug)]
struct Fault {
    at: u64,
    for_ever: bool,
    raw_os_error: i32,
}

#[derive(Clone, Debug, Default)]
struct Disk {
    boot: u64,
    mount: u64,
    inodes: HashMap<u64, Inode>,
    names: BTreeMap<PathBuf, Entry>,
    /// Path -> what it stood for since its folder was last synced, oldest first.
    unsynced_names: BTreeMap<PathBuf, Vec<Option<Entry>>>,
    next_id: u64,
    operation_count: u64,
    fault: Option<Fault>,
    space_max: Option<u64>,
}

#[derive(Debug)]
struct SimulatedFile {
    disk: Arc<Mutex<Disk>>,
    inode: u64,
    handle: u64,
    writable: bool,
}

impl Default for SimulatedFileSystem {
    fn default() -> Self {
        SimulatedFileSystem::new()
    }
}

impl SimulatedFileSystem {
    /// An empty disk.
    pub fn new() -> Self {
        SimulatedFileSystem { disk: Arc::new(Mutex::new(Disk { boot: 1, ..Disk::default() })) }
    }

    /// What is left after the power was lost: another boot, locks released, faults gone. The same
    /// seed leaves the same. Files opened before belong to the disk before and change nothing here.
    #[must_use]
    pub fn crash(&self, seed: u64) -> Self {
        let after = self.unplug(seed);
        after.guard().boot += 1;
        after
    }

    /// The same for the disk alone, which was mounted again while the machine went on.
    #[must_use]
    pub fn unplug(&self, seed: u64) -> Self {
        let entropy = SeededEntropy::new(seed);
        let before = self.guard();
        let mut disk = before.restarted();
        disk.mount = before.mount + 1;
        let mut ids: Vec<u64> = disk.inodes.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            if let Some(inode) = disk.inodes.get_mut(&id) {
                inode.lose_power(&entropy);
            }
        }
        for (path, versions) in std::mem::take(&mut disk.unsynced_names) {
            let pick = entropy.next() as usize % (versions.len() + 1);
            match versions.get(pick) {
                None => {}
                Some(Some(entry)) => drop(disk.names.insert(path, *entry)),
                Some(None) => drop(disk.names.remove(&path)),
            }
        }
        disk.drop_orphans();
        SimulatedFileSystem { disk: Arc::new(Mutex::new(disk)) }
    }

    /// What `kill -9` leaves: everything written, the same boot, locks released, faults gone.
    #[must_use]
    pub fn kill(&self) -> Self {
        SimulatedFileSystem { disk: Arc::new(Mutex::new(self.guard().restarted())) }
    }

    /// Operations so far.
    pub fn operation_count(&self) -> u64 {
        self.guard().operation_count
    }

    /// Lets every operation from number `at` on (counted from 0) fail with this error number.
    pub fn fail_from(&self, at: u64, raw_os_error: i32) {
        self.guard().fault = Some(Fault { at, for_ever: true, raw_os_error });
    }

    /// Lets operation number `at` (counted from 0) fail with this error number, and no other.
    pub fn fail_once_at(&self, at: u64, raw_os_error: i32) {
        self.guard().fault = Some(Fault { at, for_ever: false, raw_os_error });
    }

    /// Ends all faults.
    pub fn heal(&self) {
        let mut disk = self.guard();
        disk.fault = None;
        disk.space_max = None;
    }

    /// Lets writes fail with `ENOSPC` where more than this many bytes would be in use.
    pub fn limit_space(&self, bytes: u64) {
        self.guard().space_max = Some(bytes);
    }

    /// Bytes in use, in whole pages.
    pub fn used_bytes(&self) -> u64 {
        self.guard().used_bytes()
    }

    fn guard(&self) -> MutexGuard<'_, Disk> {
        lock(&self.disk)
    }
}

fn lock(disk: &Mutex<Disk>) -> MutexGuard<'_, Disk> {
    disk.lock().unwrap_or_else(PoisonError::into_inner)
}

fn no_space() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error())
}

impl Disk {
    /// The same bytes and names for processes that come after.
    fn restarted(&self) -> Disk {
        let mut disk = Disk { fault: None, space_max: None, operation_count: 0, ..self.clone() };
        for inode in disk.inodes.values_mut() {
            inode.locked_by = None;
            inode.shared_by.clear();
        }
        disk
    }

    /// Removes what lies in folders that are no longer there.
    fn drop_orphans(&mut self) {
        let folders: BTreeSet<PathBuf> = self
            .names
            .iter()
            .filter(|(_, entry)| **entry == Entry::Folder)
            .map(|(path, _)| path.clone())
            .collect();
        let rooted = |path: &Path| {
            path.ancestors().skip(1).all(|folder| is_root(folder) || folders.contains(folder))
        };
        self.names.retain(|path, _| rooted(path));
        let used: BTreeSet<u64> = self
            .names
            .values()
            .filter_map(|entry| match entry {
                Entry::File(id) => Some(*id),
                Entry::Folder => None,
            })
            .collect();
        self.inodes.retain(|id, _| used.contains(id));
    }

    fn operation(&mut self) -> io::Result<()> {
        let number = self.operation_count;
        self.operation_count += 1;
        match self.fault {
            Some(fault) if number == fault.at || (fault.for_ever && number > fault.at) => {
                Err(io::Error::from_raw_os_error(fault.raw_os_error))
            }
            _ => Ok(()),
        }
    }

    fn used_bytes(&self) -> u64 {
        self.inodes.values().map(|inode| inode.pages.len() as u64 * PAGE_LEN as u64).sum()
    }

    fn inode(&mut self, id: u64) -> &mut Inode {
        self.inodes.entry(id).or_default()
    }

    fn set_name(&mut self, path: &Path, entry: Option<Entry>) {
        let older = match entry {
            Some(entry) => self.names.insert(path.to_path_buf(), entry),
            None => self.names.remove(path),
        };
        remember(self.unsynced_names.entry(path.to_path_buf()).or_default(), older);
    }

    fn require_folder(&self, folder: &Path) -> io::Result<()> {
        match self.names.get(folder) {
            Some(Entry::Folder) => Ok(()),
            None if is_root(folder) => Ok(()),
            Some(Entry::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

fn is_root(path: &Path) -> bool {
    path.parent().is_none()
}

impl FileSystem for SimulatedFileSystem {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let mut disk = self.guard();
        disk.operation()?;
        let id = match (disk.names.get(path).copied(), mode) {
            (Some(Entry::Folder), _) => return Err(io::ErrorKind::IsADirectory.into()),
            (Some(Entry::File(_)), OpenMode::CreateNew) => {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            (Some(Entry::File(id)), _) => id,
            (None, OpenMode::Read | OpenMode::ReadWrite) => {
                return Err(io::ErrorKind::NotFound.into());
            }
            (None, OpenMode::OpenOrCreate | OpenMode::CreateNew) => {
                disk.require_folder(path.parent().unwrap_or(Path::new("/")))?;
                let id = disk.new_id();
                disk.inodes.insert(id, Inode::default());
                disk.set_name(path, Some(Entry::File(id)));
                id
            }
        };
        let handle = disk.new_id();
        let writable = mode != OpenMode::Read;
        Ok(Arc::new(SimulatedFile { disk: self.disk.clone(), inode: id, handle, writable }))
    }

    fn create_folders(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.guard();
        disk.operation()?;
        let mut missing: Vec<&Path> =
            path.ancestors().filter(|folder| disk.require_folder(folder).is_err()).collect();
        missing.reverse();
        for folder in missing {
            if disk.names.contains_key(folder) {
                return Err(io::ErrorKind::NotADirectory.into());
            }
            disk.set_name(folder, Some(Entry::Folder));
        }
        Ok(())
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        let mut disk = self.guard();
        disk.operation()?;
        disk.require_folder(folder)?;
        let inside = disk.names.keys().filter(|path| path.parent() == Some(folder));
        Ok(inside.filter_map(|path| path.file_name().map(PathBuf::from)).collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.guard();
        disk.operation()?;
        disk.require_folder(to.parent().unwrap_or(Path::new("/")))?;
        match disk.names.get(from).copied() {
            Some(Entry::File(id)) => {
                disk.set_name(to, Some(Entry::File(id)));
                disk.set_name(from, None);
                Ok(())
            }
            Some(Entry::Folder) => Err(io::ErrorKind::Unsupported.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.guard();
        disk.operation()?;
        match disk.names.get(path) {
            Some(Entry::File(_)) => disk.set_name(path, None),
            Some(Entry::Folder) => return Err(io::ErrorKind::IsADirectory.into()),
            None => return Err(io::ErrorKind::NotFound.into()),
        }
        Ok(())
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.guard();
        disk.operation()?;
        if disk.names.get(path) != Some(&Entry::Folder) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inside: Vec<PathBuf> =
            disk.names.keys().filter(|name| name.starts_with(path)).cloned().collect();
        for name in inside {
            disk.set_name(&name, None);
        }
        Ok(())
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let mut disk = self.guard();
        disk.operation()?;
        disk.require_folder(folder)?;
        disk.unsynced_names.retain(|path, _| path.parent() != Some(folder));
        Ok(())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let mut disk = self.guard();
        disk.operation()?;
        Ok(disk.names.contains_key(path) || is_root(path))
    }

    fn boot_id(&self) -> io::Result<String> {
        let mut disk = self.guard();
        disk.operation()?;
        Ok(format!("boot-{}", disk.boot))
    }

    fn mount_id(&self, _folder: &Path) -> io::Result<String> {
        let mut disk = self.guard();
        disk.operation()?;
        Ok(format!("mount-{}", disk.mount))
    }

    fn space(&self, _folder: &Path) -> io::Result<Space> {
        let mut disk = self.guard();
        disk.operation()?;
        let total = disk.space_max.unwrap_or(u64::MAX);
        Ok(Space { total, available: total.saturating_sub(disk.used_bytes()) })
    }
}

impl SimulatedFile {
    fn begin(&self, write: bool) -> io::Result<MutexGuard<'_, Disk>> {
        let mut disk = lock(&self.disk);
        disk.operation()?;
        if write && !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(disk)
    }
}

impl File for SimulatedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        Ok(self.begin(false)?.inode(self.inode).read(buffer, offset))
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut disk = self.begin(true)?;
        if bytes.is_empty() {
            return Ok(());
        }
        if let Some(max) = disk.space_max {
            let page_len = PAGE_LEN as u64;
            let pages = offset / page_len..(offset + bytes.len() as u64).div_ceil(page_len);
            let used = disk.used_bytes();
            let inode = disk.inode(self.inode);
            let added = pages.filter(|page| !inode.pages.contains_key(page)).count() as u64;
            if added > 0 && used + added * page_len > max {
                return Err(no_space());
            }
        }
        disk.inode(self.inode).write(bytes, offset);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.begin(false)?;
        let inode = disk.inode(self.inode);
        inode.unsynced.clear();
        inode.older_lens.clear();
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.begin(false)?.inode(self.inode).len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.begin(true)?;
        let inode = disk.inode(self.inode);
        if len < inode.len {
            inode.zero(len, inode.len);
            let older = inode.len;
            remember(&mut inode.older_lens, older);
            inode.len = len;
        }
        inode.grow(len);
        Ok(())
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut disk = self.begin(true)?;
        let inode = disk.inode(self.inode);
        let end = offset.saturating_add(len).min(inode.len);
        inode.zero(offset, end);
        Ok(())
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        Ok(self.begin(false)?.inode(self.inode).pages.len() as u64 * PAGE_LEN as u64)
    }

    fn try_lock(&self) -> io::Result<bool> {
        let mut disk = self.begin(false)?;
        let inode = disk.inode(self.inode);
        inode.shared_by.remove(&self.handle);
        let free = inode.locked_by.is_none_or(|holder| holder == self.handle)
            && inode.shared_by.is_empty();
        if free {
            inode.locked_by = Some(self.handle);
        }
        Ok(free)
    }

    fn try_lock_shared(&self) -> io::Result<bool> {
        let mut disk = self.begin(false)?;
        let inode = disk.inode(self.inode);
        let free = inode.locked_by.is_none_or(|holder| holder == self.handle);
        if free {
            inode.locked_by = None;
            inode.shared_by.insert(self.handle);
        }
        Ok(free)
    }

    fn lock(&self) -> io::Result<()> {
        while !self.try_lock()? {
            std::thread::yield_now();
        }
        Ok(())
    }

    fn unlock(&self) -> io::Result<()> {
        let mut disk = self.begin(false)?;
        disk.inode(self.inode).let_go(self.handle);
        Ok(())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Drop for SimulatedFile {
    fn drop(&mut self) {
        let mut disk = lock(&self.disk);
        if let Some(inode) = disk.inodes.get_mut(&self.inode) {
            inode.let_go(self.handle);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::inode::SECTOR_LEN;
    use super::*;

    fn disk_with(path: &str) -> (SimulatedFileSystem, Arc<dyn File>) {
        let disk = SimulatedFileSystem::new();
        disk.create_folders(Path::new("/a")).unwrap();
        disk.sync_folder(Path::new("/")).unwrap();
        let file = disk.open(Path::new(path), OpenMode::CreateNew).unwrap();
        disk.sync_folder(Path::new("/a")).unwrap();
        (disk, file)
    }

    fn read(disk: &SimulatedFileSystem, path: &str) -> Vec<u8> {
        disk.read_file(Path::new(path), 1 << 20).unwrap()
    }

    #[test]
    fn what_was_synced_survives_and_the_rest_is_kept_by_sector_in_any_mix() {
        let (disk, file) = disk_with("/a/x");
        file.write_all_at(&[1; 8192], 0).unwrap();
        file.sync().unwrap();
        file.write_all_at(&[2; 8192], 0).unwrap();
        file.write_all_at(&[3; 4096], 0).unwrap();
        let mut seen = BTreeSet::new();
        for seed in 0..20 {
            let bytes = read(&disk.crash(seed), "/a/x");
            assert_eq!(bytes, read(&disk.crash(seed), "/a/x"), "seed {seed}");
            for sector in bytes.chunks(SECTOR_LEN) {
                assert!(sector.iter().all(|byte| *byte == sector[0]));
                seen.insert(sector[0]);
            }
        }
        assert_eq!(seen, BTreeSet::from([1, 2, 3]));
        assert_eq!(read(&disk.kill(), "/a/x")[..4097], [&[3; 4096][..], &[2]].concat());
    }

    #[test]
    fn names_need_their_folder_synced() {
        let (disk, file) = disk_with("/a/x");
        file.write_all_at(b"old", 0).unwrap();
        file.sync().unwrap();
        let new = disk.open(Path::new("/a/new"), OpenMode::CreateNew).unwrap();
        new.write_all_at(b"fresh", 0).unwrap();
        new.sync().unwrap();
        disk.rename(Path::new("/a/new"), Path::new("/a/x")).unwrap();
        let after: BTreeSet<_> = (0..20).map(|seed| read(&disk.crash(seed), "/a/x")).collect();
        assert_eq!(after.len(), 2);
        disk.sync_folder(Path::new("/a")).unwrap();
        assert!((0..20).all(|seed| read(&disk.crash(seed), "/a/x") == b"fresh"));
    }

    #[test]
    fn lengths_and_holes_are_lost_like_bytes() {
        let (disk, file) = disk_with("/a/x");
        file.write_all_at(&[7; 8192], 0).unwrap();
        file.sync().unwrap();
        assert_eq!(disk.used_bytes(), 8192);
        file.punch_hole(0, 4096).unwrap();
        file.set_len(5000).unwrap();
        assert_eq!(disk.used_bytes(), 4096);
        assert_eq!(read(&disk, "/a/x"), [vec![0; 4096], vec![7; 904]].concat());
        let lens: BTreeSet<_> = (0..20).map(|seed| read(&disk.crash(seed), "/a/x").len()).collect();
        assert_eq!(lens, BTreeSet::from([5000, 8192]));
        file.sync().unwrap();
        assert_eq!(read(&disk.crash(1), "/a/x"), [vec![0; 4096], vec![7; 904]].concat());
    }

    #[test]
    fn a_lock_is_exclusive_until_its_file_is_dropped_or_its_process_dies() {
        let (disk, file) = disk_with("/a/x");
        assert!(file.try_lock().unwrap());
        let second = disk.open(Path::new("/a/x"), OpenMode::ReadWrite).unwrap();
        assert!(!second.try_lock().unwrap());
        let killed = disk.kill();
        assert!(killed.open(Path::new("/a/x"), OpenMode::ReadWrite).unwrap().try_lock().unwrap());
        drop(file);
        assert!(second.try_lock().unwrap());
    }

    #[test]
    fn a_shared_lock_keeps_exclusive_ones_out_and_becomes_one_when_it_is_alone() {
        let (disk, first) = disk_with("/a/x");
        let second = disk.open(Path::new("/a/x"), OpenMode::ReadWrite).unwrap();
        assert!(first.try_lock_shared().unwrap() && second.try_lock_shared().unwrap());
        assert!(!first.try_lock().unwrap());
        assert!(second.try_lock().unwrap(), "the first has lost its own by trying");
        assert!(!first.try_lock_shared().unwrap());
        assert!(second.try_lock_shared().unwrap() && first.try_lock_shared().unwrap());
        second.unlock().unwrap();
        first.lock().unwrap();
    }

    #[test]
    fn faults_come_when_asked_for() {
        let (disk, file) = disk_with("/a/x");
        disk.limit_space(4096);
        file.write_all_at(&[1; 4096], 0).unwrap();
        assert_eq!(file.write_all_at(&[1], 4096).unwrap_err().kind(), io::ErrorKind::StorageFull);
        file.write_all_at(&[2; 4096], 0).unwrap();
        disk.fail_once_at(disk.operation_count() + 1, 5);
        assert!(file.sync().is_ok());
        assert_eq!(file.sync().unwrap_err().raw_os_error(), Some(5));
        assert!(file.sync().is_ok());
        disk.fail_from(disk.operation_count(), 5);
        assert!(file.sync().is_err() && file.len().is_err());
        disk.heal();
        assert!(file.write_all_at(&[1], 4096).is_ok());
    }
}
