//! Removes condemned packs: waits, looks again, forgets rows, removes files.
//!
//! ```text
//! condemn ── wait for leases that began before ── look at new roots, spare ── rows ── files
//! ```
//!
//! **Invariant**: only packs are forgotten whose mark no lease preceded any more *before* the second
//! look began: whoever might have published upon them has done so, and was seen.
//!
//! **Failure**: after a crash anywhere marks stay, which take nothing away, or files that no row names,
//! which the next collect removes.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::time::Duration;

use catalog::{Doomed, EntryDigest, LeaseId, Mark, PackId, PackRecord, Revision};
use format::pack::PackIndex;
use model::digest::Hook;
use model::progress::Cancel;
use model::{BlockDigest, Kind, MapDigest, Result, SegmentMap};
use store::PackName;

use super::survey::for_each_entry;
use super::walk::{Visitor, walk};
use super::{CollectEvents, CollectRequest, CollectStep};
use crate::lease::{Lease, Purpose};
use crate::repository::Repository;

/// How many packs one transaction forgets: some thousand rows.
const PACKS_AT_ONCE: usize = 8;

/// How often the leases that are waited for are counted.
const POLL: Duration = Duration::from_millis(100);

/// How many entries of roots that came to be late are looked up at a time.
const DIGESTS_AT_ONCE: usize = 1000;

/// Begins the lease of a collect; waits for another to end where the request says so.
pub(super) fn take_turn(repository: &Repository, request: &CollectRequest) -> Result<Lease> {
    let mut is_told = false;
    loop {
        match repository.begin_lease_for(Purpose::Collect) {
            Err(error) if error.kind() == Kind::Refused && request.waits => {
                request.cancel.check("collect", "the repository")?;
                if !std::mem::replace(&mut is_told, true) {
                    request.events.step(CollectStep::WaitingForAnother);
                }
                std::thread::park_timeout(POLL);
            }
            other => return other,
        }
    }
}

/// Waits until no lease of work is alive that began before a mark.
pub(super) fn wait(
    repository: &Repository,
    mark: Mark,
    events: &dyn CollectEvents,
    cancel: &Cancel,
) -> Result<()> {
    let mut told = 0;
    loop {
        cancel.check("collect", "the repository")?;
        let leases = repository.catalog.leases_before(mark)?;
        if leases == 0 {
            return Ok(());
        }
        if leases != told {
            events.step(CollectStep::Waiting { leases });
            told = leases;
        }
        std::thread::park_timeout(POLL);
    }
}

/// Of these packs, those that are condemned and whose mark no lease precedes.
pub(super) fn ripe(repository: &Repository, packs: &HashSet<PackId>) -> Result<Vec<PackRecord>> {
    let mut clear: HashMap<Mark, bool> = HashMap::new();
    let mut ripe = Vec::new();
    for record in repository.catalog.packs()? {
        let Some(mark) = record.condemned.filter(|_| packs.contains(&record.id)) else { continue };
        let is_clear = match clear.get(&mark) {
            Some(known) => *known,
            None => {
                let is_clear = repository.catalog.leases_before(mark)? == 0;
                clear.insert(mark, is_clear);
                is_clear
            }
        };
        if is_clear {
            ripe.push(record);
        }
    }
    Ok(ripe)
}

/// Takes those packs out that roots refer to which came to be after a revision, and takes the mark
/// off them.
pub(super) fn spare_late(
    repository: &Repository,
    lease: LeaseId,
    after: Revision,
    ripe: &mut Vec<PackRecord>,
    cancel: &Cancel,
) -> Result<()> {
    let mut late = Late {
        repository,
        doomed: ripe.iter().map(|record| record.id).collect(),
        asked: Vec::new(),
        spared: HashSet::new(),
        failed: None,
    };
    walk(repository, after, cancel, &mut late)?;
    late.look_up()?;
    if let Some(error) = late.failed {
        return Err(error);
    }
    let spared: Vec<PackId> = late.spared.into_iter().collect();
    if !spared.is_empty() {
        repository.catalog.spare(lease, &spared)?;
        ripe.retain(|record| !spared.contains(&record.id));
    }
    Ok(())
}

/// The packs that late roots refer to.
struct Late<'a> {
    repository: &'a Repository,
    doomed: HashSet<PackId>,
    asked: Vec<EntryDigest>,
    spared: HashSet<PackId>,
    failed: Option<model::Error>,
}

