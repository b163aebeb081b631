//! Bringing a boot working set before it is asked for.
//!
//! ```text
//! set ─► units of 1 MiB, in order of first use
//!          prefetch ─► maps of the set's segments, side by side ─┐
//!                  ├─► unit 0 ─► bytes ─────────────────────────►├─► what fits ─► base
//!                  ├─► unit 1 ─► ... as many under way as pays ─►┘
//!   a guest's miss ─► the unit that has it, now
//! ```
//!
//! **Invariants**: a block is used only where the version's own segment map puts it into the same
//! place of the same chunk, and its bytes have the digest that the chunk's list gives: a set that
//! lies costs its fetch. A guest's read never waits behind the prefetch of another unit, beyond what
//! is on the way already.
//!
//! **Failure**: a unit that cannot be fetched, or a block that is wrong, is left to the chunks.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use env::{Clock, SystemClock};
use model::block::{BLOCKS_PER_SEGMENT, SEGMENT_LEN};
use model::boot_set::BootSet;
use model::{BLOCK_LEN, BlockDigest, Error, Kind, Result, SegmentMap};

use crate::at_once::at_once;
use crate::base::FetchKey;
use crate::fetch::BaseView;
use crate::journal::Origin;
use crate::pace::Pace;
use crate::presence::PresentBits;

/// Pieces that are fetched in one request: 1 MiB of plain bytes.
const PIECES_PER_UNIT: usize = 4;

/// Maps that are fetched side by side.
const MAPS_AT_ONCE: NonZeroUsize = NonZeroUsize::new(16).unwrap();

/// A block of a set, and where the set says that it lies.
#[derive(Clone, Copy, Debug)]
struct Planned {
    block: u64,
    source: u32,
    /// Where in the source.
    index: u32,
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
}

/// Bytes that lie one behind the other, from a block of a segment on.
type Runs = Vec<(u32, Vec<u8>)>;

/// What came of prefetching so far. Bytes.
#[derive(Debug, Default)]
pub(crate) struct BootCounts {
    /// Plain bytes of the blocks that the set brought.
    pub(crate) brought: AtomicU64,
    /// Plain bytes of blocks that came and that this version does not have there.
    pub(crate) misfits: AtomicU64,
}

impl Boot {
    /// Lays a set out in units. Blocks beyond the disk are in no unit's reach.
    fn new(set: Arc<BootSet>) -> Boot {
        let mut blocks = Vec::with_capacity(set.block_count() as usize);
        for read in set.reads() {
            blocks.extend((0..read.read.block_count).map(|step| Planned {
                block: read.read.first_block + u64::from(step),
                source: read.source,
                index: read.first_in_chunk + step,
            }));
        }
        let mut unit_starts = vec![0];
        let mut end = 0;
        for pieces in set.pieces().chunks(PIECES_PER_UNIT) {
            end += pieces.iter().map(|piece| piece.block_count as usize).sum::<usize>();
            unit_starts.push(end);
        }
        let mut positions: Vec<(u64, u32)> =
            blocks.iter().zip(0..).map(|(planned, at)| (planned.block, at)).collect();
        positions.sort_unstable();
        let tried = (1..unit_starts.len()).map(|_| AtomicBool::new(false)).collect();
        Boot { set, blocks, unit_starts, positions, tried }
    }

    /// The unit that holds a block as the version's map has it, unless it was tried already.
    pub(crate) fn unit_of(&self, block: u64, map: &SegmentMap) -> Option<usize> {
        let found = self.positions.binary_search_by_key(&block, |(block, _)| *block).ok()?;
        let position = self.positions[found].1 as usize;
        let unit = self.unit_starts.partition_point(|start| *start <= position) - 1;
        let is_open = !self.tried[unit].load(Ordering::Acquire);
        (is_open && self.fits(&self.blocks[position], map)).then_some(unit)
    }

    /// True where the map puts a block into the place that the set names.
    fn fits(&self, planned: &Planned, map: &SegmentMap) -> bool {
        let (_, block) = split(planned.block);
        map.runs_in(block, block + 1).first().is_some_and(|run| {
            run.chunk == self.set.sources()[planned.source as usize].chunk
                && run.first_in_chunk + block - run.first_block == planned.index
        })
    }

