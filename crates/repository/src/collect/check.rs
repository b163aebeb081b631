//! Checks a new layout before it takes the old one's place: what its maps say, read back from the packs,
//! hashes to the content.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use chunking::SegmentDraft;
use model::block::blocks_in_segment;
use model::{
    BlockDigest, ChunkDigest, Error, Kind, LayoutDigest, Manifest, MapDigest, Result, SegmentEntry,
};

use crate::repository::Repository;

/// How many chunks' block digests are kept: 2 KiB each.
const CHUNKS_MAX: usize = 1 << 14;

/// What was checked so far.
pub(super) struct Check<'a> {
    repository: &'a Repository,
    blocks: HashMap<ChunkDigest, Vec<BlockDigest>>,
    checked: HashSet<MapDigest>,
}

impl<'a> Check<'a> {
    pub(super) fn new(repository: &'a Repository) -> Self {
        Check { repository, blocks: HashMap::new(), checked: HashSet::new() }
    }

    /// Checks the new maps of a layout, each once.
    ///
    /// # Errors
    /// `Bug` where a segment would hold something else.
    pub(super) fn layout(
        &mut self,
        layout: LayoutDigest,
        maps: &HashMap<MapDigest, MapDigest>,
    ) -> Result<()> {
        let (manifest, _) = self.repository.chunks().manifest_with_leaves(layout)?;
        let new: HashSet<MapDigest> = maps.values().copied().collect();
        for entry in manifest.segments() {
            if new.contains(&entry.map) && self.checked.insert(entry.map) {
                self.segment(&manifest, entry)?;
            }
        }
        Ok(())
    }

    fn segment(&mut self, manifest: &Manifest, entry: &SegmentEntry) -> Result<()> {
        let map = self.repository.chunks().map_alone(entry.map)?;
        let count = blocks_in_segment(manifest.length(), entry.segment);
        let mut draft = SegmentDraft::hole(entry.segment, count);
        draft
            .lay_out(&map, |chunk| self.blocks_of(chunk).map(Cow::<[_]>::Owned))
            .map_err(|error| error.unwrap_or_else(|| differs(entry)))?;
        match draft.finish().is_some_and(|pending| pending.content == entry.content) {
            true => Ok(()),
            false => Err(differs(entry)),
        }
    }

    fn blocks_of(&mut self, chunk: &ChunkDigest) -> Result<Vec<BlockDigest>> {
        if let Some(blocks) = self.blocks.get(chunk) {
            return Ok(blocks.clone());
        }
        let Repository { catalog, realm, lists, .. } = self.repository;
        let missing = || {
            Error::new(Kind::Corrupt, "read the block list of the chunk", chunk.to_string())
                .because("its pack does not list it")
                .hint("`larder scrub` names what is damaged")
        };
        let place = catalog.locate(realm, &[chunk.0])?.into_iter().next().flatten();
        let list = lists.get(place.ok_or_else(missing)?.pack)?;
        if self.blocks.len() > CHUNKS_MAX {
            self.blocks.clear();
        }
        for listed in list.chunks() {
            if let Some(blocks) = list.blocks_of(&listed) {
                self.blocks.insert(listed, blocks.to_vec());
            }
        }
        self.blocks.get(chunk).cloned().ok_or_else(missing)
    }
}

fn differs(entry: &SegmentEntry) -> Error {
    Error::new(Kind::Bug, "lay out anew", format!("segment {}", entry.segment))
        .because("the new map says other blocks than the old one")
}
