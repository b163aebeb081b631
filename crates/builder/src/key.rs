//! A stage's key: the name of what it is made of. Equal keys, equal stages.
//!
//! ```text
//! key = BLAKE3 ( builder, parent, text, packages, files )
//! ```
//!
//! **Invariants**: the name of a stage or of a recipe is no part of a key, so recipes share stages.

use std::collections::BTreeMap;
use std::path::Path;

use model::{Error, Result};

use crate::lock::LockedStage;
use crate::recipe::{Contents, Recipe, Stage};

/// What this builder makes of the same things; another number makes all stages anew.
pub(crate) const BUILDER: u32 = 1;

/// Digests of all that a stage is made of, by what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ingredients {
    parts: BTreeMap<&'static str, String>,
}

/// What the parts are called where one tells why a stage is built.
pub(crate) const PARTS: [(&str, &str); 5] = [
    ("builder", "the builder's version"),
    ("parent", "its parent"),
    ("text", "its text in the recipe"),
    ("packages", "its packages"),
    ("files", "the files that it copies"),
];

impl Ingredients {
    /// What a stage is made of.
    ///
    /// # Errors
    /// Those of reading its files.
    pub(crate) fn of(
        recipe: &Recipe,
        index: usize,
        parent: &str,
        locked: &LockedStage,
        beside: &Path,
    ) -> Result<Ingredients> {
        let stage = &recipe.stage[index];
        let mut text = serde_json::json!({ "stage": stage });
        if stage.parent.is_none() {
            text["distribution"] = serde_json::json!(recipe.distribution);
            text["disk"] = serde_json::json!(recipe.disk_or_default());
        }
        if index + 1 == recipe.stage.len() {
            text["system"] = serde_json::json!(recipe.system);
        }
        let packages: Vec<String> = locked
            .package
            .iter()
            .map(|p| format!("{} {} {} {}", p.name, p.version, p.architecture, p.sha256))
            .chain(locked.order.iter().cloned())
            .chain([locked.source_date_epoch.to_string()])
            .collect();
        let parts = BTreeMap::from([
            ("builder", BUILDER.to_string()),
            ("parent", parent.to_owned()),
            ("text", digest(&[&text.to_string()])),
            ("packages", digest(&packages)),
            ("files", digest(&files(stage, beside)?)),
        ]);
        Ok(Ingredients { parts })
    }

    /// The key: 64 characters.
    pub(crate) fn key(&self) -> String {
        let lines: Vec<String> =
            self.parts.iter().map(|(name, digest)| format!("{name} {digest}")).collect();
        digest(&lines)
    }

    /// The key of what is there once the stage's packages are installed: of all that decides that.
    pub(crate) fn packages_key(&self, stage: &Stage) -> String {
        let mut texts = vec!["only its packages".to_owned()];
        texts.extend(["builder", "parent", "packages"].map(|name| self.parts[name].clone()));
        texts.extend(stage.keep.iter().map(|path| path.get_ref().clone()));
        digest(&texts)
    }

    /// The parts, by name.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.parts.iter().map(|(name, digest)| (*name, digest.as_str()))
    }
}

/// One digest of many texts, whatever is in them.
pub(crate) fn digest<T: AsRef<str>>(texts: &[T]) -> String {
    let mut hasher = blake3::Hasher::new();
    for text in texts {
        let text = text.as_ref().as_bytes();
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text);
    }
    hasher.finalize().to_hex().to_string()
}

/// Names and digests of the files beside the recipe that a stage copies or runs.
fn files(stage: &Stage, beside: &Path) -> Result<Vec<String>> {
    let copied = stage.files.iter().filter_map(|file| match file.get_ref().contents() {
        Some(Contents::From(from)) => Some((format!("to {}", file.get_ref().to), from)),
        _ => None,
    });
    let run = stage.run.iter().enumerate().filter_map(|(number, step)| {
        Some((format!("step {number}"), step.get_ref().script.as_deref()?))
    });
    let mut all = Vec::new();
    for (what, name) in copied.chain(run) {
        let path = beside.join(name);
        let failed = |error| Error::io("read", path.display().to_string(), error);
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(std::fs::File::open(&path).map_err(failed)?).map_err(failed)?;
        all.push(format!("{what} {}", hasher.finalize().to_hex()));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Place;

    fn key_of(stage: &str, rest: &str, epoch: i64) -> String {
        let text = format!(
            "name = \"x\"\n[distribution]\nid = \"debian\"\nrelease = \"bookworm\"\n[[stage]]\n{stage}\n{rest}"
        );
        let (recipe, _) = Recipe::read(Place::new("r", text)).unwrap();
        let locked = LockedStage {
            name: "a".into(),
            asked: String::new(),
            source_date_epoch: epoch,
            order: vec![],
            package: vec![],
        };
        Ingredients::of(&recipe, 0, "", &locked, Path::new("/")).unwrap().key()
    }

    #[test]
    fn a_key_changes_with_what_a_stage_is_made_of_and_not_with_its_name() {
        let base = key_of("name = \"a\"", "", 1);
        assert_eq!(base.len(), 64);
        assert_eq!(base, key_of("name = \"b\" # and a remark", "", 1));
        let others = [
            key_of("name = \"a\"\nrun = [\"true\"]", "", 1),
            key_of("name = \"a\"\nrun = [{command=\"true\", network=true}]", "", 1),
            key_of("name = \"a\"\nfiles = [{to=\"/x\",content=\"\"}]", "", 1),
            key_of("name = \"a\"", "[system]\nhostname = \"h\"", 1),
            key_of("name = \"a\"", "[disk]\nsize = \"1G\"", 1),
            key_of("name = \"a\"", "", 2),
        ];
        let mut all: Vec<_> = others.iter().chain([&base]).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 7);
    }
}
