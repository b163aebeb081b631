//! Append: bytes behind the end become the next version of an image.

use std::io::Read;

use model::Result;

use super::publish::Target;
use super::write::{WriteRequest, Written};
use crate::repository::Repository;

impl Repository {
    /// Makes the image's latest version, with the bytes of a stream behind its end, its next version.
    /// Durable when it returns. The end is that of the version that is the latest when the new one is
    /// published; [`Written::offset`] says where that was.
    ///
    /// Cost: as [`Repository::write`]. Where others have moved the end inside its block meanwhile,
    /// long data is read back and stored once more.
    ///
    /// # Errors
    /// As [`Repository::write`].
    pub fn append(
        &self,
        source: &mut (dyn Read + Send),
        request: &WriteRequest,
    ) -> Result<Written> {
        self.write_at(Target::End, source, request)
    }
}
