//! Commit: what changed upon a version becomes the next version.
//!
//! Only changed blocks are hashed, only new ones stored, only the maps of touched segments written
//! anew. The digests of the blocks that stay come from the lists in the packs.
//!
//! **Failure**: as of an import: the image is as it was, or has the whole new version.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use chunking::{BlockList, SegmentDraft};
use model::block::{SEGMENT_LEN, blocks_in_segment};
use model::changes::Changes;
use model::progress::Progress;
use model::{
    BLOCK_LEN, BlockDigest, ChunkDigest, Error, ImageName, Kind, Manifest, Result, TagName,
    VersionId,
};
use store::ChunkStore;

use catalog::{Condition, Publication, VersionFacts, VersionRecord};

use crate::layout::{LaidOut, Layout, Plan};
use crate::lease::Lease;
use crate::repository::Repository;
use crate::windows::{self, CommitWindows};

/// How many lists one segment may hold on to: about 50 MB. A segment that many commits have touched
/// may refer to more packs; their lists are read again.
const LISTS_PER_SEGMENT_MAX: usize = 256;

/// How often a commit is tried again because collect has laid its parent out anew meanwhile.
const TRIES_MAX: usize = 3;

/// What is to be committed, upon what, as what.
pub struct CommitRequest<'a> {
    /// The version that the changes were made upon.
    pub parent: VersionId,
    /// The image that gets the new version.
    pub image: ImageName,
    /// A tag for it.
    pub tag: Option<TagName>,
    /// Where it comes from, in words.
    pub origin: String,
    /// Told of the progress.
    pub progress: &'a dyn Progress,
}

/// What was committed.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The new version.
    pub version: VersionRecord,
    /// Bytes of changed blocks.
    pub dirty_len: u64,
    /// Plain bytes of blocks that the repository did not have.
    pub new_len: u64,
    /// Bytes that the repository grew by.
    pub stored_len: u64,
    /// The image's latest version before this one, when that is not the parent: what it holds is
    /// not in the new version.
    pub bypassed: Option<VersionId>,
}

impl Repository {
    /// Makes changes the next version of an image. Durable when it returns.
    ///
    /// Cost: reading, hashing and compressing the changed blocks; a list of some 130 KB for each
    /// pack that a touched segment refers to.
    ///
    /// # Errors
    /// `NotFound` where the parent is gone; those of an import.
    pub fn commit(&self, changes: &dyn Changes, request: &CommitRequest) -> Result<Committed> {
        let mut tries = 0;
        loop {
            let lease = self.begin_lease()?;
            let parent = self.catalog.version(&request.parent.clone().into())?;
            let committed = self.commit_upon(&parent, changes, request, lease);
            // What was stored is known now, so that another try costs hashing alone.
            let stale = committed.as_ref().is_err_and(|error| error.kind() == Kind::Stale);
            if !stale || tries == TRIES_MAX || !self.was_laid_out_anew(&parent)? {
                return committed;
            }
            tries += 1;
        }
    }

    fn was_laid_out_anew(&self, version: &VersionRecord) -> Result<bool> {
        let now = self.catalog.version(&version.id.clone().into())?;
        Ok(now.facts.layout != version.facts.layout)
    }

    fn commit_upon(
        &self,
        parent: &VersionRecord,
        changes: &dyn Changes,
        request: &CommitRequest,
        lease: Lease,
    ) -> Result<Committed> {
        let bypassed = self.bypassed(parent, request);
        let manifest = self.manifest_of(parent)?;
        let catalog_len = self.catalog.statistics()?.catalog_len;
        let rebuild = Rebuild::new(self, &manifest, changes);
        let mut layout = Layout::new(
            self,
            self.destination(&lease),
            Plan {
                kind: manifest.kind(),
                kept: rebuild.kept(),
                draft: Box::new(|segment| rebuild.draft(segment)),
            },
        );
        let mut dirty_len = 0;
        windows::run(CommitWindows::new(changes, rebuild.resized), |window| {
            dirty_len += window.changed_len();
            layout.push(window)?;
            request.progress.advance(window.len as u64);
            Ok(())
        })?;
        let replaced = rebuild.replaced_data_len()?;
        let facts = |laid_out: &LaidOut| VersionFacts {
            kind: manifest.kind(),
            length: changes.length(),
            data_len: (parent.facts.data_len + laid_out.data_block_count * BLOCK_LEN as u64)
                .saturating_sub(replaced),
            content: laid_out.content,
            layout: laid_out.layout,
            parent: Some(request.parent.clone()),
            origin: request.origin.clone(),
        };
        let (laid_out, record) = layout.finish_with_record(changes.length(), |laid_out| {
            self.record_of(&request.image, &facts(laid_out)).map(Some)
        })?;
        let version = self.publish(
            lease,
            &Publication {
                image: request.image.clone(),
                facts: facts(&laid_out),
                based_on: Some((request.parent.clone(), parent.facts.layout)),
                condition: Condition::Any,
                tag: request.tag.clone(),
                record,
            },
        )?;
        let grown = self.catalog.statistics()?.catalog_len.saturating_sub(catalog_len);
        Ok(Committed {
            version,
            dirty_len,
            new_len: laid_out.new_block_count * BLOCK_LEN as u64,
            stored_len: laid_out.written.stored_len + grown,
            bypassed,
        })
    }

