//! A patch laid upon a version: which segments stay, which are the patch's own, which are mixed.
//!
//! ```text
//! parent      |ppppppppp|ppppppppp|ppppppppp|ppppppppp|
//! patch              hbbb bbbbbbbbb bbbt
//! new         |ppppppXbb|bbbbbbbbb|bbbXppppp|ppppppppp|     X: a block of both, read and hashed anew
//!               mixed     patch's    mixed      parent's
//! ```
//!
//! A segment that the body fills is taken over by its map as it was stored; of the others the maps
//! are made anew, from digests alone.

use std::ops::Range;

use chunking::SegmentDraft;
use model::block::BLOCKS_PER_SEGMENT;
use model::changes::{ChangedBlocks, Changes};
use model::map::Run;
use model::{BLOCK_LEN, BlockRange, Error, Kind, Manifest, Result, SegmentEntry, SegmentMap};
use store::ChunkStore;

use super::patch::{Patch, Stored};
use crate::ranges;
use crate::rebuild::{Overlay, lay_upon};
use crate::repository::Repository;
use crate::windows::split;

/// The blocks of a patch that must be hashed, complete: what its version has that the parent had not,
/// apart from the stored body.
pub struct PlacedBytes {
    length: u64,
    /// Whole blocks, ascending, without overlap: the first of each piece and their bytes.
    pieces: Vec<(u64, Vec<u8>)>,
}

/// The stored body of a patch, where it is to lie.
pub struct PlacedBody<'a> {
    repository: &'a Repository,
    stored: &'a Stored,
    blocks: Range<u64>,
}

/// Lays a patch at an offset of a parent: what is to be hashed, and what is stored already.
pub fn place<'a>(
    repository: &'a Repository,
    parent: &Manifest,
    patch: &'a Patch,
    offset: u64,
) -> Result<(PlacedBytes, Option<PlacedBody<'a>>)> {
    let block_len = BLOCK_LEN as u64;
    let end = offset + patch.len();
    let length = if patch.len() == 0 { parent.length() } else { parent.length().max(end) };
    let piece = |offset: u64, bytes: &[u8]| complete(repository, parent, offset, bytes);
    match patch {
        Patch::Memory(bytes) => {
            let pieces = piece(offset, bytes)?.into_iter().collect();
            Ok((PlacedBytes { length, pieces }, None))
        }
        Patch::Stored(stored) => {
            let first = (offset + stored.head.len() as u64) / block_len;
            let blocks = first..first + stored.block_count;
            let head = piece(offset, &stored.head)?;
            let tail = piece(blocks.end * block_len, &stored.tail)?;
            let pieces = head.into_iter().chain(tail).collect();
            let body = PlacedBody { repository, stored, blocks };
            Ok((PlacedBytes { length, pieces }, Some(body)))
        }
    }
}

/// Bytes at any offset as whole blocks, filled from the parent at both ends.
fn complete(
    repository: &Repository,
    parent: &Manifest,
    offset: u64,
    bytes: &[u8],
) -> Result<Option<(u64, Vec<u8>)>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let block_len = BLOCK_LEN as u64;
    let end = offset + bytes.len() as u64;
    let blocks = offset / block_len..end.div_ceil(block_len);
    let mut whole = vec![0; (blocks.end - blocks.start) as usize * BLOCK_LEN];
    let chunks = repository.chunks();
    let mut fill = |block: u64| {
        let position = (block - blocks.start) as usize * BLOCK_LEN;
        let target = &mut whole[position..position + BLOCK_LEN];
        ranges::read_at(&*chunks, parent, block * block_len, target)
    };
    let head_is_partial = !offset.is_multiple_of(block_len);
    if head_is_partial {
        fill(blocks.start)?;
    }
    let tail_is_partial = !end.is_multiple_of(block_len);
    if tail_is_partial && !(head_is_partial && blocks.end - blocks.start == 1) {
        fill(blocks.end - 1)?;
    }
    let position = (offset - blocks.start * block_len) as usize;
    whole[position..position + bytes.len()].copy_from_slice(bytes);
    Ok(Some((blocks.start, whole)))
}

impl PlacedBytes {
    fn ranges(&self) -> impl Iterator<Item = (Range<u64>, &[u8])> {
        self.pieces.iter().map(|(first, bytes)| {
            (*first..first + (bytes.len() / BLOCK_LEN) as u64, bytes.as_slice())
        })
    }
}

impl Changes for PlacedBytes {
    fn length(&self) -> u64 {
        self.length
    }

