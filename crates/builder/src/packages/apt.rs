//! apt in a root of its own: which packages a stage is made of, without touching this machine's.
//!
//! ```text
//! work/apt/conf             the only settings that apt reads
//! work/apt/status           what is installed already: the parent's packages
//! work/apt/etc/apt/         sources
//! work/apt/var/             indexes, verified by their signatures
//! ```
//!
//! **Failure**: what apt says decides what an error means: a wrong signature is `Refused`, a package
//! that does not exist `NotFound`, everything else may work later.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use env::{Clock, SystemClock};
use model::progress::Cancel;
use model::{Error, Kind, Result};

use super::indexes::Indexes;
use super::sources::{self, Source};
use crate::apt_settings;
use crate::lock::LockedPackage;
use crate::recipe::Recipe;
use crate::tool::{Log, Run, program};

const LIMIT: Duration = Duration::from_secs(30 * 60);

/// How often all indexes are asked for, each of apt's own tries aside.
const TRIES: usize = 2;

/// Where apt has its indexes.
const LISTS: &str = "var/lib/apt/lists";

/// An apt of our own.
pub(crate) struct Apt<'a> {
    folder: PathBuf,
    sources: Vec<Source>,
    kept: Indexes,
    log: &'a Log,
    cancel: &'a Cancel,
}

/// What apt would do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolution {
    /// In which order.
    pub order: Vec<String>,
    /// The packages that are unpacked, in that order.
    pub packages: Vec<LockedPackage>,
    /// Names of those that are removed.
    pub removed: Vec<String>,
}

