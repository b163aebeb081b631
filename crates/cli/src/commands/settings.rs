use clap::Subcommand;
use model::Result;
use serde_json::json;

use crate::arguments::Format;
use crate::context::Context;
use crate::output::{print_json, print_table};

/// Say which settings hold, and where they come from.
#[derive(Debug, clap::Args)]
pub struct Settings {
    #[command(subcommand)]
    command: SettingsCommand,
}

#[derive(Debug, Subcommand)]
enum SettingsCommand {
    /// Show the settings.
    Show,
}

impl Settings {
    pub fn run(self, context: &Context) -> Result<()> {
        let SettingsCommand::Show = self.command;
        let settings = [("repo", &context.repo), ("state", &context.state)];
        if context.format == Format::Json {
            let named = settings.map(|(name, setting)| {
                (name.to_string(), json!({ "value": setting.path, "origin": setting.origin }))
            });
            return print_json(&json!({
                "settings": serde_json::Map::from_iter(named),
                "require_signature_by": context.require_signature_by,
                "file": context.settings_file,
            }));
        }
        let mut rows: Vec<Vec<String>> = settings
            .iter()
            .map(|(name, setting)| {
                vec![name.to_string(), setting.path.display().to_string(), setting.origin.into()]
            })
            .collect();
        for key in &context.require_signature_by {
            let name = "require_signature_by".to_string();
            rows.push(vec![name, key.clone(), "settings file".into()]);
        }
        rows.push(vec![
            "(file)".into(),
            context.settings_file.display().to_string(),
            String::new(),
        ]);
        print_table(&["setting", "value", "set by"], rows)
    }
}