impl Late<'_> {
    fn add(&mut self, digest: &EntryDigest) -> ControlFlow<()> {
        self.asked.push(*digest);
        if self.asked.len() >= DIGESTS_AT_ONCE
            && let Err(error) = self.look_up()
        {
            self.failed = Some(error);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    fn look_up(&mut self) -> Result<()> {
        let places = self.repository.catalog.locate(&self.repository.realm, &self.asked)?;
        let packs = places.into_iter().flatten().map(|place| place.pack);
        self.spared.extend(packs.filter(|pack| self.doomed.contains(pack)));
        self.asked.clear();
        Ok(())
    }
}

impl Visitor for Late<'_> {
    fn entry(&mut self, digest: &EntryDigest) -> ControlFlow<()> {
        self.add(digest)
    }

    fn map(&mut self, _segment: u32, _digest: &MapDigest, map: &SegmentMap) -> ControlFlow<()> {
        map.chunks().iter().try_for_each(|chunk| self.add(&chunk.0))
    }
}

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Removed {
    pub(super) pack_count: u64,
    pub(super) len: u64,
}

/// Forgets packs and removes their files.
pub(super) fn remove(
    repository: &Repository,
    lease: LeaseId,
    ripe: &[PackRecord],
    events: &dyn CollectEvents,
    cancel: &Cancel,
) -> Result<Removed> {
    let mut removed = Removed::default();
    let mut damaged = HashSet::new();
    for group in ripe.chunks(PACKS_AT_ONCE) {
        cancel.check("collect", "the repository")?;
        let mut doomed = Vec::new();
        for record in group {
            match read_rows(repository, record)? {
                Some(rows) => doomed.push(rows),
                None => {
                    damaged.insert(record.id);
                }
            }
        }
        removed.add(repository, lease, &doomed, events)?;
    }
    let doomed = scan_rows(repository, &damaged, cancel)?;
    removed.add(repository, lease, &doomed, events)?;
    Ok(removed)
}

impl Removed {
    fn add(
        &mut self,
        repository: &Repository,
        lease: LeaseId,
        doomed: &[Doomed],
        events: &dyn CollectEvents,
    ) -> Result<()> {
        if doomed.is_empty() {
            return Ok(());
        }
        events.step(CollectStep::Removing { packs: doomed.len() as u64 });
        for name in &repository.catalog.remove_condemned(lease, doomed)? {
            let name = PackName::new(name)?;
            self.len += repository.packs.len(&name).unwrap_or(0);
            self.pack_count += 1;
            repository.packs.remove(&name)?;
        }
        Ok(())
    }
}

/// The keys of a pack's rows, as its own index tells them; `None` where that cannot be read.
fn read_rows(repository: &Repository, record: &PackRecord) -> Result<Option<Doomed>> {
    let name = PackName::new(&record.name)?;
    let read = |offset, len| repository.packs.read(&name, offset, len);
    match PackIndex::read(record.stored_len, read) {
        Ok(index) => Ok(Some(rows_of(record.id, &index))),
        Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

fn rows_of(pack: PackId, index: &PackIndex) -> Doomed {
    let entries: Vec<EntryDigest> = index.entries().iter().map(|entry| entry.digest).collect();
    let blocks = (0..entries.len()).flat_map(|position| index.block_digests(position));
    let mut hooks: Vec<Hook> =
        blocks.filter(|block| block.is_hook()).map(BlockDigest::hook).collect();
    hooks.sort_unstable();
    hooks.dedup();
    Doomed { pack, entries, hooks }
}

/// The entries of packs that cannot be read. Their hooks stay: rows that lead nowhere.
fn scan_rows(
    repository: &Repository,
    damaged: &HashSet<PackId>,
    cancel: &Cancel,
) -> Result<Vec<Doomed>> {
    if damaged.is_empty() {
        return Ok(Vec::new());
    }
    let mut entries: HashMap<PackId, Vec<EntryDigest>> =
        damaged.iter().map(|pack| (*pack, Vec::new())).collect();
    for_each_entry(repository, cancel, |place| {
        if let Some(digests) = entries.get_mut(&place.pack) {
            digests.push(place.entry.digest);
        }
    })?;
    let doomed = |(pack, entries)| Doomed { pack, entries, hooks: Vec::new() };
    Ok(entries.into_iter().map(doomed).collect())
}
