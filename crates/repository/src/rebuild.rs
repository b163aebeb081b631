//! A version made out of another: kept segments, segments laid out anew, the sum of their data.
//!
//! Commit and the blob interface do this alike; they differ in what is laid upon the parent, and in
//! what they publish it as.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use catalog::{EntryDigest, VersionFacts, VersionRecord};
use chunking::{BlockList, SegmentDraft};
use model::block::{SEGMENT_LEN, blocks_in_segment};
use model::changes::Changes;
use model::{
    BLOCK_LEN, BlockDigest, ChunkDigest, Error, ImageName, Kind, Manifest, Result, SegmentEntry,
    SegmentMap, VersionKind,
};
use store::ChunkStore;

use crate::layout::{LaidOut, Layout, Plan};
use crate::lease::Lease;
use crate::repository::Repository;
use crate::windows::{self, CommitWindows};

/// How many lists one segment may hold on to: about 50 MB. A segment that many commits have touched
/// may refer to more packs; their lists are read again.
const LISTS_PER_SEGMENT_MAX: usize = 256;

/// Data that is stored already and is laid upon a parent below the changes: no byte of it is read.
pub trait Overlay {
    /// True where a block of the segment is the overlay's.
    fn covers(&self, segment: u32) -> bool;

    /// Segments that are taken over as they were stored, ascending, and how many of their blocks are
    /// data. A segment that is covered and neither here nor mixed is one hole.
    fn whole(&self) -> Vec<(SegmentEntry, u64)>;

    /// Segments that hold blocks of both, ascending.
    fn mixed(&self) -> Vec<u32>;

    /// Lays the overlay's blocks upon the parent's segment.
    fn lay_upon(&self, draft: &mut SegmentDraft) -> Result<()>;
}

/// What came out, and how much of it is data.
pub struct Rebuilt {
    /// The layout.
    pub laid_out: LaidOut,
    /// What the new version is.
    pub facts: VersionFacts,
    /// The entry that tells of its publication.
    pub record: Option<EntryDigest>,
    /// Bytes of changed blocks.
    pub dirty_len: u64,
}

impl Repository {
    /// Lays the new version out: everything that it refers to is durable then. `advance` is told how
    /// many bytes were done.
    pub(crate) fn rebuild(
        &self,
        parent: &VersionRecord,
        rebuild: &Rebuild,
        changes: &dyn Changes,
        lease: &Lease,
        (image, origin): (&ImageName, &str),
        mut advance: impl FnMut(u64) -> Result<()>,
    ) -> Result<Rebuilt> {
        if parent.facts.kind != VersionKind::Disk {
            return Err(Error::new(Kind::Invalid, "change", parent.id.to_string())
                .because("it is no disk: a machine's memory and record belong together"));
        }
        let mut layout = Layout::new(
            self,
            self.destination(lease),
            Plan {
                kind: rebuild.parent.kind(),
                kept: rebuild.kept(),
                draft: Box::new(|segment| rebuild.draft(segment)),
            },
        );
        let mut dirty_len = 0;
        windows::run(CommitWindows::new(changes, &rebuild.anew()), |window| {
            dirty_len += window.changed_len();
            layout.push(window)?;
            advance(window.len as u64)
        })?;
        let replaced = rebuild.replaced_data_len()?;
        let facts = |laid_out: &LaidOut| {
            let blocks = laid_out.data_block_count + rebuild.whole_data_block_count();
            VersionFacts {
                kind: rebuild.parent.kind(),
                length: changes.length(),
                data_len: (parent.facts.data_len + blocks * BLOCK_LEN as u64)
                    .saturating_sub(replaced),
                content: laid_out.content,
                layout: laid_out.layout,
                parent: Some(parent.id.clone()),
                origin: origin.to_string(),
            }
        };
        let (laid_out, record) = layout.finish_with_record(changes.length(), |laid_out| {
            self.record_of(image, &facts(laid_out)).map(Some)
        })?;
        Ok(Rebuilt { facts: facts(&laid_out), laid_out, record, dirty_len })
    }
}

