//! A file that appears under its name whole, or not at all.
//!
//! ```text
//! .NAME.xxxxxx.new  written | fsync | rename to NAME | fsync of the folder
//!                   dropped: removed
//! ```
//!
//! **Failure**: after `kill -9` or a power loss the temporary name may remain; the destination is
//! what it was before.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use model::{Error, Result};
use tempfile::NamedTempFile;

use super::create::OPERATION;
use super::early_sync::EarlySync;

/// Mode of a new file, before the process's mask takes its bits away.
const MODE_NEW: u32 = 0o666;

/// A file on its way to its name.
#[derive(Debug)]
pub(super) struct Destination {
    temporary: NamedTempFile,
    folder: PathBuf,
    /// Where it goes in the end: `path`, or what the symbolic link there leads to.
    target: PathBuf,
    subject: String,
    early: Mutex<EarlySync>,
}

impl Destination {
    /// Makes the temporary file beside `path`, with the mode of the file that it will replace.
    pub(super) fn create(path: &Path, subject: String) -> Result<Self> {
        let make = || -> io::Result<_> {
            // Like cp: a link stays, and what it leads to is replaced.
            let (target, mode) = match path.canonicalize() {
                Ok(there) => {
                    let mode = there.metadata()?.permissions().mode();
                    (there, Some(mode & 0o777))
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => (path.to_owned(), None),
                Err(error) => return Err(error),
            };
            let folder = match target.parent() {
                Some(parent) if parent != Path::new("") => parent.to_owned(),
                _ => PathBuf::from("."),
            };
            let Some(name) = target.file_name() else {
                return Err(io::ErrorKind::IsADirectory.into());
            };
            let mut prefix = std::ffi::OsString::from(".");
            prefix.push(name);
            prefix.push(".");
            let temporary = tempfile::Builder::new()
                .prefix(&prefix)
                .suffix(".new")
                .permissions(Permissions::from_mode(MODE_NEW))
                .tempfile_in(&folder)?;
            if let Some(mode) = mode {
                temporary.as_file().set_permissions(Permissions::from_mode(mode))?;
            }
            Ok((temporary, folder, target))
        };
        let (temporary, folder, target) =
            make().map_err(|error| Error::io(OPERATION, &subject, error))?;
        Ok(Destination { temporary, folder, target, subject, early: Mutex::default() })
    }

    /// What the user calls it.
    pub(super) fn subject(&self) -> &str {
        &self.subject
    }

    /// Writes `bytes` at `offset`.
    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let file = self.temporary.as_file();
        let write = || {
            file.write_all_at(bytes, offset)?;
            let mut early = self.early.lock().unwrap_or_else(PoisonError::into_inner);
            early.wrote(file, bytes.len())
        };
        write().map_err(|error| self.failed(error))
    }

    /// Cuts or extends it to `length` bytes, syncs it, gives it its name, and syncs the folder.
    ///
    /// Order: durable when it returns.
    pub(super) fn commit(self, length: u64) -> Result<()> {
        let failed = |error| Error::io(OPERATION, &self.subject, error);
        let file = self.temporary.as_file();
        let mut early = self.early.into_inner().unwrap_or_else(PoisonError::into_inner);
        early.end().map_err(failed)?;
        file.set_len(length).and_then(|()| file.sync_all()).map_err(failed)?;
        self.temporary.persist(&self.target).map_err(|error| failed(error.error))?;
        File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(failed)
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::io(OPERATION, &self.subject, error)
    }
}
