//! What a mirror costs in memory, counted by an allocator.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use env::RealFileSystem;
use mirror::{Binding, Mirror, StateFolder};
use model::boot_set::BootPiece;
use model::device::Device;
use model::manifest::SegmentEntry;
use model::{
    BLOCK_LEN, BlockDigest, ChunkDigest, ContentDigest, LayoutDigest, Manifest, MapDigest, Result,
    Run, SEGMENT_LEN, SegmentDigest, SegmentMap, VersionKind,
};
use store::{Chunk, ChunkStore, StoredChunk};
use support::{name, version};

/// Bytes that are allocated now, by all threads.
static LIVE: AtomicI64 = AtomicI64::new(0);

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged; counting touches one atomic.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`; the pointer came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs of a segment, as many as a fresh import has: one for each 80 KiB.
const RUNS: u32 = 800;
/// Blocks of its segment that a run is behind the one before.
const STRIDE: u32 = 20;
const SEGMENTS: u32 = 160;

/// A version that exists nowhere, of 10 GiB mostly: its maps are made when they are asked for, and all
/// its chunks have one block.
struct MadeUp {
    which: u8,
    segments: u32,
    chunk: Chunk,
}

impl MadeUp {
    fn new(which: u8, segments: u32) -> Self {
        let bytes = vec![which + 1; BLOCK_LEN];
        let digest = ChunkDigest::of(&[BlockDigest::of(&bytes)]);
        MadeUp { which, segments, chunk: Chunk::verify(digest, bytes).unwrap() }
    }

    fn made(&self) -> Manifest {
        let entry = |segment: u32| {
            let mut map = [self.which; 32];
            map[..4].copy_from_slice(&segment.to_le_bytes());
            SegmentEntry {
                segment,
                content: SegmentDigest([self.which + 1; 32]),
                map: MapDigest(map),
            }
        };
        let segments = (0..self.segments).map(entry).collect();
        Manifest::new(VersionKind::Disk, u64::from(self.segments) * SEGMENT_LEN, segments).unwrap()
    }

    fn binding(&self) -> Binding {
        let content = self.made().content();
        let layout = LayoutDigest([self.which; 32]);
        let length = u64::from(self.segments) * SEGMENT_LEN;
        Binding { parent: version(1), content, layout, length }
    }
}

impl ChunkStore for MadeUp {
    fn current_layout(&self, _content: ContentDigest) -> Result<Option<LayoutDigest>> {
        Ok(None)
    }

    fn manifest(&self, _layout: LayoutDigest) -> Result<Arc<Manifest>> {
        Ok(Arc::new(self.made()))
    }

    fn segment_map(&self, _map: MapDigest) -> Result<Arc<SegmentMap>> {
        let run = |number: u32| Run {
            first_block: number * STRIDE,
            block_count: 1,
            // Most belong to chunks that nobody asks for.
            chunk: if number == 0 { self.chunk.digest() } else { ChunkDigest([number as u8; 32]) },
            first_in_chunk: if number == 0 { 0 } else { number % 64 },
        };
        Ok(Arc::new(SegmentMap::new((0..RUNS).map(run).collect()).unwrap()))
    }

    fn chunk_as_stored(&self, chunk: ChunkDigest) -> Result<(Chunk, Option<StoredChunk>)> {
        assert_eq!(chunk, self.chunk.digest());
        Ok((self.chunk.clone(), None))
    }

    fn boot_pieces(&self, _pieces: &[BootPiece]) -> Result<Vec<Vec<u8>>> {
        Ok(Vec::new())
    }
}

/// A mirror that has read from every segment, and written to as many as that.
fn touch_all(state: &StateFolder, which: u8, written: u32) -> Arc<Mirror> {
    let store = MadeUp::new(which, SEGMENTS);
    let binding = store.binding();
    let name = name(&format!("m{which}"));
    let mirror = Mirror::create(state, &name, binding, Arc::new(store)).unwrap();
    for segment in 0..u64::from(SEGMENTS) {
        let mut bytes = [0; BLOCK_LEN];
        mirror.read(segment * SEGMENT_LEN, &mut bytes).unwrap();
        assert_eq!(bytes[0], which + 1);
    }
    for segment in 0..u64::from(written) {
        mirror.write(segment * SEGMENT_LEN + (1 << 20), &[9; BLOCK_LEN]).unwrap();
    }
    mirror
}

fn state_in(folder: &Path) -> StateFolder {
    StateFolder::without_background(Arc::new(RealFileSystem), folder.join("state"))
}

#[test]
fn a_mirror_that_has_touched_10_gib_costs_2_mib_at_most() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_in(folder.path());
    // What all mirrors share is full then.
    let first = touch_all(&state, 0, 0);
    let second = touch_all(&state, 1, 0);
    let mut cost = Vec::new();
    let mut mirrors = vec![first, second];
    for (which, written) in [(2, 0), (3, SEGMENTS / 4), (4, SEGMENTS)] {
        let before = LIVE.load(Ordering::SeqCst);
        mirrors.push(touch_all(&state, which, written));
        cost.push(LIVE.load(Ordering::SeqCst) - before);
    }
    assert!(cost.iter().all(|cost| *cost <= 2 << 20), "{cost:?}");
}

/// Segments of 156 GiB.
const MANY: u32 = 2500;

#[test]
fn a_mirror_that_was_read_and_written_across_156_gib_costs_16_mib_at_most() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_in(folder.path());
    // What all mirrors share is full then.
    let _others = [touch_all(&state, 0, 0), touch_all(&state, 1, 0)];
    let binding = MadeUp::new(9, MANY).binding();
    let name = name("far");
    let before = LIVE.load(Ordering::SeqCst);
    let check = |what: &str| {
        let cost = LIVE.load(Ordering::SeqCst) - before;
        assert!(cost <= 16 << 20, "{what}: {cost}");
    };
    let mirror = Mirror::create(&state, &name, binding, Arc::new(MadeUp::new(9, MANY))).unwrap();
    // Far apart from one to the next, so that what was put out is needed again and again.
    let order = || (0..MANY).map(|step| step * 733 % MANY);
    let at = |segment: u32, round: u32| u64::from(segment) * SEGMENT_LEN + u64::from(round) * 8192;
    let mut block = [0; BLOCK_LEN];
    for round in 1..3_u32 {
        for segment in order() {
            let byte = (segment % 250) as u8 + round as u8;
            mirror.write(at(segment, round) + 512, &[byte; 512]).unwrap();
            mirror.read(at(segment, round), &mut block).unwrap();
            assert_eq!((block[511], block[512], block[1024]), (0, byte, 0));
        }
        check("written");
        let sealed = mirror.clone().seal().unwrap();
        // And what was written while the commit before was under way.
        let blocks = u64::from(MANY + u32::from(round > 1));
        assert_eq!(sealed.dirty_bytes(), blocks * BLOCK_LEN as u64);
        mirror.write(at(7, round) + 1024, &[3; 512]).unwrap();
        mirror.finish_commit(sealed, version(round.into())).unwrap();
        check("committed");
    }
    mirror.close().unwrap();
    drop(mirror);
    let store = Arc::new(MadeUp::new(9, MANY));
    let mirror = Mirror::reopen(&state, &name, |_| Ok(store)).unwrap();
    check("opened again");
    assert_eq!(mirror.statistics().dirty_bytes, BLOCK_LEN as u64);
    for segment in order() {
        for round in 1..3_u32 {
            mirror.read(at(segment, round), &mut block).unwrap();
            let byte = (segment % 250) as u8 + round as u8;
            let changed = if segment == 7 { 3 } else { 0 };
            assert_eq!((block[0], block[512], block[1024]), (0, byte, changed));
        }
        mirror.read(at(segment, 0), &mut block).unwrap();
        assert_eq!(block[0], 10);
    }
    check("read");
}

#[test]
fn a_disk_that_no_file_can_hold_is_refused_before_anything_is_made() {
    const SEGMENTS_16_TIB: u32 = 1 << 18;
    let folder = tempfile::tempdir().unwrap();
    let state = state_in(folder.path());
    let create = |which: u8, segments: u32| {
        let store = MadeUp::new(which, segments);
        let binding = store.binding();
        Mirror::create(&state, &name(&format!("m{which}")), binding, Arc::new(store))
    };
    // XFS and others have such files; then there is nothing to be refused.
    if let Err(error) = create(1, SEGMENTS_16_TIB) {
        assert_eq!(error.kind(), model::Kind::Invalid);
        assert!(error.hint_text().is_some_and(|hint| hint.contains("XFS")), "{}", error.chain());
        assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 0);
    }
    let mirror = create(2, SEGMENTS_16_TIB - 1).unwrap();
    let last = mirror.length() - BLOCK_LEN as u64;
    mirror.write(last, &[7; BLOCK_LEN]).unwrap();
    mirror.flush().unwrap();
    let mut bytes = [0; BLOCK_LEN];
    mirror.read(last, &mut bytes).unwrap();
    assert_eq!(bytes, [7; BLOCK_LEN]);
    mirror.read(mirror.length() - SEGMENT_LEN, &mut bytes).unwrap();
    assert_eq!(bytes[0], 3);
}
