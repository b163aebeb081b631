//! The test gate: a version is booted, and what its recipe promises is looked at in the guest.
//!
//! ```text
//! version ─► throwaway mirror ─► QEMU ──ttyS0──► console log, login prompt
//!              │ a unit, scripts    └───ttyS1──► root's shell ─► units, ports, TAP, seed ─► Report
//! ```
//!
//! | Module | Holds |
//! |---|---|
//! | `plan` | what is to be tested, as it is kept with a version |
//! | `report` | what tests found, likewise |
//! | `boot` | one boot: firmware, seed, guest |
//! | `checks` | what is looked at in a guest that boots |
//! | `port` | a serial port of a guest, as text |
//! | `tap` | what scripts say |
//!
//! The shell needs neither password nor network nor agent: a unit that opens it is put into the
//! throwaway mirror's file system, by debugfs.
//!
//! **Invariants**
//! 1. The version is not changed: what a test writes is thrown away. A guest has a network card, and
//!    reaches nobody by it.
//! 2. A test passes only if every check of it was made and passed; a script passes only with a complete
//!    plan and exit code 0. That QEMU ended well says nothing.
//!
//! **Failure**: what a guest does, or does not, is a check that failed, with the console's last
//! words; an error is what this host cannot do.

mod boot;
mod checks;
mod plan;
mod port;
mod report;
mod tap;

use std::path::Path;

use catalog::VersionRecord;
use model::progress::Cancel;
use model::{Error, Result};
use repository::Repository;

pub use plan::{Firmware, Plan, SeedWord, Test};
pub(crate) use plan::{TIMEOUT, is_test_name, is_unit};
pub use report::{Checked, Outcome, Report};

use crate::key::digest;
use crate::tool::{Log, need};
use crate::work::Work;

/// Where the tests of a version are kept with it.
pub const PLAN: &str = "test/plan";

/// Where what they found is kept.
pub const RESULTS: &str = "test/results";

/// What names of console logs begin with; the boot comes behind.
pub const CONSOLE: &str = "test/console/";

const PROGRAMS: [(&str, &str); 4] = [
    ("debugfs", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("sfdisk", "fdisk"),
    ("qemu-system-x86_64", "qemu-system-x86"),
];

/// A version under test.
pub struct Gate<'a> {
    /// Its repository.
    pub repository: &'a Repository,
    /// The version.
    pub version: &'a VersionRecord,
    /// This host's state folder: work is below `build` in it.
    pub state: &'a Path,
    /// Told which boot begins.
    pub tell: &'a (dyn Fn(&str) + Sync),
    /// Ends it.
    pub cancel: &'a Cancel,
}

impl Gate<'_> {
    /// The tests that are kept with the version; where there are none, that it boots to its login
    /// prompt.
    ///
    /// # Errors
    /// `Corrupt` where what is kept cannot be read, `Refused` where a newer larder wrote it.
    pub fn plan(&self) -> Result<Plan> {
        match self.repository.document(self.version.facts.content, PLAN)? {
            Some(bytes) => Plan::decode(&bytes),
            None => Ok(Plan::default()),
        }
    }

    /// What was found last; none where nothing was tested.
    ///
    /// # Errors
    /// As [`Gate::plan`].
    pub fn last_report(&self) -> Result<Option<Report>> {
        let bytes = self.repository.document(self.version.facts.content, RESULTS)?;
        bytes.map(|bytes| Report::decode(&bytes)).transpose()
    }

    /// Runs all tests and keeps the plan, the results and the console logs with the version.
    ///
    /// Cost: a boot for each firmware and each seed that the tests name.
    ///
    /// # Errors
    /// `NotFound` where a program or firmware is not installed; `Unavailable` where there is no FUSE;
    /// `Cancelled`. Tests that fail are no error, but in the report.
    pub fn run(&self, plan: &Plan) -> Result<Report> {
        need(&PROGRAMS)?;
        let folder = std::path::absolute(self.state.join("build"))
            .map_err(|error| Error::io("find", self.state.display().to_string(), error))?;
        let work = Work::begin(&folder, self.repository)?;
        let name = self.version.id.image.as_str().replace('/', "_");
        let log = Log::create(&self.state.join("build/logs").join(format!("{name}-test.log")))?;
        let content = self.version.facts.content;
        let mut outcomes = Vec::new();
        for (index, boot) in boot::boots(self, plan, &log, work.path())?.into_iter().enumerate() {
            self.cancel.check("test", &self.version.id.to_string())?;
            (self.tell)(&boot.name());
            let folder = work.path().join(format!("boot{index}"));
            let (found, console) = boot.run(&folder)?;
            outcomes.extend(found);
            let name = format!("{CONSOLE}{}", boot.name());
            let console = if console.is_empty() { "(nothing)\n".to_owned() } else { console };
            self.repository.keep_document(content, &name, console.into_bytes())?;
        }
        let report = Report { plan: digest(&[plan.encode()?]), outcomes };
        self.repository.keep_document(content, PLAN, plan.encode()?.into_bytes())?;
        self.repository.keep_document(content, RESULTS, report.encode()?.into_bytes())?;
        Ok(report)
    }

    /// The report that is kept, where it is of these tests and all have passed: they need not run again.
    pub(crate) fn passed_before(&self, plan: &Plan) -> Result<Option<Report>> {
        let digest = digest(&[plan.encode()?]);
        // One that cannot be read is no reason not to make it anew.
        let last = self.last_report().unwrap_or_default();
        Ok(last.filter(|report| report.plan == digest && report.failed() == 0))
    }
}

/// What cannot be read.
fn corrupt(what: &'static str, reason: impl std::fmt::Display) -> Error {
    Error::new(model::Kind::Corrupt, "read", what).because(reason.to_string())
}