    /// What a block must be.
    fn digest(&self, planned: &Planned) -> BlockDigest {
        self.set.sources()[planned.source as usize].blocks[planned.index as usize]
    }

    fn unit(&self, unit: usize) -> &[Planned] {
        &self.blocks[self.unit_starts[unit]..self.unit_starts[unit + 1]]
    }
}

impl BaseView {
    /// Brings a set in the background.
    pub(crate) fn prefetch_boot_set(self: &Arc<Self>, set: Arc<BootSet>) {
        let boot = Arc::new(Boot::new(set));
        self.use_boot(Some(boot.clone()));
        let view = Arc::downgrade(self);
        let work = move || {
            prefetch(&view, &boot);
            if let Some(view) = view.upgrade() {
                view.use_boot(None);
            }
        };
        let thread = std::thread::Builder::new().name("boot-prefetch".into());
        if let Err(error) = thread.spawn(work) {
            self.use_boot(None);
            tracing::debug!(%error, "no prefetch");
        }
    }

    /// Brings a missing block by the set on its way, if it has it. True where that was tried.
    pub(crate) fn bring_by_boot_set(&self, segment: u32, block: u32, map: &SegmentMap) -> bool {
        let Some(boot) = self.boot() else { return false };
        let block = u64::from(segment) * u64::from(BLOCKS_PER_SEGMENT) + u64::from(block);
        match boot.unit_of(block, map) {
            Some(unit) => {
                self.fetch_unit_or_leave_it(&boot, unit, None);
                true
            }
            None => false,
        }
    }

    fn fetch_unit_or_leave_it(&self, boot: &Boot, unit: usize, pace: Option<&Pace>) {
        let Some(_flight) = self.base.flights.board(FetchKey::Boot(unit as u32)) else { return };
        if boot.tried[unit].load(Ordering::Acquire) {
            return;
        }
        let fetched = self.fetch_unit(boot, unit, pace);
        boot.tried[unit].store(true, Ordering::Release);
        if let Err(error) = fetched {
            tracing::debug!("left to the chunks: {}", error.chain());
        }
    }

    /// True where a block is inside the disk and not here, as far as is known.
    fn is_missing(&self, planned: &Planned) -> bool {
        let (segment, block) = split(planned.block);
        planned.block * (BLOCK_LEN as u64) < self.length()
            && self.segment(segment).first_missing(block, block + 1).is_some()
    }

    fn fetch_unit(&self, boot: &Boot, unit: usize, pace: Option<&Pace>) -> Result<()> {
        let planned = boot.unit(unit);
        // Of what no loaded map can tell, it is worth trying.
        let is_wanted = |planned: &Planned| {
            let map = self.loaded_map(split(planned.block).0);
            self.is_missing(planned) && map.is_none_or(|map| boot.fits(planned, &map))
        };
        if !planned.iter().any(is_wanted) {
            return Ok(());
        }
        let began = self.journal.now();
        let first = unit * PIECES_PER_UNIT;
        let pieces = boot.set.pieces();
        let pieces = &pieces[first..(first + PIECES_PER_UNIT).min(pieces.len())];
        let asked = SystemClock.monotonic();
        let bytes = self.boot_pieces(pieces)?.concat();
        if let Some(pace) = pace {
            pace.landed(SystemClock.monotonic() - asked);
        }
        if bytes.len() != planned.len() * BLOCK_LEN {
            return Err(Error::new(Kind::Corrupt, "read the boot pieces", "of a set")
                .because("they have another length than the set says"));
        }
        let mut digests = vec![BlockDigest::HOLE; planned.len()];
        BlockDigest::of_each(&bytes, &mut digests);
        let sound = self.sound(boot, planned, &digests)?;
        let wanted = sound.into_iter().map(|at| (planned[at].block, block_at(&bytes, at)));
        let kept = self.keep_blocks(wanted)?;
        self.journal.brought(kept.iter().copied());
        let len = (kept.len() * BLOCK_LEN) as u64;
        self.boot_counts.brought.fetch_add(len, Ordering::Relaxed);
        self.journal.fetched(began, Origin::BootSet, planned[0].block, len);
        self.count_kept(len);
        Ok(())
    }

