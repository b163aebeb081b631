//! Stages that were built: images `stages/KEY`, with labels that tell what they are.

use std::collections::BTreeMap;

use catalog::{ImageFilter, ImageRecord, VersionRecord};
use env::{Clock, SystemClock};
use model::name::LabelKey;
use model::{Error, ImageName, Kind, Reference, Result, Selector};
use repository::Repository;

use crate::key::{Ingredients, PARTS};

/// The label with the bytes that the repository grew by when a stage was built.
const STORED: &str = "stored";

/// The label of a stage that is not evicted.
const PINNED: &str = "pinned";

/// The label with the time at which a stage was built or found last.
const USED: &str = "used";

/// How much of a part's digest a label keeps: enough to tell two apart.
const SHOWN: usize = 16;

/// The image that is the stage with this key.
pub(crate) fn image_of(key: &str) -> Result<ImageName> {
    ImageName::new(&format!("{}{key}", model::name::STAGES))
}

/// The stage with this key, if it was built and is there.
pub(crate) fn find(repository: &Repository, key: &str) -> Result<Option<VersionRecord>> {
    let reference = Reference { image: image_of(key)?, selector: Selector::Latest };
    match repository.catalog().version(&reference) {
        Ok(version) => Ok(Some(version)),
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Notes what a stage is, so that the next build can tell what has changed.
pub(crate) fn describe(
    repository: &Repository,
    key: &str,
    (recipe, stage): (&str, &str),
    ingredients: &Ingredients,
    stored_len: u64,
) -> Result<()> {
    let image = image_of(key)?;
    let mut labels: Vec<(&str, String)> = vec![
        ("recipe", recipe.to_owned()),
        ("stage", stage.to_owned()),
        (STORED, stored_len.to_string()),
    ];
    labels.extend(
        ingredients
            .parts()
            .map(|(name, digest)| (name, digest.chars().take(SHOWN).collect::<String>())),
    );
    for (name, value) in labels {
        repository.catalog().set_label(&image, &LabelKey::new(name)?, Some(&value))?;
    }
    note_use(repository, key)
}

/// Notes that a stage was used now: what was not used for long is evicted first.
pub(crate) fn note_use(repository: &Repository, key: &str) -> Result<()> {
    let now = SystemClock.now().to_rfc3339();
    repository.catalog().set_label(&image_of(key)?, &LabelKey::new(USED)?, Some(&now))
}

/// Why a stage has to be built, in words.
pub(crate) fn why(
    repository: &Repository,
    recipe: &str,
    stage: &str,
    ingredients: &Ingredients,
) -> Result<String> {
    let labels = vec![
        (LabelKey::new("recipe")?, recipe.to_owned()),
        (LabelKey::new("stage")?, stage.to_owned()),
    ];
    let mut before = repository.catalog().images(&ImageFilter { labels, search: None })?;
    before.retain(|image| image.name.as_str().starts_with(model::name::STAGES));
    let Some(before) = before.into_iter().max_by_key(|image| image.created) else {
        return Ok("it was not built before, or is no longer kept".into());
    };
    let label = |name: &str| {
        let key = LabelKey::new(name).ok()?;
        before.labels.get(&key).cloned()
    };
    let parts: BTreeMap<_, _> = ingredients.parts().collect();
    let changed: Vec<&str> = PARTS
        .iter()
        .filter(|(name, _)| {
            let now = parts.get(name).map(|digest| digest.chars().take(SHOWN).collect::<String>());
            label(name) != now
        })
        .map(|(_, words)| *words)
        .collect();
    match changed.split_last() {
        None => Ok("it is no longer kept".into()),
        Some((last, [])) => Ok(format!("{last} changed")),
        Some((last, others)) => Ok(format!("{} and {last} changed", others.join(", "))),
    }
}

/// A stage as a list shows it.
#[derive(Clone, Debug)]
pub struct StageRecord {
    /// The image that it is.
    pub image: ImageName,
    /// Its key.
    pub key: String,
    /// Its name in the recipe that made it.
    pub name: String,
    /// That recipe's name.
    pub recipe: String,
    /// Bytes that the repository grew by when it was built.
    pub stored_len: u64,
    /// When it was built or found last.
    pub used: String,
    /// It is not evicted.
    pub pinned: bool,
}

/// All stages of a repository, the one used last first.
pub fn list(repository: &Repository) -> Result<Vec<StageRecord>> {
    let images = repository.catalog().images(&ImageFilter::default())?;
    let mut stages: Vec<_> = images.iter().filter_map(record).collect();
    stages.sort_by(|a, b| (&b.used, &b.key).cmp(&(&a.used, &a.key)));
    Ok(stages)
}

fn record(image: &ImageRecord) -> Option<StageRecord> {
    let key = image.name.as_str().strip_prefix(model::name::STAGES)?.to_owned();
    let label = |name: &str| {
        LabelKey::new(name).ok().and_then(|key| image.labels.get(&key).cloned()).unwrap_or_default()
    };
    Some(StageRecord {
        image: image.name.clone(),
        key,
        name: label("stage"),
        recipe: label("recipe"),
        stored_len: label(STORED).parse().unwrap_or(0),
        used: label(USED),
        pinned: !label(PINNED).is_empty(),
    })
}

/// The stage whose key begins so.
///
/// # Errors
/// `NotFound` where there is none, `Invalid` where there are several.
pub fn named(repository: &Repository, beginning: &str) -> Result<StageRecord> {
    let mut found = list(repository)?;
    found.retain(|stage| stage.key.starts_with(beginning));
    match (found.pop(), found.is_empty()) {
        (Some(stage), true) => Ok(stage),
        (Some(_), false) => {
            Err(Error::new(Kind::Invalid, "find the stage", beginning)
                .because("several keys begin so"))
        }
        (None, _) => Err(Error::new(Kind::NotFound, "find the stage", beginning)
            .because("no key begins so")
            .hint("`larder stages list` shows them")),
    }
}

/// Says whether a stage is left alone by an eviction.
pub fn pin(repository: &Repository, stage: &StageRecord, pinned: bool) -> Result<()> {
    let value = pinned.then_some("yes");
    repository.catalog().set_label(&stage.image, &LabelKey::new(PINNED)?, value)
}

/// Which stages go so that those that stay have grown the repository by at most `max_len`: those used
/// longest ago first, and no pinned one.
pub fn plan_eviction(stages: &[StageRecord], max_len: u64) -> Vec<StageRecord> {
    let mut total: u64 = stages.iter().map(|stage| stage.stored_len).sum();
    let mut by_age: Vec<_> = stages.iter().filter(|stage| !stage.pinned).collect();
    by_age.sort_by(|a, b| (&a.used, &a.key).cmp(&(&b.used, &b.key)));
    let mut gone = Vec::new();
    for stage in by_age {
        if total <= max_len {
            break;
        }
        total -= stage.stored_len;
        gone.push(stage.clone());
    }
    gone
}

/// Takes a stage's name away; images made of it stay, and `collect` gives back what only it needed.
pub fn evict(repository: &Repository, stage: &StageRecord) -> Result<()> {
    repository.catalog().remove_image(&stage.image).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_used_for_long_goes_first_and_what_is_pinned_stays() {
        let stage = |number: u8, stored_len, pinned| StageRecord {
            image: image_of(&format!("a{number}").repeat(32)).unwrap(),
            key: String::new(),
            name: number.to_string(),
            recipe: String::new(),
            stored_len,
            used: format!("2026-01-0{number}"),
            pinned,
        };
        let stages = [stage(3, 10, false), stage(1, 10, true), stage(2, 10, false)];
        let names = |max| -> Vec<_> {
            plan_eviction(&stages, max).into_iter().map(|stage| stage.name).collect()
        };
        assert_eq!(names(30), [""; 0]);
        assert_eq!(names(29), ["2"]);
        assert_eq!(names(0), ["2", "3"]);
    }
}
