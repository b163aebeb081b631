//! A stage's packages apart from what comes behind them: a version of its own, so that a stage whose
//! files or steps changed does not install its packages again.
//!
//! ```text
//! parent ──packages──► stages/PACKAGES-KEY ──users, files, services, steps──► stages/KEY
//! ```
//!
//! **Not here**: first stages, which are the same bytes wherever they are made.

use catalog::VersionRecord;
use model::{Error, Kind, Result};
use repository::Repository;

use crate::first::{Job, Part};
use crate::key::Ingredients;
use crate::lock::LockedStage;
use crate::recipe::Stage;
use crate::{derive, rootless, stages};

/// True where a stage has packages, and something behind them. Where a disk is made anew for each
/// version, one more would cost more than it saves.
pub(crate) fn is_apart(stage: &Stage, locked: &LockedStage) -> bool {
    let services = &stage.services;
    let switched = [&services.enable, &services.disable, &services.mask];
    let more = !(stage.files.is_empty() && stage.users.is_empty() && stage.run.is_empty());
    !locked.order.is_empty()
        && (more || switched.iter().any(|names| !names.is_empty()))
        && !rootless::is_in_namespace()
}

/// The version that has a stage's packages and nothing else of it: the one that was found, or one
/// that is made now upon the stage's parent.
pub(crate) fn version(
    repository: &Repository,
    job: &Job,
    (key, (recipe, stage), ingredients): (&str, (&str, &str), &Ingredients),
    (found, parent): (Option<VersionRecord>, Option<&VersionRecord>),
) -> Result<VersionRecord> {
    if let Some(found) = found {
        job.log.say("its packages are there");
        stages::note_use(repository, key)?;
        return Ok(found);
    }
    let parent = parent.ok_or_else(|| Error::new(Kind::Bug, "build", stage))?;
    let image = stages::image_of(key)?;
    let made = derive::make(repository, job, parent, Part::Packages, &image)?.committed;
    let name = format!("{stage}: packages");
    stages::describe(repository, key, (recipe, &name), ingredients, made.stored_len)?;
    Ok(made.version)
}
