use model::Result;
use serde_json::json;

use crate::arguments::Format;
use crate::commands::attach::state_folder;
use crate::context::Context;
use crate::output::{human_len, print_json, print_line, print_table};

/// List the mirrors of this host.
#[derive(Debug, clap::Args)]
pub struct Mirrors {}

impl Mirrors {
    pub fn run(self, context: &Context) -> Result<()> {
        let mirrors = host::mirrors::list(&state_folder(context))?;
        if context.format == Format::Json {
            return print_json(&json!({ "mirrors": mirrors }));
        }
        if mirrors.is_empty() {
            return print_line("no mirrors on this host");
        }
        let rows = mirrors.iter().map(|mirror| {
            let doors: Vec<&str> =
                mirror.exports.iter().map(|door| door.address.as_str()).collect();
            let served = mirror.served_by.map_or_else(|| "no".to_string(), |pid| pid.to_string());
            vec![
                mirror.name.clone(),
                mirror.base.clone(),
                human_len(mirror.length_bytes),
                human_len(mirror.dirty_bytes),
                human_len(mirror.fetched_bytes),
                human_len(mirror.host_bytes),
                served,
                doors.join(" "),
            ]
        });
        let head =
            ["mirror", "base", "length", "dirty", "fetched", "on host", "served by", "doors"];
        print_table(&head, rows.collect())
    }
}
