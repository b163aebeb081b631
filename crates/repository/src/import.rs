//! Import: a disk becomes the next version of an image.
//!
//! **Failure**: an error or a crash at any step leaves the image as it was. After an error nothing
//! of the import is left in the store; after `kill -9` what was put stays, without a name, until
//! collect.

use chunking::SegmentDraft;
use model::block::{LENGTH_MAX, blocks_in_segment};
use model::progress::{Cancel, Progress};
use model::source::DiskSource;
use model::{
    BLOCK_LEN, ContentDigest, Error, ImageName, Kind, NamedVersion, PublicationRecord, Reference,
    Result, Selector, TagName, VersionId, VersionKind, VersionNumber,
};

use catalog::{Condition, EntryDigest, LeaseId, Publication, VersionFacts, VersionRecord};

use crate::layout::{LaidOut, Layout, Plan};
use crate::lease::{COLLECT_TIME_TO_LIVE, Lease, Purpose};
use crate::packer::Destination;
use crate::repository::Repository;
use crate::windows::{self, ImportWindows};

/// What is to be imported, and as what.
pub struct ImportRequest<'a> {
    /// The image that gets a new version; made if there is none.
    pub image: ImageName,
    /// A tag for the version.
    pub tag: Option<TagName>,
    /// Where it comes from, in words.
    pub origin: String,
    /// What the version holds.
    pub kind: VersionKind,
    /// Told of the progress.
    pub progress: &'a dyn Progress,
    /// Stops the import.
    pub cancel: &'a Cancel,
}

/// What was imported.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The new version.
    pub version: VersionRecord,
    /// Its identity.
    pub content: ContentDigest,
    /// Plain bytes of blocks that the repository did not have.
    pub new_len: u64,
    /// Bytes that the repository grew by.
    pub stored_len: u64,
}

impl Repository {
    /// Makes a disk the next version of an image. Durable when it returns.
    ///
    /// Cost: one pass over the data; memory for four windows of 16 MiB and 64 chunks.
    ///
    /// # Errors
    /// Those of the source; `Full`, `Cancelled`; `Stale` where the process was stopped for so long
    /// that its lease has expired: import again.
    pub fn import(&self, source: &mut dyn DiskSource, request: &ImportRequest) -> Result<Imported> {
        request.progress.expect(source.data_len_hint());
        let lease = self.begin_lease()?;
        let catalog_len = self.catalog.statistics()?.catalog_len;
        let (laid_out, facts, record) = self.lay_out_source(source, request, None, &lease)?;
        let version = self.publish(
            lease,
            &Publication {
                image: request.image.clone(),
                facts,
                based_on: None,
                tag: request.tag.clone(),
                condition: Condition::Any,
                record,
            },
        )?;
        self.imported(version, &laid_out, catalog_len)
    }

    /// Lays a source out as a version made from `parent`: everything that it refers to is durable
    /// then.
    pub(crate) fn lay_out_source(
        &self,
        source: &mut dyn DiskSource,
        request: &ImportRequest,
        parent: Option<&VersionId>,
        lease: &Lease,
    ) -> Result<(LaidOut, VersionFacts, Option<EntryDigest>)> {
        let length_hint = source.length_hint();
        let mut layout = Layout::new(
            self,
            self.destination(lease),
            Plan {
                kind: request.kind,
                kept: Vec::new(),
                draft: Box::new(move |segment| {
                    // Before the end of a stream is known every segment is drafted whole; the blocks
                    // behind the end are cut off when it is finished.
                    let length = length_hint.unwrap_or(LENGTH_MAX);
                    Ok(SegmentDraft::hole(segment, blocks_in_segment(length, segment)))
                }),
            },
        );
        windows::run(ImportWindows(source), |window| {
            request.cancel.check("import", &request.origin)?;
            layout.push(window)?;
            request.progress.advance(window.len as u64);
            Ok(())
        })?;
        let length = source.length();
        if length > LENGTH_MAX {
            return Err(Error::new(Kind::Invalid, "import", &request.origin)
                .because(format!("it has {length} bytes; the most is {LENGTH_MAX}")));
        }
        let facts = |laid_out: &LaidOut| VersionFacts {
            kind: request.kind,
            length,
            data_len: laid_out.data_block_count * BLOCK_LEN as u64,
            content: laid_out.content,
            layout: laid_out.layout,
            parent: parent.cloned(),
            origin: request.origin.clone(),
        };
        let (laid_out, record) = layout.finish_with_record(length, |laid_out| {
            self.record_of(&request.image, &facts(laid_out)).map(Some)
        })?;
        request.cancel.check("import", &request.origin)?;
        let facts = facts(&laid_out);
        Ok((laid_out, facts, record))
    }

    fn imported(
        &self,
        version: VersionRecord,
        laid_out: &LaidOut,
        catalog_len: u64,
    ) -> Result<Imported> {
        let grown = self.catalog.statistics()?.catalog_len.saturating_sub(catalog_len);
        Ok(Imported {
            version,
            content: laid_out.content,
            new_len: laid_out.new_block_count * BLOCK_LEN as u64,
            stored_len: laid_out.written.stored_len + grown,
        })
    }

    pub(crate) fn begin_lease(&self) -> Result<Lease> {
        let lease = self.begin_lease_for(Purpose::Work)?;
        self.lists.forget_removed()?;
        Ok(lease)
    }

    pub(crate) fn begin_lease_for(&self, purpose: Purpose) -> Result<Lease> {
        let time = match purpose {
            Purpose::Work => self.lease_time,
            Purpose::Collect => self.lease_time.min(COLLECT_TIME_TO_LIVE),
        };
        Lease::begin(purpose, self.catalog.clone(), self.packs.clone(), time)
    }

    pub(crate) fn destination(&self, lease: &Lease) -> Destination {
        self.destination_of(lease.id())
    }

    pub(crate) fn destination_of(&self, lease: LeaseId) -> Destination {
        Destination {
            catalog: self.catalog.clone(),
            packs: self.packs.clone(),
            entropy: self.entropy.clone(),
            realm: self.realm.clone(),
            lease,
            compression_level: self.settings.compression_level,
        }
    }

    pub(crate) fn publish(&self, lease: Lease, publication: &Publication) -> Result<VersionRecord> {
        let version = self.catalog.publish(lease.id(), publication)?;
        lease.ended();
        self.export_names_if_old();
        Ok(version)
    }

    /// What a publication tells of itself: all but its number, which only its transaction knows.
    pub(crate) fn record_of(
        &self,
        image: &ImageName,
        facts: &VersionFacts,
    ) -> Result<PublicationRecord> {
        let latest = Reference { image: image.clone(), selector: Selector::Latest };
        let number = match self.catalog.version(&latest) {
            Ok(latest) => VersionNumber::new(latest.latest.get() + 1).unwrap_or(latest.latest),
            Err(error) if error.kind() == Kind::NotFound => VersionNumber::FIRST,
            Err(error) => return Err(error),
        };
        let version = NamedVersion {
            number,
            kind: facts.kind,
            length: facts.length,
            data_len: facts.data_len,
            content: facts.content,
            layout: facts.layout,
            parent: facts.parent.clone(),
            origin: facts.origin.clone(),
            created_micros: self.clock.now().0,
            record: None,
            attach_count: 0,
        };
        Ok(PublicationRecord { realm: self.realm.clone(), image: image.clone(), version })
    }
}