impl<'a> Apt<'a> {
    /// Makes the root in a folder that is not there yet. Indexes are kept below `state`.
    pub(crate) fn new(
        folder: &Path,
        state: &Path,
        recipe: &Recipe,
        beside: &Path,
        log: &'a Log,
        cancel: &'a Cancel,
    ) -> Result<Apt<'a>> {
        let sources = sources::of(recipe, beside)?;
        let folder = folder.to_path_buf();
        let kept = Indexes::of(state, &sources);
        let apt = Apt { folder, sources, kept, log, cancel };
        let dump = apt.run().answer(program("apt-config").arg("dump"))?;
        let own = apt_settings::fetch_settings(&String::from_utf8_lossy(&dump));
        let own: String = own.iter().map(|line| format!("{line};\n")).collect();
        let failed = |error| Error::io("make", apt.folder.display().to_string(), error);
        for name in [
            "etc/apt/apt.conf.d",
            "etc/apt/preferences.d",
            "etc/apt/sources.list.d",
            "etc/apt/trusted.gpg.d",
            "var/lib/apt/lists/partial",
            "var/cache/apt/archives/partial",
        ] {
            fs::create_dir_all(apt.folder.join(name)).map_err(failed)?;
        }
        let keys = Path::new("/etc/apt/trusted.gpg.d");
        for entry in fs::read_dir(keys).into_iter().flatten().flatten() {
            let copy = apt.folder.join("etc/apt/trusted.gpg.d").join(entry.file_name());
            fs::copy(entry.path(), copy).map_err(failed)?;
        }
        let arch = recipe.distribution.arch.get_ref();
        let home = apt.folder.display();
        let conf = format!(
            "{own}Dir \"{home}/\";\nDir::State::status \"{home}/status\";\n\
             APT::Architecture \"{arch}\";\nAPT::Architectures {{ \"{arch}\"; }};\n\
             APT::Sandbox::User \"root\";\nAPT::Install-Recommends \"false\";\n\
             APT::Get::AllowUnauthenticated \"false\";\nAPT::Update::Error-Mode \"any\";\n\
             Acquire::Languages \"none\";\nAcquire::ForceHash \"SHA256\";\n\
             Acquire::Retries \"3\";\nAcquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n"
        );
        let lines: String = apt.sources.iter().map(|source| format!("{}\n", source.line)).collect();
        for (name, text) in [("conf", &conf), ("etc/apt/sources.list", &lines)] {
            fs::write(apt.folder.join(name), text).map_err(failed)?;
        }
        fs::write(apt.folder.join("status"), "").map_err(failed)?;
        Ok(apt)
    }

    fn run(&self) -> Run<'_> {
        Run { log: self.log, limit: LIMIT, cancel: self.cancel }
    }

    /// A program that reads our settings and no others.
    pub(crate) fn program(&self, name: &str) -> Command {
        let mut command = program(name);
        command.env("APT_CONFIG", self.folder.join("conf"));
        command
    }

    /// The places of an archive of the recipe.
    pub(crate) fn bases(&self, archive: usize) -> impl Iterator<Item = &str> {
        let fits = move |source: &&Source| source.archive == archive;
        self.sources.iter().filter(fits).map(|source| source.base.as_str())
    }

    /// Gets the indexes and verifies them.
    ///
    /// # Errors
    /// `Refused` where a signature is not right, `Unavailable` where an archive does not answer.
    pub(crate) fn update(&self) -> Result<()> {
        self.log.say("asking the archives for their indexes");
        let lists = self.folder.join(LISTS);
        self.kept.put_into(&lists);
        let mut tries = 0;
        loop {
            tries += 1;
            match self.run().succeed(self.program("apt-get").args(["-q", "update"])) {
                Ok(()) => {
                    self.kept.keep(&lists);
                    return Ok(());
                }
                Err(error) if error.kind() == Kind::Cancelled => return Err(error),
                Err(error) => {
                    let error = explain("read the package archives", error);
                    if error.kind() != Kind::Unavailable || tries == TRIES {
                        return Err(error);
                    }
                    tracing::info!("once more: {}", error.chain());
                }
            }
        }
    }

    /// When the youngest index was signed, in seconds since 1970-01-01 UTC; not in the future.
    pub(crate) fn epoch(&self) -> Result<i64> {
        let lists = self.folder.join(LISTS);
        let failed = |error| Error::io("read", lists.display().to_string(), error);
        let mut latest = 0;
        for entry in fs::read_dir(&lists).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with("InRelease") || name.ends_with("_Release") {
                let text = fs::read_to_string(entry.path()).map_err(failed)?;
                let date = text.lines().find_map(|line| line.strip_prefix("Date:"));
                latest = latest.max(date.and_then(seconds_of).unwrap_or(0));
            }
        }
        Ok(latest.min(SystemClock.now().0 / 1_000_000))
    }

    /// What is installed already, as dpkg's status file has it.
    pub(crate) fn set_status(&self, status: &str) -> Result<()> {
        let path = self.folder.join("status");
        fs::write(&path, status).map_err(|e| Error::io("write", path.display().to_string(), e))
    }

    /// What apt would do to have these packages.
    ///
    /// # Errors
    /// `NotFound` where one does not exist, `Invalid` where they cannot be had together.
    pub(crate) fn resolve(&self, wanted: &[String]) -> Result<Resolution> {
        let install = |flag: &str| {
            let mut command = self.program("apt-get");
            command.args(["-qq", "-y", flag, "install", "--"]).args(wanted);
            self.run().answer(&mut command).map_err(|error| explain("resolve packages", error))
        };
        let plan = install("-s")?;
        let uris = install("--print-uris")?;
        let uris = parse_uris(&String::from_utf8_lossy(&uris));
        self.join(&String::from_utf8_lossy(&plan), &uris)
    }

    fn join(&self, plan: &str, uris: &BTreeMap<String, Uri>) -> Result<Resolution> {
        let mut resolution = Resolution::default();
        let mut order: Vec<(&str, Vec<String>)> = Vec::new();
        for action in parse_plan(plan) {
            let Action { verb, name, version, architecture } = action;
            match order.last_mut().filter(|(last, _)| *last == verb) {
                Some((_, names)) => names.push(name.clone()),
                None => order.push((verb, vec![name.clone()])),
            }
            if verb == "remove" {
                resolution.removed.push(name);
                continue;
            }
            if verb == "configure" {
                continue;
            }
            let file = format!("{name}_{}_{architecture}.deb", version.replace(':', "%3a"));
            let Some(uri) = uris.get(&file) else {
                return Err(Error::new(Kind::Bug, "resolve packages", name)
                    .because(format!("apt names no address of {file}")));
            };
            let Some((archive, path)) = self.split(&uri.uri) else {
                return Err(Error::new(Kind::Bug, "resolve packages", name)
                    .because(format!("{} is of no archive", uri.uri)));
            };
            resolution.packages.push(LockedPackage {
                name,
                version,
                architecture,
                sha256: uri.sha256.clone(),
                size: uri.len,
                path,
                archive,
                uri: Some(uri.uri.clone()),
            });
        }
        let line = |(verb, names): (&str, Vec<String>)| format!("{verb} {}", names.join(" "));
        resolution.order = order.into_iter().map(line).collect();
        Ok(resolution)
    }

    /// The archive of an address, and the rest of it.
    fn split(&self, uri: &str) -> Option<(usize, String)> {
        let source = self.sources.iter().find(|source| uri.starts_with(&source.base))?;
        let rest = uri[source.base.len()..].trim_start_matches("./").trim_start_matches('/');
        Some((source.archive, rest.to_owned()))
    }

    /// What the indexes tell of these packages, as a status file has it when they are installed.
    /// `None` where they tell nothing of one.
    pub(crate) fn stanzas(&self, packages: &[LockedPackage]) -> Result<Option<Vec<String>>> {
        if packages.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let mut command = self.program("apt-cache");
        command.args(["show", "--no-all-versions"]);
        command
            .args(packages.iter().map(|package| format!("{}={}", package.name, package.version)));
        let Ok(shown) = self.run().answer(&mut command) else {
            self.cancel.check("resolve", "packages")?;
            return Ok(None);
        };
        let text = String::from_utf8_lossy(&shown).into_owned();
        let mut stanzas = BTreeMap::new();
        for stanza in text.split("\n\n").filter(|stanza| !stanza.trim().is_empty()) {
            let field = |name: &str| {
                stanza.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim())
            };
            let key = (field("Package:"), field("Version:"));
            let left_out = ["Filename:", "Size:", "SHA", "MD5", "Status:"];
            let kept = stanza.lines().filter(|l| !left_out.iter().any(|out| l.starts_with(out)));
            let kept: Vec<&str> = kept.filter(|line| !line.is_empty()).collect();
            let text = format!("{}\nStatus: install ok installed\n", kept.join("\n"));
            stanzas.insert(key, text);
        }
        let found = packages
            .iter()
            .map(|p| stanzas.get(&(Some(p.name.as_str()), Some(p.version.as_str()))).cloned());
        Ok(found.collect())
    }
}

