//! Boot working sets: what is noted, and what a set that is true or lies does to a mirror.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use env::simulated::SimulatedFileSystem;
use mirror::Mirror;
use model::boot_set::{BootPiece, BootRead, BootSet, BootSource, FirstRead};
use model::device::Device;
use model::{
    BLOCK_LEN, BLOCKS_PER_SEGMENT, BlockDigest, ChunkDigest, ContentDigest, LayoutDigest, Manifest,
    MapDigest, Result, SegmentMap,
};
use store::{Chunk, ChunkStore, MemoryChunkStore, StoredChunk};
use support::*;

/// A store that counts what is asked of it.
struct CountingStore {
    inner: MemoryChunkStore,
    chunks: AtomicUsize,
    pieces: AtomicUsize,
}

impl ChunkStore for CountingStore {
    fn current_layout(&self, content: ContentDigest) -> Result<Option<LayoutDigest>> {
        self.inner.current_layout(content)
    }

    fn manifest(&self, layout: LayoutDigest) -> Result<Arc<Manifest>> {
        self.inner.manifest(layout)
    }

    fn segment_map(&self, map: MapDigest) -> Result<Arc<SegmentMap>> {
        self.inner.segment_map(map)
    }

    fn chunk_as_stored(&self, chunk: ChunkDigest) -> Result<(Chunk, Option<StoredChunk>)> {
        self.chunks.fetch_add(1, Ordering::SeqCst);
        self.inner.chunk_as_stored(chunk)
    }

    fn boot_pieces(&self, pieces: &[BootPiece]) -> Result<Vec<Vec<u8>>> {
        self.pieces.fetch_add(pieces.len(), Ordering::SeqCst);
        self.inner.boot_pieces(pieces)
    }
}

/// The blocks of the model that are no hole, last first: no order that a disk would have.
fn blocks_of(model: &Model) -> Vec<u64> {
    model.blocks.keys().rev().copied().collect()
}

/// A set of blocks, in pieces of three, and its pieces' bytes.
fn set_of(
    store: &MemoryChunkStore,
    layout: LayoutDigest,
    blocks: &[u64],
) -> (BootSet, Vec<(BootPiece, Vec<u8>)>) {
    let manifest = store.manifest(layout).unwrap();
    let mut sources: Vec<BootSource> = Vec::new();
    let (mut reads, mut bytes) = (Vec::new(), Vec::new());
    for &block in blocks {
        let segment = (block / u64::from(BLOCKS_PER_SEGMENT)) as u32;
        let inside = (block % u64::from(BLOCKS_PER_SEGMENT)) as u32;
        let map = store.segment_map(manifest.segment(segment).unwrap().map).unwrap();
        let run = map.runs_in(inside, inside + 1)[0];
        let chunk = store.chunk(run.chunk).unwrap();
        let source = sources.iter().position(|source| source.chunk == run.chunk);
        let source = source.unwrap_or_else(|| {
            let blocks = chunk.bytes().chunks(BLOCK_LEN).map(BlockDigest::of).collect();
            sources.push(BootSource { chunk: run.chunk, blocks });
            sources.len() - 1
        });
        let first_in_chunk = run.first_in_chunk + inside - run.first_block;
        reads.push(BootRead {
            read: FirstRead { first_block: block, block_count: 1, at_ms: 0 },
            source: source as u32,
            first_in_chunk,
        });
        bytes.extend_from_slice(chunk.blocks(first_in_chunk, 1).unwrap());
    }
    let pieces: Vec<(BootPiece, Vec<u8>)> = bytes
        .chunks(3 * BLOCK_LEN)
        .map(|bytes| {
            let blocks: Vec<_> = bytes.chunks(BLOCK_LEN).map(BlockDigest::of).collect();
            let digest = ChunkDigest::of(&blocks).0;
            let block_count = (bytes.len() / BLOCK_LEN) as u32;
            (BootPiece { digest, block_count }, bytes.to_vec())
        })
        .collect();
    let named = pieces.iter().map(|(piece, _)| *piece).collect();
    (BootSet::new(sources, reads, named).unwrap(), pieces)
}

