use model::{Reference, Result, TagName};
use serde_json::json;

use crate::arguments::Format;
use crate::context::Context;
use crate::output::{print_json, print_line};

/// Give a version a tag; the tag moves there from wherever it was.
#[derive(Debug, clap::Args)]
pub struct Tag {
    /// The version.
    reference: Reference,
    /// The tag.
    tag: TagName,
}

impl Tag {
    pub fn run(self, context: &Context) -> Result<()> {
        let repository = context.repository()?;
        let version = repository.catalog().version(&self.reference)?.id;
        repository.catalog().set_tag(&version, &self.tag)?;
        repository.export_names_if_old();
        match context.format {
            Format::Json => print_json(&json!({
                "image": version.image, "version": version.version, "tag": self.tag,
            })),
            Format::Text => print_line(&format!("{}:{} is now {version}", version.image, self.tag)),
        }
    }
}
