//! Reads ranges of a version: stretches of the disk without holes, each chunk verified.
//!
//! ```text
//! range        |....ddddddd....dddd..|       . hole, d data
//! stretches         |--1--|-2|  |-3-|        at most 16 MiB each, in ascending order, no holes
//!
//! planner ──► [stretches under way, in order] ──► writer: the caller
//!     └──► thread pool: read, unpack, verify chunks ──┘
//!     ▲                                               │
//!     └──────────────── empty buffers ◄───────────────┘
//! ```
//!
//! A stretch need not wait for the one before it, so no core waits for the last chunk of a stretch.
//! A chunk that two stretches near each other use is unpacked once.

use std::ops::Range;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};
use model::{BLOCK_LEN, ChunkDigest, Error, Kind, Manifest, Result, Run, SEGMENT_LEN, SegmentMap};
use quick_cache::sync::Cache;
use rayon::prelude::*;
use store::{Chunk, ChunkStore};

/// Blocks of a stretch: at most 16 MiB.
const STRETCH_BLOCKS: u32 = 4096;

/// How many stretches are under way at once, each with a buffer.
const STRETCHES_MAX: usize = 3;

/// How many unpacked chunks are kept for the stretches to come.
const CHUNKS_KEPT_MAX: usize = 128;

/// Gives what is no hole in a range of bytes to `write`, in ascending order, with where on the disk it
/// starts. What lies behind the end of the disk is not there.
///
/// Cost: memory for three buffers of 16 MiB and 128 chunks; all cores work.
pub fn stream(
    chunks: &dyn ChunkStore,
    manifest: &Manifest,
    range: Range<u64>,
    mut write: impl FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let (send, receive) = bounded(STRETCHES_MAX);
    let (give, empty) = bounded(STRETCHES_MAX);
    for _ in 0..STRETCHES_MAX {
        let _ = give.send(Vec::new());
    }
    std::thread::scope(|scope| {
        let reader = Reader::new(chunks, CHUNKS_KEPT_MAX);
        let reader = scope.spawn(move || reader.read_ahead(manifest, range, &empty, &send));
        let written = receive.iter().try_for_each(|under: Under| {
            // A thread pool that drops a job has panicked; the reader says so.
            let Ok(filled) = under.recv() else { return Ok(()) };
            let (offset, bytes) = filled?;
            write(offset, &bytes)?;
            // The reader may have ended: then nobody needs the buffer.
            let _ = give.send(bytes);
            Ok(())
        });
        drop((receive, give));
        let was_read = reader.join().unwrap_or_else(|_| {
            Err(Error::new(Kind::Bug, "read", "a range")
                .because("the thread that reads ended early"))
        });
        written.and(was_read)
    })
}

/// Fills a buffer with what lies at `offset`: zeros for holes and behind the end.
pub fn read_at(
    chunks: &dyn ChunkStore,
    manifest: &Manifest,
    offset: u64,
    buffer: &mut [u8],
) -> Result<()> {
    buffer.fill(0);
    let reader = Reader::new(chunks, 1);
    let mut bytes = Vec::new();
    reader.plan(manifest, offset..offset + buffer.len() as u64, |stretch| {
        let start = reader.fill(&stretch, &mut bytes)?;
        let position = (start - offset) as usize;
        buffer[position..position + bytes.len()].copy_from_slice(&bytes);
        Ok(true)
    })
}

/// A stretch under way: where on the disk it starts, and its bytes.
type Under = Receiver<Result<(u64, Vec<u8>)>>;

/// Blocks of one segment that lie one behind the other and are no holes.
struct Stretch {
    map: Arc<SegmentMap>,
    blocks: Range<u32>,
    /// Where its first block starts on the disk, in bytes.
    start: u64,
    /// The bytes of it that are wanted.
    wanted: Range<usize>,
}

/// Reads stretches.
struct Reader<'a> {
    chunks: &'a dyn ChunkStore,
    /// The chunks that were used last.
    kept: Cache<ChunkDigest, Chunk>,
}

impl<'a> Reader<'a> {
    fn new(chunks: &'a dyn ChunkStore, kept: usize) -> Self {
        Reader { chunks, kept: Cache::new(kept) }
    }

