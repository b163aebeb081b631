//! Which packages two versions have: from their descriptions, from dpkg's status in them, or from rpm's
//! database in them, which this machine's rpm reads (see `packages::dnf::installed`).

use std::collections::BTreeMap;
use std::sync::Arc;

use model::progress::Cancel;
use model::{Error, Kind, Result};
use repository::{Reader, Repository};

use super::files::whole_file;
use crate::derive::LOOK_LIMIT;
use crate::packages::dnf::installed::installed as installed_rpms;
use crate::packages::dnf::{DATABASE_FILE, DATABASES};
use crate::tool::{Log, Run};

const STATUS: &str = "/var/lib/dpkg/status";

/// How long a status file may be; one of 2000 packages has 2 MiB.
const STATUS_LEN_MAX: u64 = 64 << 20;

/// How long rpm's database may be; one of 2000 packages has some 100 MiB.
const DATABASE_LEN_MAX: u64 = 1 << 30;

/// A package that is not the same in both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackageChange {
    /// Its name.
    pub name: String,
    /// Its architecture.
    pub architecture: String,
    /// Its version in the first; `None` where that has it not.
    pub from: Option<String>,
    /// Its version in the second; `None` where that has it not.
    pub to: Option<String>,
}

/// Packages that differ, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackageDifference {
    /// Only the second has them.
    pub added: Vec<PackageChange>,
    /// Only the first has them.
    pub removed: Vec<PackageChange>,
    /// Both have them, in different versions.
    pub changed: Vec<PackageChange>,
}

/// Name and architecture, version.
type Packages = BTreeMap<(String, String), String>;

/// Compares the packages of two versions.
///
/// Cost: two documents where the versions are described, otherwise two files of some MiB.
///
/// # Errors
/// `Invalid` where it is not known which packages one has; those of reading its file system;
/// `NotFound` where rpm would have to be read and this machine has none.
pub fn compare_packages(
    repository: &Repository,
    first: &Arc<Reader>,
    second: &Arc<Reader>,
) -> Result<PackageDifference> {
    Ok(difference(&packages(repository, first)?, &packages(repository, second)?))
}

fn difference(old: &Packages, new: &Packages) -> PackageDifference {
    let mut difference = PackageDifference::default();
    let change = |key: &(String, String), from: Option<&String>, to: Option<&String>| {
        let (name, architecture) = key.clone();
        PackageChange { name, architecture, from: from.cloned(), to: to.cloned() }
    };
    for (key, to) in new {
        match old.get(key) {
            None => difference.added.push(change(key, None, Some(to))),
            Some(from) if from != to => difference.changed.push(change(key, Some(from), Some(to))),
            Some(_) => {}
        }
    }
    let removed = old.iter().filter(|(key, _)| !new.contains_key(*key));
    difference.removed = removed.map(|(key, from)| change(key, Some(from), None)).collect();
    difference
}

fn packages(repository: &Repository, reader: &Arc<Reader>) -> Result<Packages> {
    let text = repository.description(reader.version())?;
    let described = format::description::decode_description(text.as_bytes())?.packages;
    if !described.is_empty() {
        let key = |p: model::description::PackageDescription| ((p.name, p.architecture), p.version);
        return Ok(described.into_iter().map(key).collect());
    }
    if let Some(status) = whole_file(reader, STATUS, STATUS_LEN_MAX)? {
        return Ok(installed(&String::from_utf8_lossy(&status)));
    }
    for folder in DATABASES {
        let path = format!("{folder}/{DATABASE_FILE}");
        if let Some(database) = whole_file(reader, &path, DATABASE_LEN_MAX)? {
            return rpms(&database);
        }
    }
    let id = reader.version().id.to_string();
    Err(Error::new(Kind::Invalid, "read the packages of", id).because(format!(
        "it has neither a description with packages nor {STATUS} nor rpm's {DATABASE_FILE}"
    )))
}

/// What a database of rpm tells of, by this machine's rpm.
fn rpms(database: &[u8]) -> Result<Packages> {
    let failed = |error| Error::io("write a copy of", DATABASE_FILE, error);
    let folder = tempfile::tempdir().map_err(failed)?;
    let copy = folder.path().join("database");
    std::fs::create_dir(&copy).map_err(failed)?;
    std::fs::write(copy.join(DATABASE_FILE), database).map_err(failed)?;
    let log = Log::create(&folder.path().join("log"))?;
    let run = Run { log: &log, limit: LOOK_LIMIT, cancel: &Cancel::new() };
    let found = installed_rpms(&run, &copy)?;
    Ok(found.into_iter().map(|(name, version, arch)| ((name, arch), version)).collect())
}

/// What dpkg's status file tells of as installed.
fn installed(status: &str) -> Packages {
    let mut packages = Packages::new();
    for stanza in status.split("\n\n") {
        let field = |name: &str| {
            let value = stanza.lines().find_map(|line| line.strip_prefix(name));
            value.map(|value| value.trim().to_owned())
        };
        let Some(state) = field("Status:") else { continue };
        let is_installed = state.split_whitespace().nth(2).is_some_and(|w| w != "config-files");
        if let (true, Some(name), Some(version)) =
            (is_installed, field("Package:"), field("Version:"))
        {
            packages.insert((name, field("Architecture:").unwrap_or_default()), version);
        }
    }
    packages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_that_came_went_and_changed_are_told_apart() {
        let stanza = |name: &str, version: &str, state: &str| {
            format!("Package: {name}\nStatus: {state}\nArchitecture: all\nVersion: {version}\n\n")
        };
        let ok = "install ok installed";
        let old = [stanza("a", "1", ok), stanza("b", "1", ok), stanza("c", "1", ok)].concat();
        let gone = stanza("c", "1", "deinstall ok config-files");
        let new = [stanza("a", "2", ok), stanza("b", "1", ok), stanza("d", "1", ok), gone].concat();
        let found = difference(&installed(&old), &installed(&new));
        let names = |list: &[PackageChange]| -> Vec<String> {
            list.iter().map(|change| change.name.clone()).collect()
        };
        assert_eq!(names(&found.added), ["d"]);
        assert_eq!(names(&found.removed), ["c"]);
        assert_eq!(names(&found.changed), ["a"]);
        assert_eq!(found.changed[0].from.as_deref(), Some("1"));
        assert_eq!(found.changed[0].to.as_deref(), Some("2"));
    }
}
