use model::{MirrorName, Result};
use serde_json::json;

use crate::arguments::Format;
use crate::commands::attach::state_folder;
use crate::context::Context;
use crate::output::{print_json, print_line};

/// Stop serving a mirror; it stays, with its changes, unless it is discarded.
#[derive(Debug, clap::Args)]
pub struct Detach {
    /// The mirror.
    name: MirrorName,
    /// Throw the mirror and its uncommitted changes away.
    #[arg(long)]
    discard: bool,
}

impl Detach {
    pub fn run(self, context: &Context) -> Result<()> {
        let state = state_folder(context);
        let was_served =
            host::mirrors::detach(&state, &self.name, self.discard, || context.repository())?;
        if context.format == Format::Json {
            return print_json(&json!({
                "mirror": self.name, "was_served": was_served, "discarded": self.discard,
            }));
        }
        print_line(&match (self.discard, was_served) {
            (true, _) => format!("{} is thrown away", self.name),
            (false, true) => format!("{} is detached; its changes are kept", self.name),
            (false, false) => format!("{} was not served; its changes are kept", self.name),
        })
    }
}
