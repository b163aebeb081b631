//! Versions in memory, for the tests of those who read them. Leaves out packs, durability, failure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use model::boot_set::BootPiece;
use model::{
    BLOCK_LEN, BLOCKS_PER_SEGMENT, BlockDigest, ChunkDigest, ContentDigest, Error, Kind,
    LayoutDigest, Manifest, MapDigest, Result, Run, SegmentDigest, SegmentEntry, SegmentMap,
    VersionKind,
};

use crate::{Chunk, ChunkStore, StoredChunk};

/// Chunks, maps and manifests in memory, cut and deduplicated by block as an import does it.
#[derive(Debug)]
pub struct MemoryChunkStore {
    chunk_block_count: usize,
    layouts: HashMap<ContentDigest, LayoutDigest>,
    pieces: HashMap<[u8; 32], Vec<u8>>,
    manifests: HashMap<LayoutDigest, Arc<Manifest>>,
    maps: HashMap<MapDigest, Arc<SegmentMap>>,
    chunks: HashMap<ChunkDigest, Chunk>,
    /// Where each block that was ever added lies.
    blocks: HashMap<BlockDigest, (ChunkDigest, u32)>,
}

impl MemoryChunkStore {
    /// An empty store whose chunks hold up to `chunk_block_count` blocks.
    pub fn new(chunk_block_count: usize) -> Self {
        MemoryChunkStore {
            chunk_block_count: chunk_block_count.clamp(1, model::map::CHUNK_BLOCKS_MAX as usize),
            layouts: HashMap::new(),
            pieces: HashMap::new(),
            manifests: HashMap::new(),
            maps: HashMap::new(),
            chunks: HashMap::new(),
            blocks: HashMap::new(),
        }
    }

    /// Adds a version with these bytes.
    pub fn add_bytes(&mut self, bytes: &[u8]) -> (ContentDigest, LayoutDigest) {
        let blocks =
            bytes.chunks(BLOCK_LEN).zip(0..).map(|(block, number)| (number, block.to_vec()));
        self.add(bytes.len() as u64, &blocks.collect())
    }

    /// Adds a version of `length` bytes: block number -> its bytes, holes elsewhere. Blocks of
    /// zeros become holes; short ones are padded with zeros.
    pub fn add(
        &mut self,
        length: u64,
        blocks: &BTreeMap<u64, Vec<u8>>,
    ) -> (ContentDigest, LayoutDigest) {
        let per_segment = u64::from(BLOCKS_PER_SEGMENT);
        let mut segments: BTreeMap<u32, Vec<(u32, Vec<u8>)>> = BTreeMap::new();
        for (number, block) in blocks.iter().filter(|(_, block)| !model::block::is_zero(block)) {
            let mut block = block.clone();
            block.resize(BLOCK_LEN, 0);
            let segment = segments.entry((number / per_segment) as u32).or_default();
            segment.push(((number % per_segment) as u32, block));
        }
        let entries = segments.into_iter().map(|(segment, blocks)| {
            let count = model::block::blocks_in_segment(length, segment);
            self.add_segment(segment, count, &blocks)
        });
        let entries = entries.collect();
        let manifest = Manifest::new(VersionKind::Disk, length, entries)
            .expect("blocks lie inside the length");
        let content = manifest.content();
        let mut hasher = blake3::Hasher::new();
        hasher.update(&length.to_le_bytes());
        for entry in manifest.segments() {
            hasher.update(entry.map.as_bytes());
        }
        let layout = LayoutDigest(*hasher.finalize().as_bytes());
        self.manifests.insert(layout, Arc::new(manifest));
        self.layouts.insert(content, layout);
        (content, layout)
    }

    /// Adds a piece of a boot working set, whatever its bytes.
    pub fn add_piece(&mut self, piece: BootPiece, bytes: Vec<u8>) {
        self.pieces.insert(piece.digest, bytes);
    }

    /// The digests of all chunks, in order.
    pub fn chunk_digests(&self) -> Vec<ChunkDigest> {
        let mut digests: Vec<_> = self.chunks.keys().copied().collect();
        digests.sort_unstable();
        digests
    }

