//! The packages' files on this host, each verified by its digest; and an archive made of some.
//!
//! ```text
//! STATE/packages/SHA256.deb       kept for the next build
//! work/pool/                      an archive of one stage's packages: nothing else can be installed
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::progress::Cancel;
use model::{Error, Kind, Result};

use super::apt::Apt;
use crate::lock::{LockedPackage, LockedStage};
use crate::tool::{Log, Run, program};

const LIMIT: Duration = Duration::from_secs(60 * 60);

/// How many files one call of apt's helper fetches: a command line has an end.
const FETCHED_AT_ONCE: usize = 200;

/// Where packages are kept on this host.
pub(crate) struct PackageFiles<'a> {
    /// The folder.
    pub folder: PathBuf,
    /// A folder for what is of no use afterwards, on the same disk.
    pub work: &'a Path,
    /// Told what happens.
    pub log: &'a Log,
    /// Ends it.
    pub cancel: &'a Cancel,
}

impl PackageFiles<'_> {
    fn run(&self) -> Run<'_> {
        Run { log: self.log, limit: LIMIT, cancel: self.cancel }
    }

    /// Where the file of a package is, once it was fetched.
    pub(crate) fn path(&self, package: &LockedPackage) -> PathBuf {
        self.folder.join(format!("{}.deb", package.sha256))
    }

    /// Fetches those packages that are not here.
    ///
    /// # Errors
    /// `Unavailable` where an archive does not have one, or not with the digest of the lock.
    pub(crate) fn fetch(&self, apt: &Apt, packages: &[LockedPackage]) -> Result<()> {
        let failed =
            |error| Error::io("keep packages in", self.folder.display().to_string(), error);
        fs::create_dir_all(&self.folder).map_err(failed)?;
        let is_missing = |package: &&LockedPackage| !self.path(package).exists();
        let missing: Vec<_> = packages.iter().filter(is_missing).collect();
        if missing.is_empty() {
            return Ok(());
        }
        self.log.say(&format!("fetching {} packages", missing.len()));
        let incoming = tempfile::tempdir_in(self.work).map_err(failed)?;
        let most = (0..).take_while(|n| missing.iter().any(|p| self.uri(apt, p, *n).is_some()));
        let mut last = None;
        for candidate in most {
            let wanted: Vec<_> = missing.iter().filter(|p| !self.path(p).exists()).collect();
            for some in wanted.chunks(FETCHED_AT_ONCE) {
                let mut command = apt.program("/usr/lib/apt/apt-helper");
                command.args(["-q", "download-file"]);
                for package in some {
                    let Some(uri) = self.uri(apt, package, candidate) else { continue };
                    command.arg(uri).arg(incoming.path().join(&package.sha256));
                    command.arg(format!("SHA256:{}", package.sha256));
                }
                if command.get_args().len() <= 2 {
                    continue;
                }
                let failure = self.run().succeed(&mut command).err();
                self.cancel.check("fetch", "packages")?;
                for package in some {
                    let file = incoming.path().join(&package.sha256);
                    // Where it fails, it leaves what it has of those that it could not get.
                    if file.exists() && (failure.is_none() || self.is_whole(&file, package)?) {
                        fs::rename(file, self.path(package)).map_err(failed)?;
                    }
                }
                last = failure.or(last);
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

    /// Where a package may be: first where apt said, then in each place of its archive.
    fn uri(&self, apt: &Apt, package: &LockedPackage, candidate: usize) -> Option<String> {
        match (&package.uri, candidate) {
            (Some(uri), 0) => Some(uri.clone()),
            (Some(_), _) => None,
            (None, _) => {
                let base = apt.bases(package.archive).nth(candidate)?;
                Some(format!("{base}{}", package.path))
            }
        }
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

    /// Makes such a folder an archive: adds the indexes that apt reads.
    pub(crate) fn index(
        &self,
        stage: &LockedStage,
        release: &str,
        arch: &str,
        folder: &Path,
    ) -> Result<()> {
        let failed = |error| Error::io("make", folder.display().to_string(), error);
        let mut index = String::new();
        for package in &stage.package {
            let (name, from) = (file_name(package), self.path(package));
            let control = self.run().answer(program("dpkg-deb").arg("-f").arg(&from))?;
            index.push_str(String::from_utf8_lossy(&control).trim_end());
            index.push_str(&format!(
                "\nFilename: ./{name}\nSize: {}\nSHA256: {}\n\n",
                package.size, package.sha256
            ));
        }
        fs::write(folder.join("Packages"), &index).map_err(failed)?;
        let digest = self.run().answer(program("sha256sum").arg(folder.join("Packages")))?;
        let digest = String::from_utf8_lossy(&digest[..digest.len().min(64)]).into_owned();
        let text = format!(
            "Suite: {release}\nCodename: {release}\nArchitectures: {arch}\nSHA256:\n {digest} {} Packages\n",
            index.len()
        );
        fs::write(folder.join("Release"), text).map_err(failed)
    }
}

/// What a package's file is called in a pool.
pub(crate) fn file_name(package: &LockedPackage) -> String {
    let version = package.version.replace(':', "%3a");
    format!("{}_{version}_{}.deb", package.name, package.architecture)
}

/// Whether apt was told that there is no such file: `404  Not Found`. The digits alone may be of a port.
fn is_not_there(said: &str) -> bool {
    let words: Vec<&str> = said.split_whitespace().collect();
    words.windows(2).any(|pair| pair == ["404", "Not"])
}

fn missing_package(package: &LockedPackage, cause: Option<Error>) -> Error {
    let subject = format!("{} {}", package.name, package.version);
    let error = Error::new(Kind::Unavailable, "fetch the package", subject);
    let said = cause.map_or_else(|| "no archive has it".to_owned(), |cause| cause.to_string());
    if said.contains("Hash Sum mismatch") {
        return error
            .because(format!("what the archive has is not what was locked: {said}"))
            .hint("`larder build --update` asks the archive what there is now");
    }
    if is_not_there(&said) {
        return error.because(said).hint(
            "`larder build --update` asks what there is now; an archive that names what it does not \
             have is being changed, or its release has reached its end and has moved: say where to \
             with `[[archive]]` and `url`",
        );
    }
    error.because(said).hint("try again later; `larder build --update` asks what there is now")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_with_the_digits_of_an_answer_is_no_answer() {
        let said = "E: Failed to fetch http://localhost:40412/a.deb  Connection failed";
        assert!(!is_not_there(said));
        let said = "E: Failed to fetch http://localhost:80/a.deb  404  Not Found [IP: ::1 80]";
        assert!(is_not_there(said));
    }
}
