use catalog::ImageFilter;
use model::name::{LabelKey, STAGES};
use model::{Error, Kind, Result};
use serde_json::json;

use crate::arguments::Format;
use crate::context::Context;
use crate::output::{human_len, print_json, print_line, print_table};

/// List the images of the repository.
#[derive(Debug, clap::Args)]
pub struct List {
    /// Only images that carry this label; may be given several times.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
    label: Vec<(LabelKey, String)>,
    /// Only images with this text in name, tags, labels or origin.
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    /// The stages of builds, too; `larder stages list` tells more of them.
    #[arg(long)]
    stages: bool,
}

/// Reads `key=value`.
pub fn parse_label(text: &str) -> Result<(LabelKey, String)> {
    match text.split_once('=') {
        Some((key, value)) => Ok((key.parse()?, value.to_string())),
        None => Err(Error::new(Kind::Invalid, "use the label", format!("`{text}`"))
            .because("a label is KEY=VALUE")),
    }
}

impl List {
    pub fn run(self, context: &Context) -> Result<()> {
        let repository = context.repository()?;
        let filter = ImageFilter { labels: self.label, search: self.search };
        let mut images = repository.catalog().images(&filter)?;
        images.retain(|image| self.stages || !image.name.as_str().starts_with(STAGES));
        if context.format == Format::Json {
            let images: Vec<_> = images
                .iter()
                .map(|image| {
                    let tags: serde_json::Map<_, _> = image
                        .tags
                        .iter()
                        .map(|(tag, version)| (tag.to_string(), json!(version)))
                        .collect();
                    let labels: serde_json::Map<_, _> = image
                        .labels
                        .iter()
                        .map(|(key, value)| (key.to_string(), json!(value)))
                        .collect();
                    json!({
                        "name": image.name,
                        "versions": image.versions,
                        "tags": tags,
                        "labels": labels,
                        "length_bytes": image.length,
                        "created": image.created.to_rfc3339(),
                    })
                })
                .collect();
            return print_json(&json!({ "images": images }));
        }
        if images.is_empty() {
            return print_line("no images");
        }
        let rows = images.iter().map(|image| {
            let tags = image.tags.iter().map(|(tag, version)| format!("{tag}@{version}"));
            let labels = image.labels.iter().map(|(key, value)| format!("{key}={value}"));
            vec![
                image.name.to_string(),
                image.versions.last().map_or_else(String::new, ToString::to_string),
                image.versions.len().to_string(),
                human_len(image.length),
                image.created.to_rfc3339(),
                tags.collect::<Vec<_>>().join(" "),
                labels.collect::<Vec<_>>().join(" "),
            ]
        });
        let head = ["image", "latest", "versions", "length", "created", "tags", "labels"];
        print_table(&head, rows.collect())
    }
}
