use host::pins::{self, Pin as Kept};
use model::{Kind, Reference, Result};
use serde_json::json;

use crate::arguments::Format;
use crate::commands::attach::{limited_state_folder, state_folder};
use crate::context::Context;
use crate::interrupt::cancel_flag;
use crate::output::{human_len, print_json, print_line, print_table};

/// Make a version complete on this host, and keep it so.
///
/// Its mirrors never wait for the repository, and none of it is evicted, until it is unpinned. A pin
/// that was interrupted goes on where it was when it is asked for again.
#[derive(Debug, clap::Args)]
pub struct Pin {
    /// The version.
    #[arg(required_unless_present = "list", conflicts_with = "list")]
    reference: Option<Reference>,
    /// List what is pinned on this host.
    #[arg(long)]
    list: bool,
}

/// Let a pinned version be evicted again.
#[derive(Debug, clap::Args)]
pub struct Unpin {
    /// The version.
    reference: Reference,
}

impl Pin {
    pub fn run(self, context: &Context) -> Result<()> {
        let Some(reference) = self.reference else { return list(context) };
        let cancel = cancel_flag()?;
        let repository = context.repository()?;
        let progress = context.progress(&format!("pin {reference}"));
        let state = limited_state_folder(context)?;
        let pinned = pins::pin(&state, &repository, &reference, &progress, cancel);
        drop(progress);
        let pinned = pinned.map_err(|error| match error.kind() {
            Kind::Cancelled => error.hint("the same command goes on where it was"),
            _ => error,
        })?;
        if context.format == Format::Json {
            let mut document = row(&pinned.pin);
            document["fetched_bytes"] = json!(pinned.fetched_bytes);
            document["seconds"] = json!(pinned.seconds);
            return print_json(&document);
        }
        print_line(&format!(
            "{} is complete on this host: {} in {} blocks, {} fetched",
            pinned.pin.version,
            human_len(pinned.pin.plain_bytes),
            pinned.pin.blocks,
            human_len(pinned.fetched_bytes)
        ))
    }
}

fn list(context: &Context) -> Result<()> {
    let pins = pins::list(&state_folder(context))?;
    if context.format == Format::Json {
        let rows: Vec<serde_json::Value> = pins.iter().map(row).collect();
        return print_json(&json!({ "pins": rows }));
    }
    if pins.is_empty() {
        return print_line("no version is pinned on this host");
    }
    let rows = pins.iter().map(|pin| {
        let complete = if pin.complete { "yes" } else { "not yet" };
        vec![
            pin.version.clone(),
            human_len(pin.length_bytes),
            human_len(pin.plain_bytes),
            human_len(pin.stored_bytes),
            complete.to_string(),
        ]
    });
    print_table(&["version", "length", "data", "stored", "complete"], rows.collect())
}

fn row(pin: &Kept) -> serde_json::Value {
    json!({
        "version": pin.version,
        "length_bytes": pin.length_bytes,
        "blocks": pin.blocks,
        "plain_bytes": pin.plain_bytes,
        "stored_bytes": pin.stored_bytes,
        "complete": pin.complete,
    })
}

impl Unpin {
    pub fn run(self, context: &Context) -> Result<()> {
        let state = state_folder(context);
        let pin = pins::unpin(&state, &self.reference, || context.repository())?;
        if context.format == Format::Json {
            return print_json(&json!({ "version": pin.version }));
        }
        print_line(&format!("{} is not pinned any more", pin.version))
    }
}
