//! The names once more, beside the packs: for whoever makes the catalog anew.
//!
//! ```text
//! DIR/catalog.export       docs/formats/names.md; replaced whole, now and then
//! DIR/catalog.export.new   one that is being written; left over after a crash
//! ```
//!
//! **Failure**: a crash leaves the old export or the new one. An export that cannot be written is
//! told in the log: the publication that it follows has succeeded all the same.

use std::path::{Path, PathBuf};
use std::time::Duration;

use env::{FileSystem, OpenMode};
use format::names::{NAMES_HEADER_LEN_MAX, NAMES_LEN_MAX, NamesHeader};
use format::{decode_names, decode_names_header, encode_names};
use model::{Error, Names, Result};

use crate::repository::Repository;

/// How old an export may be before the next publication writes another.
pub const EXPORT_AGE_MAX: Duration = Duration::from_secs(3600);

/// Where the names of the repository in `folder` are exported to.
pub fn export_path(folder: &Path) -> PathBuf {
    folder.join("catalog.export")
}

impl Repository {
    /// Writes all names beside the packs, durably. Does nothing where the repository lies in no
    /// folder.
    ///
    /// Cost: all names in memory, some 300 bytes for each version; a file written and synced.
    pub fn export_names(&self) -> Result<()> {
        let Some(home) = &self.home else { return Ok(()) };
        // Before the names are read: what is published while they are counts as younger.
        let created_micros = self.clock.now().0;
        let repository = self.settings.id.clone();
        let bytes =
            encode_names(&NamesHeader { created_micros, repository }, &self.catalog.names()?);
        let path = export_path(&home.folder);
        // A name of its own: two processes may be exporting at the same time.
        let new = home.folder.join(format!("catalog.export.{}.new", self.entropy.name()));
        let write = || {
            let file = home.file_system.open(&new, OpenMode::CreateNew)?;
            file.write_all_at(&bytes, 0)?;
            file.sync()?;
            home.file_system.rename(&new, &path)?;
            home.file_system.sync_folder(&home.folder)
        };
        write().map_err(|error| {
            let _ = home.file_system.remove_file(&new);
            Error::io("export the names to", path.display().to_string(), error)
        })
    }

    /// Exports the names where the last export is older than [`EXPORT_AGE_MAX`], or there is none.
    /// Never fails: what went before has succeeded.
    ///
    /// Cost: where it is not older, one small read.
    pub fn export_names_if_old(&self) {
        if self.export_is_old()
            && let Err(error) = self.export_names()
        {
            tracing::warn!(error = error.chain(), "cannot export the names");
        }
    }

    fn export_is_old(&self) -> bool {
        let Some(home) = &self.home else { return false };
        let Some(created) = export_created(&*home.file_system, &home.folder) else { return true };
        let now = self.clock.now();
        // One from the future is wrong, too: clocks jump.
        created > now.0 || env::Timestamp(created).plus(EXPORT_AGE_MAX) <= now
    }

    /// Bytes of the export.
    pub(crate) fn export_len(&self) -> u64 {
        let Some(home) = &self.home else { return 0 };
        let file = home.file_system.open(&export_path(&home.folder), OpenMode::Read);
        file.and_then(|file| file.len()).unwrap_or(0)
    }
}

/// When the export was written, in microseconds; `None` where there is none that can be read.
fn export_created(file_system: &dyn FileSystem, folder: &Path) -> Option<i64> {
    let file = file_system.open(&export_path(folder), OpenMode::Read).ok()?;
    let mut bytes = vec![0; NAMES_HEADER_LEN_MAX];
    let len = file.read_at(&mut bytes, 0).ok()?;
    Some(decode_names_header(&bytes[..len]).ok()?.created_micros)
}

/// Reads the export of the repository in `folder`; `None` where there is none.
///
/// # Errors
/// `Corrupt` where it is damaged, `Refused` where a newer Larder wrote it.
pub fn read_export(
    file_system: &dyn FileSystem,
    folder: &Path,
) -> Result<Option<(NamesHeader, Names)>> {
    let path = export_path(folder);
    let subject = || path.display().to_string();
    let operation = "read the exported names";
    match file_system.read_file(&path, NAMES_LEN_MAX) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(operation, subject(), error)),
        Ok(bytes) => decode_names(&bytes).map(Some).map_err(|error| {
            let error = Error::from(error);
            Error::new(error.kind(), operation, subject()).caused_by(error)
        }),
    }
}
