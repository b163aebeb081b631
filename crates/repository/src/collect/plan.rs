//! What a collect would do: a value, made from a survey without any I/O.
//!
//! **Invariant**: what a collect has done is not in the next one's plan, unless something was removed
//! or committed in between.

use std::collections::HashMap;

use catalog::PackId;

use super::orphans::Orphan;
use super::survey::{Candidate, Survey, Surveyed, Why};

/// A pack is copied when this share of it is dead: one part in four.
const DEAD_SHARE: u64 = 4;

/// A pack shorter than this is small, and small packs are joined: a guest that commits often makes
/// many.
const SMALL_LEN: u64 = 1 << 20;

/// How many small packs there must be before they are joined.
const SMALL_COUNT: usize = 8;

/// Dead bytes inside half-dead chunks are worth new maps when they are more than one part in this many
/// of what is live.
const HALF_GAIN_SHARE: u64 = 64;

/// Likewise of chunks of which a quarter is dead: four blocks are copied for one that is given back.
const QUARTER_GAIN_SHARE: u64 = 16;

/// What a collect would do.
#[derive(Clone, Debug, Default)]
pub struct CollectPlan {
    /// Packs in the repository.
    pub pack_count: u64,
    /// Bytes of all packs.
    pub pack_len: u64,
    /// Bytes of them that something refers to.
    pub live_len: u64,
    /// Packs of writers at work, which are left alone.
    pub young_count: u64,
    /// Packs that nothing refers to.
    pub dead: PlannedPacks,
    /// Packs whose live entries are copied to new ones, so that the rest can go.
    pub repack: PlannedPacks,
    /// Chunks whose live blocks are copied to new ones.
    pub recut: PlannedChunks,
    /// Files that belong to no pack.
    pub orphans: PlannedFiles,
    /// Bytes that applying the plan gives back, as far as can be told beforehand.
    pub removable_len: u64,
    pub(super) doomed: Vec<PackId>,
    pub(super) copied: Vec<PackId>,
    pub(super) victims: Vec<Candidate>,
}

/// Packs of a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlannedPacks {
    /// How many.
    pub count: u64,
    /// Their bytes.
    pub len: u64,
    /// Bytes of them that are referred to.
    pub live_len: u64,
}

/// Chunks of a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlannedChunks {
    /// Of which a quarter or more is dead.
    pub partly_dead_count: u64,
    /// That lie scattered over the address space, so that reading in order touches many.
    pub scattered_count: u64,
    /// Their bytes in packs.
    pub len: u64,
    /// Bytes of them that are referred to, as far as can be told.
    pub live_len: u64,
    /// More than one collect does: what is left is the next one's.
    pub left_count: u64,
}

/// Files of a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlannedFiles {
    /// How many.
    pub count: u64,
    /// Their bytes.
    pub len: u64,
}

impl CollectPlan {
    /// True where there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.doomed.is_empty()
            && self.copied.is_empty()
            && self.victims.is_empty()
            && self.orphans.count == 0
    }
}

/// Plans. `victims` are the chunks that may be cut again, those that matter most first; of them as
/// many are taken as have at most `recut_len_max` live bytes.
pub(super) fn plan(
    survey: &Survey,
    victims: Vec<Candidate>,
    orphans: &[Orphan],
    recut_len_max: u64,
) -> CollectPlan {
    let mut plan = CollectPlan {
        pack_count: survey.packs.len() as u64,
        pack_len: survey.packs.iter().map(|pack| pack.record.stored_len).sum(),
        live_len: survey.packs.iter().map(|pack| pack.used.live_len).sum(),
        young_count: survey.packs.iter().filter(|pack| pack.is_young).count() as u64,
        orphans: PlannedFiles {
            count: orphans.len() as u64,
            len: orphans.iter().map(|orphan| orphan.len).sum(),
        },
        ..CollectPlan::default()
    };
    plan.take_victims(victims, recut_len_max);
    let mut cut: HashMap<PackId, u64> = HashMap::new();
    for victim in &plan.victims {
        *cut.entry(victim.pack).or_default() += victim.len;
    }
    let old = survey.packs.iter().filter(|pack| !pack.is_young);
    let after = |pack: &Surveyed| {
        pack.used.live_len.saturating_sub(cut.get(&pack.record.id).copied().unwrap_or(0))
    };
    let small = old.clone().filter(|pack| pack.record.stored_len < SMALL_LEN && after(pack) > 0);
    let joins_small = small.count() >= SMALL_COUNT;
    let mut given = plan.orphans.len;
    for pack in old {
        let (len, live_len) = (pack.record.stored_len, after(pack));
        let dead_len = pack.dead_len() + (pack.used.live_len - live_len);
        if live_len == 0 {
            plan.dead.add(len, 0);
            plan.doomed.push(pack.record.id);
            given += len;
        } else if dead_len * DEAD_SHARE > len || joins_small && len < SMALL_LEN {
            plan.repack.add(len, live_len);
            plan.copied.push(pack.record.id);
            given += dead_len;
        }
    }
    plan.removable_len = given.saturating_sub(plan.recut.live_len);
    plan
}

/// The chunks of a survey that are half dead, and those of which a quarter is, where cutting each of
/// the two kinds gives back enough.
pub(super) fn partly_dead(survey: &Survey) -> Vec<Candidate> {
    let live: u64 = survey.packs.iter().map(|pack| pack.used.live_len).sum();
    let (half, others): (Vec<_>, Vec<_>) =
        survey.candidates.iter().copied().partition(|candidate| candidate.why == Why::HalfDead);
    let quarter: Vec<Candidate> = others
        .into_iter()
        .filter(|candidate| candidate.live_blocks * 4 <= candidate.block_count * 3)
        .collect();
    let gain = |chunks: &[Candidate]| -> u64 {
        chunks.iter().map(|candidate| candidate.len - candidate.live_len()).sum()
    };
    let mut victims = Vec::new();
    if gain(&half) * HALF_GAIN_SHARE > live {
        victims.extend(half);
    }
    if gain(&quarter) * QUARTER_GAIN_SHARE > live {
        victims.extend(quarter);
    }
    victims
}

impl PlannedPacks {
    fn add(&mut self, len: u64, live_len: u64) {
        self.count += 1;
        self.len += len;
        self.live_len += live_len;
    }
}

impl CollectPlan {
    fn take_victims(&mut self, victims: Vec<Candidate>, recut_len_max: u64) {
        let mut taken_len = 0;
        for victim in victims {
            let plain_len = u64::from(victim.live_blocks) * model::BLOCK_LEN as u64;
            if taken_len + plain_len > recut_len_max {
                self.recut.left_count += 1;
                continue;
            }
            taken_len += plain_len;
            match victim.why {
                Why::HalfDead | Why::PartlyDead => self.recut.partly_dead_count += 1,
                Why::Sparse => self.recut.scattered_count += 1,
            }
            self.recut.len += victim.len;
            self.recut.live_len += victim.live_len();
            self.victims.push(victim);
        }
    }
}
