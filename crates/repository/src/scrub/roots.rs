//! The third pass: what versions and holds refer to is there, and what touches which of them.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use catalog::{EntryDigest, Location, Revision, Root};
use format::EntryKind;
use format::manifest::{ManifestRoot, SEGMENTS_PER_LEAF, decode_manifest};
use model::block::blocks_in_segment;
use model::manifest::hole_digest;
use model::{
    BLOCK_LEN, BlockDigest, ContentDigest, Error, Kind, LayoutDigest, Manifest, MapDigest,
    Reference, Result, SEGMENT_LEN, SegmentDigest, SegmentEntry, SegmentMap,
};
use store::ChunkStore;

use super::Scrub;
use super::finding::{Fault, Finding};
use super::packs::locate_each;
use crate::walk::{Seen, for_each_root};

/// A content and a layout of it that something broken touches.
pub type TouchedLayout = (ContentDigest, LayoutDigest);

/// Blocks of a segment that a broken entry holds.
type BrokenBlocks = Vec<(EntryDigest, Vec<Range<u32>>)>;

/// What the walk remembers from one root to the next.
#[derive(Default)]
struct Walk {
    seen: Seen,
    /// Maps that refer to something broken, or are broken themselves.
    affected: HashMap<MapDigest, BrokenBlocks>,
    /// Pairs of a map and a segment's digest that were computed anew.
    deep: Seen,
    /// Those of them that do not belong together.
    unlike: HashSet<(MapDigest, SegmentDigest)>,
}

