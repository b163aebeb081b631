use model::{Reference, Result, Selector};
use serde_json::json;

use crate::arguments::Format;
use crate::context::Context;
use crate::output::{print_json, print_line};

/// Remove a version; with `--all`, an image with all its versions.
///
/// `image@version` and `image:tag` remove that version; `image` alone removes an image that has one
/// version only, or any with `--all`. Bytes that nothing refers to any more stay until collected.
#[derive(Debug, clap::Args)]
pub struct Remove {
    /// What to remove.
    reference: Reference,
    /// Remove the image with all its versions.
    #[arg(long)]
    all: bool,
}

impl Remove {
    pub fn run(self, context: &Context) -> Result<()> {
        let repository = context.repository()?;
        let catalog = repository.catalog();
        let found = catalog.version(&self.reference)?;
        let removed = match (&self.reference.selector, self.all) {
            (_, true) => catalog.remove_image(&found.id.image)?,
            (Selector::Latest, false) if catalog.versions(&found.id.image)?.len() > 1 => {
                return Err(model::Error::new(
                    model::Kind::Refused,
                    "remove",
                    found.id.image.as_str(),
                )
                .because("it has several versions")
                .hint(format!("name one, as `{}`, or add `--all`", found.id)));
            }
            _ => {
                catalog.remove_version(&found.id)?;
                vec![found.id]
            }
        };
        repository.export_names_if_old();
        let held: Vec<String> = catalog
            .holds()?
            .into_iter()
            .filter(|hold| removed.contains(&hold.version))
            .map(|hold| hold.holder)
            .collect();
        let names: Vec<String> = removed.iter().map(ToString::to_string).collect();
        match context.format {
            Format::Json => print_json(&json!({ "removed": names, "held_by": held })),
            Format::Text => {
                print_line(&format!("removed {}", names.join(" ")))?;
                held.iter().try_for_each(|holder| print_line(&format!("still held by {holder}")))
            }
        }
    }
}