    /// Which of these blocks, by position, are missing, are in the version where the set says, and
    /// have come as they must be. Waits for maps.
    fn sound(
        &self,
        boot: &Boot,
        planned: &[Planned],
        digests: &[BlockDigest],
    ) -> Result<Vec<usize>> {
        let mut maps: BTreeMap<u32, Arc<SegmentMap>> = BTreeMap::new();
        let mut sound = Vec::with_capacity(planned.len());
        for (at, (planned, digest)) in planned.iter().zip(digests).enumerate() {
            if !self.is_missing(planned) {
                continue;
            }
            let segment = split(planned.block).0;
            let map = match maps.entry(segment) {
                std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::btree_map::Entry::Vacant(unknown) => {
                    unknown.insert(self.segment_map(segment)?)
                }
            };
            if !boot.fits(planned, map) {
                self.boot_counts.misfits.fetch_add(BLOCK_LEN as u64, Ordering::Relaxed);
            } else if boot.digest(planned) == *digest {
                sound.push(at);
            }
        }
        Ok(sound)
    }

    /// Keeps blocks in the base: together those that follow each other. Returns which those were.
    fn keep_blocks<'a>(&self, blocks: impl Iterator<Item = (u64, &'a [u8])>) -> Result<Vec<u64>> {
        let mut by_segment: BTreeMap<u32, (PresentBits, Runs)> = BTreeMap::new();
        let mut kept = Vec::new();
        for (number, bytes) in blocks {
            let (segment, block) = split(number);
            let (added, runs) =
                by_segment.entry(segment).or_insert_with(|| (PresentBits::none(), Vec::new()));
            added.add(block, block + 1);
            match runs.last_mut() {
                Some((first, run)) if *first + (run.len() / BLOCK_LEN) as u32 == block => {
                    run.extend_from_slice(bytes);
                }
                _ => runs.push((block, bytes.to_vec())),
            }
            kept.push(number);
        }
        for (segment, (added, runs)) in by_segment {
            let pieces: Vec<(u32, &[u8])> =
                runs.iter().map(|(block, bytes)| (*block, &bytes[..])).collect();
            self.keep(segment, &added, &pieces)?;
        }
        Ok(kept)
    }
}

/// Brings all of a set: first the maps, then unit after unit, several under way. A mirror that goes
/// away ends it: nobody else holds the view then.
fn prefetch(view: &Weak<BaseView>, boot: &Boot) {
    let Some(strong) = view.upgrade() else { return };
    let missing = boot.blocks.iter().filter(|planned| strong.is_missing(planned));
    let mut segments: Vec<u32> = missing.map(|planned| split(planned.block).0).collect();
    let in_order: Vec<u32> = {
        let mut seen = std::collections::HashSet::new();
        segments.retain(|segment| seen.insert(*segment));
        segments
    };
    let permits = strong.background().prefetches();
    let spare = strong.background().spare_threads().clone();
    drop(strong);
    let pace = Pace::new();
    let bring_map = |segment: &u32| match view.upgrade() {
        Some(view) => {
            // Whoever needs it asks again, and says what is wrong.
            let _ = view.segment_map(*segment);
            Ok(())
        }
        None => Err(()),
    };
    std::thread::scope(|scope| {
        // Units bring the maps that they need where no thread is to be had.
        let bring_maps = || at_once(&spare, MAPS_AT_ONCE, &in_order, bring_map);
        let _ = std::thread::Builder::new().spawn_scoped(scope, bring_maps);
        for unit in 0..boot.tried.len() {
            let turn = pace.turn();
            let permit = permits.take();
            if view.strong_count() == 0 {
                return;
            }
            let pace = &pace;
            let bring_unit = move || {
                let _held = (turn, permit);
                if let Some(view) = view.upgrade() {
                    view.fetch_unit_or_leave_it(boot, unit, Some(pace));
                }
            };
            if std::thread::Builder::new().spawn_scoped(scope, bring_unit).is_err() {
                // What is left is left to the reads.
                return;
            }
        }
    });
}

fn block_at(bytes: &[u8], position: usize) -> &[u8] {
    &bytes[position * BLOCK_LEN..][..BLOCK_LEN]
}

fn split(block: u64) -> (u32, u32) {
    let per_segment = SEGMENT_LEN / BLOCK_LEN as u64;
    ((block / per_segment) as u32, (block % per_segment) as u32)
}
