//! Collect: removes what nothing refers to, and brings together what lies scattered.
//!
//! ```text
//! survey ─► plan ─► (re-cut chunks ─► survey, plan) ─► repack ─► condemn ─► wait ─► look again
//!                                                                                      │
//!                                     compact ◄─ orphans ◄─ files ◄─ rows ◄────────────┘
//! ```
//!
//! | Module | Holds |
//! |---|---|
//! | `walk` | everything that versions and holds refer to, each thing once |
//! | `live` | what is referred to, in bounded memory |
//! | `survey` | how much of each pack that is |
//! | [`plan`] | what a collect would do: a value |
//! | `scatter` | which chunks are worth cutting again because their blocks lie far apart |
//! | `recut`, `check` | live blocks moved to new chunks, layouts made anew; checked before they count |
//! | `repack` | live entries of packs that are mostly dead, copied as they are stored |
//! | `remove` | the wait, the second look, rows, files |
//! | `orphans` | files that belong to no pack |
//! | [`explain`] | why an entry lives |
//!
//! **Invariants**: those of `docs/formats/catalog.md`, "How packs are removed". Nobody is paused: each
//! transaction touches some packs, and the wait holds no lock.
//!
//! **Failure**: killed anywhere, it leaves marks, new packs that are in use, old layouts or new ones, or
//! files that no row names; the next collect goes on from there.
//!
//! **Source**: the two steps of removal are `docs/formats/catalog.md`'s own.

mod check;
pub mod explain;
mod live;
mod orphans;
pub mod plan;
mod recut;
mod remove;
mod repack;
mod scatter;
mod survey;
mod walk;

use std::collections::HashSet;

use catalog::PackId;
use model::progress::Cancel;
use model::{Error, Result};

use crate::repository::Repository;
pub use explain::Explained;
use orphans::Orphan;
pub use plan::CollectPlan;
use survey::Survey;

/// How much of the machine a collect takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CollectLimits {
    /// Bytes of memory for what is referred to. Less means more walks over the metadata.
    pub memory_len: usize,
    /// Plain bytes of blocks that one collect cuts into new chunks. What remains is the next one's.
    pub recut_len: u64,
}

impl Default for CollectLimits {
    fn default() -> Self {
        CollectLimits { memory_len: 64 << 20, recut_len: 4 << 30 }
    }
}

/// What a collect has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CollectStep {
    /// It waits for another collect to end, or for the lease of one that died to expire.
    WaitingForAnother,
    /// It looks at everything that is referred to.
    Looking,
    /// It cuts that many chunks again.
    Cutting {
        /// Chunks.
        chunks: u64,
    },
    /// It copies live entries of that many packs.
    Copying {
        /// Packs.
        packs: u64,
    },
    /// The packs that may go are marked.
    Condemned,
    /// It waits for those who began their work before.
    Waiting {
        /// Imports, commits, exports at work.
        leases: u64,
    },
    /// It is about to forget that many packs.
    Removing {
        /// Packs.
        packs: u64,
    },
}

/// Told what a collect has come to.
pub trait CollectEvents: Send + Sync {
    /// This begins now.
    fn step(&self, step: CollectStep);
}

impl CollectEvents for model::progress::Silent {
    fn step(&self, _step: CollectStep) {}
}

/// How a plan is to be carried out.
pub struct CollectRequest<'a> {
    /// How much of the machine it takes.
    pub limits: CollectLimits,
    /// Whether it waits for those who are at work; otherwise what they hold up is left, marked, to the
    /// next collect.
    pub waits: bool,
    /// Told of its steps.
    pub events: &'a dyn CollectEvents,
    /// Stops it: marks are left, and nothing else half done.
    pub cancel: &'a Cancel,
}

/// What a collect did. Lengths in bytes.
#[derive(Debug)]
pub struct Collected {
    /// What was planned.
    pub plan: CollectPlan,
    /// Bytes of the packs and files that were removed, less those that were written.
    pub removed_len: u64,
    /// Bytes that were written: copies of what is live.
    pub written_len: u64,
    /// Layouts that were made anew.
    pub layouts: u64,
    /// Packs that were removed.
    pub removed_packs: u64,
    /// Packs that are marked and wait for those who are at work.
    pub waiting_packs: u64,
    /// Packs that could not be copied, because they are damaged, each with the reason.
    pub left: Vec<(String, Error)>,
}

