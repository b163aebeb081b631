use model::{MirrorName, Result};
use serde_json::json;

use crate::arguments::Format;
use crate::commands::attach::state_folder;
use crate::commands::length::Length;
use crate::context::Context;
use crate::output::{human_len, print_json, print_line};

/// Make a mirror's disk longer, while its guest runs or not.
///
/// What is added reads as zeros. A guest on vhost-user sees the new length at once, where QEMU or
/// Cloud Hypervisor listens; a file in a FUSE mount has it within a second; NBD clients see it when
/// they connect again. Partitions and file systems are the guest's own to grow. The next commit has
/// the new length. A disk never gets shorter.
#[derive(Debug, clap::Args)]
pub struct Resize {
    /// The mirror.
    name: MirrorName,
    /// How long the disk is to be: 40GiB.
    #[arg(long)]
    length: Length,
}

impl Resize {
    pub fn run(self, context: &Context) -> Result<()> {
        let state = state_folder(context);
        let resized =
            host::mirrors::resize(&state, &self.name, self.length.0, || context.repository())?;
        if context.format == Format::Json {
            return print_json(&json!({
                "mirror": resized.mirror,
                "length_bytes": resized.length_bytes,
                "before_bytes": resized.before_bytes,
                "doors": resized.doors,
            }));
        }
        let (length, before) = (human_len(resized.length_bytes), human_len(resized.before_bytes));
        let blind: Vec<&str> = resized
            .doors
            .iter()
            .filter(|sight| !sight.sees_it)
            .map(|sight| sight.door.as_str())
            .collect();
        let note = match blind.is_empty() {
            true => String::new(),
            false => format!("; clients of {} see it when they connect again", blind.join(" and ")),
        };
        print_line(&format!("{} has {length}, {before} before{note}", resized.mirror))
    }
}
