//! What is said of a version that was built: tested, described, tagged, signed, in this order.
//!
//! ```text
//! version ─► tests ─► description ─┬─ all passed ─► tag ─► signature
//!                                  └─ one failed ─► neither
//! ```

use std::path::Path;

use catalog::VersionRecord;
use model::description::{BuildDescription, Description, PackageDescription, StageDescription};
use model::name::LabelKey;
use model::progress::Cancel;
use model::{Error, Kind, Result};
use repository::{Repository, SigningKey};

use crate::build::BuiltStage;
use crate::gate::{Gate, Plan, Report};
use crate::key::digest;
use crate::lock::Lock;
use crate::recipe::{CONTEXTUALIZATION, Recipe, Sign};

/// A version and what it was built from.
pub(crate) struct Vouch<'a> {
    /// Its repository.
    pub repository: &'a Repository,
    /// The version.
    pub version: &'a VersionRecord,
    /// Its recipe.
    pub recipe: &'a Recipe,
    /// The recipe's text.
    pub text: &'a str,
    /// The folder that names in the recipe are relative to.
    pub beside: &'a Path,
    /// Its packages.
    pub lock: &'a Lock,
    /// Its stages.
    pub stages: &'a [BuiltStage],
    /// What the first stage stands on, if it does.
    pub parent: Option<&'a VersionRecord>,
    /// This host's state folder.
    pub state: &'a Path,
    /// Told which boot begins.
    pub tell: &'a (dyn Fn(&str) + Sync),
    /// Ends it.
    pub cancel: &'a Cancel,
}

/// The key of a recipe, read before anything is built: a key that cannot be read is told at once.
///
/// # Errors
/// Those of reading the files; `Refused` where the password is wrong.
pub(crate) fn signing_key(sign: Option<&Sign>, beside: &Path) -> Result<Option<SigningKey>> {
    let Some(sign) = sign else { return Ok(None) };
    let read = |name: &str| {
        let path = beside.join(name);
        std::fs::read_to_string(&path)
            .map_err(|error| Error::io("read", path.display().to_string(), error))
    };
    let password = sign.password_file.as_deref().map(read).transpose()?;
    let password = password.map(|text| text.lines().next().unwrap_or_default().to_owned());
    SigningKey::read(&read(sign.key.get_ref())?, password).map(Some)
}

impl Vouch<'_> {
    /// Tests the version, unless it has passed the same tests before; none where the recipe has no tests.
    pub(crate) fn test(&self) -> Result<Option<Report>> {
        let Some(plan) = Plan::of(self.recipe, self.beside)? else { return Ok(None) };
        let gate = Gate {
            repository: self.repository,
            version: self.version,
            state: self.state,
            tell: self.tell,
            cancel: self.cancel,
        };
        match gate.passed_before(&plan)? {
            Some(report) => Ok(Some(report)),
            None => gate.run(&plan).map(Some),
        }
    }

    /// Keeps the version's description; the same one again changes nothing.
    pub(crate) fn describe(&self, report: Option<&Report>) -> Result<()> {
        let facts = &self.version.facts;
        let stages = self.stages.iter();
        let stage = |stage: &BuiltStage| StageDescription {
            name: stage.name.clone(),
            key: stage.key.clone(),
        };
        let lock = serde_json::to_string(self.lock)
            .map_err(|error| Error::new(Kind::Bug, "describe", "the lock").caused_by(error))?;
        self.repository.describe(&Description {
            content: facts.content,
            length: facts.length,
            kind: facts.kind,
            build: Some(BuildDescription {
                recipe: digest(&[self.text]),
                lock: digest(&[&lock]),
                builder: concat!("larder ", env!("CARGO_PKG_VERSION")).into(),
                stages: stages.map(stage).collect(),
            }),
            packages: self.packages()?,
            tests: report.map(Report::described).unwrap_or_default(),
        })
    }

    /// The packages of the version below, as changed by each stage.
    fn packages(&self) -> Result<Vec<PackageDescription>> {
        let mut all = match self.parent {
            Some(parent) => {
                let text = self.repository.description(parent)?;
                format::decode_description(text.as_bytes())?.packages
            }
            None => Vec::new(),
        };
        for stage in &self.lock.stage {
            for package in &stage.package {
                all.retain(|known| {
                    known.name != package.name || known.architecture != package.architecture
                });
                all.push(PackageDescription {
                    name: package.name.clone(),
                    version: package.version.clone(),
                    architecture: package.architecture.clone(),
                    digest: format!("sha256:{}", package.sha256),
                });
            }
            let removed = stage.order.iter().filter_map(|line| line.strip_prefix("remove "));
            for name in removed.flat_map(|names| names.split(' ')) {
                let (name, architecture) = name.split_once(':').unwrap_or((name, ""));
                all.retain(|known| {
                    known.name != name
                        || !architecture.is_empty() && known.architecture != architecture
                });
            }
        }
        all.sort_by(|a, b| (&a.name, &a.architecture).cmp(&(&b.name, &b.architecture)));
        Ok(all)
    }

    /// Signs, unless the key has signed this description already. The key's id.
    pub(crate) fn sign(&self, key: &SigningKey) -> Result<String> {
        let checked = self.repository.verify(self.version, &[key.trusted()])?;
        if !checked.iter().any(|signature| signature.verdict == repository::Verdict::Good) {
            self.repository.sign(self.version, key)?;
        }
        Ok(key.id())
    }

    /// Says on the image what it learns who it is from.
    pub(crate) fn label(&self) -> Result<()> {
        let Some(contextualization) = &self.recipe.contextualization else { return Ok(()) };
        let seeds: Vec<&str> =
            contextualization.seeds.iter().map(|seed| seed.get_ref().as_str()).collect();
        let (key, value) = (LabelKey::new(CONTEXTUALIZATION)?, seeds.join(" "));
        if self.version.labels.get(&key) == Some(&value) {
            return Ok(());
        }
        self.repository.catalog().set_label(&self.version.id.image, &key, Some(&value))
    }
}
