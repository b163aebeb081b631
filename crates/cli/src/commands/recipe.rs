use std::path::PathBuf;

use clap::Subcommand;
use model::Result;
use serde_json::json;

use crate::arguments::Format;
use crate::context::Context;
use crate::output::{print_json, print_line};

/// Check recipes, and see what they can say.
#[derive(Debug, clap::Args)]
pub struct Recipe {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Read a recipe and say what it makes, or in which line and column it is wrong.
    Check {
        /// The recipe.
        file: PathBuf,
    },
    /// Print a recipe to begin with.
    Example,
    /// Print the JSON schema of recipes, for editors.
    Schema,
}

impl Recipe {
    pub fn run(self, context: &Context) -> Result<()> {
        let file = match self.action {
            Action::Example => return print_line(builder::recipe::keys::EXAMPLE.trim_end()),
            Action::Schema => return print_json(&builder::recipe::schema::schema()),
            Action::Check { file } => file,
        };
        let recipe = builder::check(&file)?;
        let stages: Vec<&String> = recipe.stage.iter().map(|stage| stage.name.get_ref()).collect();
        let name = recipe.name.get_ref();
        match context.format {
            Format::Json => print_json(&json!({ "image": name, "stages": stages })),
            Format::Text => {
                let stages: Vec<_> = stages.iter().map(|name| name.as_str()).collect();
                print_line(&format!("makes the image {name}: {}", stages.join(" > ")))
            }
        }
    }
}