    /// Names the stretches of a range, in order, until `each` says false.
    fn plan(
        &self,
        manifest: &Manifest,
        range: Range<u64>,
        mut each: impl FnMut(Stretch) -> Result<bool>,
    ) -> Result<()> {
        let range = range.start..range.end.min(manifest.length());
        if range.is_empty() {
            return Ok(());
        }
        let segments = manifest.segments();
        let first =
            segments.partition_point(|e| (u64::from(e.segment) + 1) * SEGMENT_LEN <= range.start);
        for entry in &segments[first..] {
            let base = u64::from(entry.segment) * SEGMENT_LEN;
            if base >= range.end {
                break;
            }
            let first_block = range.start.saturating_sub(base) / BLOCK_LEN as u64;
            let end_block = (range.end - base).min(SEGMENT_LEN).div_ceil(BLOCK_LEN as u64);
            let map = self.chunks.segment_map(entry.map)?;
            for blocks in stretches(&map, first_block as u32..end_block as u32) {
                let start = base + u64::from(blocks.start) * BLOCK_LEN as u64;
                let before = range.start.saturating_sub(start) as usize;
                // The last block of a disk of an odd length is stored whole.
                let end = (range.end - start).min((blocks.len() * BLOCK_LEN) as u64) as usize;
                let map = map.clone();
                if !each(Stretch { map, blocks, start, wanted: before..end })? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Sends all stretches of a range, in order, each as soon as it is under way.
    fn read_ahead(
        &self,
        manifest: &Manifest,
        range: Range<u64>,
        empty: &Receiver<Vec<u8>>,
        send: &Sender<Under>,
    ) -> Result<()> {
        rayon::in_place_scope(|pool| {
            self.plan(manifest, range, |stretch| {
                // Closed channels mean that the writer has failed; its error is returned there.
                let Ok(mut bytes) = empty.recv() else { return Ok(false) };
                let (done, under) = bounded(1);
                pool.spawn(move |_| {
                    let filled = self.fill(&stretch, &mut bytes);
                    let _ = done.send(filled.map(|start| (start, bytes)));
                });
                Ok(send.send(under).is_ok())
            })
        })
    }

    /// Reads a stretch, each chunk once, on all cores. Returns where on the disk its bytes start.
    fn fill(&self, stretch: &Stretch, bytes: &mut Vec<u8>) -> Result<u64> {
        let Stretch { map, blocks, start, wanted } = stretch;
        bytes.resize(blocks.len() * BLOCK_LEN, 0);
        let mut targets: Vec<(Run, &mut [u8])> = Vec::new();
        let mut rest = bytes.as_mut_slice();
        for run in map.runs_in(blocks.start, blocks.end) {
            let before = blocks.start.saturating_sub(run.first_block);
            let first_block = run.first_block + before;
            let inside = Run {
                first_block,
                block_count: run.end_block().min(blocks.end) - first_block,
                chunk: run.chunk,
                first_in_chunk: run.first_in_chunk + before,
            };
            let (target, behind) = rest.split_at_mut(inside.block_count as usize * BLOCK_LEN);
            targets.push((inside, target));
            rest = behind;
        }
        targets.sort_by_key(|(run, _)| run.chunk);
        let by_chunk: Vec<&mut [(Run, &mut [u8])]> =
            targets.chunk_by_mut(|(a, _), (b, _)| a.chunk == b.chunk).collect();
        by_chunk.into_par_iter().try_for_each(|targets| -> Result<()> {
            let Some((first, _)) = targets.first() else { return Ok(()) };
            let fetch = || self.chunks.chunk(first.chunk);
            let chunk = self.kept.get_or_insert_with(&first.chunk, fetch)?;
            for (run, target) in targets {
                target.copy_from_slice(chunk.blocks(run.first_in_chunk, run.block_count)?);
            }
            Ok(())
        })?;
        bytes.truncate(wanted.end);
        bytes.drain(..wanted.start);
        Ok(start + wanted.start as u64)
    }
}

/// The stretches of blocks without holes inside a range.
fn stretches(map: &SegmentMap, range: Range<u32>) -> Vec<Range<u32>> {
    let mut stretches: Vec<Range<u32>> = Vec::new();
    for run in map.runs_in(range.start, range.end) {
        let (first, end) = (run.first_block.max(range.start), run.end_block().min(range.end));
        match stretches.last_mut() {
            Some(last) if last.end == first && end - last.start <= STRETCH_BLOCKS => last.end = end,
            _ => stretches.push(first..end),
        }
    }
    stretches
}
