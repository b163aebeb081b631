//! A version that collect lays out anew under its mirrors.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use env::simulated::SimulatedFileSystem;
use mirror::ReadOnlyView;
use model::boot_set::BootPiece;
use model::device::Device;
use model::{
    ChunkDigest, ContentDigest, Kind, LayoutDigest, Manifest, MapDigest, Result, SegmentMap,
};
use store::{Chunk, ChunkStore, MemoryChunkStore, StoredChunk};
use support::*;

/// One content in two layouts, of which one is there.
struct ReLaidStore {
    layouts: [MemoryChunkStore; 2],
    there: AtomicUsize,
}

impl ReLaidStore {
    fn now(&self) -> &MemoryChunkStore {
        &self.layouts[self.there.load(Ordering::SeqCst)]
    }

    fn lay_out_anew(&self) {
        self.there.store(1, Ordering::SeqCst);
    }
}

impl ChunkStore for ReLaidStore {
    fn current_layout(&self, content: ContentDigest) -> Result<Option<LayoutDigest>> {
        self.now().current_layout(content)
    }

    fn manifest(&self, layout: LayoutDigest) -> Result<Arc<Manifest>> {
        self.now().manifest(layout)
    }

    fn segment_map(&self, map: MapDigest) -> Result<Arc<SegmentMap>> {
        self.now().segment_map(map)
    }

    fn chunk_as_stored(&self, chunk: ChunkDigest) -> Result<(Chunk, Option<StoredChunk>)> {
        self.now().chunk_as_stored(chunk)
    }

    fn boot_pieces(&self, pieces: &[BootPiece]) -> Result<Vec<Vec<u8>>> {
        self.now().boot_pieces(pieces)
    }
}

fn example() -> (Arc<ReLaidStore>, Host, Model) {
    let model = Model::example();
    let (first, binding) = store_of(&model);
    let mut second = MemoryChunkStore::new(3);
    let (content, layout) = second.add(LENGTH, &model.blocks);
    assert!(content == binding.content && layout != binding.layout);
    let store = Arc::new(ReLaidStore { layouts: [first, second], there: AtomicUsize::new(0) });
    let host = Host::with_store(Arc::new(SimulatedFileSystem::new()), store.clone(), binding);
    (store, host, model)
}

#[test]
fn a_mirror_goes_on_when_its_version_is_laid_out_anew() {
    let (store, host, mut model) = example();
    let mirror = host.create().unwrap();
    let view = ReadOnlyView::open(&host.state, &host.binding, host.store.clone()).unwrap();
    let mut buffer = vec![0; 3 * 4096];
    mirror.read(0, &mut buffer).unwrap();
    mirror.write(5000, &[9; 5000]).unwrap();
    store.lay_out_anew();
    assert_same(&view, &model, "a view");
    model.write(5000, &[9; 5000]);
    // Fills the rest of a block that is not there yet.
    mirror.write(SEGMENT_START + 100, &[7; 50]).unwrap();
    model.write(SEGMENT_START + 100, &[7; 50]);
    assert_same(&*mirror, &model, "a mirror");
}

/// A block that the first layout's maps, loaded by nobody yet, would have been needed for.
const SEGMENT_START: u64 = model::SEGMENT_LEN;

#[test]
fn a_mirror_is_opened_again_by_the_layout_of_now() {
    let (store, host, mut model) = example();
    let mirror = host.create().unwrap();
    mirror.write(100, &[3; 9000]).unwrap();
    model.write(100, &[3; 9000]);
    mirror.close().unwrap();
    drop(mirror);
    store.lay_out_anew();
    let mirror = host.reopen().unwrap();
    assert_same(&*mirror, &model, "opened again");
}

#[test]
fn a_version_that_nobody_has_any_more_is_an_error_and_not_zeros() {
    let model = Model::example();
    let (first, binding) = store_of(&model);
    let empty = MemoryChunkStore::new(3);
    let store = Arc::new(ReLaidStore { layouts: [first, empty], there: AtomicUsize::new(0) });
    let host = Host::with_store(Arc::new(SimulatedFileSystem::new()), store.clone(), binding);
    let mirror = host.create().unwrap();
    store.lay_out_anew();
    let mut buffer = vec![0; 4096];
    assert_eq!(mirror.read(0, &mut buffer).unwrap_err().kind(), Kind::NotFound);
}
