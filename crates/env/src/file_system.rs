//! Files and folders, as Larder's own state uses them.
//!
//! Durability is as on POSIX: bytes survive power loss once [`File::sync`] has returned, names once
//! [`FileSystem::sync_folder`] of their folder has. Until then a crash may keep any part, in any order.

use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// It must exist; reads only.
    Read,
    /// It must exist; reads and writes.
    ReadWrite,
    /// It is made if it does not exist; reads and writes.
    OpenOrCreate,
    /// It must not exist yet; reads and writes.
    CreateNew,
}

/// An open file. Calls may come from many threads at once.
pub trait File: Send + Sync + Debug {
    /// Reads up to `buffer.len()` bytes from `offset`; fewer only at the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all bytes at `offset`.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes bytes and length durable (`fdatasync`).
    fn sync(&self) -> io::Result<()>;

    /// Bytes of the file.
    fn len(&self) -> io::Result<u64>;

    /// Cuts or grows the file; what is added reads as zeros and takes no space.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Gives the space of a range back; it reads as zeros from now on. The length stays.
    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Bytes of disk that the file takes.
    fn allocated_bytes(&self) -> io::Result<u64>;

    /// Takes the file's exclusive advisory lock if nobody has it; held until the file is dropped.
    /// False where another holds it: a shared lock that this file had is lost then.
    fn try_lock(&self) -> io::Result<bool>;

    /// Takes the file's shared advisory lock, or keeps no more than that of an exclusive one. False
    /// where another holds it exclusively.
    fn try_lock_shared(&self) -> io::Result<bool>;

    /// Takes the exclusive lock, and waits for it.
    fn lock(&self) -> io::Result<()>;

    /// Gives the lock free.
    fn unlock(&self) -> io::Result<()>;

    /// The file's descriptor, where it has one: for the kernel to read from directly.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` where the file ends first.
    fn read_exact_at(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.read_at(buffer, offset)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => {
                    buffer = &mut buffer[count..];
                    offset += count as u64;
                }
            }
        }
        Ok(())
    }

    /// True where the file has no byte.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// Bytes of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// What it has in all.
    pub total: u64,
    /// What can be written still.
    pub available: u64,
}

/// Files and folders by path.
pub trait FileSystem: Send + Sync + Debug {
    /// Opens a file.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>>;

    /// Makes a folder and those above it, for their owner alone. The names are durable after `sync_folder` of each parent.
    fn create_folders(&self, path: &Path) -> io::Result<()>;

    /// The names in a folder, in no order.
    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>>;

    /// Renames a file, replacing the one there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes a folder and all in it.
    fn remove_folder(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a folder durable.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;

    /// Makes files, and the names in folders, durable; in no order. A system that can does it at
    /// once: what many wait for, a journal commits together.
    fn sync_together(&self, files: &[&dyn File], folders: &[&Path]) -> io::Result<()> {
        files.iter().try_for_each(|file| file.sync())?;
        folders.iter().try_for_each(|folder| self.sync_folder(folder))
    }

    /// True where something has that name.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// A text that is another after each start of the machine: state that is only as durable as
    /// the page cache counts while it stays the same.
    fn boot_id(&self) -> io::Result<String>;

    /// A text that is another after each mount of the file system that holds `folder`, within one
    /// start of the machine: a disk that was away may have come back without what was not synced.
    fn mount_id(&self, folder: &Path) -> io::Result<String>;

    /// How much the file system that holds `folder` has room for.
    fn space(&self, folder: &Path) -> io::Result<Space>;

    /// Writes a small file whole: to a new name, synced, renamed, its folder synced. After a crash
    /// the old file is there or the new one.
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let new = path.with_extension("new");
        let file = self.open(&new, OpenMode::OpenOrCreate)?;
        file.set_len(0)?;
        file.write_all_at(bytes, 0)?;
        file.sync()?;
        self.rename(&new, path)?;
        self.sync_folder(path.parent().unwrap_or(Path::new("/")))
    }

    /// Reads a file of at most `len_max` bytes whole.
    ///
    /// # Errors
    /// `FileTooLarge` where it is longer.
    fn read_file(&self, path: &Path, len_max: u64) -> io::Result<Vec<u8>> {
        let file = self.open(path, OpenMode::Read)?;
        let len = file.len()?;
        if len > len_max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }
}
