use builder::stages::{self, StageRecord};
use clap::Subcommand;
use model::{Error, Kind, Result};
use serde_json::json;

use super::length::Length;
use crate::arguments::Format;
use crate::context::Context;
use crate::output::{human_len, print_json, print_line, print_table};

/// Look at the stages that builds have left, pin them, evict them.
///
/// A stage is kept so that the next build need not make it again. Images do not need the stages that
/// they were made of: evicting one costs time at the next build, and nothing else.
#[derive(Debug, clap::Args)]
pub struct Stages {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the stages, the one used last first.
    List,
    /// Leave a stage alone at evictions.
    Pin {
        /// The beginning of its key.
        key: String,
    },
    /// Leave it alone no longer.
    Unpin {
        /// The beginning of its key.
        key: String,
    },
    /// Evict stages: one, or those used longest ago until the rest is small enough.
    ///
    /// Says which; with `--apply` does it. `larder collect --apply` then gives back the bytes.
    Evict {
        /// The beginning of its key.
        #[arg(required_unless_present = "max")]
        key: Option<String>,
        /// How much the repository may have grown by the stages that stay: `20G`.
        #[arg(long, value_name = "LENGTH", conflicts_with = "key")]
        max: Option<Length>,
        /// Do it.
        #[arg(long)]
        apply: bool,
    },
}

impl Stages {
    pub fn run(self, context: &Context) -> Result<()> {
        let repository = context.repository()?;
        let said = |stage: &StageRecord| format!("{} ({})", &stage.key[..12], stage.name);
        match self.action {
            Action::List => print(context, &stages::list(&repository)?),
            Action::Pin { key } => {
                let stage = stages::named(&repository, &key)?;
                stages::pin(&repository, &stage, true)?;
                print_line(&format!("pinned {}", said(&stage)))
            }
            Action::Unpin { key } => {
                let stage = stages::named(&repository, &key)?;
                stages::pin(&repository, &stage, false)?;
                print_line(&format!("unpinned {}", said(&stage)))
            }
            Action::Evict { key, max, apply } => {
                let going = match key {
                    Some(key) => vec![stages::named(&repository, &key)?],
                    None => stages::plan_eviction(
                        &stages::list(&repository)?,
                        max.map_or(u64::MAX, |max| max.0),
                    ),
                };
                if let Some(stage) = going.iter().find(|stage| stage.pinned) {
                    return Err(Error::new(Kind::Refused, "evict the stage", &stage.key[..12])
                        .because("it is pinned")
                        .hint(format!("larder stages unpin {}", &stage.key[..12])));
                }
                if apply {
                    going.iter().try_for_each(|stage| stages::evict(&repository, stage))?;
                }
                print(context, &going)?;
                match (apply, context.format) {
                    (false, Format::Text) if !going.is_empty() => {
                        print_line("nothing was evicted yet; `--apply` does it")
                    }
                    _ => Ok(()),
                }
            }
        }
    }
}

fn print(context: &Context, stages: &[StageRecord]) -> Result<()> {
    if context.format == Format::Json {
        let stages: Vec<_> = stages
            .iter()
            .map(|stage| {
                json!({
                    "key": stage.key,
                    "name": stage.name,
                    "recipe": stage.recipe,
                    "stored_bytes": stage.stored_len,
                    "used": stage.used,
                    "pinned": stage.pinned,
                })
            })
            .collect();
        return print_json(&json!({ "stages": stages }));
    }
    if stages.is_empty() {
        return print_line("no stages");
    }
    let rows = stages.iter().map(|stage| {
        let pinned = if stage.pinned { "pinned" } else { "" };
        vec![
            stage.key[..12].to_owned(),
            stage.name.clone(),
            stage.recipe.clone(),
            human_len(stage.stored_len),
            stage.used.clone(),
            pinned.to_owned(),
        ]
    });
    print_table(&["key", "stage", "recipe", "stored", "used", ""], rows.collect())
}
