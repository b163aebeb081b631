//! Segment maps as bytes: a table of chunks in order of first use, then the runs.
//!
//! ```text
//! 0       4        8             12          16                        one to nine bytes each
//! | LMAP | format | chunk count | run count | chunk digests, 32 each | runs |
//!
//! a run's first byte:  c c c c  p g k k
//!                      |        | | +-- chunk: 0 the last run's, 1 the next of the table, 2 by number
//!                      |        | +---- gap: 0 starts where the last run ended, 1 a gap follows
//!                      |        +------ position: 0 goes on where this chunk was left, 1 follows
//!                      +--------------- block count less one; 15: a number follows
//! ```
//!
//! **Invariants**: one map has one encoding, so equal maps have equal digests; whatever is not that
//! encoding is refused.
//!
//! **Failure**: at most one chunk and one run for each block of a segment are read, and never more
//! than the bytes at hand can hold.

use std::collections::HashMap;

use model::block::BLOCKS_PER_SEGMENT;
use model::{ChunkDigest, MapDigest, Run, SegmentMap};

use crate::FormatError;
use crate::cursor::{Cursor, push_varint};

/// The format number that [`encode_segment_map`] writes.
pub const SEGMENT_MAP_FORMAT: u32 = 1;

const WHAT: &str = "segment map";
const MAGIC: [u8; 4] = *b"LMAP";

const CHUNK_MASK: u8 = 0b11;
const CHUNK_SAME: u8 = 0;
const CHUNK_NEXT: u8 = 1;
const CHUNK_NUMBERED: u8 = 2;
const GAP: u8 = 1 << 2;
const POSITION: u8 = 1 << 3;
const COUNT_SHIFT: u32 = 4;
/// From this count (less one) on, the rest is a number of its own.
const COUNT_LONG: u32 = 15;

