//! Lays a version out: decides for each block whether it is new, gathers new blocks in chunks,
//! turns segments into maps and the whole into a manifest.
//!
//! **Invariant**: segments are begun in ascending order, and each once.

use std::collections::HashSet;

use catalog::{EntryDigest, LeaseId};
use chunking::{ChunkRef, OpenChunk, PendingSegment, SealedChunk, SegmentDraft};
use format::entry::EntryKind;
use format::manifest::encode_manifest;
use format::record::{encode_record, record_digest};
use format::segment_map::{encode_segment_map, map_digest};
use model::block::blocks_in_segment;
use model::digest::DIGEST_LEN;
use model::{
    BLOCK_LEN, BlockDigest, ContentDigest, Error, Kind, LayoutDigest, Manifest, PublicationRecord,
    Result, SegmentEntry, VersionKind,
};

use crate::duplicates::Duplicates;
use crate::packer::{Destination, Entry, PACK_DATA_LEN, Packer, Written};
use crate::repository::Repository;
use crate::windows::{Piece, Window, split};

/// How many segments may wait for the open chunk's name before it is sealed for their sake.
const PENDING_MAX: usize = 64;

/// What is known before the first window.
pub struct Plan<'a> {
    /// What the version holds.
    pub kind: VersionKind,
    /// Segments that stay as they are, ascending: those of the parent that no window touches.
    pub kept: Vec<SegmentEntry>,
    /// Makes the draft that a segment starts from.
    pub draft: Box<dyn FnMut(u32) -> Result<SegmentDraft> + 'a>,
}

/// What came out.
#[derive(Clone, Debug)]
pub struct LaidOut {
    /// The version's identity.
    pub content: ContentDigest,
    /// The root of its layout.
    pub layout: LayoutDigest,
    /// Blocks that are no hole, in the segments that were laid out.
    pub data_block_count: u64,
    /// Blocks that the repository did not have.
    pub new_block_count: u64,
    /// Packs written.
    pub written: Written,
}

/// Segments without a version that they belong to.
#[derive(Clone, Debug)]
pub struct LaidOutSegments {
    /// The segments that were laid out and hold data, ascending, and how many of their blocks do.
    pub segments: Vec<(SegmentEntry, u64)>,
    /// Blocks that the repository did not have.
    pub new_block_count: u64,
    /// Packs written.
    pub written: Written,
}

/// Lays out one version.
pub struct Layout<'a> {
    plan: Plan<'a>,
    repository: &'a Repository,
    duplicates: Duplicates,
    packer: Packer,
    draft: Option<SegmentDraft>,
    pending: Vec<PendingSegment>,
    entries: Vec<(SegmentEntry, u64)>,
    lease: LeaseId,
    written_maps: HashSet<[u8; DIGEST_LEN]>,
    pack_data_len: u64,
    data_block_count: u64,
    new_block_count: u64,
}

impl<'a> Layout<'a> {
    /// Starts a layout whose packs go to `destination`.
    pub fn new(repository: &'a Repository, destination: Destination, plan: Plan<'a>) -> Self {
        let open = OpenChunk::new(repository.settings.chunk_size());
        let lease = destination.lease;
        let duplicates = Duplicates::new(
            repository.catalog.clone(),
            repository.lists.clone(),
            repository.realm.clone(),
            lease,
            open,
        );
        Layout {
            plan,
            repository,
            duplicates,
            packer: Packer::start(destination),
            draft: None,
            pending: Vec::new(),
            entries: Vec::new(),
            lease,
            written_maps: HashSet::new(),
            pack_data_len: 0,
            data_block_count: 0,
            new_block_count: 0,
        }
    }

