//! The packages' files on this host, each verified by its digest and by its signature.
//!
//! ```text
//! STATE/packages/SHA256.rpm       kept for the next build
//! work/dnf/keys/N/                the keys of archive N, as rpm keeps keys
//! work/pool/                      the packages of one stage under their names
//! ```
//!
//! **Invariants**: a file is taken for a package only with the lock's digest, and for a recipe's only
//! with a signature by a key of its archive, wherever the file came from.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::progress::Cancel;
use model::{Error, Kind, Result};

use super::solver::Dnf;
use super::write;
use crate::lock::{LockedPackage, LockedStage};
use crate::tool::{Log, Run, program};

const LIMIT: Duration = Duration::from_secs(60 * 60);

/// How many files one call of curl fetches, or of rpm verifies: a command line has an end.
const AT_ONCE: usize = 200;

/// How curl fetches: it tries again, also where an answer breaks off, and gives up on what stands
/// still. Where a redirection leads, there is a network.
const FETCH: [&str; 18] = [
    "--silent",
    "--show-error",
    "--fail",
    "--location",
    "--globoff",
    "--proto-redir",
    "=http,https,ftp",
    "--retry",
    "3",
    "--retry-all-errors",
    "--connect-timeout",
    "30",
    "--speed-limit",
    "1000",
    "--speed-time",
    "60",
    "--parallel",
    "--config",
];

/// Where packages are kept on this host.
pub(crate) struct RpmFiles<'a> {
    /// The folder.
    pub folder: PathBuf,
    /// Told what happens.
    pub log: &'a Log,
    /// Ends it.
    pub cancel: &'a Cancel,
}

impl RpmFiles<'_> {
    fn run(&self) -> Run<'_> {
        Run { log: self.log, limit: LIMIT, cancel: self.cancel }
    }

    /// Where the file of a package is, once it was fetched.
    pub(crate) fn path(&self, package: &LockedPackage) -> PathBuf {
        self.folder.join(format!("{}.rpm", package.sha256))
    }

    /// Fetches those packages that are not here, and verifies the signatures of all.
    ///
    /// # Errors
    /// `Unavailable` where an archive does not have one, or not with the digest of the lock;
    /// `Refused` where the signature of one is missing, or not by a key of its archive.
    pub(crate) fn fetch(&self, dnf: &Dnf, packages: &[LockedPackage]) -> Result<()> {
        let failed =
            |error| Error::io("keep packages in", self.folder.display().to_string(), error);
        fs::create_dir_all(&self.folder).map_err(failed)?;
        let is_missing = |package: &&LockedPackage| !self.path(package).exists();
        let missing: Vec<_> = packages.iter().filter(is_missing).collect();
        if !missing.is_empty() {
            self.log.say(&format!("fetching {} packages", missing.len()));
            let incoming = tempfile::tempdir_in(dnf.folder()).map_err(failed)?;
            self.fetch_into(dnf, &missing, incoming.path())?;
        }
        self.verify(dnf, packages)
    }

    fn fetch_into(&self, dnf: &Dnf, missing: &[&LockedPackage], incoming: &Path) -> Result<()> {
        let mut last = None;
        for candidate in 0.. {
            let wanted: Vec<_> = missing.iter().filter(|p| !self.path(p).exists()).collect();
            let mut asked = false;
            for some in wanted.chunks(AT_ONCE) {
                let mut config = String::new();
                for package in some {
                    let Some(uri) = uri(dnf, package, candidate)? else { continue };
                    let to = incoming.join(&package.sha256);
                    config.push_str(&format!("url = \"{uri}\"\noutput = \"{}\"\n", to.display()));
                }
                if config.is_empty() {
                    continue;
                }
                asked = true;
                let path = incoming.join("addresses");
                write(&path, &config)?;
                let mut command = Dnf::networked("curl");
                let failure = self.run().succeed(command.args(FETCH).arg(&path)).err();
                self.cancel.check("fetch", "packages")?;
                let mut other = None;
                for package in some {
                    let file = incoming.join(&package.sha256);
                    if !file.exists() {
                        continue;
                    }
                    if self.is_whole(&file, package)? {
                        fs::rename(&file, self.path(package))
                            .map_err(|e| Error::io("keep", file.display().to_string(), e))?;
                    } else if failure.is_none() {
                        other = Some(
                            Error::new(Kind::Unavailable, "fetch", &package.name).because(CHANGED),
                        );
                    }
                }
                last = failure.or(other).or(last);
            }
            if !asked {
                break;
            }
        }
        match missing.iter().find(|package| !self.path(package).exists()) {
            None => Ok(()),
            Some(package) => Err(missing_package(package, last)),
        }
    }

    /// True where a file has the digest that its package was locked with.
    fn is_whole(&self, file: &Path, package: &LockedPackage) -> Result<bool> {
        let digest = self.run().answer(program("sha256sum").arg(file))?;
        Ok(digest.starts_with(package.sha256.to_ascii_lowercase().as_bytes()))
    }

    /// Verifies signatures and what they are of, each with the keys of the package's archive alone.
    fn verify(&self, dnf: &Dnf, packages: &[LockedPackage]) -> Result<()> {
        let mut archives: Vec<usize> = packages.iter().map(|package| package.archive).collect();
        archives.sort_unstable();
        archives.dedup();
        for archive in archives {
            let keys = self.keys(dnf, archive)?;
            let of_it: Vec<_> = packages.iter().filter(|p| p.archive == archive).collect();
            for some in of_it.chunks(AT_ONCE) {
                let mut command = rpmkeys(&keys);
                command.arg("--checksig").args(some.iter().map(|package| self.path(package)));
                match self.run().succeed(&mut command) {
                    Ok(()) => {}
                    Err(error) if error.kind() == Kind::Cancelled => return Err(error),
                    Err(error) => {
                        let found = some.iter().find_map(|p| self.wrong(&keys, p).transpose());
                        return Err(found.transpose()?.unwrap_or(error));
                    }
                }
            }
        }
        Ok(())
    }

    /// What is wrong with the signature of a package.
    fn wrong(&self, keys: &Path, package: &LockedPackage) -> Result<Option<Error>> {
        let path = self.path(package);
        // It says what it has found, and fails where something of that is wrong.
        let run = self.run();
        if run.answer(rpmkeys(keys).arg("--checksig").arg(&path)).is_ok() {
            return Ok(None);
        }
        let mut command = program("sh");
        command.args(["-c", "\"$@\" || true", "sh", "rpmkeys"]);
        command.args(rpmkeys(keys).get_args()).args(["--verbose", "--checksig"]).arg(&path);
        let text = run.answer(&mut command)?;
        let text = String::from_utf8_lossy(&text);
        let signature = text.lines().find(|line| line.contains("Signature, key ID"));
        let key = |line: &str| {
            let id = line.split("key ID ").nth(1).and_then(|rest| rest.split(':').next());
            id.unwrap_or_default().to_owned()
        };
        let damaged = text.lines().any(|line| line.trim_end().ends_with("BAD"));
        let reason = match signature {
            _ if damaged => "it is damaged: what it holds is not what was signed".to_owned(),
            None => "it is not signed".to_owned(),
            Some(line) if line.contains("NOKEY") => {
                format!("it is signed with another key, {}", key(line))
            }
            Some(line) => line.trim().to_owned(),
        };
        let subject = format!("{} {}", package.name, package.version);
        Ok(Some(
            Error::new(Kind::Refused, "verify the package", subject)
                .because(reason)
                .hint("`signed_by` names the file with the keys of an archive's packages"),
        ))
    }

    /// The keys of an archive, as rpm keeps keys.
    fn keys(&self, dnf: &Dnf, archive: usize) -> Result<PathBuf> {
        let folder = dnf.folder().join("keys").join(archive.to_string());
        if folder.exists() {
            return Ok(folder);
        }
        fs::create_dir_all(&folder)
            .map_err(|error| Error::io("make", folder.display().to_string(), error))?;
        let places = dnf.places()?.iter().filter(|place| place.archive == archive);
        for file in places.flat_map(|place| &place.keys) {
            self.run().succeed(rpmkeys(&folder).arg("--import").arg(file)).map_err(|error| {
                if error.kind() != Kind::Unavailable {
                    return error;
                }
                Error::new(Kind::Invalid, "read the keys", file.display().to_string())
                    .because(error.to_string())
                    .hint("rpm takes keys in letters: `gpg --export --armor`")
            })?;
        }
        Ok(folder)
    }

    /// Puts the files of a stage's packages under their names into a new folder.
    pub(crate) fn pool(&self, stage: &LockedStage, folder: &Path) -> Result<()> {
        let failed = |error| Error::io("make", folder.display().to_string(), error);
        fs::create_dir_all(folder).map_err(failed)?;
        for package in &stage.package {
            let (from, to) = (self.path(package), folder.join(file_name(package)));
            fs::hard_link(&from, &to)
                .or_else(|_| fs::copy(&from, &to).map(drop))
                .map_err(failed)?;
        }
        Ok(())
    }
}