    fn segments(&self) -> Vec<u32> {
        let of = |blocks: Range<u64>| split(blocks.start).0..=split(blocks.end - 1).0;
        let mut segments: Vec<u32> = self.ranges().flat_map(|(blocks, _)| of(blocks)).collect();
        segments.dedup();
        segments
    }

    fn in_segment(&self, segment: u32) -> Result<Vec<ChangedBlocks>> {
        let first = u64::from(segment) * u64::from(BLOCKS_PER_SEGMENT);
        let inside = |(blocks, _): (Range<u64>, &[u8])| {
            let end = blocks.end.min(first + u64::from(BLOCKS_PER_SEGMENT));
            BlockRange::new(blocks.start.max(first)..end)
                .map(|blocks| ChangedBlocks { blocks, zero: false })
        };
        Ok(self.ranges().filter_map(inside).collect())
    }

    fn read(&self, blocks: BlockRange, buffer: &mut [u8]) -> Result<()> {
        let (piece, bytes) = self
            .ranges()
            .find(|(piece, _)| piece.start <= blocks.start() && blocks.end() <= piece.end)
            .ok_or_else(|| Error::new(Kind::Bug, "read", "blocks that a patch does not have"))?;
        let position = (blocks.start() - piece.start) as usize * BLOCK_LEN;
        buffer.copy_from_slice(&bytes[position..position + buffer.len()]);
        Ok(())
    }
}

impl PlacedBody<'_> {
    /// Its blocks inside a segment, counted from the segment's start.
    fn blocks_in(&self, segment: u32) -> Range<u32> {
        let first = u64::from(segment) * u64::from(BLOCKS_PER_SEGMENT);
        let inside =
            |block: u64| block.saturating_sub(first).min(u64::from(BLOCKS_PER_SEGMENT)) as u32;
        inside(self.blocks.start)..inside(self.blocks.end)
    }

    fn has_moved_within_segments(&self) -> bool {
        self.blocks.start != self.stored.first_block
    }

    fn segments(&self) -> Range<u32> {
        match self.blocks.is_empty() {
            true => 0..0,
            false => split(self.blocks.start).0..split(self.blocks.end - 1).0 + 1,
        }
    }

    /// True where the segment is the body's, as it was stored.
    fn fills(&self, segment: u32) -> bool {
        !self.has_moved_within_segments() && self.blocks_in(segment) == (0..BLOCKS_PER_SEGMENT)
    }

    /// The stored runs that lie in a segment now.
    fn map(&self, segment: u32) -> Result<SegmentMap> {
        let per_segment = u64::from(BLOCKS_PER_SEGMENT);
        let first = u64::from(segment) * per_segment;
        let inside = self.blocks_in(segment);
        // The same blocks, by the numbers under which they were stored.
        let moved = |block: u64| block - self.blocks.start + self.stored.first_block;
        let start = moved(first + u64::from(inside.start));
        let end = moved(first + u64::from(inside.end));
        let entries = self.stored.segments.iter().map(|(entry, _)| entry);
        let mut runs = Vec::new();
        for entry in entries {
            let base = u64::from(entry.segment) * per_segment;
            if base >= end || base + per_segment <= start {
                continue;
            }
            let from = start.saturating_sub(base) as u32;
            let to = (end - base).min(per_segment) as u32;
            let map = self.repository.chunks().segment_map(entry.map)?;
            for run in map.runs_in(from, to) {
                let (from, to) = (run.first_block.max(from), run.end_block().min(to));
                let now = base + u64::from(from) - start + u64::from(inside.start);
                runs.push(Run {
                    first_block: now as u32,
                    block_count: to - from,
                    chunk: run.chunk,
                    first_in_chunk: run.first_in_chunk + (from - run.first_block),
                });
            }
        }
        SegmentMap::new(runs)
            .map_err(|_| Error::new(Kind::Bug, "lay out", "the segments of a patch"))
    }
}

impl Overlay for PlacedBody<'_> {
    fn covers(&self, segment: u32) -> bool {
        self.segments().contains(&segment)
    }

    fn whole(&self) -> Vec<(SegmentEntry, u64)> {
        let segments = self.stored.segments.iter().copied();
        segments.filter(|(entry, _)| self.fills(entry.segment)).collect()
    }

    fn mixed(&self) -> Vec<u32> {
        self.segments().filter(|segment| !self.fills(*segment)).collect()
    }

    fn lay_upon(&self, draft: &mut SegmentDraft) -> Result<()> {
        let segment = draft.segment();
        let inside = self.blocks_in(segment);
        if inside.is_empty() {
            return Ok(());
        }
        inside.for_each(|block| draft.set_hole(block));
        lay_upon(self.repository, draft, &self.map(segment)?)
    }
}