    /// Lays out the next window.
    pub fn push(&mut self, window: &Window) -> Result<()> {
        for id in self.packer.take_visible() {
            self.duplicates.made_visible(id);
        }
        self.duplicates.prepare(&window.digests)?;
        let mut digests = window.digests.iter();
        for piece in &window.pieces {
            match *piece {
                Piece::Touch { segment } => {
                    self.draft_of(segment)?;
                }
                Piece::Zero { first_block, block_count } => {
                    for block in first_block..first_block + block_count {
                        let (segment, in_segment) = split(block);
                        self.draft_of(segment)?.set_hole(in_segment);
                    }
                }
                Piece::Data { first_block, byte_len, position } => {
                    let bytes = &window.bytes[position..position + byte_len];
                    let blocks = bytes.chunks(BLOCK_LEN).zip(&mut digests);
                    for (block, (bytes, digest)) in (first_block..).zip(blocks) {
                        self.place(block, digest, bytes)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn place(&mut self, block: u64, digest: &BlockDigest, bytes: &[u8]) -> Result<()> {
        let (segment, in_segment) = split(block);
        if *digest == BlockDigest::HOLE {
            self.draft_of(segment)?.set_hole(in_segment);
            return Ok(());
        }
        let (chunk, index) = match self.duplicates.find(digest)? {
            Some(found) => found,
            None => {
                if self.duplicates.open.is_full() {
                    self.seal_chunk()?;
                }
                self.new_block_count += 1;
                (ChunkRef::Open, self.duplicates.open.push(*digest, bytes))
            }
        };
        self.draft_of(segment)?.set(in_segment, *digest, chunk, index);
        Ok(())
    }

    /// The draft of a segment; ends the one before it.
    fn draft_of(&mut self, segment: u32) -> Result<&mut SegmentDraft> {
        if self.draft.as_ref().is_none_or(|draft| draft.segment() != segment) {
            self.end_segment()?;
            self.draft = Some((self.plan.draft)(segment)?);
        }
        self.draft.as_mut().ok_or_else(|| Error::new(Kind::Bug, "lay out", "a segment"))
    }

    fn end_segment(&mut self) -> Result<()> {
        if let Some(pending) = self.draft.take().and_then(SegmentDraft::finish) {
            self.data_block_count += pending.data_block_count;
            self.pending.push(pending);
            if self.pending.len() > PENDING_MAX {
                self.seal_chunk()?;
            }
            self.write_maps()?;
        }
        Ok(())
    }

    fn seal_chunk(&mut self) -> Result<()> {
        let Some(chunk) = self.duplicates.open.seal() else { return Ok(()) };
        self.draft.iter_mut().for_each(|draft| draft.resolve(chunk.digest));
        self.pending.iter_mut().for_each(|pending| pending.resolve(chunk.digest));
        self.duplicates.add(&chunk);
        let SealedChunk { digest, blocks, bytes } = chunk;
        self.pack_data_len += bytes.len() as u64;
        let entry = Entry { kind: EntryKind::Chunk, digest: digest.0, plain: bytes, blocks };
        self.packer.push(entry)?;
        self.write_maps()?;
        if self.pack_data_len >= PACK_DATA_LEN {
            self.pack_data_len = 0;
            self.duplicates.end_pack();
            self.packer.end_pack()?;
        }
        Ok(())
    }

    /// Writes the maps of the segments that wait for nothing, in order.
    fn write_maps(&mut self) -> Result<()> {
        let ready: Vec<PendingSegment> = self.pending.extract_if(.., |p| !p.waits()).collect();
        for pending in ready {
            let map = pending.map().ok_or_else(|| Error::new(Kind::Bug, "lay out", "a segment"))?;
            let bytes = encode_segment_map(&map);
            let digest = map_digest(&bytes);
            self.put_unknown(EntryKind::SegmentMap, digest.0, bytes)?;
            let entry =
                SegmentEntry { segment: pending.segment, content: pending.content, map: digest };
            self.entries.push((entry, pending.data_block_count));
        }
        Ok(())
    }

    /// Packs an entry unless the repository, or this layout, has it already.
    fn put_unknown(
        &mut self,
        kind: EntryKind,
        digest: [u8; DIGEST_LEN],
        plain: Vec<u8>,
    ) -> Result<()> {
        if !self.written_maps.insert(digest) {
            return Ok(());
        }
        let Repository { catalog, realm, .. } = self.repository;
        match catalog.claim(self.lease, realm, &[digest])?.first() {
            Some(Some(_)) => Ok(()),
            _ => self.packer.push(Entry { kind, digest, plain, blocks: Vec::new() }),
        }
    }

    /// Ends the layout at `length` bytes: everything it refers to is durable when this returns.
    #[allow(dead_code, reason = "whoever lays a version out anew publishes nothing")]
    pub fn finish(self, length: u64) -> Result<LaidOut> {
        self.finish_with_record(length, |_| Ok(None)).map(|(laid_out, _)| laid_out)
    }

    /// As [`Layout::finish`], with an entry that tells of the publication beside the manifest;
    /// returns its digest, too. `record` is told what came out, but for the packs.
    pub fn finish_with_record(
        mut self,
        length: u64,
        record: impl FnOnce(&LaidOut) -> Result<Option<PublicationRecord>>,
    ) -> Result<(LaidOut, Option<EntryDigest>)> {
        // Only the last segment can be longer than the disk: that of a stream without a known end.
        if let Some(draft) = &mut self.draft {
            draft.truncate(blocks_in_segment(length, draft.segment()));
        }
        self.end_segments()?;
        let mut segments: Vec<SegmentEntry> =
            self.entries.iter().map(|(entry, _)| *entry).collect();
        segments.append(&mut self.plan.kept);
        segments.sort_unstable_by_key(|entry| entry.segment);
        let manifest = Manifest::new(self.plan.kind, length, segments)
            .ok_or_else(|| Error::new(Kind::Bug, "lay out", "the segments of a version"))?;
        let encoded = encode_manifest(&manifest);
        for leaf in encoded.leaves {
            self.put_unknown(EntryKind::ManifestLeaf, leaf.digest, leaf.bytes)?;
        }
        self.put_unknown(EntryKind::Manifest, encoded.layout.0, encoded.root)?;
        let mut laid_out = LaidOut {
            content: manifest.content(),
            layout: encoded.layout,
            data_block_count: self.data_block_count,
            new_block_count: self.new_block_count,
            written: Written::default(),
        };
        let record = match record(&laid_out)? {
            None => None,
            Some(record) => {
                let plain = encode_record(&record);
                let digest = record_digest(&plain);
                let kind = EntryKind::Record;
                self.packer.push(Entry { kind, digest, plain, blocks: Vec::new() })?;
                Some(digest)
            }
        };
        laid_out.written = self.packer.finish()?;
        Ok((laid_out, record))
    }

    /// Ends the layout of segments that no version has yet: they are durable when this returns, and
    /// stay as long as the lease.
    pub fn finish_segments(mut self) -> Result<LaidOutSegments> {
        self.end_segments()?;
        let mut segments = self.entries;
        segments.sort_unstable_by_key(|(entry, _)| entry.segment);
        let written = self.packer.finish()?;
        Ok(LaidOutSegments { segments, new_block_count: self.new_block_count, written })
    }

    fn end_segments(&mut self) -> Result<()> {
        self.end_segment()?;
        self.seal_chunk()?;
        self.write_maps()
    }
}