/// Encodes a map. Cost: one hash-map look-up for each run.
pub fn encode_segment_map(map: &SegmentMap) -> Vec<u8> {
    let mut numbers: HashMap<ChunkDigest, u32> = HashMap::new();
    let mut table = Vec::new();
    let mut runs = Vec::with_capacity(map.runs().len() * 3);
    let mut state = State::default();
    for run in map.runs() {
        let next = state.left_at.len() as u32;
        let number = *numbers.entry(run.chunk).or_insert(next);
        if number == next {
            table.extend_from_slice(&run.chunk.0);
        }
        state.encode(run, number, &mut runs);
    }
    let mut bytes = Vec::with_capacity(16 + table.len() + runs.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&SEGMENT_MAP_FORMAT.to_le_bytes());
    bytes.extend_from_slice(&(numbers.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&(map.runs().len() as u32).to_le_bytes());
    bytes.extend_from_slice(&table);
    bytes.extend_from_slice(&runs);
    bytes
}

/// Decodes a map. Cost: decodes and encodes again, to see that there was no other way to write it.
///
/// # Errors
/// Where the bytes are cut short, hold runs that a map cannot have, or are not the encoding that
/// [`encode_segment_map`] gives: fetch another copy.
pub fn decode_segment_map(bytes: &[u8]) -> Result<SegmentMap, FormatError> {
    let mut cursor = Cursor::new(WHAT, bytes);
    cursor.preamble(MAGIC, SEGMENT_MAP_FORMAT)?;
    let chunk_count = decode_count(&mut cursor, "chunk count")?;
    let run_count = decode_count(&mut cursor, "run count")?;
    let (chunks, _) = cursor.take(chunk_count * 32)?.as_chunks::<32>();
    if run_count > cursor.remaining() {
        return Err(FormatError::Truncated { what: WHAT, offset: bytes.len() as u64 });
    }
    let mut runs = Vec::with_capacity(run_count);
    let mut state = State::default();
    for _ in 0..run_count {
        runs.push(state.decode(&mut cursor, chunks)?);
    }
    cursor.end()?;
    let map = SegmentMap::new(runs).map_err(|position| FormatError::Unsound {
        what: WHAT,
        field: "run",
        offset: 16 + chunk_count as u64 * 32,
        value: position as u64,
    })?;
    check_canonical(bytes, &encode_segment_map(&map))?;
    Ok(map)
}

/// The digest that names a map: BLAKE3 over its encoded bytes.
pub fn map_digest(bytes: &[u8]) -> MapDigest {
    MapDigest(*blake3::hash(bytes).as_bytes())
}

fn decode_count(cursor: &mut Cursor<'_>, field: &'static str) -> Result<usize, FormatError> {
    let count = cursor.u32()?;
    match count <= BLOCKS_PER_SEGMENT {
        true => Ok(count as usize),
        false => Err(cursor.unsound_before(4, field, count.into())),
    }
}

fn check_canonical(bytes: &[u8], canonical: &[u8]) -> Result<(), FormatError> {
    if bytes == canonical {
        return Ok(());
    }
    let same = bytes.iter().zip(canonical).take_while(|(a, b)| a == b).count();
    Err(FormatError::NotCanonical { what: WHAT, offset: same as u64 })
}

/// What both sides know before each run.
#[derive(Default)]
struct State {
    /// The block behind the last run.
    end_block: u32,
    /// The number of the last run's chunk.
    last: Option<u32>,
    /// For each chunk used so far, by number, the block behind the last that was used of it.
    left_at: Vec<u32>,
}

impl State {
    fn encode(&mut self, run: &Run, number: u32, bytes: &mut Vec<u8>) {
        let gap = run.first_block - self.end_block;
        let left_at = self.left_at.get(number as usize).copied();
        let chunk = match left_at {
            None => CHUNK_NEXT,
            Some(_) if self.last == Some(number) => CHUNK_SAME,
            Some(_) => CHUNK_NUMBERED,
        };
        let moved = run.first_in_chunk != left_at.unwrap_or(0);
        let less_one = run.block_count - 1;
        let mut head = chunk | (less_one.min(COUNT_LONG) as u8) << COUNT_SHIFT;
        head |= if gap > 0 { GAP } else { 0 };
        head |= if moved { POSITION } else { 0 };
        bytes.push(head);
        if less_one >= COUNT_LONG {
            push_varint(bytes, less_one - COUNT_LONG);
        }
        if gap > 0 {
            push_varint(bytes, gap - 1);
        }
        if chunk == CHUNK_NUMBERED {
            push_varint(bytes, zigzag(number as i32 - self.last.unwrap_or(0) as i32));
        }
        if moved {
            push_varint(bytes, run.first_in_chunk);
        }
        self.advance(run, number);
    }

    fn decode(&mut self, cursor: &mut Cursor<'_>, chunks: &[[u8; 32]]) -> Result<Run, FormatError> {
        let unsound = |cursor: &Cursor<'_>, field, value: u64| FormatError::Unsound {
            what: WHAT,
            field,
            offset: cursor.offset(),
            value,
        };
        let head = cursor.u8()?;
        let mut less_one = u32::from(head >> COUNT_SHIFT);
        if less_one == COUNT_LONG {
            less_one = less_one.saturating_add(cursor.varint("block count")?);
        }
        let gap = match head & GAP {
            0 => 0,
            _ => cursor.varint("gap")?.saturating_add(1),
        };
        let number = match head & CHUNK_MASK {
            CHUNK_SAME => self.last,
            CHUNK_NEXT => Some(self.left_at.len() as u32),
            CHUNK_NUMBERED => {
                let step = unzigzag(cursor.varint("chunk step")?);
                self.last.and_then(|last| last.checked_add_signed(step))
            }
            _ => None,
        };
        let known = self.left_at.len() + usize::from(head & CHUNK_MASK == CHUNK_NEXT);
        let number = number
            .filter(|number| (*number as usize) < known.min(chunks.len()))
            .ok_or_else(|| unsound(cursor, "chunk", head.into()))?;
        let first_in_chunk = match head & POSITION {
            0 => self.left_at.get(number as usize).copied().unwrap_or(0),
            _ => cursor.varint("first in chunk")?,
        };
        // Checked here, so that the arithmetic of a run and of this state cannot overflow.
        let first_block = self.end_block.saturating_add(gap);
        let block_count = less_one.saturating_add(1);
        for (field, value, max) in [
            ("first block", first_block, BLOCKS_PER_SEGMENT),
            ("block count", block_count, model::map::CHUNK_BLOCKS_MAX),
            ("first in chunk", first_in_chunk, model::map::CHUNK_BLOCKS_MAX),
        ] {
            if value > max {
                return Err(unsound(cursor, field, value.into()));
            }
        }
        let chunk = ChunkDigest(chunks[number as usize]);
        let run = Run { first_block, block_count, chunk, first_in_chunk };
        self.advance(&run, number);
        Ok(run)
    }

    fn advance(&mut self, run: &Run, number: u32) {
        let left_at = run.first_in_chunk + run.block_count;
        match self.left_at.get_mut(number as usize) {
            Some(known) => *known = left_at,
            None => self.left_at.push(left_at),
        }
        self.end_block = run.end_block();
        self.last = Some(number);
    }
}

/// Folds small steps in both directions into small numbers: 0, -1, 1, -2...
fn zigzag(step: i32) -> u32 {
    ((step << 1) ^ (step >> 31)) as u32
}

fn unzigzag(folded: u32) -> i32 {
    (folded >> 1) as i32 ^ -((folded & 1) as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first_block: u32, block_count: u32, chunk: u8, first_in_chunk: u32) -> Run {
        Run { first_block, block_count, chunk: ChunkDigest([chunk; 32]), first_in_chunk }
    }

    fn check(runs: Vec<Run>, run_bytes: &[u8]) {
        let map = SegmentMap::new(runs).unwrap();
        let bytes = encode_segment_map(&map);
        assert_eq!(&bytes[16 + 32 * map.chunks().len()..], run_bytes, "{map:?}");
        assert_eq!(decode_segment_map(&bytes).unwrap(), map);
    }

    #[test]
    fn the_usual_runs_take_one_or_two_bytes() {
        check(vec![], &[]);
        // A fresh chunk from its start: short, and of 64 blocks.
        check(vec![run(0, 3, 1, 0)], &[0x21]);
        check(vec![run(0, 64, 1, 0), run(64, 64, 2, 0)], &[0xf1, 48, 0xf1, 48]);
        // The same chunk goes on behind a hole.
        check(vec![run(0, 3, 1, 0), run(5, 2, 1, 3)], &[0x21, 0x14, 1]);
        // Back to an earlier chunk where it was left, then elsewhere in it.
        check(
            vec![run(0, 3, 1, 0), run(3, 1, 2, 0), run(4, 1, 1, 3), run(5, 1, 1, 9)],
            &[0x21, 0x01, 0x02, 1, 0x08, 9],
        );
    }
}
