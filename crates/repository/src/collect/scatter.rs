//! Which chunks are worth cutting again because their blocks lie scattered.
//!
//! Measured is how many chunks reading a segment in order touches, MiB by MiB, beside what a fresh
//! layout would touch: the mean length of runs alone would not do. A version that stands upon a living
//! base and changed one block in eight has runs of seven blocks, and yet reading it in order touches the
//! base's chunks, each once, and a few of its own: laying it out anew would store the base twice.
//!
//! **Invariant**: a chunk is taken only where a map that is fragmented gets at least
//! [`GAIN_PERCENT`] better by it, as far as can be told beforehand. What was cut once is near enough to
//! the best order that the same sum says no the next time.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;

use catalog::{EntryDigest, Revision};
use model::progress::Cancel;
use model::{MapDigest, Result, SegmentMap};

use super::live::{Spread, key};
use super::survey::{Candidate, Survey, Why};
use super::walk::{Visitor, walk};
use crate::repository::Repository;

/// How many of a hundred touches must go before a map is worth it.
const GAIN_PERCENT: u32 = 30;

/// The candidates of a survey that are worth it. Cost: a walk over all roots, where there are any that
/// are scattered.
pub(super) fn scattered(
    repository: &Repository,
    survey: &Survey,
    cancel: &Cancel,
) -> Result<Vec<Candidate>> {
    if !survey.candidates.iter().any(|candidate| candidate.why == Why::Sparse) {
        return Ok(Vec::new());
    }
    // One that is dense where it is used stays, also where it is partly dead.
    let candidates = || survey.candidates.iter().filter(|chunk| chunk.why != Why::PartlyDead);
    let mut worth = Worth {
        chunk_blocks: repository.settings.chunk_blocks,
        candidates: candidates().map(|candidate| key(&candidate.digest)).collect(),
        wanted: HashSet::new(),
    };
    walk(repository, Revision::default(), cancel, &mut worth)?;
    let wanted = candidates().filter(|c| worth.wanted.contains(&key(&c.digest)));
    Ok(wanted.copied().collect())
}

/// Both kinds of victims, each chunk once: those that are partly dead first.
pub(super) fn joined(dead: Vec<Candidate>, scattered: Vec<Candidate>) -> Vec<Candidate> {
    let known: HashSet<EntryDigest> = dead.iter().map(|victim| victim.digest).collect();
    let others = scattered.into_iter().filter(|victim| !known.contains(&victim.digest));
    dead.into_iter().chain(others).collect()
}

struct Worth {
    chunk_blocks: u32,
    candidates: HashSet<u64>,
    wanted: HashSet<u64>,
}

impl Visitor for Worth {
    fn entry(&mut self, _digest: &EntryDigest) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn map(&mut self, _segment: u32, _digest: &MapDigest, map: &SegmentMap) -> ControlFlow<()> {
        let spread = Spread::of(map, self.chunk_blocks);
        if spread.is_fragmented {
            let candidates: HashMap<u64, (u32, u64)> = spread
                .chunks
                .iter()
                .filter(|(k, _)| self.candidates.contains(k))
                .map(|(k, v)| (*k, *v))
                .collect();
            if is_worth(&spread, &candidates, self.chunk_blocks) {
                self.wanted.extend(candidates.keys());
            }
        }
        ControlFlow::Continue(())
    }
}

/// Whether cutting these chunks of a map again, in the order of addresses, is worth it.
fn is_worth(spread: &Spread, candidates: &HashMap<u64, (u32, u64)>, chunk_blocks: u32) -> bool {
    let touches = |(_, windows): &(u32, u64)| windows.count_ones();
    let all: u32 = spread.chunks.values().map(touches).sum();
    let now: u32 = candidates.values().map(touches).sum();
    let blocks: u32 = candidates.values().map(|(blocks, _)| blocks).sum();
    let windows = candidates.values().fold(0, |union, (_, windows)| union | windows).count_ones();
    // Each new chunk is touched in the MiB in which it begins, and in those that it reaches into.
    let then = blocks.div_ceil(chunk_blocks) + windows;
    now.saturating_sub(then) * 100 >= all * GAIN_PERCENT
}
