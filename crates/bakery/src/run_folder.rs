//! A private folder for the sockets and mounts of one guest, gone when dropped.
//!
//! ```text
//! made under another name ─► locked ─► gets its name      so whoever sees the name sees the lock
//! ```
//!
//! **Failure**: a process that is killed leaves its folder. The lock goes with the process, so the next
//! folder that is made takes such leftovers away.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use attach::fuse::FuseMount;
use env::{Clock, Entropy, SystemClock, SystemEntropy};
use model::{Error, Result};
use rustix::fs::FlockOperation;

/// What the names of these folders begin with.
const PREFIX: &str = "larder-";

/// What a folder without a lock is called.
const NEW_PREFIX: &str = ".larder-new-";

/// When a folder that never got its name belongs to nobody any more.
const NEW_MAX_SECONDS: i64 = 60;

/// The folder in a machine's mount.
pub const MEMORY: &str = "memory";

/// A folder that only this user enters.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Locked, as long as the folder is somebody's.
    _lock: File,
}

impl RunFolder {
    /// Makes one where temporary files are, and takes away what killed processes of this user left
    /// there.
    ///
    /// # Errors
    /// Those of making a folder.
    pub fn make() -> Result<Self> {
        Self::make_in(&std::env::temp_dir())
    }

    fn make_in(within: &Path) -> Result<Self> {
        sweep(within);
        let name = &SystemEntropy.name()[..16];
        let new = within.join(format!("{NEW_PREFIX}{name}"));
        let path = within.join(format!("{PREFIX}{name}"));
        let failed = |error| Error::io("make the folder", path.display().to_string(), error);
        DirBuilder::new().mode(0o700).create(&new).map_err(failed)?;
        let lock = File::open(&new).map_err(failed)?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| failed(error.into()))?;
        std::fs::rename(&new, &path).map_err(failed)?;
        Ok(RunFolder { path, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The socket of a disk's server in it.
    pub fn socket(&self) -> PathBuf {
        self.path.join("nbd")
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Takes away the folders that nobody holds.
fn sweep(within: &Path) {
    let user = rustix::process::geteuid().as_raw();
    for entry in std::fs::read_dir(within).into_iter().flatten().flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let name = name.to_string_lossy();
        let is_ours = |random: &str| {
            random.len() == 16 && random.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        let is_new = match (name.strip_prefix(PREFIX), name.strip_prefix(NEW_PREFIX)) {
            (Some(random), _) if is_ours(random) => false,
            (_, Some(random)) if is_ours(random) => true,
            _ => continue,
        };
        // No link is followed: anyone may make names where temporary files are.
        let Ok(metadata) = path.symlink_metadata() else { continue };
        if !metadata.is_dir() || metadata.uid() != user || (is_new && !is_old(&metadata)) {
            continue;
        }
        let Ok(folder) = File::open(&path) else { continue };
        if rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok() {
            remove(&path);
        }
    }
}

fn is_old(metadata: &std::fs::Metadata) -> bool {
    let seconds = SystemClock.now().0.div_euclid(1_000_000);
    seconds.saturating_sub(metadata.mtime()) > NEW_MAX_SECONDS
}

fn remove(folder: &Path) {
    let mount = folder.join(MEMORY);
    if let Err(error) = FuseMount::clear_dead(&mount) {
        tracing::debug!("{}", error.chain());
    }
    // Level by level, each only where it is empty: nothing is deleted through a mount that lives.
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let _ = match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            true => std::fs::remove_dir(&path),
            false => std::fs::remove_file(&path),
        };
    }
    if let Err(error) = std::fs::remove_dir(folder) {
        tracing::debug!(%error, folder = %folder.display(), "a folder stays");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_nobody_holds_goes_with_the_next_one() {
        let within = tempfile::tempdir().unwrap();
        let held = RunFolder::make_in(within.path()).unwrap();
        let left = within.path().join("larder-0123456789abcdef");
        std::fs::create_dir_all(left.join(MEMORY)).unwrap();
        std::fs::write(left.join("nbd"), "").unwrap();
        let foreign = within.path().join("larder-of-somebody");
        std::fs::create_dir(&foreign).unwrap();
        let next = RunFolder::make_in(within.path()).unwrap();
        assert!(held.path().exists() && next.path().exists() && foreign.exists());
        assert!(!left.exists());
        drop((held, next));
        assert_eq!(std::fs::read_dir(within.path()).unwrap().count(), 1);
    }
}
