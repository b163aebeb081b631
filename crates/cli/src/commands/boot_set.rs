use clap::Subcommand;
use model::{Error, Kind, Reference, Result};
use serde_json::json;

use crate::arguments::Format;
use crate::context::Context;
use crate::output::{human_len, print_json, print_line};

/// Look at the blocks that a guest of a version reads first, which are brought at attach.
///
/// A boot working set is recorded by itself at the first boots of a version: when the guest reads
/// nothing new for 10 seconds. `larder attach --record NAME` records another, of whatever runs.
#[derive(Debug, clap::Args)]
pub struct BootSet {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show what a set holds.
    Show {
        /// The version.
        reference: Reference,
        /// Which of its sets.
        #[arg(long, value_name = "NAME", default_value = model::boot_set::BOOT)]
        name: String,
    },
}

impl BootSet {
    pub fn run(self, context: &Context) -> Result<()> {
        let Action::Show { reference, name } = self.action;
        let repository = context.repository()?;
        let version = repository.catalog().version(&reference)?;
        let found = repository.boot_set(&version, &name)?.ok_or_else(|| {
            Error::new(
                Kind::NotFound,
                "find the working set",
                format!("`{name}` of {}", version.id),
            )
            .because("none was recorded yet")
            .hint("boot a guest from it: the set is recorded by itself")
        })?;
        let sizes = repository.boot_set_sizes(&found)?;
        let is_inherited = found.record.content != version.facts.content;
        let last_ms = found.set.reads().last().map_or(0, |read| read.read.at_ms);
        if context.format == Format::Json {
            return print_json(&json!({
                "version": version.id.to_string(),
                "name": name,
                "boots": found.record.boots,
                "inherited": is_inherited,
                "blocks": sizes.blocks,
                "plain_bytes": sizes.plain_len,
                "stored_bytes": sizes.stored_len,
                "reads": found.set.reads().len(),
                "chunks": found.set.sources().len(),
                "seconds": f64::from(last_ms) / 1000.0,
            }));
        }
        let of = if is_inherited { "inherited" } else { "its own" };
        print_line(&format!("{name} of {}: {of}, from {} boots", version.id, found.record.boots))?;
        print_line(&format!(
            "{} in {} blocks, stored in {}; they lie in {} chunks",
            human_len(sizes.plain_len),
            sizes.blocks,
            human_len(sizes.stored_len),
            found.set.sources().len(),
        ))?;
        print_line(&format!("last first read after {:.1} s", f64::from(last_ms) / 1000.0))
    }
}
