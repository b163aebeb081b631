//! Build: resolve, lock, and make those stages that are not there.
//!
//! ```text
//! recipe ─► lock ─► keys ─► the last stage that is there ─► those behind it, one by one ─► image
//!            │                         (maybe all)            each a version at once
//!            └ made where there is none, or it is for something else
//! ```
//!
//! **Failure**: a stage that was finished is kept, whatever happens to the next; building again goes
//! on from there. A stage that failed leaves nothing but its log.

use std::path::{Path, PathBuf};
use std::time::Duration;

use catalog::VersionRecord;
use env::{Clock, SystemClock};
use format::foreign::{InputFormat, OpenOptions, open_source};
use model::changes::{ChangedBlocks, Changes};
use model::name::LabelKey;
use model::progress::{Cancel, Silent};
use model::{
    BlockRange, ContentDigest, Error, ImageName, Kind, Reference, Result, TagName, VersionId,
    VersionKind,
};
use repository::{CommitRequest, ImportRequest, Repository, SigningKey};

use crate::first::{Job, Part};
use crate::gate::Report;
use crate::key::Ingredients;
use crate::lock::{Lock, LockedStage};
use crate::packages::supply::{Supply, build_programs};
use crate::recipe::{Place, Recipe};
use crate::tool::{Log, need};
use crate::vouch::{self, Vouch};
use crate::work::Work;
use crate::{anew, derive, first, packaged, resolve, rootless, stages};

/// What is to be built, and how.
pub struct BuildRequest<'a> {
    /// The recipe's file.
    pub recipe: PathBuf,
    /// A tag for the version.
    pub tag: Option<TagName>,
    /// The lock must be there and fit.
    pub locked: bool,
    /// The lock is made anew, even if it fits.
    pub update: bool,
    /// A step that fails opens a shell in the image.
    pub shell_on_failure: bool,
    /// This host's state folder: packages, logs, and work under way are below `build` in it.
    pub state: PathBuf,
    /// Told what happens.
    pub tell: &'a (dyn Fn(Event) + Sync),
    /// Stops the build.
    pub cancel: &'a Cancel,
}

/// What happens while an image is built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Packages are resolved, and why.
    Resolving(String),
    /// A stage is there.
    Cached(String),
    /// A stage is being built, and why.
    Building(String, String),
    /// What was built is being tested, and in which boot.
    Testing(String),
}

/// A stage of what was built.
#[derive(Clone, Debug, PartialEq)]
pub struct BuiltStage {
    /// Its name in the recipe.
    pub name: String,
    /// Its key.
    pub key: String,
    /// It was there.
    pub cached: bool,
    /// Why it was built, or not.
    pub why: String,
    /// How long that took.
    pub seconds: f64,
    /// How long it took from its cached parent to files that can be changed; none where it was not
    /// made upon one.
    pub root_seconds: Option<f64>,
}

/// What was built.
#[derive(Clone, Debug)]
pub struct Built {
    /// The version of the recipe's image.
    pub version: VersionId,
    /// Its identity.
    pub content: ContentDigest,
    /// Its length.
    pub length: u64,
    /// False where the image's latest version was this already.
    pub is_new: bool,
    /// All stages, in order.
    pub stages: Vec<BuiltStage>,
    /// What tests found, where the recipe has some. Where one failed, the version has no tag and no
    /// signature.
    pub tests: Option<Report>,
    /// The id of the key that has signed it.
    pub signed_by: Option<String>,
}

const BUILD_PROGRAMS: [(&str, &str); 7] = [
    ("bwrap", "bubblewrap"),
    ("mke2fs", "e2fsprogs"),
    ("sfdisk", "fdisk"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("mount", "mount"),
    ("fstrim", "util-linux"),
];

/// A build under way.
struct Build<'a> {
    repository: &'a Repository,
    request: &'a BuildRequest<'a>,
    recipe: Recipe,
    place: Place,
    beside: PathBuf,
    folder: PathBuf,
    work: PathBuf,
    parent: Option<VersionRecord>,
}

/// Reads a recipe and checks all that can be told without building it.
///
/// # Errors
/// `Invalid`, with line and column.
pub fn check(recipe: &Path) -> Result<Recipe> {
    read(recipe).map(|(recipe, _)| recipe)
}

fn read(path: &Path) -> Result<(Recipe, Place)> {
    let (recipe, place) = Recipe::read_file(path)?;
    for stage in &recipe.stage {
        if let Some((start, reason)) = crate::clean::check_files(stage) {
            return Err(place.error("check the recipe", start, reason));
        }
    }
    Ok((recipe, place))
}