/// Lays the runs of a map upon a draft; the digests come from the lists of the packs.
pub fn lay_upon(repository: &Repository, draft: &mut SegmentDraft, map: &SegmentMap) -> Result<()> {
    let mut lists = ListsOfSegment::new(repository);
    let laid_out = draft.lay_out(map, |chunk| lists.blocks_of(chunk).map(Cow::<[_]>::Owned));
    laid_out.map_err(|error| {
        error.unwrap_or_else(|| {
            Error::new(Kind::Corrupt, "read the segment map", draft.segment().to_string())
                .because("it names blocks that a chunk does not have")
        })
    })
}

/// How the segments of a parent become those of the new version.
pub struct Rebuild<'a> {
    repository: &'a Repository,
    parent: &'a Manifest,
    length: u64,
    touched: HashSet<u32>,
    /// The segment that the parent ended in, when the new version has another length.
    resized: Option<u32>,
    overlay: Option<&'a dyn Overlay>,
}

impl<'a> Rebuild<'a> {
    /// Changes upon a parent, and perhaps an overlay between the two.
    pub fn new(
        repository: &'a Repository,
        parent: &'a Manifest,
        changes: &dyn Changes,
        overlay: Option<&'a dyn Overlay>,
    ) -> Self {
        let length = changes.length();
        let mut touched: HashSet<u32> = changes.segments().into_iter().collect();
        let end = parent.length().min(length);
        let resized = (length != parent.length() && end > 0)
            .then(|| ((end - 1) / SEGMENT_LEN) as u32)
            .filter(|segment| parent.segment(*segment).is_some() || touched.contains(segment))
            .filter(|segment| overlay.is_none_or(|overlay| !overlay.covers(*segment)));
        touched.extend(resized);
        Rebuild { repository, parent, length, touched, resized, overlay }
    }

    /// Segments that are laid out anew though no change may lie in them, ascending.
    fn anew(&self) -> Vec<u32> {
        let mut segments = self.overlay.map_or_else(Vec::new, Overlay::mixed);
        segments.extend(self.resized);
        segments.sort_unstable();
        segments
    }

    fn kept(&self) -> Vec<SegmentEntry> {
        let mut kept: Vec<SegmentEntry> =
            self.parent.segments().iter().filter(|entry| self.keeps(entry)).copied().collect();
        kept.extend(self.whole().into_iter().map(|(entry, _)| entry));
        kept
    }

    /// True where a segment of the parent stays as it is.
    fn keeps(&self, entry: &SegmentEntry) -> bool {
        let segment = entry.segment;
        !self.touched.contains(&segment)
            && self.overlay.is_none_or(|overlay| !overlay.covers(segment))
            && blocks_in_segment(self.length, segment) > 0
    }

    fn whole(&self) -> Vec<(SegmentEntry, u64)> {
        self.overlay.map_or_else(Vec::new, Overlay::whole)
    }

    fn whole_data_block_count(&self) -> u64 {
        self.whole().into_iter().map(|(_, blocks)| blocks).sum()
    }

    /// The parent's segment, as far as the new version goes, below the overlay.
    fn draft(&self, segment: u32) -> Result<SegmentDraft> {
        let mut draft = SegmentDraft::hole(segment, blocks_in_segment(self.length, segment));
        if let Some(entry) = self.parent.segment(segment) {
            let map = self.repository.chunks().segment_map(entry.map)?;
            lay_upon(self.repository, &mut draft, &map)?;
        }
        if let Some(overlay) = self.overlay {
            overlay.lay_upon(&mut draft)?;
        }
        Ok(draft)
    }

    /// Bytes of data that the parent had in the segments that are laid out anew or cut off.
    fn replaced_data_len(&self) -> Result<u64> {
        let mut blocks = 0;
        for entry in self.parent.segments().iter().filter(|entry| !self.keeps(entry)) {
            blocks += self.repository.chunks().segment_map(entry.map)?.data_block_count();
        }
        Ok(blocks * BLOCK_LEN as u64)
    }
}

/// The lists of the packs that one segment refers to.
pub struct ListsOfSegment<'a> {
    repository: &'a Repository,
    lists: Vec<Arc<BlockList>>,
}

impl<'a> ListsOfSegment<'a> {
    /// Nothing loaded yet.
    pub fn new(repository: &'a Repository) -> Self {
        ListsOfSegment { repository, lists: Vec::new() }
    }

    /// The digests of a chunk's blocks.
    pub fn blocks_of(&mut self, chunk: &ChunkDigest) -> Result<Vec<BlockDigest>> {
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
