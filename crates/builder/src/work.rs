//! Folders for what is of no use afterwards.

use std::path::Path;

use model::{Error, Result};

/// What folders for work are called, before the process that works there.
pub(crate) const WORK: &str = "work-";

/// A new folder that goes with what is returned; a build removes those of processes that were killed.
pub(crate) fn folder(above: &Path) -> Result<tempfile::TempDir> {
    let failed = |error| Error::io("work in", above.display().to_string(), error);
    let above = std::path::absolute(above).map_err(failed)?;
    std::fs::create_dir_all(&above).map_err(failed)?;
    let prefix = format!("{WORK}{}-", std::process::id());
    let work = tempfile::Builder::new().prefix(&prefix).tempdir_in(&above).map_err(failed)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(work.path(), mode).map_err(failed)?;
    Ok(work)
}
