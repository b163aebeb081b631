//! Where the bytes of a segment are known: in this repository under another map, or in another one.
//!
//! **Invariant**: nothing is believed. What a donor gives is hashed block by block, and used only
//! where the blocks hash to the segment's digest, which hangs from the version's own content.

use std::collections::{HashMap, HashSet};

use catalog::Revision;
use model::block::blocks_in_segment;
use model::{
    BLOCK_LEN, BlockDigest, ContentDigest, Manifest, MapDigest, Result, SegmentDigest, SegmentMap,
};
use store::ChunkStore;

use crate::chunks::RepositoryChunks;
use crate::repository::Repository;
use crate::walk::for_each_root;

/// Maps that are said to lay out one segment.
const MAPS_PER_SEGMENT_MAX: usize = 4;

/// All blocks of a segment, verified.
pub struct SegmentBytes {
    /// The digest of each block.
    pub digests: Vec<BlockDigest>,
    /// The bytes of those that are no hole.
    blocks: HashMap<u32, Vec<u8>>,
}

impl SegmentBytes {
    /// The bytes of a block; `None` for a hole.
    pub fn block(&self, block: u32) -> Option<&[u8]> {
        self.blocks.get(&block).map(Vec::as_slice)
    }

    /// Reads a segment by a map. What `missing` knows need not be read from a chunk.
    ///
    /// `None` where a block cannot be read, or all together are not what the digest names.
    pub fn read(
        chunks: &dyn ChunkStore,
        map: &SegmentMap,
        block_count: u32,
        digest: SegmentDigest,
        mut missing: impl FnMut(&model::ChunkDigest, u32) -> Option<Vec<u8>>,
    ) -> Option<SegmentBytes> {
        let mut digests = vec![BlockDigest::HOLE; block_count as usize];
        let mut blocks = HashMap::new();
        let mut runs: Vec<_> = map.runs().iter().collect();
        runs.sort_by_key(|run| run.chunk);
        for same in runs.chunk_by(|a, b| a.chunk == b.chunk) {
            let chunk = chunks.chunk(same[0].chunk).ok();
            for run in same {
                for step in 0..run.block_count {
                    let index = run.first_in_chunk + step;
                    let bytes = match &chunk {
                        Some(chunk) => chunk.blocks(index, 1).ok()?.to_vec(),
                        None => missing(&run.chunk, index)?,
                    };
                    let block = run.first_block + step;
                    if block < block_count {
                        digests[block as usize] = BlockDigest::of(&bytes);
                        blocks.insert(block, bytes);
                    }
                }
            }
        }
        debug_assert!(blocks.values().all(|block| block.len() == BLOCK_LEN));
        (SegmentDigest::of(&digests) == digest).then_some(SegmentBytes { digests, blocks })
    }
}

/// Those who may know what is wanted.
pub struct Donors<'a> {
    repositories: Vec<(&'a Repository, RepositoryChunks)>,
    maps: HashMap<SegmentDigest, Vec<(usize, MapDigest)>>,
    manifests: HashMap<ContentDigest, Manifest>,
}

impl<'a> Donors<'a> {
    /// Asks all versions of the repositories, the first of which is the one to be repaired. Cost:
    /// the manifest of every version and hold.
    pub fn ask(
        repositories: Vec<&'a Repository>,
        segments: &HashSet<SegmentDigest>,
        contents: &HashSet<ContentDigest>,
    ) -> Result<Donors<'a>> {
        let repositories =
            repositories.into_iter().map(|known| (known, known.plain_chunks())).collect();
        let mut donors = Donors { repositories, maps: HashMap::new(), manifests: HashMap::new() };
        // First those whose manifest is wanted whole: their segments are wanted, too.
        let mut wanted = segments.clone();
        for pass in 0..2 {
            for number in 0..donors.repositories.len() {
                let catalog = donors.repositories[number].0.catalog.clone();
                for_each_root(&*catalog, Revision::default(), |root| {
                    let is_wanted = contents.contains(&root.content);
                    if pass == 0 && (!is_wanted || donors.manifests.contains_key(&root.content)) {
                        return Ok(());
                    }
                    let Ok(manifest) = donors.repositories[number].1.manifest(root.layout) else {
                        return Ok(());
                    };
                    if pass == 0 && manifest.content() == root.content {
                        wanted.extend(manifest.segments().iter().map(|segment| segment.content));
                        donors.manifests.insert(root.content, (*manifest).clone());
                    } else if pass == 1 {
                        donors.add(number, &manifest, &wanted);
                    }
                    Ok(())
                })?;
            }
        }
        Ok(donors)
    }

    fn add(&mut self, number: usize, manifest: &Manifest, wanted: &HashSet<SegmentDigest>) {
        for segment in manifest.segments().iter().filter(|s| wanted.contains(&s.content)) {
            let maps = self.maps.entry(segment.content).or_default();
            if maps.len() < MAPS_PER_SEGMENT_MAX && !maps.contains(&(number, segment.map)) {
                maps.push((number, segment.map));
            }
        }
    }

    /// The manifest of a content, as somebody has it. Its maps are his.
    pub fn manifest(&self, content: &ContentDigest) -> Option<&Manifest> {
        self.manifests.get(content)
    }

    /// The bytes of a segment of a disk of that length.
    pub fn segment(
        &self,
        segment: u32,
        length: u64,
        digest: SegmentDigest,
    ) -> Option<SegmentBytes> {
        let count = blocks_in_segment(length, segment);
        self.maps.get(&digest)?.iter().find_map(|(number, map)| {
            let chunks = &self.repositories[*number].1;
            let map = chunks.segment_map(*map).ok()?;
            SegmentBytes::read(chunks, &map, count, digest, |_, _| None)
        })
    }

    /// A map of this repository for a segment, other than those that `refuse` refuses.
    pub fn own_map(
        &self,
        digest: SegmentDigest,
        mut refuse: impl FnMut(&MapDigest) -> bool,
    ) -> Option<MapDigest> {
        let maps = self.maps.get(&digest)?;
        maps.iter().find(|(number, map)| *number == 0 && !refuse(map)).map(|(_, map)| *map)
    }
}
