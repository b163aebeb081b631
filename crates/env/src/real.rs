//! The machine's own file system.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, FlockOperation, StatxFlags};

use crate::file_system::{File, FileSystem, OpenMode, Space};

/// Asks for the mount id that no other mount has again; since Linux 6.8.
const STATX_MNT_ID_UNIQUE: u32 = 0x4000;

/// The machine's own file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealFileSystem;

#[derive(Debug)]
struct RealFile(std::fs::File);

/// One file or folder that is made durable.
type SyncOne<'a> = Box<dyn Fn() -> io::Result<()> + Send + Sync + 'a>;

impl FileSystem for RealFileSystem {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let mut options = std::fs::OpenOptions::new();
        options.read(true).write(mode != OpenMode::Read);
        match mode {
            OpenMode::Read | OpenMode::ReadWrite => &mut options,
            OpenMode::OpenOrCreate => options.create(true),
            OpenMode::CreateNew => options.create_new(true),
        };
        Ok(Arc::new(RealFile(options.open(path)?)))
    }

    fn create_folders(&self, path: &Path) -> io::Result<()> {
        // For their owner alone: they hold guests' disks.
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        std::fs::read_dir(folder)?.map(|entry| Ok(PathBuf::from(entry?.file_name()))).collect()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir_all(path)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        // The parent of `state` is the empty path, which means the current folder.
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        std::fs::File::open(folder)?.sync_all()
    }

    fn sync_together(&self, files: &[&dyn File], folders: &[&Path]) -> io::Result<()> {
        // One thread for each: in turn they are as many commits of ext4's journal, at once they
        // are one or two.
        let files = files.iter().map(|file| Box::new(|| file.sync()) as SyncOne<'_>);
        let folders =
            folders.iter().map(|folder| Box::new(|| self.sync_folder(folder)) as SyncOne<'_>);
        let syncs: Vec<SyncOne<'_>> = files.chain(folders).collect();
        let Some((here, others)) = syncs.split_first() else { return Ok(()) };
        std::thread::scope(|scope| {
            let spawn = |sync| std::thread::Builder::new().spawn_scoped(scope, sync);
            let spawned: Vec<_> = others.iter().map(|sync| (sync, spawn(sync))).collect();
            spawned.into_iter().fold(here(), |found, (sync, thread)| {
                // Where no thread was to be had it is done here.
                let done = thread
                    .map_or_else(|_| sync(), |thread| thread.join().unwrap_or_else(|_| sync()));
                found.and(done)
            })
        })
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn boot_id(&self) -> io::Result<String> {
        Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_string())
    }

    fn mount_id(&self, folder: &Path) -> io::Result<String> {
        let ask =
            |flags| rustix::fs::statx(rustix::fs::CWD, folder, rustix::fs::AtFlags::empty(), flags);
        // Older kernels give a number that the next mount may have again; the device tells some of
        // those apart.
        let unique = ask(StatxFlags::from_bits_retain(STATX_MNT_ID_UNIQUE))?;
        if unique.stx_mask & STATX_MNT_ID_UNIQUE != 0 {
            return Ok(unique.stx_mnt_id.to_string());
        }
        let found = ask(StatxFlags::MNT_ID)?;
        let (major, minor) = (found.stx_dev_major, found.stx_dev_minor);
        Ok(format!("{}-{major}-{minor}", found.stx_mnt_id))
    }

    fn space(&self, folder: &Path) -> io::Result<Space> {
        let found = rustix::fs::statvfs(folder)?;
        Ok(Space {
            total: found.f_blocks.saturating_mul(found.f_frsize),
            available: found.f_bavail.saturating_mul(found.f_frsize),
        })
    }
}

impl File for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            match self.0.read_at(buffer, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.0, flags, offset, len) {
            Err(rustix::io::Errno::OPNOTSUPP) => self.write_zeros(offset, len),
            other => Ok(other?),
        }
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.blocks() * 512)
    }

    fn try_lock(&self) -> io::Result<bool> {
        match rustix::fs::flock(&self.0, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn try_lock_shared(&self) -> io::Result<bool> {
        match rustix::fs::flock(&self.0, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn lock(&self) -> io::Result<()> {
        loop {
            match rustix::fs::flock(&self.0, FlockOperation::LockExclusive) {
                Err(rustix::io::Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }

    fn unlock(&self) -> io::Result<()> {
        Ok(rustix::fs::flock(&self.0, FlockOperation::Unlock)?)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
}

impl RealFile {
    /// What punching a hole means where the file system cannot: zeros, as far as the file goes.
    fn write_zeros(&self, offset: u64, len: u64) -> io::Result<()> {
        let zeros = vec![0; 1 << 20];
        let (mut at, end) = (offset, (offset + len).min(self.len()?));
        while at < end {
            let count = (end - at).min(zeros.len() as u64);
            self.0.write_all_at(&zeros[..count as usize], at)?;
            at += count;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn folders_are_made_for_their_owner_alone() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("a/b");
        RealFileSystem.create_folders(&folder).unwrap();
        RealFileSystem.create_folders(&folder).unwrap();
        for made in [folder.parent().unwrap(), &folder] {
            assert_eq!(std::fs::metadata(made).unwrap().permissions().mode() & 0o777, 0o700);
        }
    }
}
