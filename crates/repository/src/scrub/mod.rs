//! Scrub: everything that the repository holds is read back and verified.
//!
//! ```text
//! packs ──► each entry read, decoded, digested; compared with its row
//! rows  ──► each row's pack is there and holds what the row says
//! roots ──► everything that versions and holds refer to has a row; which of them a fault touches
//! ```
//!
//! | Module | Holds |
//! |---|---|
//! | [`finding`] | what scrub finds, and which versions it touches |
//! | `rate` | no more bytes a second than was allowed |
//! | `verify` | whether bytes are what a digest names |
//! | `packs`, `rows`, `roots` | the three passes |
//! | [`repair`] | what is broken is restored from copies |
//! | `copies`, `donors`, `restored`, `relay` | where copies are looked for, where they go; layouts made anew |
//! | [`rebuild`] | a catalog that is lost is made anew from packs |
//!
//! **Invariants**: scrub alone changes nothing. Repair and rebuild remove nothing: what was damaged
//! stays where it is, for whoever wants to look at it, until collect.
//!
//! **Failure**: what others add, move or remove meanwhile is never a finding: a lease keeps collect
//! from removing what is read, and what seems lost is looked up once more.

mod copies;
mod donors;
pub mod finding;
mod packs;
mod rate;
pub mod rebuild;
mod relay;
pub mod repair;
mod restored;
mod roots;
mod rows;
mod verify;

use std::collections::{HashMap, HashSet};

use catalog::{EntryDigest, PackId};
use model::Result;
use model::progress::{Cancel, Progress};

use crate::chunks::RepositoryChunks;
use crate::repository::Repository;
use finding::{FINDINGS_MAX, Fault, Finding};
use rate::Rate;

const SCRUB: &str = "scrub";

/// How a repository is read back.
pub struct ScrubRequest<'a> {
    /// At most that many stored bytes a second.
    pub rate_bytes_per_second: Option<u64>,
    /// Whether the content digest of every version is computed again from bytes that were read.
    pub deep: bool,
    /// Told of the progress.
    pub progress: &'a dyn Progress,
    /// Stops the work.
    pub cancel: &'a Cancel,
}

/// What was read back, and what was found.
#[derive(Clone, Debug, Default)]
pub struct Scrubbed {
    /// Packs that the catalog names.
    pub pack_count: u64,
    /// Chunks that were read back and are sound.
    pub chunk_count: u64,
    /// Other entries that were read back and are sound.
    pub metadata_count: u64,
    /// Stored bytes that were read.
    pub read_len: u64,
    /// Versions and holds whose parts were looked up.
    pub root_count: u64,
    /// What is there but not as it should be.
    pub corrupt_count: u64,
    /// Entries that should be there but are not.
    pub missing_count: u64,
    /// The first [`FINDINGS_MAX`] of both.
    pub findings: Vec<Finding>,
    /// Packs in the store that no row names: a writer's, or for collect.
    pub unnamed_packs: Vec<String>,
    /// Packs that are lost or damaged, but nothing lies in them any more: for collect.
    pub abandoned_packs: Vec<String>,
}

impl Scrubbed {
    /// True where nothing was found.
    pub fn is_sound(&self) -> bool {
        self.corrupt_count + self.missing_count == 0
    }

    /// Notes what was found. Returns its place in the list.
    fn found(&mut self, finding: Finding) -> Option<usize> {
        match finding.fault {
            Fault::Missing => self.missing_count += 1,
            _ => self.corrupt_count += 1,
        }
        if self.findings.len() == FINDINGS_MAX {
            return None;
        }
        self.findings.push(finding);
        Some(self.findings.len() - 1)
    }
}

impl Repository {
    /// Reads back everything that the repository holds, and says what is damaged or missing and
    /// which versions that touches. Changes nothing.
    ///
    /// Cost: every pack read once, at the rate allowed; with `deep`, every chunk once more for each
    /// segment that it lies in. Memory for one pack, 12 bytes for each pack, and what was found.
    ///
    /// # Errors
    /// `Cancelled`; `Corrupt` where the catalog itself cannot be read; those of the disk are found,
    /// not returned.
    pub fn scrub(&self, request: &ScrubRequest) -> Result<Scrubbed> {
        self.look(request).map(|looked| looked.report)
    }

    fn look(&self, request: &ScrubRequest) -> Result<Looked> {
        // Dropped at the end: until then collect leaves what is read here alone.
        let _lease = self.begin_lease()?;
        let mut scrub = Scrub::new(self, request);
        let packs = scrub.packs()?;
        scrub.rows(&packs)?;
        scrub.roots()?;
        Ok(scrub.looked)
    }
}

/// What a scrub has learnt: the report, and what a repair needs beyond it.
#[derive(Default)]
struct Looked {
    report: Scrubbed,
    /// Entries that cannot be read, and which finding says so.
    broken: HashMap<EntryDigest, Broken>,
    /// Packs that hold sound entries, but do not list them as they should.
    unlisted: HashSet<PackId>,
    /// Layouts that something broken touches.
    touched: HashSet<roots::TouchedLayout>,
}

/// An entry that cannot be read.
#[derive(Clone, Copy, Debug)]
struct Broken {
    /// Its place in the list of findings; `None` where that was full.
    finding: Option<usize>,
}

/// A scrub under way.
struct Scrub<'a> {
    repository: &'a Repository,
    request: &'a ScrubRequest<'a>,
    rate: Rate,
    chunks: RepositoryChunks,
    looked: Looked,
}

impl<'a> Scrub<'a> {
    fn new(repository: &'a Repository, request: &'a ScrubRequest<'a>) -> Self {
        let rate = Rate::new(request.rate_bytes_per_second, repository.clock.clone());
        let chunks = repository.plain_chunks();
        Scrub { repository, request, rate, chunks, looked: Looked::default() }
    }
}

impl Scrub<'_> {
    fn check_cancelled(&self) -> Result<()> {
        self.request.cancel.check(SCRUB, "the repository")
    }

    fn found(&mut self, finding: Finding) -> Option<usize> {
        self.looked.report.found(finding)
    }

    /// Takes entries as known to be broken: a walk notes whom they touch.
    fn expect_broken(&mut self, digests: &[EntryDigest]) {
        for digest in digests {
            self.found_broken(*digest, Finding::entry(Fault::Damaged, *digest, "known"));
        }
    }

    /// Notes that an entry cannot be read, once.
    fn found_broken(&mut self, digest: EntryDigest, finding: Finding) {
        if !self.looked.broken.contains_key(&digest) {
            let finding = self.found(finding);
            self.looked.broken.insert(digest, Broken { finding });
        }
    }
}
