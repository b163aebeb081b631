//! Stages that were built: images `stages/KEY`, with labels that tell what they are.

use std::collections::BTreeMap;

use catalog::{ImageFilter, ImageRecord, VersionRecord};
use env::{Clock, SystemClock};
use model::name::LabelKey;
use model::{Error, ImageName, Kind, Reference, Result, Selector};
use repository::Repository;

use crate::key::{Ingredients, PARTS};

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
    recipe: &str,
    stage: &str,
    ingredients: &Ingredients,
) -> Result<()> {
    let image = image_of(key)?;
    let mut labels: Vec<(&str, String)> =
        vec![("recipe", recipe.to_owned()), ("stage", stage.to_owned())];
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
    repository.catalog().set_label(&image_of(key)?, &LabelKey::new("used")?, Some(&now))
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

/// All stages of a repository, the one used last first.
pub fn list(repository: &Repository) -> Result<Vec<ImageRecord>> {
    let mut stages = repository.catalog().images(&ImageFilter::default())?;
    stages.retain(|image| image.name.as_str().starts_with(model::name::STAGES));
    let used = |image: &ImageRecord| {
        LabelKey::new("used").ok().and_then(|key| image.labels.get(&key).cloned())
    };
    stages.sort_by_key(|image| std::cmp::Reverse((used(image), image.created)));
    Ok(stages)
}

/// The stage whose key begins so.
///
/// # Errors
/// `NotFound` where there is none, `Invalid` where there are several.
pub fn named(repository: &Repository, beginning: &str) -> Result<ImageRecord> {
    let begins = |image: &ImageRecord| {
        image.name.as_str()[model::name::STAGES.len()..].starts_with(beginning)
    };
    let mut found: Vec<_> = list(repository)?.into_iter().filter(begins).collect();
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
