use model::Result;
use serde_json::json;

use crate::arguments::Format;
use crate::context::Context;
use crate::output::{human_len, print_facts, print_json};

/// Say how much the repository holds and what it takes.
#[derive(Debug, clap::Args)]
pub struct Stats {}

impl Stats {
    pub fn run(self, context: &Context) -> Result<()> {
        let counted = context.repository()?.statistics()?;
        if context.format == Format::Json {
            return print_json(&json!({
                "images": counted.image_count,
                "versions": counted.version_count,
                "logical_bytes": counted.logical_len,
                "data_bytes": counted.data_len,
                "unique_bytes": counted.unique_len,
                "stored_bytes": counted.stored_len,
                "boot_set_bytes": counted.boot_set_len,
                "metadata_bytes": counted.metadata_len,
                "index_bytes": counted.index_len,
                "dedup_ratio": counted.dedup_ratio(),
            }));
        }
        print_facts(&[
            ("images", counted.image_count.to_string()),
            ("versions", counted.version_count.to_string()),
            ("what guests see", human_len(counted.logical_len)),
            ("of it data", human_len(counted.data_len)),
            ("of it distinct", human_len(counted.unique_len)),
            ("stored", human_len(counted.stored_len)),
            ("of it boot working sets", human_len(counted.boot_set_len)),
            ("of it metadata", human_len(counted.metadata_len)),
            ("of it index", human_len(counted.index_len)),
            ("deduplicated", format!("{:.1} %", 100.0 * counted.dedup_ratio())),
        ])
    }
}
