//! From what a recipe asks for to a lock.
//!
//! ```text
//! stage 1: nothing installed      ─apt─► packages 1
//! stage 2: packages 1 installed   ─apt─► packages 2 ...
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use model::{Error, Kind, Result};

use crate::key::digest;
use crate::lock::{Lock, LockedStage};
use crate::packages::apt::{Apt, name_of};
use crate::packages::sources::keys_file;
use crate::recipe::{Place, Recipe, Stage};

/// What a first stage has beside what it asks for.
const ESSENTIAL: &str = "?or(?essential,?priority(required),?name(^apt$))";

/// What each stage of a recipe asks of the archives, as a digest. `parent` stands for the version
/// that the first stage stands on.
pub(crate) fn asked(recipe: &Recipe, parent: Option<&str>, beside: &Path) -> Result<Vec<String>> {
    let mut keys = Vec::new();
    for archive in &recipe.archive {
        if let Some(name) = &archive.signed_by {
            let path = keys_file(beside, name.get_ref())?;
            let bytes =
                std::fs::read(&path).map_err(|error| Error::io("read the keys", path, error))?;
            keys.push(blake3::hash(&bytes).to_hex().to_string());
        }
    }
    let archives = serde_json::json!([recipe.distribution, recipe.archive, keys]).to_string();
    let mut above = parent.unwrap_or_default().to_owned();
    let mut all = Vec::new();
    for stage in &recipe.stage {
        let names = |list: &[toml::Spanned<String>]| {
            let mut names: Vec<String> = list.iter().map(|name| name.get_ref().clone()).collect();
            names.sort();
            names.dedup();
            names.join(" ")
        };
        let asked = [&archives, &above, &names(&stage.packages), &names(&stage.exclude_packages)];
        above = digest(&asked);
        all.push(above.clone());
    }
    Ok(all)
}

/// True where a stage needs an archive to be known.
pub(crate) fn needs_archive(stage: &Stage) -> bool {
    stage.parent.is_none() || !stage.packages.is_empty() || !stage.exclude_packages.is_empty()
}

/// How many stages of a lock, from the first on, are for what is asked.
pub(crate) fn fitting(lock: Option<&Lock>, asked: &[String]) -> usize {
    let stages = lock.map_or(&[][..], |lock| &lock.stage);
    stages.iter().zip(asked).take_while(|(stage, asked)| stage.asked == **asked).count()
}

/// Resolves the stages behind those that are locked already.
///
/// `status` is what the version has installed that the first stage stands on.
///
/// # Errors
/// `NotFound`, `Refused`, `Unavailable` as apt says; with the line of a package that does not exist.
pub(crate) fn resolve(
    recipe: &Recipe,
    place: &Place,
    apt: &Apt,
    asked: &[String],
    locked: &[LockedStage],
    status: &str,
) -> Result<Vec<LockedStage>> {
    if recipe.stage[locked.len()..].iter().any(needs_archive) {
        apt.update().map_err(|error| error_at(error, place, &recipe.stage[locked.len()]))?;
    }
    let mut installed = BTreeMap::new();
    for stanza in status.split("\n\n").filter(|stanza| !stanza.trim().is_empty()) {
        let name = name_of(stanza).unwrap_or_default().to_owned();
        installed.insert(name, format!("{}\n", stanza.trim_end()));
    }
    let mut stages: Vec<LockedStage> = Vec::new();
    for stage in locked {
        if !note(apt, stage, &mut installed)? {
            // The archive no longer tells of what was locked: everything is resolved anew.
            return resolve(recipe, place, apt, asked, &[], status);
        }
        stages.push(stage.clone());
    }
    for (stage, asked) in recipe.stage.iter().zip(asked).skip(locked.len()) {
        let mut epoch = stages.last().map_or(0, |stage| stage.source_date_epoch);
        let resolution = if needs_archive(stage) {
            epoch = epoch.max(apt.epoch()?);
            let status: Vec<&str> = installed.values().map(String::as_str).collect();
            apt.set_status(&status.join("\n"))?;
            apt.resolve(&wanted(stage)).map_err(|error| error_at(error, place, stage))?
        } else {
            Default::default()
        };
        let locked = LockedStage {
            name: stage.name.get_ref().clone(),
            asked: asked.clone(),
            source_date_epoch: epoch,
            // mmdebstrap has an order of its own.
            order: if stage.parent.is_some() { resolution.order } else { Vec::new() },
            package: resolution.packages,
        };
        for name in &resolution.removed {
            installed.remove(name);
        }
        if !note(apt, &locked, &mut installed)? {
            return Err(Error::new(Kind::Bug, "resolve", stage.name.get_ref())
                .because("the archives tell nothing of a package that they have"));
        }
        stages.push(locked);
    }
    Ok(stages)
}

/// Takes a locked stage's packages as installed. False where nothing is known of one.
fn note(apt: &Apt, stage: &LockedStage, installed: &mut BTreeMap<String, String>) -> Result<bool> {
    let removed = stage.order.iter().filter_map(|line| line.strip_prefix("remove "));
    for name in removed.flat_map(|names| names.split(' ')) {
        installed.remove(name);
    }
    let Some(stanzas) = apt.stanzas(&stage.package)? else { return Ok(false) };
    for stanza in stanzas {
        installed.insert(name_of(&stanza).unwrap_or_default().to_owned(), stanza);
    }
    Ok(true)
}

fn wanted(stage: &Stage) -> Vec<String> {
    let first = stage.parent.is_none().then(|| ESSENTIAL.to_owned());
    let packages = stage.packages.iter().map(|name| name.get_ref().clone());
    let excluded = stage.exclude_packages.iter().map(|name| format!("{}-", name.get_ref()));
    first.into_iter().chain(packages).chain(excluded).collect()
}

/// Says in which line that stands that could not be had.
pub(crate) fn error_at(error: Error, place: &Place, stage: &Stage) -> Error {
    let said = error.to_string();
    let named = stage
        .packages
        .iter()
        .chain(&stage.exclude_packages)
        .find(|package| said.split([' ', '\'', '"']).any(|word| word == package.get_ref()));
    let span = named.map_or(stage.name.span(), toml::Spanned::span);
    let name = stage.name.get_ref();
    let at = format!("line {}, stage `{name}`", place.line(span.start));
    let reason = match (error.kind(), named) {
        (Kind::NotFound, Some(package)) => {
            format!("{at}: there is no package `{}` in the archives", package.get_ref())
        }
        _ => at,
    };
    Error::new(error.kind(), "resolve the packages of", &place.file)
        .because(reason)
        .caused_by(error)
}
