//! Reads ranges of a version: windows of the disk, each chunk on one of all cores, verified.
//!
//! ```text
//! range        |....ddddddd....dddd..|       . hole, d data
//! windows           |--1--|-2|  |-3-|        at most 16 MiB each, in ascending order, no holes
//! ```
//!
//! **Invariant**: a chunk is read once for each window that uses it, and the one that a window ends
//! in is kept for the next, so that what was laid down in order is read once.

use std::ops::Range;
use std::sync::OnceLock;

use model::{BLOCK_LEN, ChunkDigest, Manifest, Result, Run, SEGMENT_LEN, SegmentMap};
use rayon::prelude::*;
use store::{Chunk, ChunkStore};

/// Blocks of a window of the disk: 16 MiB.
const WINDOW_BLOCKS: u32 = 4096;

/// A stretch of the disk without holes.
pub struct Filled {
    /// Where on the disk it starts, in bytes.
    pub offset: u64,
    /// What is there.
    pub bytes: Vec<u8>,
}

/// Reads what is no hole in a range of bytes, in ascending order, until `give` says false. What lies
/// behind the end of the disk is not there.
pub fn read_range(
    chunks: &dyn ChunkStore,
    manifest: &Manifest,
    range: Range<u64>,
    mut give: impl FnMut(Filled) -> bool,
) -> Result<()> {
    let range = range.start..range.end.min(manifest.length());
    if range.is_empty() {
        return Ok(());
    }
    let segments = manifest.segments();
    let first =
        segments.partition_point(|e| (u64::from(e.segment) + 1) * SEGMENT_LEN <= range.start);
    let mut carried = None;
    for entry in &segments[first..] {
        let base = u64::from(entry.segment) * SEGMENT_LEN;
        if base >= range.end {
            break;
        }
        let first_block = range.start.saturating_sub(base) / BLOCK_LEN as u64;
        let end_block = (range.end - base).min(SEGMENT_LEN).div_ceil(BLOCK_LEN as u64);
        let map = chunks.segment_map(entry.map)?;
        for stretch in stretches(&map, first_block as u32..end_block as u32) {
            let start = base + u64::from(stretch.start) * BLOCK_LEN as u64;
            let mut bytes = fill(chunks, &map, &stretch, &mut carried)?;
            // The last block of a disk of an odd length is stored whole.
            bytes.truncate((range.end - start).min(bytes.len() as u64) as usize);
            let before = range.start.saturating_sub(start) as usize;
            bytes.drain(..before);
            if !give(Filled { offset: start + before as u64, bytes }) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Fills a buffer with what lies at `offset`: zeros for holes and behind the end.
pub fn read_at(
    chunks: &dyn ChunkStore,
    manifest: &Manifest,
    offset: u64,
    buffer: &mut [u8],
) -> Result<()> {
    buffer.fill(0);
    read_range(chunks, manifest, offset..offset + buffer.len() as u64, |filled| {
        let position = (filled.offset - offset) as usize;
        buffer[position..position + filled.bytes.len()].copy_from_slice(&filled.bytes);
        true
    })
}

/// The stretches of blocks without holes inside a range, cut to windows.
fn stretches(map: &SegmentMap, range: Range<u32>) -> Vec<Range<u32>> {
    let mut stretches: Vec<Range<u32>> = Vec::new();
    for run in map.runs_in(range.start, range.end) {
        let (first, end) = (run.first_block.max(range.start), run.end_block().min(range.end));
        match stretches.last_mut() {
            Some(last) if last.end == first && end - last.start <= WINDOW_BLOCKS => last.end = end,
            _ => stretches.push(first..end),
        }
    }
    stretches
}

/// Reads a stretch: each chunk once, on all cores. `carried` is the chunk that the stretch before it
/// ended in, then the one that this one ends in.
fn fill(
    chunks: &dyn ChunkStore,
    map: &SegmentMap,
    stretch: &Range<u32>,
    carried: &mut Option<(ChunkDigest, Chunk)>,
) -> Result<Vec<u8>> {
    let mut bytes = vec![0; stretch.len() * BLOCK_LEN];
    let mut targets: Vec<(Run, &mut [u8])> = Vec::new();
    let mut rest = bytes.as_mut_slice();
    for run in map.runs_in(stretch.start, stretch.end) {
        let before = stretch.start.saturating_sub(run.first_block);
        let first_block = run.first_block + before;
        let inside = Run {
            first_block,
            block_count: run.end_block().min(stretch.end) - first_block,
            chunk: run.chunk,
            first_in_chunk: run.first_in_chunk + before,
        };
        let (target, behind) = rest.split_at_mut(inside.block_count as usize * BLOCK_LEN);
        targets.push((inside, target));
        rest = behind;
    }
    let last = targets.last().map(|(run, _)| run.chunk);
    let last_chunk = OnceLock::new();
    targets.sort_by_key(|(run, _)| run.chunk);
    let by_chunk: Vec<&mut [(Run, &mut [u8])]> =
        targets.chunk_by_mut(|(a, _), (b, _)| a.chunk == b.chunk).collect();
    by_chunk.into_par_iter().try_for_each(|targets| -> Result<()> {
        let Some((first, _)) = targets.first() else { return Ok(()) };
        let digest = first.chunk;
        let chunk = match &*carried {
            Some((known, chunk)) if *known == digest => chunk.clone(),
            _ => chunks.chunk(digest)?,
        };
        for (run, target) in targets {
            target.copy_from_slice(chunk.blocks(run.first_in_chunk, run.block_count)?);
        }
        if last == Some(digest) {
            let _ = last_chunk.set(chunk);
        }
        Ok(())
    })?;
    *carried = last.zip(last_chunk.into_inner());
    Ok(bytes)
}