    fn add_segment(
        &mut self,
        segment: u32,
        block_count: u32,
        blocks: &[(u32, Vec<u8>)],
    ) -> SegmentEntry {
        let mut digests = vec![BlockDigest::HOLE; block_count as usize];
        let mut fresh: Vec<&[u8]> = Vec::new();
        for (number, block) in blocks {
            let digest = BlockDigest::of(block);
            digests[*number as usize] = digest;
            if !self.blocks.contains_key(&digest) && !fresh.contains(&block.as_slice()) {
                fresh.push(block);
            }
        }
        fresh.chunks(self.chunk_block_count).for_each(|blocks| self.add_chunk(blocks));
        let mut runs: Vec<Run> = Vec::new();
        for (number, _) in blocks {
            let (chunk, first_in_chunk) = self.blocks[&digests[*number as usize]];
            match runs.last_mut() {
                Some(last)
                    if last.end_block() == *number
                        && last.chunk == chunk
                        && last.first_in_chunk + last.block_count == first_in_chunk =>
                {
                    last.block_count += 1;
                }
                _ => runs.push(Run { first_block: *number, block_count: 1, chunk, first_in_chunk }),
            }
        }
        let mut hasher = blake3::Hasher::new();
        for run in &runs {
            hasher.update(run.chunk.as_bytes());
            for number in [run.first_block, run.block_count, run.first_in_chunk] {
                hasher.update(&number.to_le_bytes());
            }
        }
        let map = MapDigest(*hasher.finalize().as_bytes());
        let runs = SegmentMap::new(runs).expect("runs are in order");
        self.maps.insert(map, Arc::new(runs));
        SegmentEntry { segment, content: SegmentDigest::of(&digests), map }
    }

    fn add_chunk(&mut self, blocks: &[&[u8]]) {
        let digests: Vec<_> = blocks.iter().map(|block| BlockDigest::of(block)).collect();
        let digest = ChunkDigest::of(&digests);
        let chunk = Chunk::verify(digest, blocks.concat()).expect("it was hashed just now");
        self.chunks.insert(digest, chunk);
        for (position, block) in digests.into_iter().enumerate() {
            self.blocks.insert(block, (digest, position as u32));
        }
    }
}

fn missing(operation: &'static str, digest: impl ToString) -> Error {
    Error::new(Kind::NotFound, operation, digest.to_string()).because("no copy exists")
}

impl ChunkStore for MemoryChunkStore {
    fn current_layout(&self, content: ContentDigest) -> Result<Option<LayoutDigest>> {
        Ok(self.layouts.get(&content).copied())
    }

    fn manifest(&self, layout: LayoutDigest) -> Result<Arc<Manifest>> {
        self.manifests.get(&layout).cloned().ok_or_else(|| missing("read the manifest", layout))
    }

    fn segment_map(&self, map: MapDigest) -> Result<Arc<SegmentMap>> {
        self.maps.get(&map).cloned().ok_or_else(|| missing("read the segment map", map))
    }

    fn chunk_as_stored(&self, chunk: ChunkDigest) -> Result<(Chunk, Option<StoredChunk>)> {
        let found = self.chunks.get(&chunk).cloned();
        Ok((found.ok_or_else(|| missing("read the chunk", chunk))?, None))
    }

    fn boot_pieces(&self, pieces: &[BootPiece]) -> Result<Vec<Vec<u8>>> {
        let piece = |piece: &BootPiece| self.pieces.get(&piece.digest).cloned();
        let named = |piece: &BootPiece| ChunkDigest(piece.digest);
        pieces
            .iter()
            .map(|p| piece(p).ok_or_else(|| missing("read the boot piece", named(p))))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use model::SEGMENT_LEN;

    use super::*;

    #[test]
    fn what_was_added_is_read_back_by_runs() {
        let mut store = MemoryChunkStore::new(2);
        let far = SEGMENT_LEN / BLOCK_LEN as u64 + 5;
        let block = |byte: u8| vec![byte; BLOCK_LEN];
        let blocks = BTreeMap::from([
            (0, block(1)),
            (1, block(2)),
            (2, block(3)),
            (4, block(0)),
            (7, block(2)),
            (far, vec![3; 9]),
        ]);
        let (content, layout) = store.add(SEGMENT_LEN * 2, &blocks);
        let manifest = store.manifest(layout).unwrap();
        assert_eq!(manifest.content(), content);
        assert_eq!(manifest.segments().len(), 2);
        let mut read = BTreeMap::new();
        for entry in manifest.segments() {
            let map = store.segment_map(entry.map).unwrap();
            for run in map.runs() {
                let chunk = store.chunk(run.chunk).unwrap();
                for at in 0..run.block_count {
                    let number = u64::from(entry.segment) * u64::from(BLOCKS_PER_SEGMENT);
                    let bytes = chunk.blocks(run.first_in_chunk + at, 1).unwrap().to_vec();
                    read.insert(number + u64::from(run.first_block + at), bytes);
                }
            }
        }
        let mut expected = blocks;
        expected.remove(&4);
        expected.get_mut(&far).unwrap().resize(BLOCK_LEN, 0);
        assert_eq!(read, expected);
        assert_eq!(store.chunk_digests().len(), 3);
    }
}
