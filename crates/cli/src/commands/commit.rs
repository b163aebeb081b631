use std::path::PathBuf;

use host::CommitOptions;
use model::{Error, ImageName, MirrorName, Result, TagName};
use serde_json::json;

use crate::arguments::Format;
use crate::commands::attach::limited_state_folder;
use crate::context::Context;
use crate::output::{human_len, print_facts, print_json};

/// Make a mirror's changes the next version of its image, while its guest runs or not.
///
/// The new version's parent is the version that the mirror was made from (or that it committed
/// last), also when the image has newer ones: two guests' file systems cannot be merged, so what
/// those hold is not in the new version, and the output says so.
#[derive(Debug, clap::Args)]
pub struct Commit {
    /// The mirror.
    name: MirrorName,
    /// Bind the mirror to a new image first, a clone of its parent, and commit there.
    #[arg(long, value_name = "IMAGE")]
    to: Option<ImageName>,
    /// A tag for the new version.
    #[arg(long)]
    tag: Option<TagName>,
    /// Have the guest write out its file systems and hold them still while its disk is sealed, through
    /// QEMU's agent in the guest. Without an agent that answers nothing is committed.
    #[arg(long)]
    quiesce: bool,
    /// Where QEMU listens for those who speak with the agent, for a guest that `larder run` does not
    /// run.
    #[arg(long, value_name = "PATH", requires = "quiesce")]
    agent_socket: Option<PathBuf>,
}

impl Commit {
    pub fn run(self, context: &Context) -> Result<()> {
        // The owner of the mirror may be at home in another folder.
        let agent_socket = self.agent_socket.as_deref().map(std::path::absolute).transpose();
        let options = CommitOptions {
            to: self.to.map(|image| image.to_string()),
            tag: self.tag.map(|tag| tag.to_string()),
            quiesce: self.quiesce,
            agent_socket: agent_socket
                .map_err(|error| Error::io("find", "the agent's socket", error))?,
        };
        let progress = context.progress(&format!("commit {}", self.name));
        let outcome = host::mirrors::commit(
            &limited_state_folder(context)?,
            &self.name,
            &options,
            || context.repository(),
            &progress,
        )?;
        drop(progress);
        if context.format == Format::Json {
            return print_json(&json!({
                "image": outcome.image,
                "version": outcome.version,
                "parent": outcome.parent,
                "digest": outcome.digest,
                "dirty_bytes": outcome.dirty_bytes,
                "new_bytes": outcome.new_bytes,
                "stored_bytes": outcome.stored_bytes,
                "pause_ms": outcome.pause_ms,
                "frozen_file_systems": outcome.frozen_file_systems,
                "frozen_ms": outcome.frozen_ms,
                "seconds": outcome.seconds,
                "bypassed": outcome.bypassed,
            }));
        }
        let mut facts = vec![
            ("version", format!("{}@{}", outcome.image, outcome.version)),
            ("parent", outcome.parent.clone()),
            ("digest", outcome.digest),
            ("changed", human_len(outcome.dirty_bytes)),
            ("new", human_len(outcome.new_bytes)),
            ("stored", human_len(outcome.stored_bytes)),
            ("pause", format!("{:.1} ms", outcome.pause_ms)),
            ("time", format!("{:.2} s", outcome.seconds)),
        ];
        if let (Some(count), Some(time)) = (outcome.frozen_file_systems, outcome.frozen_ms) {
            facts.insert(7, ("frozen", format!("{count} file systems for {time:.1} ms")));
        }
        if let Some(bypassed) = outcome.bypassed {
            let note = format!("{bypassed} was the latest; its changes are not in this version");
            facts.push(("note", note));
        }
        print_facts(&facts)
    }
}
