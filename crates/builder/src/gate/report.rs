//! What tests found, as it is kept with a version and signed.

use model::description::TestDescription;
use model::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

use super::corrupt;

/// What tests found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The digest of the tests.
    pub plan: String,
    /// One for each test and boot, in the order in which they were made.
    pub outcomes: Vec<Outcome>,
}

/// What one test found in one boot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// The test's name.
    pub name: String,
    /// The boot: its firmware, and its seed where it has one.
    pub boot: String,
    /// What was looked at.
    pub checks: Vec<Checked>,
    /// How long it took, waiting for the guest included.
    pub seconds: f64,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checked {
    /// What: `unit nginx`.
    pub what: String,
    /// Whether it is as it should be.
    pub passed: bool,
    /// What was found, where it is not.
    pub reason: String,
}

impl Outcome {
    /// Whether every check was made and passed.
    pub fn passed(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|check| check.passed)
    }
}

impl Report {
    /// How many tests passed, each boot counted.
    pub fn passed(&self) -> usize {
        self.outcomes.iter().filter(|outcome| outcome.passed()).count()
    }

    /// How many failed. A report without tests has failed.
    pub fn failed(&self) -> usize {
        if self.outcomes.is_empty() { 1 } else { self.outcomes.len() - self.passed() }
    }

    /// What failed first, in words.
    pub fn first_failure(&self) -> Option<String> {
        let outcome = self.outcomes.iter().find(|outcome| !outcome.passed())?;
        let failed = outcome.checks.iter().find(|check| !check.passed);
        let (what, reason) = failed.map_or(("nothing was checked", ""), |check| {
            (check.what.as_str(), check.reason.as_str())
        });
        let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
        Some(format!("`{}` ({}): {what}: {reason:.600}", outcome.name, outcome.boot))
    }

    /// As a description has it.
    pub(crate) fn described(&self) -> Vec<TestDescription> {
        let described = |outcome: &Outcome| TestDescription {
            name: format!("{}: {}", outcome.boot, outcome.name),
            passed: outcome.passed(),
        };
        self.outcomes.iter().map(described).collect()
    }

    pub(crate) fn encode(&self) -> Result<String> {
        serde_json::to_string(self)
            .map_err(|error| Error::new(Kind::Bug, "write", "what tests found").caused_by(error))
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Report> {
        serde_json::from_slice(bytes).map_err(|error| corrupt("what tests found", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_without_checks_and_a_report_without_tests_have_not_passed() {
        let outcome =
            |checks| Outcome { name: "a".into(), boot: "bios".into(), checks, seconds: 0.5 };
        let check = |passed| Checked { what: "x".into(), passed, reason: "no\nway".into() };
        let report = |outcomes| Report { plan: String::new(), outcomes };
        assert_eq!(report(vec![]).failed(), 1);
        assert_eq!(report(vec![outcome(vec![])]).failed(), 1);
        assert_eq!(report(vec![outcome(vec![check(true)])]).failed(), 0);
        let failed = report(vec![outcome(vec![check(true), check(false)])]);
        assert_eq!((failed.passed(), failed.failed()), (0, 1));
        assert_eq!(failed.first_failure().unwrap(), "`a` (bios): x: no way");
        assert_eq!(Report::decode(failed.encode().unwrap().as_bytes()).unwrap(), failed);
    }
}
