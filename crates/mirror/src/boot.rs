//! Bringing a boot working set before it is asked for.
//!
//! ```text
//! set ─► plan: which of its blocks this version has where the set says ─► units of 1 MiB, in order
//!                                                     prefetch threads ─► unit 0, 1, 2, ...
//!                                                       a guest's miss ─► the unit that has it, now
//! ```
//!
//! **Invariants**: a block is used only where the version's own segment map puts it into the same
//! place of the same chunk, and its bytes have the digest that the chunk's list gives: a set that
//! lies costs its fetch. A guest's read never waits behind the prefetch of another unit.
//!
//! **Failure**: a unit that cannot be fetched, or a block that is wrong, is left to the chunks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use model::block::{BLOCKS_PER_SEGMENT, SEGMENT_LEN};
use model::boot_set::BootSet;
use model::{BLOCK_LEN, BlockDigest, Error, Result};

use crate::base::{FetchKey, PresentBits};
use crate::fetch::BaseView;
use crate::journal::Origin;

/// Pieces that are fetched in one request: 1 MiB of plain bytes.
const PIECES_PER_UNIT: usize = 4;

/// Threads that prefetch one set: one waits for the store while the other unpacks.
const THREADS: usize = 2;

/// A block of a set, where it goes and what it must be.
#[derive(Clone, Copy, Debug)]
struct Planned {
    block: u64,
    digest: BlockDigest,
    /// False where the version has another block there, or none.
    fits: bool,
}

/// A set on its way into a base.
#[derive(Debug)]
pub(crate) struct Boot {
    set: Arc<BootSet>,
    /// In the order of the pieces.
    blocks: Vec<Planned>,
    /// For each unit, the position of its first block; and the end.
    unit_starts: Vec<usize>,
    /// Block of the disk and position in `blocks`, by block.
    positions: Vec<(u64, u32)>,
    tried: Vec<AtomicBool>,
    next: AtomicUsize,
}

/// Bytes that lie one behind the other, from a block of a segment on.
type Runs = Vec<(u32, Vec<u8>)>;

/// What came of prefetching so far. Bytes.
#[derive(Debug, Default)]
pub(crate) struct BootCounts {
    /// Plain bytes of the blocks that the set brought.
    pub(crate) brought: AtomicU64,
    /// Plain bytes of the set's blocks that this version does not have there.
    pub(crate) misfits: AtomicU64,
}

impl Boot {
    /// Compares a set with the version's maps. Cost: the maps of the segments that it touches.
    fn plan(view: &BaseView, set: Arc<BootSet>) -> Result<Boot> {
        let mut blocks = Vec::with_capacity(set.block_count() as usize);
        for read in set.reads() {
            let source = &set.sources()[read.source as usize];
            let first = read.read.first_block;
            let segment = (first / u64::from(BLOCKS_PER_SEGMENT)) as u32;
            let inside = (first + u64::from(read.read.block_count)) * BLOCK_LEN as u64
                <= view.length().next_multiple_of(BLOCK_LEN as u64);
            let map = if inside { Some(view.segment_map(segment)?) } else { None };
            for step in 0..read.read.block_count {
                let in_segment = (first % u64::from(BLOCKS_PER_SEGMENT)) as u32 + step;
                let index = read.first_in_chunk + step;
                let run = map.as_ref().and_then(|m| m.runs_in(in_segment, in_segment + 1).first());
                let fits = run.is_some_and(|run| {
                    run.chunk == source.chunk
                        && run.first_in_chunk + in_segment - run.first_block == index
                });
                let digest = source.blocks[index as usize];
                blocks.push(Planned { block: first + u64::from(step), digest, fits });
            }
        }
        let mut unit_starts = vec![0];
        let mut end = 0;
        for pieces in set.pieces().chunks(PIECES_PER_UNIT) {
            end += pieces.iter().map(|piece| piece.block_count as usize).sum::<usize>();
            unit_starts.push(end);
        }
        let fitting = blocks.iter().zip(0..).filter(|(planned, _)| planned.fits);
        let mut positions: Vec<(u64, u32)> = fitting.map(|(p, at)| (p.block, at)).collect();
        positions.sort_unstable();
        let units = unit_starts.len() - 1;
        let tried = (0..units).map(|_| AtomicBool::new(false)).collect();
        Ok(Boot { set, blocks, unit_starts, positions, tried, next: AtomicUsize::new(0) })
    }

    /// The unit that holds a block, unless it was tried already.
    fn unit_of(&self, block: u64) -> Option<usize> {
        let found = self.positions.binary_search_by_key(&block, |(block, _)| *block).ok()?;
        let position = self.positions[found].1 as usize;
        let unit = self.unit_starts.partition_point(|start| *start <= position) - 1;
        (!self.tried[unit].load(Ordering::Acquire)).then_some(unit)
    }
}

