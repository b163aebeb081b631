use model::name::LabelKey;
use model::{Reference, Result};
use serde_json::json;

use crate::arguments::Format;
use crate::commands::list::parse_label;
use crate::context::Context;
use crate::output::{print_json, print_line};

/// Label an image. An empty value takes the label away.
#[derive(Debug, clap::Args)]
pub struct Label {
    /// The image, or any of its versions: labels belong to the image.
    reference: Reference,
    /// The label.
    #[arg(value_name = "KEY=VALUE", value_parser = parse_label)]
    label: (LabelKey, String),
}

impl Label {
    pub fn run(self, context: &Context) -> Result<()> {
        let repository = context.repository()?;
        let image = repository.catalog().version(&self.reference)?.id.image;
        let (key, value) = self.label;
        let value = (!value.is_empty()).then_some(value);
        repository.catalog().set_label(&image, &key, value.as_deref())?;
        repository.export_names_if_old();
        match (context.format, value) {
            (Format::Json, value) => {
                print_json(&json!({ "image": image, "label": key, "value": value }))
            }
            (Format::Text, Some(value)) => print_line(&format!("{image}: {key}={value}")),
            (Format::Text, None) => print_line(&format!("{image}: {key} taken away")),
        }
    }
}
