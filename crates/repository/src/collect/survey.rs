//! What is referred to, set against what the catalog has: how much of each pack is live.
//!
//! ```text
//! for each range of digests:   walk the roots ─► live entries of the range
//!                              scan the catalog's entries of the range ─► packs
//! ```
//!
//! One range where memory allows it; otherwise as many as are needed, each with a walk of its own.
//!
//! **Invariant**: packs that came to be after the survey began are not in it, so nobody can take them
//! for dead.

use std::collections::HashMap;
use std::ops::ControlFlow;

use catalog::{EntryDigest, LeaseId, Location, Mark, PackId, PackRecord, Revision};
use format::entry::EntryKind;
use model::progress::Cancel;
use model::{BLOCK_LEN, MapDigest, Result, SegmentMap};

use super::CollectLimits;
use super::live::{Live, Use};
use super::walk::{Visitor, Walked, walk};
use crate::repository::Repository;

/// How many rows are asked for at a time.
const ENTRIES_PER_PAGE: usize = 10_000;

/// How many chunks one collect may cut again: 32 MB of candidates.
const CANDIDATES_MAX: usize = 1 << 18;

/// Bytes of a pack beside its entries.
const PACK_FRAME_LEN: u64 = 80;

/// Bytes that an entry takes in a pack's table.
const TABLE_ROW_LEN: u64 = 44;

/// A pack, and how much of it is referred to.
#[derive(Clone, Debug)]
pub(super) struct Surveyed {
    pub(super) record: PackRecord,
    /// True where a live lease of work has put it: it is left alone.
    pub(super) is_young: bool,
    pub(super) used: PackUse,
}

/// How much of a pack is referred to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PackUse {
    /// Entries that something refers to.
    pub(super) live_count: u64,
    /// Bytes that they take in it, with their rows in table and list.
    pub(super) live_len: u64,
}

/// A chunk that might be cut again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) digest: EntryDigest,
    pub(super) pack: PackId,
    /// Bytes that it takes in its pack.
    pub(super) len: u64,
    pub(super) live_blocks: u32,
    pub(super) block_count: u32,
    pub(super) why: Why,
}

/// Why a chunk might be cut again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Half of it or more is referred to by nothing.
    HalfDead,
    /// A quarter of it or more is referred to by nothing.
    PartlyDead,
    /// Its blocks lie far apart wherever it is used, and one that uses it is fragmented.
    Sparse,
}

impl Candidate {
    /// Bytes that its live blocks will take in a new chunk, as far as can be told.
    pub(super) fn live_len(&self) -> u64 {
        self.len * u64::from(self.live_blocks) / u64::from(self.block_count.max(1))
    }
}

/// What a repository holds and what of it is referred to.
pub(super) struct Survey {
    /// The roots up to here were walked.
    pub(super) revision: Revision,
    /// All packs there were when it began, by number.
    pub(super) packs: Vec<Surveyed>,
    pub(super) candidates: Vec<Candidate>,
    /// Entries that are referred to.
    pub(super) live_count: u64,
    /// How many ranges of digests it took.
    pub(super) pass_count: u32,
}

impl Survey {
    /// Surveys a repository. Cost: all manifests and maps read, all rows of entries, as many times as
    /// the live entries do not fit into the memory that is allowed.
    pub(super) fn make(
        repository: &Repository,
        limits: &CollectLimits,
        cancel: &Cancel,
    ) -> Result<Self> {
        // Before the first look at the roots.
        let packs = packs(repository)?;
        let mut survey = Survey {
            revision: Revision::default(),
            packs,
            candidates: Vec::new(),
            live_count: 0,
            pass_count: 0,
        };
        let chunk_blocks = repository.settings.chunk_blocks;
        let (mut first, mut width) = (0u64, u64::MAX);
        let mut revision = None;
        loop {
            let last = first.saturating_add(width);
            let mut mark =
                Marking { live: Live::new(first..=last, chunk_blocks, limits.memory_len) };
            match walk(repository, Revision::default(), cancel, &mut mark)? {
                Walked::Stopped if width > 0 => width /= 2,
                Walked::Stopped => unreachable!("a position for each key"),
                Walked::To(walked) => {
                    // Later walks may meet more; the second look begins where the first ended.
                    revision.get_or_insert(walked);
                    survey.account(repository, &mark.live, cancel)?;
                    survey.pass_count += 1;
                    match last.checked_add(1) {
                        Some(next) => first = next,
                        None => break,
                    }
                }
            }
        }
        survey.revision = revision.unwrap_or_default();
        Ok(survey)
    }

