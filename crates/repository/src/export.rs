//! Export: a version becomes a disk file.

use model::progress::{Cancel, Progress};
use model::source::DiskSink;
use model::{Result, VersionId};

use crate::repository::Repository;

/// What was exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Bytes that a guest sees.
    pub length: u64,
    /// Bytes that were written: no holes.
    pub data_len: u64,
}

impl Repository {
    /// Writes a version to a sink. Every byte is verified on the way.
    ///
    /// # Errors
    /// Those of the sink; `Corrupt` where the repository is damaged: the error names the entry.
    pub fn export(
        &self,
        version: &VersionId,
        sink: Box<dyn DiskSink>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Exported> {
        let reader = self.open_version(&version.clone().into())?;
        progress.expect(Some(reader.version().facts.data_len));
        let length = reader.length();
        let data_len = reader.read(0, length, sink, progress, cancel)?;
        Ok(Exported { length, data_len })
    }
}