impl BaseView {
    /// Brings a set in the background.
    pub(crate) fn prefetch_boot_set(self: &Arc<Self>, set: Arc<BootSet>) {
        let view = Arc::downgrade(self);
        let work = move || {
            let Some(strong) = view.upgrade() else { return };
            let boot = match Boot::plan(&strong, set) {
                Ok(boot) => Arc::new(boot),
                Err(error) => return tracing::debug!("no prefetch: {}", error.chain()),
            };
            let misfits = boot.blocks.iter().filter(|planned| !planned.fits).count();
            strong.boot_counts.misfits.store((misfits * BLOCK_LEN) as u64, Ordering::Relaxed);
            strong.use_boot(Some(boot.clone()));
            drop(strong);
            std::thread::scope(|scope| {
                for _ in 0..THREADS {
                    // A mirror that goes away ends it: nobody else holds the view then.
                    scope.spawn(|| {
                        while let Some(view) = view.upgrade()
                            && let Some(unit) = next_unit(&boot)
                        {
                            view.fetch_unit_or_leave_it(&boot, unit);
                        }
                    });
                }
            });
            if let Some(view) = view.upgrade() {
                view.use_boot(None);
            }
        };
        let thread = std::thread::Builder::new().name("boot-prefetch".into());
        if let Err(error) = thread.spawn(work) {
            tracing::debug!(%error, "no prefetch");
        }
    }

    /// Brings a missing block by the set on its way, if it has it. True where that was tried.
    pub(crate) fn bring_by_boot_set(&self, segment: u32, block: u32) -> bool {
        let Some(boot) = self.boot() else { return false };
        let block = u64::from(segment) * u64::from(BLOCKS_PER_SEGMENT) + u64::from(block);
        match boot.unit_of(block) {
            Some(unit) => {
                self.fetch_unit_or_leave_it(&boot, unit);
                true
            }
            None => false,
        }
    }

    fn fetch_unit_or_leave_it(&self, boot: &Boot, unit: usize) {
        let Some(_flight) = self.base.flights.board(FetchKey::Boot(unit as u32)) else { return };
        if boot.tried[unit].load(Ordering::Acquire) {
            return;
        }
        let fetched = self.fetch_unit(boot, unit);
        boot.tried[unit].store(true, Ordering::Release);
        if let Err(error) = fetched {
            tracing::debug!("left to the chunks: {}", error.chain());
        }
    }

    fn fetch_unit(&self, boot: &Boot, unit: usize) -> Result<()> {
        let planned = &boot.blocks[boot.unit_starts[unit]..boot.unit_starts[unit + 1]];
        let is_missing = |planned: &Planned| {
            let (segment, block) = split(planned.block);
            planned.fits && self.segment(segment).first_missing(block, block + 1).is_some()
        };
        if !planned.iter().any(is_missing) {
            return Ok(());
        }
        let began = self.journal.now();
        let first = unit * PIECES_PER_UNIT;
        let pieces = boot.set.pieces();
        let pieces = &pieces[first..(first + PIECES_PER_UNIT).min(pieces.len())];
        let bytes = self.boot_pieces(pieces)?.concat();
        if bytes.len() != planned.len() * BLOCK_LEN {
            return Err(Error::new(model::Kind::Corrupt, "read the boot pieces", "of a set")
                .because("they have another length than the set says"));
        }
        let wanted =
            planned.iter().zip(bytes.chunks_exact(BLOCK_LEN)).filter(|(planned, bytes)| {
                is_missing(planned) && BlockDigest::of(bytes) == planned.digest
            });
        let kept = self.keep_blocks(wanted)?;
        self.journal.brought(kept.iter().copied());
        let len = (kept.len() * BLOCK_LEN) as u64;
        self.boot_counts.brought.fetch_add(len, Ordering::Relaxed);
        self.journal.fetched(began, Origin::BootSet, planned[0].block, len);
        self.count_kept(len);
        Ok(())
    }

    /// Keeps blocks in the base: together those that follow each other. Returns which those were.
    fn keep_blocks<'a>(
        &self,
        blocks: impl Iterator<Item = (&'a Planned, &'a [u8])>,
    ) -> Result<Vec<u64>> {
        let mut by_segment: BTreeMap<u32, (PresentBits, Runs)> = BTreeMap::new();
        let mut kept = Vec::new();
        for (planned, bytes) in blocks {
            let (segment, block) = split(planned.block);
            let (added, runs) =
                by_segment.entry(segment).or_insert_with(|| (PresentBits::none(), Vec::new()));
            added.add(block, block + 1);
            match runs.last_mut() {
                Some((first, run)) if *first + (run.len() / BLOCK_LEN) as u32 == block => {
                    run.extend_from_slice(bytes);
                }
                _ => runs.push((block, bytes.to_vec())),
            }
            kept.push(planned.block);
        }
        for (segment, (added, runs)) in by_segment {
            let pieces: Vec<(u32, &[u8])> =
                runs.iter().map(|(block, bytes)| (*block, &bytes[..])).collect();
            self.keep(segment, self.segment(segment), &added, &pieces)?;
        }
        Ok(kept)
    }
}

fn next_unit(boot: &Boot) -> Option<usize> {
    let unit = boot.next.fetch_add(1, Ordering::Relaxed);
    (unit < boot.tried.len()).then_some(unit)
}

fn split(block: u64) -> (u32, u32) {
    let per_segment = SEGMENT_LEN / BLOCK_LEN as u64;
    ((block / per_segment) as u32, (block % per_segment) as u32)
}
