//! Segment maps as bytes.
//!
//! ```text
//! | format u32 | chunk count | chunk digests, 32 each | run count | runs |
//! run: gap to the run before, count - 1, chunk and where in it
//! ```
//!
//! Numbers are varints. A run goes on where the last run of its chunk ended unless it says
//! otherwise, and lies in the same chunk as the run before or in the next new one unless it says
//! otherwise, so that a fresh import costs some 4 bytes a run.
//!
//! **Invariant**: one map has one encoding; no other decodes.

use std::collections::HashMap;

use model::digest::DIGEST_LEN;
use model::map::Run;
use model::{BLOCKS_PER_SEGMENT, ChunkDigest, MapDigest, SegmentMap};

use crate::error::FormatError;
use crate::reader::{Reader, put_varint};

/// The format number of segment maps.
pub const FORMAT: u32 = 1;

const WHAT: &str = "segment map";

/// A run's chunk is coded as `2 * back + moved`: how far back in the order of first use it lies, 0
/// being the next chunk that was not used yet; and whether the place in it follows.
fn code(back: u32, moved: bool) -> u32 {
    2 * back + u32::from(moved)
}

/// The bytes of a map.
pub fn encode_segment_map(map: &SegmentMap) -> Vec<u8> {
    let chunks = map.chunks();
    let mut bytes = FORMAT.to_le_bytes().to_vec();
    put_varint(&mut bytes, chunks.len() as u32);
    chunks.iter().for_each(|chunk| bytes.extend_from_slice(chunk.as_bytes()));
    put_varint(&mut bytes, map.runs().len() as u32);
    let mut positions: HashMap<ChunkDigest, (u32, u32)> = HashMap::new();
    let (mut end, mut used) = (0, 0);
    for run in map.runs() {
        let (position, next) = *positions.entry(run.chunk).or_insert((used, 0));
        let back = if position == used { 0 } else { used - position };
        used = used.max(position + 1);
        put_varint(&mut bytes, run.first_block - end);
        put_varint(&mut bytes, run.block_count - 1);
        let moved = run.first_in_chunk != next;
        put_varint(&mut bytes, code(back, moved));
        if moved {
            put_varint(&mut bytes, run.first_in_chunk);
        }
        end = run.end_block();
        positions.insert(run.chunk, (position, run.first_in_chunk + run.block_count));
    }
    bytes
}

/// The map that bytes encode.
pub fn decode_segment_map(bytes: &[u8]) -> Result<SegmentMap, FormatError> {
    let mut reader = Reader::new(WHAT, bytes);
    reader.format(FORMAT)?;
    let chunk_count = reader.varint()?;
    if chunk_count > BLOCKS_PER_SEGMENT || chunk_count as usize > reader.remaining() / DIGEST_LEN {
        return Err(reader.unsound("chunk count", chunk_count.into()));
    }
    let mut chunks = Vec::with_capacity(chunk_count as usize);
    for _ in 0..chunk_count {
        chunks.push((ChunkDigest(reader.array()?), 0));
    }
    let run_count = reader.varint()?;
    if run_count > BLOCKS_PER_SEGMENT || run_count as usize > reader.remaining() {
        return Err(reader.unsound("run count", run_count.into()));
    }
    let mut runs = Vec::with_capacity(run_count as usize);
    let (mut end, mut used) = (0u32, 0u32);
    for _ in 0..run_count {
        let run = decode_run(&mut reader, end, &mut used, &mut chunks)?;
        end = run.end_block();
        runs.push(run);
    }
    reader.end()?;
    let map = SegmentMap::new(runs).map_err(|position| reader.unsound("run", position as u64))?;
    match encode_segment_map(&map) == bytes {
        true => Ok(map),
        false => Err(reader.unsound("encoding", 0)),
    }
}

fn decode_run(
    reader: &mut Reader,
    end: u32,
    used: &mut u32,
    chunks: &mut [(ChunkDigest, u32)],
) -> Result<Run, FormatError> {
    let gap = reader.varint()?;
    let count = reader.varint()?;
    let code = reader.varint()?;
    let position = match code / 2 {
        0 => Some(*used),
        back => used.checked_sub(back),
    };
    let chunk = position.and_then(|position| chunks.get_mut(position as usize));
    let Some((chunk, next)) = chunk else { return Err(reader.unsound("chunk", code.into())) };
    if code / 2 == 0 {
        *used += 1;
    }
    let first_in_chunk = if code % 2 == 1 { reader.varint()? } else { *next };
    let in_segment = |value: u32| value < BLOCKS_PER_SEGMENT;
    if !in_segment(gap) || !in_segment(count) || !in_segment(first_in_chunk) {
        return Err(reader.unsound("run", gap.into()));
    }
    *next = first_in_chunk + count + 1;
    Ok(Run { first_block: end + gap, block_count: count + 1, chunk: *chunk, first_in_chunk })
}

/// The digest by which a map is asked for: BLAKE3 over its bytes.
pub fn map_digest(bytes: &[u8]) -> MapDigest {
    MapDigest(*blake3::hash(bytes).as_bytes())
}
