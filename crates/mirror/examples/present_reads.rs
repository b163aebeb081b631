//! What a read of present blocks costs, beside a plain `pread` of a raw file with the same bytes;
//! and what a sequential replay costs with and without fetching ahead.
//!
//! `cargo run --release -p mirror --example present_reads -- [FOLDER] [MiB] [READS] [PASSES]`
#![expect(clippy::print_stdout, reason = "its numbers are its product")]

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use env::entropy::SeededEntropy;
use mirror::{Binding, Mirror, StateFolder};
use model::boot_set::BootPiece;
use model::device::Device;
use model::{
    ChunkDigest, ContentDigest, ImageName, LayoutDigest, Manifest, MapDigest, MirrorName, Result,
    SegmentMap, VersionId, VersionNumber,
};
use store::{Chunk, ChunkStore, MemoryChunkStore, StoredChunk};

/// Chunks cost some passes of hashing: one is what verifying costs, eight about what
/// decompressing costs on top.
struct HashingStore(MemoryChunkStore, u64);

impl ChunkStore for HashingStore {
    fn current_layout(&self, content: ContentDigest) -> Result<Option<LayoutDigest>> {
        self.0.current_layout(content)
    }

    fn manifest(&self, layout: LayoutDigest) -> Result<Arc<Manifest>> {
        self.0.manifest(layout)
    }

    fn segment_map(&self, map: MapDigest) -> Result<Arc<SegmentMap>> {
        self.0.segment_map(map)
    }

    fn chunk_as_stored(&self, chunk: ChunkDigest) -> Result<(Chunk, Option<StoredChunk>)> {
        let bytes = self.0.chunk(chunk)?.bytes().to_vec();
        for _ in 1..self.1 {
            Chunk::verify(chunk, bytes.clone())?;
        }
        Ok((Chunk::verify(chunk, bytes)?, None))
    }

    fn boot_pieces(&self, pieces: &[BootPiece]) -> Result<Vec<Vec<u8>>> {
        self.0.boot_pieces(pieces)
    }
}

/// The best of five runs, in nanoseconds per read: other work on the machine only adds.
fn measure(count: u64, mut read: impl FnMut(u64)) -> u128 {
    let run = || {
        let start = Instant::now();
        (0..count).for_each(&mut read);
        start.elapsed().as_nanos() / u128::from(count)
    };
    std::iter::repeat_with(run).take(5).min().unwrap_or_default()
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let folder = arguments.get(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = folder.join(format!("present-reads-{}", std::process::id()));
    let number =
        |at: usize, default| arguments.get(at).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (length, count) = (number(2, 256u64) << 20, number(3, 200_000u64));
    std::fs::create_dir_all(&folder).expect("the folder can be made");

    let entropy = SeededEntropy::new(1);
    let bytes: Vec<u8> = (0..length / 8).flat_map(|_| entropy.next().to_le_bytes()).collect();
    let mut chunks = MemoryChunkStore::new(64);
    let (content, layout) = chunks.add_bytes(&bytes);
    let version = VersionId {
        image: ImageName::new("bench").expect("well-formed"),
        version: VersionNumber::FIRST,
    };
    let binding = Binding { parent: version, content, layout, length };
    let store: Arc<dyn ChunkStore> = Arc::new(HashingStore(chunks, number(4, 1)));
    let raw_path = folder.join("raw");
    std::fs::write(&raw_path, &bytes).expect("the raw file can be written");
    let raw = std::fs::File::open(&raw_path).expect("it was written");

    for ahead in [false, true, false, true] {
        let file_system = Arc::new(env::RealFileSystem);
        let path = folder.join(format!("state-{ahead}"));
        let state = match ahead {
            true => StateFolder::new(file_system, &path),
            false => StateFolder::without_background(file_system, &path),
        };
        let name = MirrorName::new("cold").expect("well-formed");
        let mirror =
            Mirror::create(&state, &name, binding.clone(), store.clone()).expect("it is new");
        let start = Instant::now();
        let mut buffer = vec![0; 64 << 10];
        for at in (0..length).step_by(buffer.len()) {
            mirror.read(at, &mut buffer).expect("every chunk is there");
        }
        println!("cold, sequential, ahead {ahead}: {:?} for {} MiB", start.elapsed(), length >> 20);
        drop(mirror);
        std::fs::remove_dir_all(&path).expect("it was made");
    }

    let state = StateFolder::new(Arc::new(env::RealFileSystem), folder.join("state"));
    let name = MirrorName::new("warm").expect("well-formed");
    let mirror = Mirror::create(&state, &name, binding, store).expect("it is new");
    mirror.prefetch(0, length).expect("every chunk is there");
    let blocks = length / 4096;
    let mut buffer = [0; 4096];
    let offset = |entropy: &SeededEntropy| entropy.next() % blocks * 4096;
    let e = SeededEntropy::new(2);
    let plain = measure(count, |_| raw.read_exact_at(&mut buffer, offset(&e)).expect("present"));
    let e = SeededEntropy::new(2);
    let ours = measure(count, |_| mirror.read(offset(&e), &mut buffer).expect("present"));
    mirror.write(0, &bytes[..(length / 2) as usize]).expect("there is space");
    let e = SeededEntropy::new(2);
    let mixed = measure(count, |_| mirror.read(offset(&e), &mut buffer).expect("present"));
    println!("4 KiB random: pread {plain} ns, base {ours} ns, half overlay {mixed} ns");

    let mut large = vec![0; 1 << 20];
    let plain =
        measure(length >> 20, |at| raw.read_exact_at(&mut large, at << 20).expect("present"));
    let ours = measure(length >> 20, |at| mirror.read(at << 20, &mut large).expect("present"));
    println!("1 MiB sequential: pread {} us, mirror {} us", plain / 1000, ours / 1000);

    let rewrite = measure(count, |at| {
        mirror.write(at % (blocks / 2) * 4096, &buffer).expect("there is space");
    });
    let first = measure(1, |_| {
        for block in blocks / 2..blocks {
            mirror.write(block * 4096, &buffer).expect("there is space");
        }
    }) / u128::from(blocks - blocks / 2);
    let flush = measure(20, |at| {
        mirror.write(at * 4096, &buffer).expect("there is space");
        mirror.flush().expect("the disk works");
    });
    println!(
        "4 KiB write: again {rewrite} ns, first {first} ns; write and flush {} us",
        flush / 1000
    );
    let sealed = mirror.seal().expect("the disk works");
    println!("seal: {:?} for {} MiB dirty", sealed.pause(), sealed.dirty_bytes() >> 20);
    drop(sealed);
    mirror.close().expect("the disk works");
    std::fs::remove_dir_all(&folder).expect("it was made");
}