    fn bypassed(&self, parent: &VersionRecord, request: &CommitRequest) -> Option<VersionId> {
        let same_image = parent.id.image == request.image;
        (same_image && parent.latest != parent.id.version)
            .then(|| VersionId { image: request.image.clone(), version: parent.latest })
    }
}

/// How the segments of a parent become those of the new version.
struct Rebuild<'a> {
    repository: &'a Repository,
    parent: &'a Manifest,
    length: u64,
    touched: HashSet<u32>,
    /// The segment that the parent ended in, when the new version has another length.
    resized: Option<u32>,
}

impl<'a> Rebuild<'a> {
    fn new(repository: &'a Repository, parent: &'a Manifest, changes: &dyn Changes) -> Self {
        let length = changes.length();
        let mut touched: HashSet<u32> = changes.segments().into_iter().collect();
        let end = parent.length().min(length);
        let resized = (length != parent.length() && end > 0)
            .then(|| ((end - 1) / SEGMENT_LEN) as u32)
            .filter(|segment| parent.segment(*segment).is_some() || touched.contains(segment));
        touched.extend(resized);
        Rebuild { repository, parent, length, touched, resized }
    }

    fn kept(&self) -> Vec<model::SegmentEntry> {
        let inside = |segment| blocks_in_segment(self.length, segment) > 0;
        let segments = self.parent.segments().iter().copied();
        segments.filter(|e| !self.touched.contains(&e.segment) && inside(e.segment)).collect()
    }

    /// The parent's segment, as far as the new version goes.
    fn draft(&self, segment: u32) -> Result<SegmentDraft> {
        let mut draft = SegmentDraft::hole(segment, blocks_in_segment(self.length, segment));
        let Some(entry) = self.parent.segment(segment) else { return Ok(draft) };
        let map = self.repository.chunks().segment_map(entry.map)?;
        let mut lists = ListsOfSegment { repository: self.repository, lists: Vec::new() };
        let laid_out = draft.lay_out(&map, |chunk| lists.blocks_of(chunk).map(Cow::<[_]>::Owned));
        laid_out.map_err(|error| {
            error.unwrap_or_else(|| {
                Error::new(Kind::Corrupt, "read the segment map", entry.map.to_string())
                    .because("it names blocks that a chunk does not have")
            })
        })?;
        Ok(draft)
    }

    /// Bytes of data that the parent had in the segments that are laid out anew or cut off.
    fn replaced_data_len(&self) -> Result<u64> {
        let kept: HashSet<u32> = self.kept().iter().map(|entry| entry.segment).collect();
        let mut blocks = 0;
        for entry in self.parent.segments().iter().filter(|e| !kept.contains(&e.segment)) {
            blocks += self.repository.chunks().segment_map(entry.map)?.data_block_count();
        }
        Ok(blocks * BLOCK_LEN as u64)
    }
}

/// The lists of the packs that one segment refers to.
struct ListsOfSegment<'a> {
    repository: &'a Repository,
    lists: Vec<Arc<BlockList>>,
}

impl ListsOfSegment<'_> {
    fn blocks_of(&mut self, chunk: &ChunkDigest) -> Result<Vec<BlockDigest>> {
        if let Some(blocks) = self.lists.iter().find_map(|list| list.blocks_of(chunk)) {
            return Ok(blocks.to_vec());
        }
        let repository = self.repository;
        let place = repository.catalog.locate(&repository.realm, &[chunk.0])?;
        let missing = |reason: &str| {
            Error::new(Kind::Corrupt, "read the block list of the chunk", chunk.to_string())
                .because(reason)
        };
        let place = place
            .into_iter()
            .next()
            .flatten()
            .ok_or_else(|| missing("the repository does not have it"))?;
        let list = repository.lists.get(place.pack)?;
        let blocks =
            list.blocks_of(chunk).ok_or_else(|| missing("its pack does not list it"))?.to_vec();
        self.lists.insert(0, list);
        self.lists.truncate(LISTS_PER_SEGMENT_MAX);
        Ok(blocks)
    }
}