impl Scrub<'_> {
    /// Looks up everything that roots refer to.
    pub fn roots(&mut self) -> Result<()> {
        let repository = self.repository;
        let mut walk = Walk::default();
        for_each_root(&*repository.catalog, Revision::default(), |root| {
            self.check_cancelled()?;
            self.looked.report.root_count += 1;
            self.root(root, &mut walk)
        })?;
        Ok(())
    }

    fn root(&mut self, root: &Root, walk: &mut Walk) -> Result<()> {
        if let Some(record) = root.record {
            self.is_there(record, EntryKind::Record, root)?;
        }
        for document in &root.documents {
            self.is_there(*document, EntryKind::Document, root)?;
        }
        let manifest = match self.chunks.manifest_root(root.layout) {
            Ok(manifest) => manifest,
            Err(error) => {
                // Laid out anew meanwhile: the walk comes by again, at its new revision.
                if self.has_moved(root)? {
                    return Ok(());
                }
                let whole = self.length_of(root)?.map(|length| 0..length);
                return self.unreadable(root, root.layout.0, EntryKind::Manifest, &error, whole);
            }
        };
        let mut segments: Vec<SegmentEntry> = Vec::new();
        let mut is_whole = true;
        for (number, digest) in &manifest.leaves {
            match self.leaf(&manifest, *number, *digest) {
                Ok(leaf) => segments.extend_from_slice(leaf.segments()),
                Err(error) => {
                    is_whole = false;
                    let range = leaf_range(*number, manifest.length);
                    let kind = EntryKind::ManifestLeaf;
                    self.unreadable(root, *digest, kind, &error, Some(range))?;
                }
            }
        }
        for segment in &segments {
            self.segment(root, &manifest, segment, walk)?;
        }
        match is_whole {
            true => self.facts(root, &manifest, segments),
            false => Ok(()),
        }
    }

    /// One leaf, as a manifest of its own.
    fn leaf(&self, root: &ManifestRoot, number: u32, digest: EntryDigest) -> Result<Manifest> {
        let bytes = self.chunks.leaf(digest)?;
        let alone = ManifestRoot { leaves: vec![(number, digest)], ..root.clone() };
        Ok(decode_manifest(&alone, &[bytes])?)
    }

    fn segment(
        &mut self,
        root: &Root,
        manifest: &ManifestRoot,
        entry: &SegmentEntry,
        walk: &mut Walk,
    ) -> Result<()> {
        self.check_cancelled()?;
        let deep_key = *blake3::hash(&[entry.map.0, entry.content.0].concat()).as_bytes();
        let is_deep = self.request.deep && walk.deep.is_new(&deep_key);
        if walk.seen.is_new(&entry.map.0) || is_deep {
            let map = self.chunks.segment_map(entry.map);
            let broken = match &map {
                Ok(map) => self.chunks_of(entry.map, map)?,
                Err(_) if self.has_moved(root)? => return Ok(()),
                Err(error) => {
                    self.broken_entry(entry.map.0, EntryKind::SegmentMap, error)?;
                    let whole = 0..blocks_in_segment(manifest.length, entry.segment);
                    vec![(entry.map.0, Vec::from_iter([whole]))]
                }
            };
            match (map, broken.is_empty()) {
                (Ok(map), true) if is_deep => self.deep(manifest, entry, &map, walk)?,
                (_, true) => {}
                (_, false) => drop(walk.affected.insert(entry.map, broken)),
            }
        }
        let base = u64::from(entry.segment) * SEGMENT_LEN;
        let address = |block: u32| base + u64::from(block) * BLOCK_LEN as u64;
        for (digest, blocks) in walk.affected.get(&entry.map).into_iter().flatten() {
            let ranges = blocks
                .iter()
                .map(|blocks| address(blocks.start)..address(blocks.end).min(manifest.length));
            self.touch(root, *digest, ranges.collect());
        }
        if walk.unlike.contains(&(entry.map, entry.content)) {
            let reason =
                format!("segment {} holds other bytes than its digest says", entry.segment);
            let mut finding = Finding::new(Fault::WrongVersion, reason);
            let end = (base + SEGMENT_LEN).min(manifest.length);
            finding.touch(&root.version, root.holder.as_deref(), std::iter::once(base..end));
            self.found(finding);
        }
        Ok(())
    }

    /// What is broken among the chunks of a map, with the blocks of the segment that lie there.
    fn chunks_of(&mut self, name: MapDigest, map: &SegmentMap) -> Result<BrokenBlocks> {
        let chunks: Vec<EntryDigest> = map.chunks().iter().map(|chunk| chunk.0).collect();
        let places = locate_each(self.repository, &chunks)?;
        let mut block_counts: HashMap<EntryDigest, u32> = HashMap::new();
        for (chunk, place) in chunks.iter().zip(places) {
            let fault = match place {
                Ok(Some(place)) if is_chunk(&place) => {
                    block_counts.insert(*chunk, place.entry.plain_len / BLOCK_LEN as u32);
                    continue;
                }
                Ok(Some(_)) => Finding::entry(Fault::WrongRow, *chunk, "its row names no chunk"),
                Ok(None) => {
                    Finding::entry(Fault::Missing, *chunk, "no row of the catalog names it")
                }
                Err(reason) => Finding::entry(Fault::WrongRow, *chunk, reason),
            };
            self.found_broken(*chunk, fault.of_kind(Some(EntryKind::Chunk)));
        }
        let mut broken: BrokenBlocks = Vec::new();
        for run in map.runs() {
            let end = run.first_in_chunk + run.block_count;
            let is_broken = self.looked.broken.contains_key(&run.chunk.0);
            let digest = match block_counts.get(&run.chunk.0) {
                Some(count) if *count < end && !is_broken => {
                    // The chunk may be as it should be: then it is the map that is wrong.
                    let reason = "it names blocks that a chunk does not have";
                    let kind = Some(EntryKind::SegmentMap);
                    self.found_broken(
                        name.0,
                        Finding::entry(Fault::Damaged, name.0, reason).of_kind(kind),
                    );
                    name.0
                }
                _ if is_broken => run.chunk.0,
                _ => continue,
            };
            let blocks = run.first_block..run.end_block();
            match broken.iter_mut().find(|(known, _)| *known == digest) {
                Some((_, ranges)) => ranges.push(blocks),
                None => broken.push((digest, vec![blocks])),
            }
        }
        Ok(broken)
    }

    /// Computes a segment's digest anew from bytes.
    fn deep(
        &mut self,
        manifest: &ManifestRoot,
        entry: &SegmentEntry,
        map: &SegmentMap,
        walk: &mut Walk,
    ) -> Result<()> {
        let count = blocks_in_segment(manifest.length, entry.segment);
        match segment_digest(&self.chunks, map, count) {
            Ok(digest) if digest == entry.content => {}
            Ok(_) => drop(walk.unlike.insert((entry.map, entry.content))),
            // What cannot be read was found already.
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::NotFound) => {}
            Err(error) => return Err(error),
        }
        let len = map.data_block_count() * BLOCK_LEN as u64;
        self.request.progress.advance(len);
        self.rate.pass(len, self.request.cancel)
    }

    /// Compares what the catalog says of a version with its manifest.
    fn facts(
        &mut self,
        root: &Root,
        manifest: &ManifestRoot,
        segments: Vec<SegmentEntry>,
    ) -> Result<()> {
        let found = Manifest::new(manifest.kind, manifest.length, segments);
        let mut reasons = Vec::new();
        if found.is_none_or(|manifest| manifest.content() != root.content) {
            reasons.push("its manifest is of another content than the catalog says");
        }
        if root.holder.is_none() {
            match self.repository.catalog.version(&Reference::from(root.version.clone())) {
                Ok(record) if record.facts.length != manifest.length => {
                    reasons.push("its manifest is of another length than the catalog says");
                }
                Ok(record) if record.facts.kind != manifest.kind => {
                    reasons.push("its manifest is of another kind than the catalog says");
                }
                Ok(_) => {}
                Err(error) if error.kind() == Kind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        if reasons.is_empty() || self.has_moved(root)? {
            return Ok(());
        }
        for reason in reasons {
            let mut finding = Finding::new(Fault::WrongVersion, reason);
            finding.touch(
                &root.version,
                root.holder.as_deref(),
                std::iter::once(0..manifest.length),
            );
            self.found(finding);
        }
        Ok(())
    }

    /// An entry that a root needs but that no map leads to.
    fn is_there(&mut self, digest: EntryDigest, kind: EntryKind, root: &Root) -> Result<()> {
        let place = locate_each(self.repository, &[digest])?.into_iter().next();
        if !matches!(place, Some(Ok(Some(_)))) {
            let reason = "no row of the catalog names it";
            let finding = Finding::entry(Fault::Missing, digest, reason);
            self.found_broken(digest, finding.of_kind(Some(kind)));
        }
        self.touch(root, digest, Vec::new());
        Ok(())
    }

    /// Notes that a part of a root cannot be read.
    fn unreadable(
        &mut self,
        root: &Root,
        digest: EntryDigest,
        kind: EntryKind,
        error: &Error,
        range: Option<Range<u64>>,
    ) -> Result<()> {
        self.broken_entry(digest, kind, error)?;
        self.touch(root, digest, range.into_iter().collect());
        Ok(())
    }

    fn broken_entry(&mut self, digest: EntryDigest, kind: EntryKind, error: &Error) -> Result<()> {
        let fault = match error.kind() {
            Kind::NotFound => Fault::Missing,
            _ => Fault::Damaged,
        };
        self.found_broken(digest, Finding::entry(fault, digest, error.chain()).of_kind(Some(kind)));
        Ok(())
    }

    fn touch(&mut self, root: &Root, digest: EntryDigest, ranges: Vec<Range<u64>>) {
        let Some(broken) = self.looked.broken.get(&digest) else { return };
        self.looked.touched.insert((root.content, root.layout));
        if let Some(position) = broken.finding {
            let finding = &mut self.looked.report.findings[position];
            finding.touch(&root.version, root.holder.as_deref(), ranges);
        }
    }

    /// True where a root is gone or has another layout by now.
    fn has_moved(&self, root: &Root) -> Result<bool> {
        let catalog = &self.repository.catalog;
        match &root.holder {
            Some(holder) => {
                let holds = catalog.holds()?;
                let held = holds.iter().find(|hold| hold.holder == *holder);
                Ok(held.is_none_or(|hold| hold.layout != root.layout))
            }
            None => match catalog.version(&Reference::from(root.version.clone())) {
                Ok(record) => Ok(record.facts.layout != root.layout),
                Err(error) if error.kind() == Kind::NotFound => Ok(true),
                Err(error) => Err(error),
            },
        }
    }

    fn length_of(&self, root: &Root) -> Result<Option<u64>> {
        match self.repository.catalog.version(&Reference::from(root.version.clone())) {
            Ok(record) => Ok(Some(record.facts.length)),
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn is_chunk(place: &Location) -> bool {
    place.entry.kind == EntryKind::Chunk as u8
}

/// The addresses that a leaf speaks of.
fn leaf_range(number: u32, length: u64) -> Range<u64> {
    let len = u64::from(SEGMENTS_PER_LEAF) * SEGMENT_LEN;
    let start = u64::from(number).saturating_mul(len).min(length);
    start..start.saturating_add(len).min(length)
}

/// The digest of a segment, from the bytes of its blocks.
///
/// Cost: each chunk of the map read once.
pub fn segment_digest(
    chunks: &dyn ChunkStore,
    map: &SegmentMap,
    block_count: u32,
) -> Result<SegmentDigest> {
    if map.runs().is_empty() {
        return Ok(hole_digest(block_count));
    }
    let mut digests = vec![BlockDigest::HOLE; block_count as usize];
    let mut runs: Vec<_> = map.runs().iter().collect();
    runs.sort_by_key(|run| run.chunk);
    for same in runs.chunk_by(|a, b| a.chunk == b.chunk) {
        let chunk = chunks.chunk(same[0].chunk)?;
        for run in same {
            let bytes = chunk.blocks(run.first_in_chunk, run.block_count)?;
            for (block, bytes) in (run.first_block..).zip(bytes.chunks(BLOCK_LEN)) {
                if let Some(digest) = digests.get_mut(block as usize) {
                    *digest = BlockDigest::of(bytes);
                }
            }
        }
    }
    Ok(SegmentDigest::of(&digests))
}
