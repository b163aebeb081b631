//! What is to be tested, as it is kept with a version: from a recipe, whole, with its scripts.
//!
//! The bytes are on a page of the documentation: `docs/formats/tests.md`.

use std::path::Path;
use std::time::Duration;

use model::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

use super::corrupt;
use crate::recipe::{Boot, Recipe, duration};

const FORMAT: u32 = 1;

/// A test takes so long where nothing is said.
pub(crate) const TIMEOUT: &str = "5m";

/// The longest script, in bytes.
const SCRIPT_LEN_MAX: u64 = 256 << 10;

/// Tests, and how the disk boots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    format: u32,
    /// What starts the disk; found out by its partitions where there is nothing.
    pub firmware: Vec<Firmware>,
    /// The tests, in order.
    pub tests: Vec<Test>,
}

/// What starts a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// A BIOS.
    Bios,
    /// UEFI.
    Uefi,
    /// QEMU, given the disk's own kernel.
    Direct,
}

/// What a guest is told who it is by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SeedWord {
    /// A disk for cloud-init.
    NoCloud,
    /// A disk as OpenStack gives one.
    ConfigDrive,
    /// Metadata as EC2 serves them.
    Ec2,
    /// Credentials of systemd.
    Credentials,
}

/// One test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Test {
    /// What it is called.
    pub name: String,
    /// The console shows a login prompt.
    pub login: bool,
    /// Units that are active.
    pub units: Vec<String>,
    /// TCP ports that are listened at.
    pub ports: Vec<u16>,
    /// A script that prints TAP.
    pub script: Option<String>,
    /// The guest is given this, and takes it.
    pub seed: Option<SeedWord>,
    /// How long it may take from the start of its guest, in seconds.
    pub timeout_seconds: u64,
}

impl Firmware {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Firmware::Bios => "bios",
            Firmware::Uefi => "uefi",
            Firmware::Direct => "direct",
        }
    }
}

impl SeedWord {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            SeedWord::NoCloud => "nocloud",
            SeedWord::ConfigDrive => "configdrive",
            SeedWord::Ec2 => "ec2",
            SeedWord::Credentials => "credentials",
        }
    }

    /// Reads the word for it.
    pub fn parse(word: &str) -> Option<SeedWord> {
        let all = [SeedWord::NoCloud, SeedWord::ConfigDrive, SeedWord::Ec2, SeedWord::Credentials];
        all.into_iter().find(|seed| seed.as_str() == word)
    }
}

impl Default for Plan {
    /// That it boots to its login prompt.
    fn default() -> Self {
        let test = Test {
            name: "boots".into(),
            login: true,
            units: Vec::new(),
            ports: Vec::new(),
            script: None,
            seed: None,
            timeout_seconds: duration(TIMEOUT).unwrap_or_default().as_secs(),
        };
        Plan { format: FORMAT, firmware: Vec::new(), tests: vec![test] }
    }
}

impl Plan {
    /// The tests of a recipe; none where it has none. Scripts are read from beside it.
    ///
    /// # Errors
    /// Those of reading scripts.
    pub fn of(recipe: &Recipe, beside: &Path) -> Result<Option<Plan>> {
        if recipe.test.is_empty() {
            return Ok(None);
        }
        let tests: Result<Vec<Test>> = recipe
            .test
            .iter()
            .map(|test| {
                let script = match (&test.command, &test.script) {
                    (Some(command), _) => Some(format!("{}\n", command.get_ref())),
                    (None, Some(name)) => Some(read_script(&beside.join(name.get_ref()))?),
                    (None, None) => None,
                };
                let limit = duration(test.timeout.get_ref()).unwrap_or(Duration::from_secs(300));
                Ok(Test {
                    name: test.name.get_ref().clone(),
                    login: test.login,
                    units: test.units.iter().map(|unit| unit.get_ref().clone()).collect(),
                    ports: test.ports.clone(),
                    script,
                    seed: test.seed.as_ref().and_then(|word| SeedWord::parse(word.get_ref())),
                    timeout_seconds: limit.as_secs(),
                })
            })
            .collect();
        let stands_on_version = recipe.stage.first().is_some_and(|stage| stage.parent.is_some());
        let firmware = match recipe.disk_or_default().boot {
            // The disk is that of the version below.
            _ if stands_on_version => Vec::new(),
            Boot::Direct => vec![Firmware::Direct],
            Boot::Bios => vec![Firmware::Bios],
            Boot::Uefi => vec![Firmware::Bios, Firmware::Uefi],
        };
        Ok(Some(Plan { format: FORMAT, firmware, tests: tests? }))
    }

    /// The text that is kept.
    pub(crate) fn encode(&self) -> Result<String> {
        serde_json::to_string(self)
            .map_err(|error| Error::new(Kind::Bug, "write", "the tests").caused_by(error))
    }

    /// Reads the text that is kept.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Plan> {
        let plan: Plan =
            serde_json::from_slice(bytes).map_err(|error| corrupt("the tests", error))?;
        if plan.format != FORMAT {
            return Err(Error::new(Kind::Refused, "read", "the tests")
                .because(format!("they have format {}; this larder knows {FORMAT}", plan.format))
                .hint("use a newer larder"));
        }
        // What comes from another repository ends up in names and commands.
        let wrong = plan.tests.iter().find(|test| {
            !is_test_name(&test.name)
                || !test.units.iter().all(|unit| is_unit(unit))
                || !(1..=24 * 3600).contains(&test.timeout_seconds)
        });
        match wrong {
            Some(test) => Err(corrupt("the tests", format!("`{}` cannot be", test.name))),
            None => Ok(plan),
        }
    }
}

fn read_script(path: &Path) -> Result<String> {
    let failed = |error| Error::io("read", path.display().to_string(), error);
    let refused = |reason: String| {
        Err(Error::new(Kind::Invalid, "read", path.display().to_string()).because(reason))
    };
    let len = std::fs::metadata(path).map_err(failed)?.len();
    if len > SCRIPT_LEN_MAX {
        return refused(format!("it has {len} bytes; a script has at most {SCRIPT_LEN_MAX}"));
    }
    match String::from_utf8(std::fs::read(path).map_err(failed)?) {
        Ok(text) => Ok(text),
        Err(_) => refused("it is not text".into()),
    }
}

/// Whether a test may be called so.
pub(crate) fn is_test_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 64 && !name.contains(char::is_control)
}

/// Whether a unit may be called so.
pub(crate) fn is_unit(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.@:\\".contains(c);
    !name.is_empty() && name.len() <= 256 && name.chars().all(fits) && !name.starts_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_reads_back_and_nothing_else_does() {
        let plan = Plan::default();
        let text = plan.encode().unwrap();
        assert_eq!(
            text,
            "{\"format\":1,\"firmware\":[],\"tests\":[{\"name\":\"boots\",\"login\":true,\"units\":[],\
             \"ports\":[],\"script\":null,\"seed\":null,\"timeout_seconds\":300}]}"
        );
        assert_eq!(Plan::decode(text.as_bytes()).unwrap(), plan);
        for (from, to) in [
            ("\"format\":1", "\"format\":2"),
            ("boots", "a\\nb"),
            ("\"units\":[]", "\"units\":[\"a;reboot\"]"),
            ("300", "0"),
            ("login", "logins"),
            ("null,\"timeout", "\"moon\",\"timeout"),
        ] {
            assert!(Plan::decode(text.replacen(from, to, 1).as_bytes()).is_err(), "{to}");
        }
    }
}
