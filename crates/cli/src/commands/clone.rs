use model::{ImageName, Reference, Result};
use serde_json::json;

use crate::arguments::Format;
use crate::context::Context;
use crate::output::{print_json, print_line};

/// Make a new image out of a version. Copies nothing.
#[derive(Debug, clap::Args)]
pub struct Clone {
    /// The version.
    reference: Reference,
    /// The new image; it must not exist yet.
    image: ImageName,
}

impl Clone {
    pub fn run(self, context: &Context) -> Result<()> {
        let repository = context.repository()?;
        let from = repository.catalog().version(&self.reference)?.id;
        let version = repository.catalog().clone_version(&from, &self.image)?;
        repository.export_names_if_old();
        match context.format {
            Format::Json => print_json(&json!({
                "image": version.id.image,
                "version": version.id.version,
                "parent": from.to_string(),
                "digest": version.facts.content,
            })),
            Format::Text => print_line(&format!("{} is a clone of {from}", version.id)),
        }
    }
}
