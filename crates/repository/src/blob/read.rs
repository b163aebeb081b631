//! Read: any range of any version, whatever is written meanwhile.

use std::ops::Range;
use std::sync::Arc;

use catalog::VersionRecord;
use model::progress::{Cancel, Progress};
use model::source::DiskSink;
use model::{Error, Kind, Manifest, Reference, Result};
use store::ChunkStore;

use crate::chunks::RepositoryChunks;
use crate::lease::{Lease, Purpose};
use crate::ranges;
use crate::repository::Repository;

const READ: &str = "read";

/// One version, open to be read. What it refers to stays while this lives, also where the version is
/// removed. Shared by as many threads as like.
pub struct Reader {
    record: VersionRecord,
    manifest: Arc<Manifest>,
    chunks: Arc<RepositoryChunks>,
    /// Dropped at the end: until then collect leaves what is read here alone.
    _lease: Arc<Lease>,
}

impl Repository {
    /// Opens the version that a reference means now. It stays that version, whatever is published
    /// meanwhile.
    ///
    /// Cost: the manifest; two short transactions for readers that come within ten seconds.
    ///
    /// # Errors
    /// `NotFound` where there is no such version.
    pub fn open_version(&self, reference: &Reference) -> Result<Reader> {
        let lease = self.readers.share(|| self.begin_lease_for(Purpose::Work))?;
        let record = self.catalog.version(reference)?;
        let chunks = self.chunks();
        let manifest = self.manifest_of(&record).map_err(|error| told_of(&record, error))?;
        Ok(Reader { record, manifest, chunks, _lease: lease })
    }
}

/// What is damaged names its versions itself; what is not there can not.
fn told_of(record: &VersionRecord, error: Error) -> Error {
    match error.kind() {
        Kind::NotFound => Error::new(Kind::NotFound, READ, record.id.to_string())
            .because("a part of it is missing")
            .caused_by(error),
        _ => error,
    }
}

impl Repository {
    /// The manifest of a version, which holds what the catalog says.
    ///
    /// # Errors
    /// `Corrupt` where it holds something else: a row of the catalog is damaged.
    pub(crate) fn manifest_of(&self, record: &VersionRecord) -> Result<Arc<Manifest>> {
        let manifest = self.chunks().manifest(record.facts.layout)?;
        match manifest.content() == record.facts.content {
            true => Ok(manifest),
            false => Err(Error::new(Kind::Corrupt, READ, record.id.to_string())
                .because("its manifest is of another content than the catalog says")
                .hint("`larder scrub` looks for what is damaged")),
        }
    }
}

impl Reader {
    /// The version.
    pub fn version(&self) -> &VersionRecord {
        &self.record
    }

    /// Its layout.
    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Its length in bytes.
    pub fn length(&self) -> u64 {
        self.manifest.length()
    }

    /// Fills a buffer with the bytes at `offset`, verified; holes are zeros.
    ///
    /// # Errors
    /// `Invalid` where that is not all inside the version; `Corrupt` where the repository is damaged.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.range(offset, buffer.len() as u64)?;
        ranges::read_at(&*self.chunks, &self.manifest, offset, buffer)
            .map_err(|error| told_of(&self.record, error))
    }

    /// Gives the bytes of a range to a sink, verified; holes are gaps. The sink's offsets count from
    /// the start of the range. Returns how many bytes were no holes.
    ///
    /// Cost: memory for three stretches of 16 MiB and 128 chunks, whatever the length; what comes next is
    /// read while what came before is written.
    ///
    /// # Errors
    /// `Invalid` where the range is not all inside the version; those of the sink, of which nothing
    /// is left then; `Corrupt` where the repository is damaged; `Cancelled`.
    pub fn read(
        &self,
        offset: u64,
        length: u64,
        mut sink: Box<dyn DiskSink>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<u64> {
        let range = self.range(offset, length)?;
        let subject = self.record.id.to_string();
        let mut data_len = 0;
        ranges::stream(&*self.chunks, &self.manifest, range, |at, bytes| {
            cancel.check(READ, &subject)?;
            sink.write(at - offset, bytes)?;
            data_len += bytes.len() as u64;
            progress.advance(bytes.len() as u64);
            Ok(())
        })
        .map_err(|error| told_of(&self.record, error))?;
        sink.finish(length)?;
        Ok(data_len)
    }

    /// Passes where a range is all inside the version.
    ///
    /// # Errors
    /// `Invalid`: the error says how long the version is.
    pub fn check_range(&self, offset: u64, length: u64) -> Result<()> {
        self.range(offset, length).map(drop)
    }

    fn range(&self, offset: u64, length: u64) -> Result<Range<u64>> {
        let end = offset.checked_add(length).filter(|end| *end <= self.length());
        end.map(|end| offset..end).ok_or_else(|| {
            let what = match length {
                1 => "1 byte".to_string(),
                _ => format!("{length} bytes"),
            };
            Error::new(Kind::Invalid, READ, self.record.id.to_string()).because(format!(
                "{what} from {offset} on reach beyond its end; it has {} bytes",
                self.length()
            ))
        })
    }
}