/// The package's name in a stanza of a status file.
pub(crate) fn name_of(stanza: &str) -> Option<&str> {
    stanza.lines().find_map(|line| line.strip_prefix("Package:")).map(str::trim)
}

struct Action {
    verb: &'static str,
    name: String,
    version: String,
    architecture: String,
}

/// `Inst name [old] (version suites [arch]) [...]`, `Conf name (...)`, `Remv name [version]`.
fn parse_plan(plan: &str) -> Vec<Action> {
    plan.lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let verb = match words.next()? {
                "Inst" => "unpack",
                "Conf" => "configure",
                "Remv" | "Purg" => "remove",
                _ => return None,
            };
            let name = words.next()?;
            let name = name.split(':').next().unwrap_or(name).to_owned();
            let inside = line.split_once('(').and_then(|(_, rest)| rest.split_once(')'));
            let inside = inside.map_or("", |(inside, _)| inside);
            let version = inside.split(' ').next().unwrap_or_default().to_owned();
            let architecture = inside.rsplit_once('[').map_or("", |(_, rest)| rest);
            let architecture = architecture.trim_end_matches(']').to_owned();
            Some(Action { verb, name, version, architecture })
        })
        .collect()
}

struct Uri {
    uri: String,
    len: u64,
    sha256: String,
}

