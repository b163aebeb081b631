//! What rpm's database tells of as installed, wherever the database comes from.
//!
//! **Failure**: a database may come from a guest. rpm reads a copy of it in namespaces of its own, with
//! this machine's programs read-only, no network and no right; what it says is bounded.

use std::path::Path;

use model::{Error, Kind, Result};

use crate::contained::programs_of_this_machine;
use crate::tool::{PATH, Run, need, program};

/// What is installed: name, version, architecture. `folder` holds a copy of the database, which is
/// read there and may be changed by that.
///
/// # Errors
/// `NotFound` where this machine has no rpm; `Invalid` where it cannot read the database.
pub(crate) fn installed(run: &Run, folder: &Path) -> Result<Vec<(String, String, String)>> {
    need(&[("rpm", "rpm"), ("bwrap", "bubblewrap")])?;
    let mut command = program("bwrap");
    programs_of_this_machine(&mut command);
    command.args(["--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"]);
    command.arg("--bind").arg(folder).arg("/database");
    command.args(["--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]);
    command.args(["--clearenv", "--setenv", "PATH", PATH, "--setenv", "LC_ALL", "C.UTF-8"]);
    command.args(["--", "rpm", "--dbpath", "/database", "--define", "__plugindir /nonexistent"]);
    command.args(["--query", "--all", "--queryformat", "%{name}\\t%{evr}\\t%{arch}\\n"]);
    let text = run.answer(&mut command).map_err(|error| match error.kind() {
        Kind::Unavailable => {
            Error::new(Kind::Invalid, "read the database of", "packages").because(error.to_string())
        }
        _ => error,
    })?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

fn parse(text: &str) -> Vec<(String, String, String)> {
    let package = |line: &str| {
        let mut words = line.split('\t').map(str::to_owned);
        let (name, version) = (words.next()?, words.next()?);
        let version = version.strip_prefix("0:").map_or(version.clone(), str::to_owned);
        // Keys that rpm trusts are noted as packages.
        (name != "gpg-pubkey").then_some((name, version, words.next()?))
    };
    text.lines().filter_map(package).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_no_packages_and_an_epoch_of_zero_is_none() {
        let found = parse("a\t0:1-2\tnoarch\ngpg-pubkey\t1\t(none)\nb\t1:1-2\tx86_64\nnoise\n");
        let of = |name: &str, version: &str, arch: &str| (name.into(), version.into(), arch.into());
        assert_eq!(found, [of("a", "1-2", "noarch"), of("b", "1:1-2", "x86_64")]);
    }
}