    /// Adds the live entries of a range to the packs in which they lie.
    fn account(&mut self, repository: &Repository, live: &Live, cancel: &Cancel) -> Result<()> {
        self.live_count += live.len() as u64;
        let chunk_blocks = repository.settings.chunk_blocks;
        let positions: HashMap<PackId, usize> =
            self.packs.iter().enumerate().map(|(at, pack)| (pack.record.id, at)).collect();
        for_each_entry(repository, cancel, |place| {
            let Some(&at) = positions.get(&place.pack) else { return };
            if !live.covers(&place.entry.digest) {
                return;
            }
            let Some((used, blocks)) = live.get(&place.entry.digest) else { return };
            let pack = &mut self.packs[at];
            let len = footprint(place);
            pack.used.live_count += 1;
            pack.used.live_len += len;
            if pack.is_young || self.candidates.len() == CANDIDATES_MAX {
                return;
            }
            self.candidates.extend(candidate(place, len, used, blocks, chunk_blocks));
        })
    }
}

/// Bytes that an entry takes in its pack: its own, its row in the table, its blocks' in the list.
fn footprint(place: &Location) -> u64 {
    let entry = &place.entry;
    let list = match entry.kind == EntryKind::Chunk as u8 {
        true => u64::from(entry.plain_len) / BLOCK_LEN as u64 * model::digest::DIGEST_LEN as u64,
        false => 0,
    };
    u64::from(entry.stored_len) + TABLE_ROW_LEN + list
}

fn candidate(
    place: &Location,
    len: u64,
    used: Use,
    blocks: u32,
    chunk_blocks: u32,
) -> Option<Candidate> {
    if place.entry.kind != EntryKind::Chunk as u8 || used.is_whole {
        return None;
    }
    let block_count = place.entry.plain_len / BLOCK_LEN as u32;
    let live_blocks = blocks.min(block_count);
    let why = match live_blocks * 2 <= block_count {
        true => Why::HalfDead,
        false if used.in_fragmented && used.is_sparse(live_blocks, chunk_blocks) => Why::Sparse,
        false if live_blocks * 4 <= block_count * 3 => Why::PartlyDead,
        false => return None,
    };
    let (digest, pack) = (place.entry.digest, place.pack);
    Some(Candidate { digest, pack, len, live_blocks, block_count, why })
}

/// Calls for every entry of the catalog.
pub(super) fn for_each_entry(
    repository: &Repository,
    cancel: &Cancel,
    mut call: impl FnMut(&Location),
) -> Result<()> {
    let mut last = None;
    loop {
        cancel.check("collect", "the repository")?;
        let after = last.as_ref().map(|(realm, digest)| (realm, *digest));
        let rows = repository.catalog.entries(after, ENTRIES_PER_PAGE)?;
        rows.iter().for_each(|(_, place)| call(place));
        match rows.into_iter().next_back() {
            Some((realm, place)) => last = Some((realm, place.entry.digest)),
            None => return Ok(()),
        }
    }
}

/// All packs, and which of them a live lease has put.
fn packs(repository: &Repository) -> Result<Vec<Surveyed>> {
    let records = repository.catalog.packs()?;
    let mut alive: HashMap<LeaseId, bool> = HashMap::new();
    let mut packs = Vec::with_capacity(records.len());
    for record in records {
        let is_young = match record.lease {
            None => false,
            Some(lease) => match alive.get(&lease) {
                Some(known) => *known,
                None => {
                    let is_alive = is_alive(repository, lease)?;
                    alive.insert(lease, is_alive);
                    is_alive
                }
            },
        };
        packs.push(Surveyed { record, is_young, used: PackUse::default() });
    }
    Ok(packs)
}

/// Whether a lease of work is alive: it is counted before the next mark, and not before its own.
pub(super) fn is_alive(repository: &Repository, lease: LeaseId) -> Result<bool> {
    let below = repository.catalog.leases_before(Mark(lease.0))?;
    Ok(repository.catalog.leases_before(Mark(lease.0 + 1))? > below)
}

impl Surveyed {
    /// Bytes of the pack that nothing refers to, its frame left out.
    pub(super) fn dead_len(&self) -> u64 {
        self.record.stored_len.saturating_sub(PACK_FRAME_LEN + self.used.live_len)
    }
}

struct Marking {
    live: Live,
}

impl Visitor for Marking {
    fn entry(&mut self, digest: &EntryDigest) -> ControlFlow<()> {
        go_on(self.live.add_whole(digest))
    }

    fn map(&mut self, _segment: u32, _digest: &MapDigest, map: &SegmentMap) -> ControlFlow<()> {
        go_on(self.live.add_map(map))
    }
}

fn go_on(has_room: bool) -> ControlFlow<()> {
    match has_room {
        true => ControlFlow::Continue(()),
        false => ControlFlow::Break(()),
    }
}