/// Builds the image of a recipe.
///
/// Cost: where nothing changed, reading the recipe, its files and the lock, and a few questions to
/// the catalog.
///
/// # Errors
/// `Invalid`, with line and column or the stage, where recipe, packages or steps are not right;
/// `Stale` where the lock must fit and does not; `Refused` where a signature is wrong or this is not
/// root; `Unavailable` where an archive does not answer: try again; `Full`, `Cancelled`.
pub fn build(repository: &Repository, request: &BuildRequest) -> Result<Built> {
    let (recipe, place) = read(&request.recipe)?;
    let beside = std::path::absolute(&request.recipe)
        .map_err(|error| Error::io("find", request.recipe.display().to_string(), error))?;
    let beside = beside.parent().map(Path::to_path_buf).unwrap_or_default();
    let folder = std::path::absolute(request.state.join("build"))
        .map_err(|error| Error::io("find", request.state.display().to_string(), error))?;
    let parent = match recipe.stage[0].parent.as_ref() {
        Some(reference) => {
            let at = reference.span().start;
            let found = reference.get_ref().parse::<Reference>();
            let found = found.and_then(|reference| repository.catalog().version(&reference));
            Some(found.map_err(|error| {
                let kind = error.kind();
                let line = format!("line {}: its parent", place.line(at));
                Error::new(kind, "build", &place.file).because(line).caused_by(error)
            })?)
        }
        None => None,
    };
    let work = PathBuf::new();
    let build = Build { repository, request, recipe, place, beside, folder, work, parent };
    build.run()
}

