//! From what a recipe asks for to a lock, where packages are rpm.
//!
//! ```text
//! stage 1: an empty database    ─dnf─► packages 1 ─fetch, verify─► noted in the database
//! stage 2: packages 1 are in it ─dnf─► packages 2 ...
//! ```
//!
//! **Failure**: what was fetched is kept, whatever happens then.

use model::{Error, Kind, Result};

use super::files::RpmFiles;
use super::solver::{Dnf, Resolution};
use crate::lock::LockedStage;
use crate::recipe::{Place, Recipe};
use crate::resolve::{error_at, needs_archive};

/// Resolves the stages behind those that are locked already. None where what was locked can no
/// longer be had, so that all must be resolved anew.
///
/// # Errors
/// `NotFound`, `Invalid`, `Refused`, `Unavailable`, with the line.
pub(crate) fn resolve(
    (recipe, place): (&Recipe, &Place),
    dnf: &Dnf,
    files: &RpmFiles,
    asked: &[String],
    locked: &[LockedStage],
) -> Result<Option<Vec<LockedStage>>> {
    let mut stages: Vec<LockedStage> = Vec::new();
    for stage in locked {
        match files.fetch(dnf, &stage.package) {
            Err(error) if error.kind() == Kind::Unavailable => return Ok(None),
            other => other?,
        }
        dnf.note(stage, &|package| files.path(package))?;
        stages.push(stage.clone());
    }
    for (stage, asked) in recipe.stage.iter().zip(asked).skip(locked.len()) {
        let at = |error: Error| error_at(error, place, stage);
        let mut epoch = stages.last().map_or(0, |stage| stage.source_date_epoch);
        let resolution = match needs_archive(stage) {
            true => dnf.resolve(stage).map_err(at)?,
            false => Resolution::default(),
        };
        epoch = epoch.max(resolution.epoch);
        let locked = LockedStage {
            name: stage.name.get_ref().clone(),
            asked: asked.clone(),
            source_date_epoch: epoch,
            order: resolution.order,
            package: resolution.packages,
        };
        stages.push(locked);
        let is_last = stages.len() == recipe.stage.len();
        if let (Some(locked), false) = (stages.last(), is_last) {
            files.fetch(dnf, &locked.package).map_err(at)?;
            dnf.note(locked, &|package| files.path(package)).map_err(at)?;
        }
    }
    Ok(Some(stages))
}
