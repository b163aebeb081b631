//! dnf in a root of its own: which packages a stage is made of, without touching this machine's.
//!
//! ```text
//! work/dnf/root/      what is installed so far: rpm's database, and nothing else
//! work/dnf/work/      indexes, and dnf's own words
//! ```

use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use env::{Clock, SystemClock};
use model::progress::Cancel;
use model::{Error, Kind, Result};
use serde::Deserialize;
use serde_json::json;

use super::repositories::Repositories;
use super::{DATABASE_FILE, PYTHON, architecture, database, install, write};
use crate::lock::{LockedPackage, LockedStage};
use crate::recipe::{Distribution, Recipe, Stage};
use crate::tool::{Log, Run, program};

const LIMIT: Duration = Duration::from_secs(30 * 60);

/// How often dnf is asked where an archive does not answer, its own tries aside.
const TRIES: usize = 2;

const SCRIPT: &str = include_str!("resolve.py");

/// What of this process's environment says how the network is reached.
const NETWORK: [&str; 8] = [
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "CURL_CA_BUNDLE",
];

/// A dnf of our own.
pub(crate) struct Dnf<'a> {
    folder: PathBuf,
    distribution: &'a Distribution,
    repositories: Repositories,
    places: OnceCell<Vec<Source>>,
    /// Told what happens.
    pub(super) log: &'a Log,
    /// Ends it.
    pub(super) cancel: &'a Cancel,
}

/// A place with packages, and whose signatures count there.
#[derive(Clone, Debug)]
pub(super) struct Source {
    /// Which of the recipe's archives it belongs to.
    pub archive: usize,
    /// What addresses of packages begin with.
    pub base: String,
    /// Files with keys.
    pub keys: Vec<PathBuf>,
}

/// What dnf would do.
#[derive(Debug, Default)]
pub(super) struct Resolution {
    /// As a lock has it.
    pub order: Vec<String>,
    /// The packages that are installed.
    pub packages: Vec<LockedPackage>,
    /// When the youngest index was made, in seconds since 1970-01-01 UTC; not in the future.
    pub epoch: i64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Answer {
    error: Option<Told>,
    epoch: i64,
    order: Vec<(String, Vec<String>)>,
    packages: Vec<Found>,
    repositories: Vec<Place>,
}

#[derive(Deserialize)]
struct Told {
    kind: String,
    said: String,
}

#[derive(Deserialize)]
struct Found {
    name: String,
    version: String,
    architecture: String,
    sha256: String,
    size: u64,
    path: String,
    id: String,
    uri: Option<String>,
}

#[derive(Deserialize)]
struct Place {
    id: String,
    base: String,
    keys: Vec<PathBuf>,
}

impl<'a> Dnf<'a> {
    /// Makes the root in a folder that is not there yet.
    pub(crate) fn new(
        folder: &Path,
        recipe: &'a Recipe,
        beside: &Path,
        log: &'a Log,
        cancel: &'a Cancel,
    ) -> Result<Dnf<'a>> {
        let repositories = Repositories::of(recipe, beside)?;
        let (folder, distribution) = (folder.to_path_buf(), &recipe.distribution);
        let dnf = Dnf { folder, distribution, repositories, places: OnceCell::new(), log, cancel };
        for path in [dnf.database(), dnf.folder.join("work"), dnf.folder.join("keys")] {
            fs::create_dir_all(&path)
                .map_err(|error| Error::io("make", path.display().to_string(), error))?;
        }
        write(&dnf.folder.join("resolve.py"), SCRIPT)?;
        // What a program sets by rpm's own means is forgotten when another library reads rpm's settings.
        let macros = format!(
            "%_dbpath {}\n%_db_backend sqlite\n%__plugindir /nonexistent\n",
            database(dnf.distribution)
        );
        write(&dnf.folder.join(".rpmmacros"), &macros)?;
        Ok(dnf)
    }

    /// A folder for what is of no use afterwards.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where what is installed so far is noted.
    fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    fn database(&self) -> PathBuf {
        self.root().join(database(self.distribution).trim_start_matches('/'))
    }

    /// Where to put the database of the version that a first stage stands on.
    pub(crate) fn database_file(&self) -> PathBuf {
        self.database().join(DATABASE_FILE)
    }