impl Repository {
    /// What a collect would do now. Changes nothing.
    ///
    /// Cost: all manifests and segment maps are read, and all rows of entries.
    ///
    /// # Errors
    /// `Corrupt` where a manifest or map that a version needs cannot be read: the error names both.
    pub fn plan_collect(&self, limits: &CollectLimits, cancel: &Cancel) -> Result<CollectPlan> {
        // As for every reader: until it ends a collect leaves alone what is read here.
        let _lease = self.begin_lease()?;
        let orphans = orphans::find(self)?;
        let survey = Survey::make(self, limits, cancel)?;
        self.plan_of(&survey, &orphans, limits, cancel)
    }

    fn plan_of(
        &self,
        survey: &Survey,
        orphans: &[Orphan],
        limits: &CollectLimits,
        cancel: &Cancel,
    ) -> Result<CollectPlan> {
        let scattered = scatter::scattered(self, survey, cancel)?;
        let victims = scatter::joined(plan::partly_dead(survey), scattered);
        Ok(plan::plan(survey, victims, orphans, limits.recut_len))
    }

    /// Removes what nothing refers to. Imports, commits, mirrors go on beside it.
    ///
    /// # Errors
    /// Those of [`Repository::plan_collect`]; `Refused` while another collect is at work, where this one
    /// is not to wait; `Stale` where
    /// this process was stopped for so long that another may have begun: collect again; `Cancelled`.
    pub fn collect(&self, request: &CollectRequest) -> Result<Collected> {
        let CollectRequest { limits, events, cancel, .. } = request;
        let lease = remove::take_turn(self, request)?;
        let orphans = orphans::find(self)?;
        events.step(CollectStep::Looking);
        let mut survey = Survey::make(self, limits, cancel)?;
        let planned = self.plan_of(&survey, &orphans, limits, cancel)?;
        let mut cut = recut::Done::default();
        let mut plan = planned.clone();
        if !planned.victims.is_empty() {
            events.step(CollectStep::Cutting { chunks: planned.victims.len() as u64 });
            cut = recut::recut(self, &planned.victims, cancel)?;
            events.step(CollectStep::Looking);
            survey = Survey::make(self, limits, cancel)?;
            plan = plan::plan(&survey, Vec::new(), &orphans, limits.recut_len);
        }
        self.spare_live(lease.id(), &survey)?;
        events.step(CollectStep::Copying { packs: plan.copied.len() as u64 });
        let repacked = repack::repack(self, lease.id(), &plan.copied, limits, cancel)?;
        let doomed: Vec<PackId> = plan.doomed.iter().chain(&repacked.emptied).copied().collect();
        cancel.check("collect", "the repository")?;
        let mark = self.catalog.condemn(lease.id(), &doomed)?;
        events.step(CollectStep::Condemned);
        if request.waits {
            remove::wait(self, mark, *events, cancel)?;
        }
        let is_clear = self.catalog.leases_before(mark)? == 0;
        let doomed: HashSet<PackId> = doomed.into_iter().collect();
        let mut ripe = remove::ripe(self, &doomed)?;
        let waiting_packs = if is_clear { 0 } else { (doomed.len() - ripe.len()) as u64 };
        remove::spare_late(self, lease.id(), survey.revision, &mut ripe, cancel)?;
        let removed = remove::remove(self, lease.id(), &ripe, *events, cancel)?;
        let orphans_len = match is_clear {
            true => orphans::remove(self, &orphans)?,
            false => 0,
        };
        self.lists.forget_removed()?;
        self.catalog.compact()?;
        // What is gone is gone: without the export a lost catalog is harder to make anew, no more.
        if let Err(error) = self.export_names() {
            tracing::warn!(error = error.chain(), "cannot export the names");
        }
        Ok(Collected {
            plan: planned,
            removed_len: (removed.len + orphans_len)
                .saturating_sub(repacked.written_len + cut.written_len),
            written_len: repacked.written_len + cut.written_len,
            layouts: cut.layouts,
            removed_packs: removed.pack_count,
            waiting_packs,
            left: repacked.left,
        })
    }

    /// Takes the marks that a collect has left from packs that turned out to be referred to: hooks lead
    /// to them again.
    fn spare_live(&self, lease: catalog::LeaseId, survey: &Survey) -> Result<()> {
        let live = survey.packs.iter().filter(|pack| pack.used.live_count > 0);
        let spared: Vec<PackId> = live
            .filter(|pack| pack.record.condemned.is_some())
            .map(|pack| pack.record.id)
            .collect();
        match spared.is_empty() {
            true => Ok(()),
            false => self.catalog.spare(lease, &spared),
        }
    }
}
