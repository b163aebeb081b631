//! Where packages come from: the recipe's archives, or this machine's own.

use std::path::PathBuf;

use model::Result;
use serde_json::{Value, json};

use super::architecture;
use crate::packages::sources::keys_file;
use crate::recipe::Recipe;

/// Where this machine has its own, if it is one with rpm packages.
const OWN: &str = "/etc/yum.repos.d";

/// An archive of the recipe that has an address.
#[derive(Clone, Debug)]
pub(super) struct Repository {
    /// Which of the recipe's archives it is.
    pub archive: usize,
    /// What its address is of: `baseurl`, `metalink` or `mirrorlist`.
    kind: &'static str,
    /// Its address.
    pub url: String,
    /// The file with its keys.
    pub keys: PathBuf,
}

impl Repository {
    /// The place below which its packages are, where that is known without asking.
    pub(super) fn base(&self) -> Option<String> {
        let base = || format!("{}/", self.url.trim_end_matches('/'));
        (self.kind == "baseurl").then(base)
    }

    /// As `resolve.py` takes it.
    pub(super) fn asked(&self) -> Value {
        let url = if self.kind == "baseurl" { json!([self.url]) } else { json!(self.url) };
        json!({ "id": id(self.archive), self.kind: url, "keys": self.keys })
    }
}

fn id(archive: usize) -> String {
    format!("archive-{archive}")
}

/// All repositories of a recipe.
#[derive(Clone, Debug, Default)]
pub(super) struct Repositories {
    /// Those that it names.
    pub named: Vec<Repository>,
    /// The archive that stands for this machine's own, if one does.
    pub own: Option<usize>,
}

impl Repositories {
    /// Those of a recipe that was checked.
    ///
    /// # Errors
    /// `NotFound` where the file with the keys of one is not there.
    pub(super) fn of(recipe: &Recipe, beside: &std::path::Path) -> Result<Repositories> {
        let mut all = Repositories::default();
        for (archive, settings) in recipe.archive.iter().enumerate() {
            match (&settings.url, &settings.signed_by) {
                (Some(url), Some(keys)) => {
                    let keys = keys_file(beside, keys.get_ref())?.into();
                    let url = substituted(url.get_ref(), recipe);
                    let kind = if url.contains("/metalink?") {
                        "metalink"
                    } else if url.contains("/mirrorlist?") {
                        "mirrorlist"
                    } else {
                        "baseurl"
                    };
                    all.named.push(Repository { archive, kind, url, keys });
                }
                _ => all.own = all.own.or(Some(archive)),
            }
        }
        if recipe.archive.is_empty() {
            all.own = Some(0);
        }
        Ok(all)
    }

    /// The folder with this machine's own, where they are wanted.
    pub(super) fn own_folder(&self) -> Option<&'static str> {
        self.own.map(|_| OWN)
    }

    /// Which of the recipe's archives a repository belongs to.
    pub(super) fn archive_of(&self, name: &str) -> usize {
        let named = self.named.iter().find(|repository| id(repository.archive) == name);
        named.map(|repository| repository.archive).or(self.own).unwrap_or(0)
    }
}

fn substituted(url: &str, recipe: &Recipe) -> String {
    let distribution = &recipe.distribution;
    url.replace("$releasever", distribution.release.get_ref())
        .replace("$basearch", architecture(distribution.arch.get_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Place;

    #[test]
    fn release_and_architecture_stand_in_addresses() {
        let text = "name = \"x\"\n[distribution]\nid = \"rocky\"\nrelease = \"9\"\n\
                    [[archive]]\nurl = \"http://a.example/$releasever/BaseOS/$basearch/os\"\n\
                    signed_by = \"/dev/null\"\n\
                    [[archive]]\nurl = \"http://a.example/metalink?repo=$releasever\"\n\
                    signed_by = \"/dev/null\"\n[[archive]]\n[[stage]]\nname = \"a\"\n";
        let (recipe, _) = Recipe::read(Place::new("r", text)).unwrap();
        let found = Repositories::of(&recipe, std::path::Path::new("/")).unwrap();
        let bases: Vec<_> = found.named.iter().map(Repository::base).collect();
        assert_eq!(bases, [Some("http://a.example/9/BaseOS/x86_64/os/".to_owned()), None]);
        assert_eq!(found.named[1].asked()["metalink"], "http://a.example/metalink?repo=9");
        assert_eq!(
            (found.own, found.archive_of("archive-1"), found.archive_of("updates")),
            (Some(2), 1, 2)
        );
    }
}
