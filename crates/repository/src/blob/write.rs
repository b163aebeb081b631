//! Write: bytes at an offset become the next version of an image.

use std::io::Read;

use catalog::VersionRecord;
use model::block::LENGTH_MAX;
use model::progress::{Cancel, Progress};
use model::{ImageName, Result};

use super::patch::too_long;
use super::publish::Target;
use crate::repository::Repository;

/// Which image is written to, and how.
pub struct WriteRequest<'a> {
    /// The image; there must be one.
    pub image: ImageName,
    /// Where the bytes come from, in words.
    pub origin: String,
    /// Told of the progress.
    pub progress: &'a dyn Progress,
    /// Stops it.
    pub cancel: &'a Cancel,
}

/// What was written.
#[derive(Clone, Debug)]
pub struct Written {
    /// The new version. Its parent is the version that was the image's latest when it was published.
    pub version: VersionRecord,
    /// Where in it the bytes lie.
    pub offset: u64,
    /// How many bytes came.
    pub len: u64,
    /// Plain bytes of blocks that the repository did not have.
    pub new_len: u64,
    /// Bytes of the packs that were written, those of tries in vain included.
    pub stored_len: u64,
    /// How often it was laid upon a version: more than once where writers in other processes were
    /// faster.
    pub try_count: u32,
}

impl Repository {
    /// Makes the image's latest version, with the bytes of a stream at `offset`, its next version.
    /// Durable when it returns. Behind the end the image grows; a gap reads as zeros. Without bytes
    /// the next version has those of the one before.
    ///
    /// Which version is the latest is decided when the new one is published: what other writers have
    /// published meanwhile stays, but for the bytes that this one writes.
    ///
    /// Cost: hashing, compressing and writing the data, side by side with other writers; then, one
    /// writer of an image after the other, two edge blocks and the maps of touched segments. Memory as
    /// an import, whatever the length; next to none up to 256 KiB.
    ///
    /// # Errors
    /// `NotFound` where there is no such image; `Invalid` where it would become longer than 1 PiB;
    /// `Full`, `Cancelled`; `Stale` where the process was stopped for so long that its lease has
    /// expired, or other processes were faster too many times: write again; those of the stream. The
    /// image is as it was then.
    pub fn write(
        &self,
        offset: u64,
        source: &mut (dyn Read + Send),
        request: &WriteRequest,
    ) -> Result<Written> {
        if offset > LENGTH_MAX {
            return Err(too_long("write to", request.image.as_str(), offset));
        }
        self.write_at(Target::Offset(offset), source, request)
    }
}
