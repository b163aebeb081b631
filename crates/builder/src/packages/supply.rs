//! A build's packages, whatever kind they are of: from a recipe to a lock, from a lock to a folder with
//! their files.

use std::path::{Path, PathBuf};

use catalog::VersionRecord;
use model::progress::Cancel;
use model::{Error, Result};
use repository::Repository;

use super::apt::Apt;
use super::dnf;
use super::dnf::files::RpmFiles;
use super::dnf::solver::Dnf;
use super::files::PackageFiles;
use crate::attached::Attached;
use crate::derive::LOOK_LIMIT;
use crate::lock::LockedStage;
use crate::recipe::{Family, Place, Recipe};
use crate::resolve;
use crate::tool::{Log, Run, need};

const RESOLVE_DEB: [(&str, &str); 2] = [("apt-get", "apt"), ("debugfs", "e2fsprogs")];

const BUILD_DEB: [(&str, &str); 2] = [("mmdebstrap", "mmdebstrap"), ("dpkg-deb", "dpkg")];

/// Programs that make stages of packages of this kind, with their Debian packages.
pub(crate) fn build_programs(family: Family) -> &'static [(&'static str, &'static str)] {
    match family {
        Family::Deb => &BUILD_DEB,
        Family::Rpm => &dnf::RESOLVE_PROGRAMS,
    }
}

/// A build that needs packages.
pub(crate) struct Supply<'a> {
    /// Where versions are.
    pub repository: &'a Repository,
    /// The recipe.
    pub recipe: &'a Recipe,
    /// Its file.
    pub place: &'a Place,
    /// The folder that names in the recipe are relative to.
    pub beside: &'a Path,
    /// Where packages are kept on this host, in a folder of it.
    pub folder: &'a Path,
    /// A folder for what is of no use afterwards, on the same disk.
    pub work: &'a Path,
    /// What the first stage stands on, if it does.
    pub parent: Option<&'a VersionRecord>,
    /// What was said.
    pub log: &'a Log,
    /// Ends it.
    pub cancel: &'a Cancel,
}

impl Supply<'_> {
    /// Resolves the stages behind those that are locked already.
    ///
    /// # Errors
    /// `NotFound`, `Invalid`, `Refused`, `Unavailable`, with the line.
    pub(crate) fn resolve(
        &self,
        asked: &[String],
        known: &[LockedStage],
    ) -> Result<Vec<LockedStage>> {
        match self.recipe.distribution.family() {
            Family::Deb => self.resolve_debs(asked, known),
            Family::Rpm => self.resolve_rpms(asked, known),
        }
    }

    fn resolve_debs(&self, asked: &[String], known: &[LockedStage]) -> Result<Vec<LockedStage>> {
        need(&RESOLVE_DEB)?;
        let apt = self.apt()?;
        let status = match self.parent {
            Some(parent) => {
                let attached = Attached::open(self.repository, parent, self.work)?;
                attached.read_file("/var/lib/dpkg/status", &self.run())?
            }
            None => String::new(),
        };
        resolve::resolve(self.recipe, self.place, &apt, asked, known, &status)
    }

    fn resolve_rpms(&self, asked: &[String], known: &[LockedStage]) -> Result<Vec<LockedStage>> {
        need(&dnf::RESOLVE_PROGRAMS)?;
        dnf::check_machine(&self.recipe.distribution, &self.run())?;
        let dnf = self.dnf("dnf", self.parent)?;
        let (recipe, files) = ((self.recipe, self.place), self.rpm_files());
        match dnf::stages::resolve(recipe, &dnf, &files, asked, known)? {
            Some(stages) => Ok(stages),
            None => {
                let dnf = self.dnf("dnf-anew", self.parent)?;
                let stages = dnf::stages::resolve(recipe, &dnf, &files, asked, &[])?;
                Ok(stages.unwrap_or_default())
            }
        }
    }

    /// Puts the files of a stage's packages into a new folder; for a first stage an archive of them,
    /// where that is what it is made from.
    ///
    /// # Errors
    /// `Unavailable` where an archive has one of them no longer; `Refused` where one is not signed as
    /// it must be.
    pub(crate) fn gather(&self, locked: &LockedStage, first: bool, pool: &Path) -> Result<()> {
        let gathered = match self.recipe.distribution.family() {
            Family::Deb => self.gather_debs(locked, first, pool),
            Family::Rpm => {
                let (dnf, files) = (self.dnf("dnf", None)?, self.rpm_files());
                files.fetch(&dnf, &locked.package).and_then(|()| files.pool(locked, pool))
            }
        };
        gathered.map_err(|error| {
            let found = self.recipe.stage.iter().find(|stage| *stage.name.get_ref() == locked.name);
            let line = found.map_or(1, |stage| self.place.line(stage.name.span().start));
            Error::new(error.kind(), "build", &self.place.file)
                .because(format!("line {line}, stage `{}`", locked.name))
                .caused_by(error)
        })
    }

    fn gather_debs(&self, locked: &LockedStage, first: bool, pool: &Path) -> Result<()> {
        let (log, cancel) = (self.log, self.cancel);
        let files = PackageFiles { folder: self.packages(), work: self.work, log, cancel };
        files.fetch(&self.apt()?, &locked.package)?;
        files.pool(locked, pool)?;
        if !first {
            return Ok(());
        }
        let distribution = &self.recipe.distribution;
        files.index(locked, distribution.release.get_ref(), distribution.arch.get_ref(), pool)
    }

    fn run(&self) -> Run<'_> {
        Run { log: self.log, limit: LOOK_LIMIT, cancel: self.cancel }
    }

    fn packages(&self) -> PathBuf {
        self.folder.join("packages")
    }

    fn apt(&self) -> Result<Apt<'_>> {
        let (folder, beside) = (self.work.join("apt"), self.beside);
        Apt::new(&folder, self.folder, self.recipe, beside, self.log, self.cancel)
    }

    fn rpm_files(&self) -> RpmFiles<'_> {
        RpmFiles { folder: self.packages(), log: self.log, cancel: self.cancel }
    }

    /// A dnf that knows what a version has.
    fn dnf(&self, folder: &str, parent: Option<&VersionRecord>) -> Result<Dnf<'_>> {
        let folder = self.work.join(folder);
        let dnf = Dnf::new(&folder, self.recipe, self.beside, self.log, self.cancel)?;
        if let Some(parent) = parent {
            let attached = Attached::open(self.repository, parent, self.work)?;
            let database = dnf::database(&self.recipe.distribution);
            let path = format!("{database}/{}", dnf::DATABASE_FILE);
            attached.copy_file(&path, &dnf.database_file(), &self.run())?;
        }
        Ok(dnf)
    }
}