    pub(super) fn run(&self) -> Run<'_> {
        Run { log: self.log, limit: LIMIT, cancel: self.cancel }
    }

    /// A program that reaches the network as we do.
    pub(super) fn networked(name: &str) -> Command {
        let mut command = program(name);
        for name in NETWORK {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
    }

    /// What dnf would do to have a stage's packages.
    ///
    /// # Errors
    /// `NotFound` where one does not exist, `Invalid` where they cannot be had together, `Refused`
    /// where an index has a wrong signature, `Unavailable` where an archive does not answer.
    pub(super) fn resolve(&self, stage: &Stage) -> Result<Resolution> {
        let names = |list: &[toml::Spanned<String>]| -> Vec<String> {
            list.iter().map(|name| name.get_ref().clone()).collect()
        };
        let answer = self.ask(&names(&stage.packages), &names(&stage.exclude_packages))?;
        let line = |(verb, names): (String, Vec<String>)| format!("{verb} {}", names.join(" "));
        let package = |found: Found| LockedPackage {
            archive: self.repositories.archive_of(&found.id),
            name: found.name,
            version: found.version,
            architecture: found.architecture,
            sha256: found.sha256,
            size: found.size,
            path: found.path,
            uri: found.uri,
        };
        Ok(Resolution {
            order: answer.order.into_iter().map(line).collect(),
            packages: answer.packages.into_iter().map(package).collect(),
            epoch: answer.epoch.min(SystemClock.now().0 / 1_000_000),
        })
    }

    /// All places with packages. Asks the archives only where an address is not a place itself.
    pub(super) fn places(&self) -> Result<&[Source]> {
        if let Some(known) = self.places.get() {
            return Ok(known);
        }
        let named = self.repositories.named.iter();
        let plain: Option<Vec<Source>> = named
            .map(|repository| {
                let (archive, keys) = (repository.archive, vec![repository.keys.clone()]);
                repository.base().map(|base| Source { archive, base, keys })
            })
            .collect();
        let places = match plain {
            Some(plain) if self.repositories.own.is_none() => plain,
            _ => self.ask(&[], &[])?.repositories.into_iter().map(|p| self.place(p)).collect(),
        };
        Ok(self.places.get_or_init(|| places))
    }

    fn place(&self, place: Place) -> Source {
        let archive = self.repositories.archive_of(&place.id);
        Source { archive, base: place.base, keys: place.keys }
    }

    fn ask(&self, install: &[String], exclude: &[String]) -> Result<Answer> {
        let named = self.repositories.named.iter();
        let release = self.distribution.release.get_ref();
        let is_fedora = self.distribution.id.get_ref() == "fedora";
        let asked = json!({
            "root": self.root(),
            "work": self.folder.join("work"),
            "release": release,
            "basearch": architecture(self.distribution.arch.get_ref()),
            "platform": format!("platform:{}{release}", if is_fedora { "f" } else { "el" }),
            "own": self.repositories.own_folder(),
            "repositories": named.map(|repository| repository.asked()).collect::<Vec<_>>(),
            "install": install,
            "exclude": exclude,
        });
        let question = self.folder.join("asked.json");
        write(&question, &asked.to_string())?;
        let mut tries = 0;
        loop {
            tries += 1;
            self.log.say("asking the archives for their indexes");
            // What verifies an index starts a server, which would stay.
            let mut command = Self::networked("unshare");
            command.args(["--mount", "--propagation", "private"]);
            command.args(["--pid", "--fork", "--kill-child", "--mount-proc", PYTHON, "-I"]);
            command.arg(self.folder.join("resolve.py")).arg(&question).env("HOME", &self.folder);
            let text = self.run().answer(&mut command)?;
            let answer: Answer = serde_json::from_slice(&text).map_err(|error| {
                Error::new(Kind::Bug, "read what dnf says of", "packages").caused_by(error)
            })?;
            let Some(told) = answer.error else { return Ok(answer) };
            let error = explain(told);
            if error.kind() != Kind::Unavailable || tries == TRIES {
                return Err(error);
            }
            tracing::info!("once more: {}", error.chain());
        }
    }

    /// Takes a stage's packages as installed; `file` says where each is.
    pub(super) fn note(
        &self,
        stage: &LockedStage,
        file: &dyn Fn(&LockedPackage) -> PathBuf,
    ) -> Result<()> {
        if stage.order.is_empty() {
            return Ok(());
        }
        let asked = install::asked(&self.root(), database(self.distribution), stage, file, true);
        let mut command = install::command(&self.folder, &asked, stage.source_date_epoch)?;
        self.run().succeed(&mut command)
    }
}

/// What dnf's words mean for whoever has written the recipe.
fn explain(told: Told) -> Error {
    let (kind, operation, hint) = match told.kind.as_str() {
        "refused" => (
            Kind::Refused,
            "read the package archives",
            "`signed_by` names the file with an archive's keys",
        ),
        "not-found" => (
            Kind::NotFound,
            "resolve packages",
            "look at the names in `packages` and at the archives",
        ),
        "invalid" => {
            (Kind::Invalid, "resolve packages", "these packages cannot be installed together")
        }
        _ => (
            Kind::Unavailable,
            "read the package archives",
            "the archive may be in the middle of an update: try again later",
        ),
    };
    Error::new(kind, operation, "").because(told.said).hint(hint)
}
