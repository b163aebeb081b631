use model::{ImageName, Result};
use serde_json::json;

use crate::arguments::Format;
use crate::commands::length::Length;
use crate::context::Context;
use crate::output::{human_len, print_json, print_line};

/// Make an empty image.
#[derive(Debug, clap::Args)]
pub struct Create {
    /// The image; it must not exist yet.
    image: ImageName,
    /// How long its disk is, in bytes or as `20GiB`.
    #[arg(long)]
    length: Length,
}

impl Create {
    pub fn run(self, context: &Context) -> Result<()> {
        let repository = context.repository_or_new()?;
        let version = repository.create_image(&self.image, self.length.0)?;
        match context.format {
            Format::Json => print_json(&json!({
                "image": version.id.image,
                "version": version.id.version,
                "digest": version.facts.content,
                "length_bytes": version.facts.length,
            })),
            Format::Text => {
                print_line(&format!("made {}: {} of zeros", version.id, human_len(self.length.0)))
            }
        }
    }
}