const CHANGED: &str = "what the archive has is not what was locked";

/// What a package's file is called in a pool.
pub(super) fn file_name(package: &LockedPackage) -> String {
    let version = package.version.replace(':', "%3a");
    format!("{}-{version}.{}.rpm", package.name, package.architecture)
}

fn rpmkeys(keys: &Path) -> std::process::Command {
    let mut command = program("rpmkeys");
    command.arg("--dbpath").arg(keys).args(["--define", "_pkgverify_level all"]);
    command.args(["--define", "__plugindir /nonexistent"]);
    command
}

/// Where a package may be: first where dnf said, then in each place of its archive.
fn uri(dnf: &Dnf, package: &LockedPackage, candidate: usize) -> Result<Option<String>> {
    match (&package.uri, candidate) {
        (Some(uri), 0) => Ok(Some(escaped(uri))),
        (Some(_), _) => Ok(None),
        (None, _) => {
            let mut places = dnf.places()?.iter().filter(|place| place.archive == package.archive);
            let place = places.nth(candidate);
            Ok(place.map(|place| escaped(&format!("{}{}", place.base, package.path))))
        }
    }
}

/// An address as curl takes it: what has a meaning in its settings or is not allowed is written as a number.
fn escaped(uri: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || ":/._-~+%?=&,@!$;[]()*'".contains(c);
    let mut text = String::new();
    for c in uri.chars() {
        if plain(c) {
            text.push(c);
        } else {
            c.to_string().bytes().for_each(|byte| text.push_str(&format!("%{byte:02X}")));
        }
    }
    text
}

fn missing_package(package: &LockedPackage, cause: Option<Error>) -> Error {
    let subject = format!("{} {}", package.name, package.version);
    let error = Error::new(Kind::Unavailable, "fetch the package", subject);
    let said = cause.map_or_else(|| "no archive has it".to_owned(), |cause| cause.to_string());
    if said.contains(CHANGED) {
        return error
            .because(CHANGED)
            .hint("`larder build --update` asks the archive what there is now");
    }
    error.because(said).hint("try again later; `larder build --update` asks what there is now")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_hold_nothing_that_curl_takes_for_a_setting() {
        assert_eq!(escaped("http://a/x^1 \"\n.rpm"), "http://a/x%5E1%20%22%0A.rpm");
        assert_eq!(escaped("http://a/gtk3+~1%20.rpm"), "http://a/gtk3+~1%20.rpm");
    }
}