/// A mirror of the example, and a set of all its blocks whose pieces were changed by `spoil`.
fn example(
    spoil: impl Fn(usize, &mut Vec<u8>),
) -> (Arc<CountingStore>, Arc<Mirror>, Model, BootSet) {
    let model = Model::example();
    let (mut inner, binding) = store_of(&model);
    let (set, pieces) = set_of(&inner, binding.layout, &blocks_of(&model));
    for (number, (piece, mut bytes)) in pieces.into_iter().enumerate() {
        spoil(number, &mut bytes);
        inner.add_piece(piece, bytes);
    }
    let (chunks, pieces) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let store = Arc::new(CountingStore { inner, chunks, pieces });
    let host = Host::with_store(Arc::new(SimulatedFileSystem::new()), store.clone(), binding);
    let mirror = host.create().unwrap();
    (store, mirror, model, set)
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed().as_secs() < 60, "waited for long: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_set_brings_its_blocks_and_no_chunk_is_fetched_for_them() {
    let (store, mirror, model, set) = example(|_, _| ());
    let len = set.block_count() * BLOCK_LEN as u64;
    mirror.prefetch_boot_set(Arc::new(set));
    wait_until("the set", || mirror.statistics().prefetched_bytes == len);
    assert_same(&*mirror, &model, "after the set");
    assert_eq!(store.chunks.load(Ordering::SeqCst), 0);
    assert_eq!(mirror.statistics().misfit_bytes, 0);
}

#[test]
fn reads_beside_a_set_on_its_way_are_right() {
    let (_, mirror, model, set) = example(|_, _| ());
    mirror.prefetch_boot_set(Arc::new(set));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_same(&*mirror, &model, "beside the set"));
        }
    });
}

#[test]
fn pieces_that_lie_are_left_to_the_chunks() {
    let (store, mirror, model, set) = example(|number, bytes| match number % 3 {
        0 => bytes[100] ^= 1,
        1 => bytes.truncate(BLOCK_LEN),
        _ => bytes.rotate_left(BLOCK_LEN),
    });
    let count = set.pieces().len();
    mirror.prefetch_boot_set(Arc::new(set));
    wait_until("every piece", || store.pieces.load(Ordering::SeqCst) >= count);
    assert_same(&*mirror, &model, "after a lying set");
    assert!(store.chunks.load(Ordering::SeqCst) > 0);
}

#[test]
fn a_set_of_another_version_serves_what_is_the_same_there() {
    let mut older = Model::example();
    let newer = older.clone();
    // Blocks that the newer version has otherwise.
    let changed: Vec<u64> = older.blocks.keys().copied().step_by(2).collect();
    for block in &changed {
        older.blocks.get_mut(block).unwrap()[50] ^= 0x80;
    }
    let (mut inner, _) = store_of(&older);
    let old = inner.add(LENGTH, &older.blocks).1;
    let (set, pieces) = set_of(&inner, old, &blocks_of(&older));
    pieces.into_iter().for_each(|(piece, bytes)| inner.add_piece(piece, bytes));
    let (content, layout) = inner.add(LENGTH, &newer.blocks);
    let binding = mirror::Binding { parent: version(2), content, layout, length: LENGTH };
    let disk = Arc::new(SimulatedFileSystem::new());
    let host = Host::with_store(disk, Arc::new(inner), binding);
    let mirror = host.create().unwrap();
    mirror.prefetch_boot_set(Arc::new(set));
    let half = (changed.len() * BLOCK_LEN) as u64 / 2;
    wait_until("half of the misfits", || mirror.statistics().misfit_bytes >= half);
    assert_same(&*mirror, &newer, "after the set of an older version");
}

#[test]
fn what_the_guest_reads_from_its_version_is_noted_and_what_it_wrote_is_not() {
    let (_, mirror, model, _) = example(|_, _| ());
    let mut buffer = vec![0; BLOCK_LEN];
    mirror.read(0, &mut buffer).unwrap();
    mirror.start_recording();
    assert_eq!(mirror.recording(), None);
    let data: Vec<u64> = model.blocks.keys().copied().filter(|b| (b + 1) * LEN < LENGTH).collect();
    let (first, second, written) = (data[5], data[1], data[3]);
    mirror.write(written * LEN, &buffer).unwrap();
    for block in [first, written, second, first] {
        mirror.read(block * LEN, &mut buffer).unwrap();
    }
    assert_eq!(mirror.recording().unwrap().block_count, 2);
    let noted: Vec<u64> = mirror.stop_recording().iter().map(|read| read.first_block).collect();
    assert_eq!(noted, [first, second]);
}
