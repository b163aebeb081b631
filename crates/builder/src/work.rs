//! The folder of a build under way, and what is left of builds that were killed.
//!
//! ```text
//! STATE/build/work-PID-START-xxxxxx/   apt/ pool/ mirror/ fuse/ root/ disk.raw
//! ```
//!
//! **Invariants**: a folder is taken for a leftover only when no process with its number and its time
//! of start runs. All that a build starts dies with it (see `tool`), and what it mounts but the FUSE
//! folder is in namespaces of those; so a leftover is a folder, a dead FUSE mount, and a hold.

use std::path::{Path, PathBuf};

use model::{Error, Kind, Result};
use repository::Repository;

/// What folders for work are called, before the process that works there.
const WORK: &str = "work-";

/// A folder for what is of no use afterwards; it goes when this is dropped.
pub(crate) struct Work {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Work {
    /// Makes one in a folder, after removing what builds have left there that were killed.
    ///
    /// # Errors
    /// `Refused` where apt could not work there.
    pub(crate) fn begin(folder: &Path, repository: &Repository) -> Result<Work> {
        let failed = |error| Error::io("work in", folder.display().to_string(), error);
        if folder.to_string_lossy().contains(char::is_whitespace) {
            return Err(Error::new(Kind::Refused, "work in", folder.display().to_string())
                .because("apt takes no path with a space in it")
                .hint("`--state` names another folder"));
        }
        std::fs::create_dir_all(folder).map_err(failed)?;
        remove_leftovers(folder, repository);
        let pid = std::process::id();
        let prefix = format!("{WORK}{pid}-{}-", start_of(pid).unwrap_or_default());
        let made = tempfile::Builder::new().prefix(&prefix).tempdir_in(folder).map_err(failed)?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(made.path(), mode).map_err(failed)?;
        let path = made.path().to_path_buf();
        Ok(Work { _folder: made, path })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// What a hold is called that a build has while it works in this folder.
pub(crate) fn holder_of(work: &Path) -> String {
    format!("build in {}", work.display())
}

fn remove_leftovers(folder: &Path, repository: &Repository) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_str().and_then(owner_of).is_none_or(is_alive) {
            continue;
        }
        let path = entry.path();
        tracing::info!("removing what a build has left in {}", path.display());
        unmount_all(&path);
        if let Err(error) = repository.catalog().release(&holder_of(&path)) {
            tracing::warn!("{}", error.chain());
        }
        if let Err(error) = std::fs::remove_dir_all(&path) {
            tracing::warn!(%error, "cannot remove {}", path.display());
        }
    }
}

/// Takes away mounts of servers that were killed: they are dead, and would be in the way.
fn unmount_all(folder: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for line in mounts.lines().rev() {
        let point = line.split(' ').nth(4).map(Path::new);
        if let Some(point) = point.filter(|point| point.starts_with(folder)) {
            // What cannot be unmounted stops the removal, which is told.
            let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// The number and the start of the process that a folder is of.
fn owner_of(name: &str) -> Option<(u32, u64)> {
    let mut words = name.strip_prefix(WORK)?.split('-');
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

fn is_alive((pid, start): (u32, u64)) -> bool {
    start_of(pid) == Some(start)
}

/// When a process was started, in ticks since the machine was; numbers of processes come again.
fn start_of(pid: u32) -> Option<u64> {
    let facts = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name, in parentheses, may have anything in it.
    let (_, rest) = facts.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_with_its_number() {
        let own = std::process::id();
        let start = start_of(own).unwrap();
        assert!(start > 0 && is_alive((own, start)) && !is_alive((own, start + 1)));
        assert_eq!(owner_of("work-12-345-aBc"), Some((12, 345)));
        assert_eq!(owner_of("packages"), None);
        assert_eq!(start_of(u32::MAX), None);
    }
}