/// `'URI' FILE LEN SHA256:DIGEST`
fn parse_uris(text: &str) -> BTreeMap<String, Uri> {
    text.lines()
        .filter_map(|line| {
            let (uri, rest) = line.strip_prefix('\'')?.split_once("' ")?;
            let mut words = rest.split(' ');
            let (file, len) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
            let sha256 = words.next()?.strip_prefix("SHA256:")?.to_owned();
            Some((file, Uri { uri: uri.to_owned(), len, sha256 }))
        })
        .collect()
}

/// What a failure of apt means.
fn explain(operation: &'static str, error: Error) -> Error {
    if error.kind() != Kind::Unavailable {
        return error;
    }
    let said = error.to_string();
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let (kind, hint) = if has(&["NO_PUBKEY", "not signed", "BADSIG", "signatures", "EXPKEYSIG"]) {
        (Kind::Refused, "`signed_by` names the file with an archive's keys")
    } else if has(&["is expired", "no longer valid"]) {
        (
            Kind::Refused,
            "nobody keeps the archive up any more: with `Acquire::Check-Valid-Until \"false\"` in \
             this machine's settings of apt it is taken as it is",
        )
    } else if has(&["a Release file"]) {
        (
            Kind::NotFound,
            "look at the release's name; a release that has reached its end moves to its \
             distribution's archive of old releases: say where that is with `[[archive]]` and `url`",
        )
    } else if has(&["Unable to locate", "no installation candidate", "find any package"]) {
        (Kind::NotFound, "look at the names in `packages` and at the archives")
    } else if has(&["unmet dependencies", "held broken", "conflict"]) {
        (Kind::Invalid, "these packages cannot be installed together")
    } else {
        (Kind::Unavailable, "the archive may be in the middle of an update: try again later")
    };
    let said = said.split_once(": ").map_or(said.as_str(), |(_, rest)| rest).to_owned();
    Error::new(kind, operation, "").because(said).hint(hint)
}

/// `Sat, 01 Nov 2025 00:00:00 UTC` in seconds since 1970-01-01.
fn seconds_of(date: &str) -> Option<i64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<&str> = date.split_whitespace().collect();
    let [_, day, month, year, time, _] = words[..] else { return None };
    let month = i64::try_from(MONTHS.iter().position(|name| *name == month)?).ok()? + 1;
    let (day, year): (i64, i64) = (day.parse().ok()?, year.parse().ok()?);
    let mut parts = time.split(':').map(|part| part.parse::<i64>().ok());
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next()??);
    // Years begin in March: the leap day is the last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year.div_euclid(4) - year.div_euclid(100)
        + year.div_euclid(400)
        + (month * 153 + 2) / 5
        + day
        - 1
        - 719_468;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_indexes_are_read() {
        assert_eq!(seconds_of(" Thu, 01 Jan 1970 00:00:01 UTC"), Some(1));
        assert_eq!(seconds_of("Sat, 01 Nov 2025 10:20:30 UTC"), Some(1_761_992_430));
        assert_eq!(seconds_of("Thu, 29 Feb 2024 00:00:00 +0000"), Some(1_709_164_800));
        assert_eq!(seconds_of("yesterday"), None);
    }

    #[test]
    fn what_apt_would_do_is_read_in_its_order() {
        let plan = "Inst libc6 [2.1] (2.2-1 Debian:12/stable [amd64]) []\nConf libc6 (2.2-1 x [amd64])\n\
                    Remv old [1.0]\nInst a (1:2 b [all])\nNoise\n";
        let actions = parse_plan(plan);
        let shown: Vec<_> = actions
            .iter()
            .map(|a| format!("{} {} {} {}", a.verb, a.name, a.version, a.architecture))
            .collect();
        assert_eq!(
            shown,
            [
                "unpack libc6 2.2-1 amd64",
                "configure libc6 2.2-1 amd64",
                "remove old  ",
                "unpack a 1:2 all"
            ]
        );
        let uris = parse_uris("'http://x/a.deb' a_1%3a2_all.deb 7 SHA256:ab\nnoise\n");
        assert_eq!(uris["a_1%3a2_all.deb"].len, 7);
    }
}
