//! Packages of Fedora and its kin: which ones, from where, and into an image; by dnf and rpm.
//!
//! | Module | Holds |
//! |---|---|
//! | `repositories` | where packages come from, and whose signatures count |
//! | `solver` | dnf in a root of its own: what to install |
//! | `stages` | from a recipe to a lock |
//! | `files` | the packages' files on this host, fetched and verified |
//! | `install` | from these files into an image, in one transaction |
//! | `installed` | what a database tells of as installed |
//!
//! `resolve.py` and `install.py` speak with dnf's and rpm's own libraries; what they are asked and what
//! they answer stands at their heads.
//!
//! **Invariants**
//! 1. Nothing of this machine's dnf or rpm is read or written: neither settings, caches nor database.
//! 2. No package is noted or installed before its signature was verified with the keys that the recipe
//!    names for its archive, and with no others.
//!
//! **Not here**: indexes that are kept for the next time; modules of a distribution.

use std::path::Path;

use model::{Error, Kind, Result};

use crate::recipe::Distribution;
use crate::tool::{Run, program};

pub(crate) mod files;
pub(crate) mod install;
pub(crate) mod installed;
mod repositories;
pub(crate) mod solver;
pub(crate) mod stages;

/// Programs and files of this machine that resolving needs, with their Debian packages.
pub(crate) const RESOLVE_PROGRAMS: [(&str, &str); 4] =
    [("dnf", "dnf"), ("rpmkeys", "rpm"), ("curl", "curl"), ("debugfs", "e2fsprogs")];

/// The file that is rpm's database, in its folder.
pub(crate) const DATABASE_FILE: &str = "rpmdb.sqlite";

/// The folders that rpm's database may be in.
pub(crate) const DATABASES: [&str; 2] = ["/usr/lib/sysimage/rpm", "/var/lib/rpm"];

/// The folder that rpm's database is in, in an image of this distribution.
pub(crate) fn database(distribution: &Distribution) -> &'static str {
    let moved = if distribution.id.get_ref() == "fedora" { 36 } else { 10 };
    let is_moved = distribution.number().is_some_and(|number| number >= moved);
    if is_moved { DATABASES[0] } else { DATABASES[1] }
}

/// Fails where this machine's rpm cannot install packages of a distribution as they mean it.
///
/// # Errors
/// `Refused` where their users would not be made.
pub(crate) fn check_machine(distribution: &Distribution, run: &Run) -> Result<()> {
    let since = if distribution.id.get_ref() == "fedora" { 42 } else { 10 };
    if distribution.number().is_none_or(|number| number < since) {
        return Ok(());
    }
    let text = run.answer(program("rpm").arg("--version"))?;
    let text = String::from_utf8_lossy(&text);
    if makes_users(&text) {
        return Ok(());
    }
    let (id, release) = (distribution.id.get_ref(), distribution.release.get_ref());
    Err(Error::new(Kind::Refused, "install packages of", format!("{id} {release}"))
        .because(format!("they have rpm make their users; {} does not", text.trim()))
        .hint("build on a machine with rpm 4.19 or newer (Debian 13)"))
}

/// `RPM version 4.18.0`
fn makes_users(version: &str) -> bool {
    let numbers = version.trim().rsplit(' ').next().unwrap_or_default();
    let mut numbers = numbers.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(4), Some(19))
}

/// An architecture as rpm calls it.
fn architecture(arch: &str) -> &str {
    match arch {
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        other => other,
    }
}

/// The interpreter that dnf's library is for: this machine may have others before it.
const PYTHON: &str = "/usr/bin/python3";

/// Writes a script into a folder for work.
fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text)
        .map_err(|error| Error::io("write", path.display().to_string(), error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{Place, Recipe};

    #[test]
    fn the_database_is_where_the_release_has_it() {
        for (id, release, expected) in [
            ("fedora", "35", "/var/lib/rpm"),
            ("fedora", "43", "/usr/lib/sysimage/rpm"),
            ("rocky", "9", "/var/lib/rpm"),
            ("alma", "9.4", "/var/lib/rpm"),
            ("centos", "10", "/usr/lib/sysimage/rpm"),
        ] {
            let text = format!(
                "name = \"x\"\n[distribution]\nid = \"{id}\"\nrelease = \"{release}\"\n[[stage]]\nname = \"a\"\n"
            );
            let (recipe, _) = Recipe::read(Place::new("r", text)).unwrap();
            assert_eq!(database(&recipe.distribution), expected, "{id} {release}");
        }
    }

    #[test]
    fn an_rpm_before_4_19_makes_no_users() {
        assert!(!makes_users("RPM version 4.18.0\n") && !makes_users("no version"));
        assert!(makes_users("RPM version 4.19.1\n") && makes_users("RPM version 6.0.0"));
    }
}
