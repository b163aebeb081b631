//! The files of an image while it is made, reached so that no link in it leads out.
//!
//! **Invariants**: every path is looked up with the tree's folder as root (`openat2`,
//! `RESOLVE_IN_ROOT`), so what a step has put there can only ever name things inside.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use model::{Error, Result};

/// More than any file that is read here has.
const TEXT_LEN_MAX: u64 = 64 << 20;

/// The files of an image.
pub(crate) struct Tree {
    root: OwnedFd,
    path: PathBuf,
}

/// Who owns a file: user, group.
pub(crate) type Owner = (u32, u32);

impl Tree {
    /// The tree in this folder.
    pub(crate) fn open(path: &Path) -> Result<Tree> {
        let root = rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| Error::io("open", path.display().to_string(), errno.into()))?;
        Ok(Tree { root, path: path.to_path_buf() })
    }

    fn open_in(&self, path: &str, flags: OFlags, mode: u32) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::CLOEXEC;
        Ok(rustix::fs::openat2(&self.root, path, flags, Mode::from_raw_mode(mode), resolve)?)
    }

    /// The folder of a path, and the last part of it.
    fn parent(&self, path: &str) -> io::Result<(OwnedFd, String)> {
        let path = path.trim_end_matches('/');
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let folder = if folder.is_empty() { "." } else { folder };
        Ok((self.open_in(folder, OFlags::PATH | OFlags::DIRECTORY, 0)?, name.to_owned()))
    }

    /// The text of a file; none where there is no such file.
    pub(crate) fn read(&self, path: &str) -> Result<Option<String>> {
        let file = match self.open_in(path, OFlags::RDONLY | OFlags::NONBLOCK, 0) {
            Ok(file) => File::from(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", path, error)),
        };
        let mut bytes = Vec::new();
        let failed = |error| Error::io("read", path, error);
        file.take(TEXT_LEN_MAX).read_to_end(&mut bytes).map_err(failed)?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Copies a file out of the tree.
    pub(crate) fn copy_out(&self, path: &str, to: &Path) -> Result<()> {
        let copy = || -> io::Result<()> {
            let mut from = File::from(self.open_in(path, OFlags::RDONLY | OFlags::NONBLOCK, 0)?);
            io::copy(&mut from, &mut File::create(to)?).map(drop)
        };
        copy().map_err(|error| Error::io("read", path, error))
    }

    /// What tells a file from another at the same place: its name, length, number and time of change.
    pub(crate) fn signature(&self, path: &str) -> Result<String> {
        let look = || -> io::Result<String> {
            let facts = rustix::fs::fstat(self.open_in(path, OFlags::PATH, 0)?)?;
            let (len, inode, time) = (facts.st_size, facts.st_ino, facts.st_mtime);
            Ok(format!("{path} {len} {inode} {time}"))
        };
        look().map_err(|error| Error::io("read", path, error))
    }

    /// True where something is there, a link that leads nowhere included.
    pub(crate) fn exists(&self, path: &str) -> bool {
        let Ok((folder, name)) = self.parent(path) else { return false };
        rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Puts a file, whatever was there before; folders above it are made. A link is replaced.
    pub(crate) fn write(&self, path: &str, bytes: &[u8], mode: u32, owner: Owner) -> Result<()> {
        let write = || -> io::Result<()> {
            self.make_folders_above(path)?;
            let (folder, name) = self.parent(path)?;
            match rustix::fs::unlinkat(&folder, &name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&folder, &name, flags, Mode::from_raw_mode(0o600))?;
            let mut file = File::from(file);
            file.write_all(bytes)?;
            own(&file, owner)?;
            Ok(rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?)
        };
        write().map_err(|error| Error::io("write", path, error))
    }

    /// Puts text into a file that is there, or not; owner and permissions stay.
    pub(crate) fn rewrite(&self, path: &str, text: &str, mode: u32) -> Result<()> {
        let write = || -> io::Result<()> {
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::TRUNC | OFlags::NONBLOCK;
            let mut file = File::from(self.open_in(path, flags, mode)?);
            file.write_all(text.as_bytes())
        };
        write().map_err(|error| Error::io("write", path, error))
    }

    /// Makes a link.
    pub(crate) fn link(&self, to: &str, path: &str) -> Result<()> {
        let make = || -> io::Result<()> {
            self.make_folders_above(path)?;
            let (folder, name) = self.parent(path)?;
            match rustix::fs::unlinkat(&folder, &name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
            Ok(rustix::fs::symlinkat(to, folder, name)?)
        };
        make().map_err(|error| Error::io("link", path, error))
    }

    fn make_folders_above(&self, path: &str) -> io::Result<()> {
        let mut above = String::new();
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        for part in &parts[..parts.len().saturating_sub(1)] {
            above.push('/');
            above.push_str(part);
            match self.open_in(&above, OFlags::PATH | OFlags::DIRECTORY, 0) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let (folder, name) = self.parent(&above)?;
                    rustix::fs::mkdirat(folder, name, Mode::from_raw_mode(0o755))?;
                    // The creation mask is the caller's.
                    let made = self.open_in(&above, OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
                    rustix::fs::fchmod(made, Mode::from_raw_mode(0o755))?;
                }
                other => drop(other?),
            }
        }
        Ok(())
    }

    /// Makes a folder and those above it; where it is there, it gets these permissions and owner.
    pub(crate) fn make_folder(&self, path: &str, mode: u32, owner: Owner) -> Result<()> {
        let make = || -> io::Result<()> {
            self.make_folders_above(&format!("{path}/x"))?;
            let folder = File::from(self.open_in(path, OFlags::RDONLY | OFlags::DIRECTORY, 0)?);
            own(&folder, owner)?;
            Ok(rustix::fs::fchmod(&folder, Mode::from_raw_mode(mode))?)
        };
        make().map_err(|error| Error::io("make", path, error))
    }

    /// What is in a folder, sorted; nothing where there is no such folder, or a link in its place.
    pub(crate) fn list(&self, path: &str) -> Result<Vec<(String, FileType)>> {
        let folder =
            match self.open_in(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW, 0) {
                Ok(folder) => folder,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(Vec::new()),
                Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
                    return Ok(Vec::new());
                }
                Err(error) => return Err(Error::io("list", path, error)),
            };
        let failed = |errno: Errno| Error::io("list", path, errno.into());
        let mut names = Vec::new();
        for entry in Dir::new(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push((name, entry.file_type()));
            }
        }
        names.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(names)
    }

    /// Removes a file or a folder with all that is in it, if it is there. Links are not followed.
    pub(crate) fn remove(&self, path: &str) -> Result<()> {
        let failed = |error: io::Error| Error::io("remove", path, error);
        let (folder, name) = match self.parent(path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        match rustix::fs::unlinkat(&folder, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
        self.empty(path, &|_| false)?;
        match rustix::fs::unlinkat(&folder, &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOTEMPTY) => Ok(()),
            Err(errno) => Err(failed(errno.into())),
        }
    }

    /// Removes all that is in a folder, but for what is kept and the folders above that.
    pub(crate) fn empty(&self, path: &str, keeps: &dyn Fn(&str) -> bool) -> Result<()> {
        for (name, _) in self.list(path)? {
            let inner = format!("{path}/{name}");
            if !keeps(&inner) {
                self.remove_but(&inner, keeps)?;
            }
        }
        Ok(())
    }

    fn remove_but(&self, path: &str, keeps: &dyn Fn(&str) -> bool) -> Result<()> {
        let failed = |error: io::Error| Error::io("remove", path, error);
        let (folder, name) = self.parent(path).map_err(failed)?;
        match rustix::fs::unlinkat(&folder, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
        self.empty(path, keeps)?;
        match rustix::fs::unlinkat(&folder, &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOTEMPTY) => Ok(()),
            Err(errno) => Err(failed(errno.into())),
        }
    }

    /// Gives everything in the tree that is younger than a point in time that time, in seconds since
    /// 1970-01-01 UTC.
    pub(crate) fn clamp_times(&self, epoch: i64) -> Result<()> {
        let root = rustix::io::dup(&self.root).map_err(io::Error::from);
        root.and_then(|root| clamp_folder(root, epoch))
            .map_err(|error| Error::io("set the times of", self.path.display().to_string(), error))
    }

    /// The folder itself.
    pub(crate) fn folder(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// How many bytes are free.
    pub(crate) fn free_len(&self) -> u64 {
        rustix::fs::fstatvfs(&self.root).map_or(u64::MAX, |facts| facts.f_bavail * facts.f_frsize)
    }
}

fn own(file: &File, owner: Owner) -> io::Result<()> {
    std::os::unix::fs::fchown(file, Some(owner.0), Some(owner.1))
}

fn clamp_folder(folder: OwnedFd, epoch: i64) -> io::Result<()> {
    let names: Vec<OsString> = {
        let again = rustix::fs::openat(
            &folder,
            ".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let mut names = Vec::new();
        for entry in Dir::new(again)? {
            let entry = entry?;
            use std::os::unix::ffi::OsStringExt;
            let name = OsString::from_vec(entry.file_name().to_bytes().to_vec());
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        names
    };
    for name in names {
        let facts = rustix::fs::statat(&folder, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(facts.st_mode) == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            clamp_folder(rustix::fs::openat(&folder, &name, flags, Mode::empty())?, epoch)?;
        }
        let times = clamped(facts.st_mtime as i64, facts.st_mtime_nsec as i64, epoch);
        rustix::fs::utimensat(&folder, &name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    let facts = rustix::fs::fstat(&folder)?;
    let times = clamped(facts.st_mtime as i64, facts.st_mtime_nsec as i64, epoch);
    Ok(rustix::fs::futimens(&folder, &times)?)
}

/// The time of change, clamped; the time of access is the same.
fn clamped(seconds: i64, nanos: i64, epoch: i64) -> rustix::fs::Timestamps {
    let (tv_sec, tv_nsec) = if seconds >= epoch { (epoch, 0) } else { (seconds, nanos) };
    let time = rustix::fs::Timespec { tv_sec, tv_nsec: tv_nsec as _ };
    rustix::fs::Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner() -> Owner {
        (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
    }

    #[test]
    fn links_in_a_tree_lead_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let outside = folder.path().join("outside");
        let inside = folder.path().join("inside");
        std::fs::create_dir_all(&outside).unwrap();
        std::fs::create_dir_all(inside.join("sub")).unwrap();
        std::fs::write(outside.join("victim"), "safe").unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("etc")).unwrap();
        std::os::unix::fs::symlink("../../outside", inside.join("sub/up")).unwrap();
        std::os::unix::fs::symlink(outside.join("victim"), inside.join("file")).unwrap();
        let tree = Tree::open(&inside).unwrap();
        assert!(tree.write("/etc/victim", b"x", 0o644, owner()).is_err());
        assert!(tree.write("/sub/up/victim", b"x", 0o644, owner()).is_err());
        tree.write("/file", b"mine", 0o640, owner()).unwrap();
        let _ = tree.remove("/etc/victim");
        tree.remove("/etc").unwrap();
        assert_eq!(std::fs::read_to_string(outside.join("victim")).unwrap(), "safe");
        assert_eq!(tree.read("/file").unwrap().unwrap(), "mine");
        assert!(tree.read("/../outside/victim").unwrap().is_none());
    }

    #[test]
    fn emptying_keeps_what_is_to_stay() {
        let folder = tempfile::tempdir().unwrap();
        let tree = Tree::open(folder.path()).unwrap();
        for name in ["/log/a", "/log/apt/b", "/log/other/c"] {
            tree.write(name, b"", 0o644, owner()).unwrap();
        }
        tree.empty("/log", &|path| path == "/log/apt" || path.starts_with("/log/apt/")).unwrap();
        assert!(tree.exists("/log/apt/b"));
        assert!(!tree.exists("/log/a") && !tree.exists("/log/other"));
    }

    #[test]
    fn only_what_is_younger_gets_another_time() {
        let folder = tempfile::tempdir().unwrap();
        let tree = Tree::open(folder.path()).unwrap();
        tree.write("/sub/old", b"", 0o644, owner()).unwrap();
        tree.link("nowhere", "/sub/link").unwrap();
        let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(5);
        File::options()
            .write(true)
            .open(folder.path().join("sub/old"))
            .unwrap()
            .set_modified(old)
            .unwrap();
        tree.clamp_times(1000).unwrap();
        let seconds = |name: &str| {
            let facts = std::fs::symlink_metadata(folder.path().join(name)).unwrap();
            std::os::unix::fs::MetadataExt::mtime(&facts)
        };
        assert_eq!((seconds("sub/old"), seconds("sub/link"), seconds("sub")), (5, 1000, 1000));
    }
}