impl Build<'_> {
    fn run(mut self) -> Result<Built> {
        let key = vouch::signing_key(self.recipe.sign.as_ref(), &self.beside)?;
        let asked = resolve::asked(&self.recipe, self.parent_key().as_deref(), &self.beside)?;
        let lock_path = Lock::path_of(&self.request.recipe);
        // Whoever wants a new one may have a broken one.
        let lock = if self.request.update { None } else { Lock::read(&lock_path)? };
        let fitting = resolve::fitting(lock.as_ref(), &asked);
        let fits = fitting == asked.len()
            && lock.as_ref().is_some_and(|lock| lock.stage.len() == asked.len());
        let lock = match lock {
            Some(lock) if fits => lock,
            lock => {
                self.refuse_if_locked(lock.as_ref(), fitting, &lock_path)?;
                let _work = self.begin_work()?;
                let known = lock.map_or(Vec::new(), |lock| lock.stage[..fitting].to_vec());
                let lock = self.resolve(&asked, &known)?;
                lock.write(&lock_path)?;
                lock
            }
        };
        let ingredients = self.ingredients(&lock)?;
        let (from, mut built) = self.what_is_there(&ingredients)?;
        let mut version = match from {
            0 => self.parent.clone(),
            _ => stages::find(self.repository, &ingredients[from - 1].key())?,
        };
        for (index, ingredients) in ingredients.iter().enumerate().skip(from) {
            let (made, stage) =
                self.make(index, &lock.stage[index], ingredients, version.as_ref())?;
            version = Some(made);
            built.push(stage);
        }
        let last = version.ok_or_else(|| Error::new(Kind::Bug, "build", &self.place.file))?;
        self.publish(&last, &lock, built, key.as_ref())
    }

    fn parent_key(&self) -> Option<String> {
        self.parent.as_ref().map(|parent| parent.facts.content.to_string())
    }

    fn refuse_if_locked(&self, lock: Option<&Lock>, fitting: usize, path: &Path) -> Result<()> {
        let why = match lock {
            None if self.request.update => "a new lock was asked for".to_owned(),
            None => "there is no lock".to_owned(),
            Some(_) => match self.recipe.stage.get(fitting) {
                Some(stage) => {
                    format!("the lock is not for what stage `{}` asks", stage.name.get_ref())
                }
                None => "the lock has more stages than the recipe".to_owned(),
            },
        };
        if self.request.locked {
            return Err(Error::new(Kind::Stale, "build", &self.place.file)
                .because(format!("{}: {why}", path.display()))
                .hint("`larder build` without `--locked` resolves packages and writes the lock"));
        }
        (self.request.tell)(Event::Resolving(why));
        Ok(())
    }

    fn begin_work(&mut self) -> Result<Work> {
        let work = Work::begin(&self.folder, self.repository)?;
        self.work = work.path().to_path_buf();
        Ok(work)
    }

    fn log(&self, what: &str) -> Result<Log> {
        let image = self.recipe.name.get_ref().replace('/', "_");
        Log::create(&self.folder.join("logs").join(format!("{image}-{what}.log")))
    }

    fn supply<'b>(&'b self, log: &'b Log) -> Supply<'b> {
        Supply {
            repository: self.repository,
            recipe: &self.recipe,
            place: &self.place,
            beside: &self.beside,
            folder: &self.folder,
            work: &self.work,
            parent: self.parent.as_ref(),
            log,
            cancel: self.request.cancel,
        }
    }

    fn resolve(&self, asked: &[String], known: &[LockedStage]) -> Result<Lock> {
        let log = self.log("resolve")?;
        self.supply(&log).resolve(asked, known).map(Lock::new)
    }

    fn ingredients(&self, lock: &Lock) -> Result<Vec<Ingredients>> {
        let mut parent = self.parent_key().unwrap_or_default();
        let mut all: Vec<Ingredients> = Vec::new();
        for (index, locked) in lock.stage.iter().enumerate() {
            let made = Ingredients::of(&self.recipe, index, &parent, locked, &self.beside)?;
            parent = made.key();
            all.push(made);
        }
        Ok(all)
    }

    /// How many stages are there, or need not be because a later one is.
    fn what_is_there(&self, ingredients: &[Ingredients]) -> Result<(usize, Vec<BuiltStage>)> {
        let mut from = ingredients.len();
        while from > 0 && stages::find(self.repository, &ingredients[from - 1].key())?.is_none() {
            from -= 1;
        }
        let mut there = Vec::new();
        for (index, ingredients) in ingredients[..from].iter().enumerate() {
            let (name, key) = (self.recipe.stage[index].name.get_ref().clone(), ingredients.key());
            (self.request.tell)(Event::Cached(name.clone()));
            let why = match index + 1 == from {
                true => "it is there".to_owned(),
                false => "a later stage is there".to_owned(),
            };
            there.push(BuiltStage {
                name,
                key,
                cached: true,
                why,
                seconds: 0.0,
                root_seconds: None,
            });
        }
        if let Some(last) = there.last() {
            stages::note_use(self.repository, &last.key)?;
        }
        Ok((from, there))
    }

    fn make(
        &mut self,
        index: usize,
        locked: &LockedStage,
        ingredients: &Ingredients,
        parent: Option<&VersionRecord>,
    ) -> Result<(VersionRecord, BuiltStage)> {
        let began = SystemClock.monotonic();
        self.check_machine()?;
        let stage_name = self.recipe.stage[index].name.get_ref().clone();
        let recipe_name = self.recipe.name.get_ref().clone();
        let why = stages::why(self.repository, &recipe_name, &stage_name, ingredients)?;
        (self.request.tell)(Event::Building(stage_name.clone(), why.clone()));
        let work = self.begin_work()?;
        let (log, key) = (self.log(&stage_name)?, ingredients.key());
        let pool = self.work.join("pool");
        let stage = &self.recipe.stage[index];
        let splits = parent.is_some() && packaged::is_apart(stage, locked);
        let packaged_key = splits.then(|| ingredients.packages_key(stage));
        let packaged = match &packaged_key {
            Some(key) => stages::find(self.repository, key)?,
            None => None,
        };
        if !locked.package.is_empty() && packaged.is_none() {
            self.supply(&log).gather(locked, parent.is_none(), &pool)?;
        }
        let is_last = index + 1 == self.recipe.stage.len();
        let job = Job {
            recipe: &self.recipe,
            place: &self.place,
            stage: &self.recipe.stage[index],
            locked,
            key: &key,
            system: is_last.then_some(&self.recipe.system),
            beside: &self.beside,
            pool: &pool,
            work: &self.work,
            log: &log,
            cancel: self.request.cancel,
            shell_on_failure: self.request.shell_on_failure,
        };
        let image = stages::image_of(&key)?;
        let of = (recipe_name.as_str(), stage_name.as_str());
        let packaged = match &packaged_key {
            Some(key) => Some(packaged::version(
                self.repository,
                &job,
                (key, of, ingredients),
                (packaged, parent),
            )?),
            None => None,
        };
        let part = if packaged.is_some() { Part::Rest } else { Part::Whole };
        let mut root_seconds = None;
        let (version, stored_len) = match packaged.as_ref().or(parent) {
            Some(parent) if rootless::is_in_namespace() => {
                let (disk, opened) = anew::make(self.repository, &job, parent)?;
                root_seconds = Some(opened.as_secs_f64());
                self.import(&disk, &image, &stage_name)?
            }
            Some(parent) => {
                let derived = derive::make(self.repository, &job, parent, part, &image)?;
                root_seconds = Some(derived.opened.as_secs_f64());
                (derived.committed.version, derived.committed.stored_len)
            }
            None => self.import(&first::make(&job)?, &image, &stage_name)?,
        };
        stages::describe(self.repository, &key, of, ingredients, stored_len)?;
        drop(work);
        let seconds = since(began).as_secs_f64();
        Ok((
            version,
            BuiltStage { name: stage_name, key, cached: false, why, seconds, root_seconds },
        ))
    }

    fn check_machine(&self) -> Result<()> {
        let own = build_programs(self.recipe.distribution.family());
        need(&BUILD_PROGRAMS.iter().chain(own).copied().collect::<Vec<_>>())?;
        if !rustix::process::geteuid().is_root() {
            return Err(Error::new(Kind::Refused, "build", &self.place.file)
                .because("only root, or root of a user namespace, may give files to others"));
        }
        let arch = &self.recipe.distribution.arch;
        crate::architecture::check(arch.get_ref()).map_err(|error| {
            let line = format!("line {}: `arch`", self.place.line(arch.span().start));
            Error::new(error.kind(), "build", &self.place.file).because(line).caused_by(error)
        })
    }

    fn import(&self, disk: &Path, image: &ImageName, stage: &str) -> Result<(VersionRecord, u64)> {
        let options =
            OpenOptions { format: Some(InputFormat::Raw), allow_backing: false, interrupt: None };
        let mut source = open_source(disk, &options)?;
        let imported = self.repository.import(
            &mut *source,
            &ImportRequest {
                image: image.clone(),
                tag: None,
                origin: format!("build {stage}"),
                kind: VersionKind::Disk,
                progress: &Silent,
                cancel: self.request.cancel,
            },
        )?;
        Ok((imported.version, imported.stored_len))
    }

    /// Makes the last stage the next version of the recipe's image, unless it is the latest already.
    fn publish(
        &self,
        last: &VersionRecord,
        lock: &Lock,
        stages: Vec<BuiltStage>,
        key: Option<&SigningKey>,
    ) -> Result<Built> {
        let catalog = self.repository.catalog();
        let image = ImageName::new(self.recipe.name.get_ref())?;
        let latest = match catalog.version(&image_latest(&image)) {
            Ok(latest) => Some(latest).filter(|latest| latest.facts.content == last.facts.content),
            Err(error) if error.kind() == Kind::NotFound => None,
            Err(error) => return Err(error),
        };
        let is_new = latest.is_none();
        let version = match latest {
            Some(latest) => latest,
            None => {
                let request = CommitRequest {
                    parent: last.id.clone(),
                    image: image.clone(),
                    tag: None,
                    origin: format!("build {}", self.request.recipe.display()),
                    progress: &Silent,
                };
                self.repository.commit(&NoChanges(last.facts.length), &request)?.version
            }
        };
        let description = Some(("description", self.recipe.description.as_str()));
        let described = description.filter(|(_, text)| !text.is_empty());
        let labels = self
            .recipe
            .labels
            .iter()
            .map(|(name, value)| (name.as_str(), value.get_ref().as_str()));
        for (name, value) in described.into_iter().chain(labels) {
            let key = LabelKey::new(name)?;
            if version.labels.get(&key).map(String::as_str) != Some(value) {
                catalog.set_label(&image, &key, Some(value))?;
            }
        }
        let (tests, signed_by) = self.vouch(&version, lock, &stages, key)?;
        self.repository.export_names_if_old();
        let (content, length) = (version.facts.content, version.facts.length);
        Ok(Built { version: version.id, content, length, is_new, stages, tests, signed_by })
    }

    /// Tests and describes a version; where all passed, tags and signs it.
    fn vouch(
        &self,
        version: &VersionRecord,
        lock: &Lock,
        stages: &[BuiltStage],
        key: Option<&SigningKey>,
    ) -> Result<(Option<Report>, Option<String>)> {
        let vouch = Vouch {
            repository: self.repository,
            version,
            recipe: &self.recipe,
            text: self.place.text(),
            beside: &self.beside,
            lock,
            stages,
            parent: self.parent.as_ref(),
            state: &self.request.state,
            tell: &|boot| (self.request.tell)(Event::Testing(boot.to_owned())),
            cancel: self.request.cancel,
        };
        vouch.label()?;
        let report = vouch.test()?;
        vouch.describe(report.as_ref())?;
        if report.as_ref().is_some_and(|report| report.failed() > 0) {
            return Ok((report, None));
        }
        if let Some(tag) = &self.request.tag {
            self.repository.catalog().set_tag(&version.id, tag)?;
        }
        let signed_by = key.map(|key| vouch.sign(key)).transpose()?;
        Ok((report, signed_by))
    }
}

fn image_latest(image: &ImageName) -> Reference {
    Reference { image: image.clone(), selector: model::Selector::Latest }
}

fn since(began: Duration) -> Duration {
    SystemClock.monotonic().saturating_sub(began)
}

/// No change at all: a version of another image, and nothing else.
struct NoChanges(u64);

impl Changes for NoChanges {
    fn length(&self) -> u64 {
        self.0
    }
    fn segments(&self) -> Vec<u32> {
        Vec::new()
    }
    fn in_segment(&self, _segment: u32) -> Result<Vec<ChangedBlocks>> {
        Ok(Vec::new())
    }
    fn read(&self, _blocks: BlockRange, _buffer: &mut [u8]) -> Result<()> {
        Err(Error::new(Kind::Bug, "read", "changes of which there are none"))
    }
}
