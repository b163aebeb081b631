use std::path::PathBuf;

use env::{Clock, SystemClock};
use format::foreign::{OutputFormat, create_sink};
use model::{Reference, Result};
use serde_json::json;

use crate::context::Context;
use crate::interrupt::cancel_flag;
use crate::output::{human_len, print_written};

/// Write a version to a disk file.
///
/// The file is sparse: holes take no space. It appears under its name only when it is whole.
#[derive(Debug, clap::Args)]
pub struct Export {
    /// The version.
    reference: Reference,
    /// The file; `-` for a raw disk to stdout.
    file: PathBuf,
    /// What the file becomes.
    #[arg(long, value_name = "FORMAT", default_value = "raw")]
    output_format: OutputFormat,
}

impl Export {
    pub fn run(self, context: &Context) -> Result<()> {
        let start = SystemClock.monotonic();
        let cancel = cancel_flag()?;
        let repository = context.repository()?;
        let version = repository.catalog().version(&self.reference)?;
        let sink = create_sink(&self.file, self.output_format, version.facts.length)?;
        let progress = context.progress(&format!("export {}", version.id));
        let exported = repository.export(&version.id, sink, &progress, cancel)?;
        drop(progress);
        let seconds = (SystemClock.monotonic() - start).as_secs_f64();
        let document = json!({
            "image": version.id.image,
            "version": version.id.version,
            "length_bytes": exported.length,
            "data_bytes": exported.data_len,
            "seconds": seconds,
        });
        let line = format!(
            "exported {} to {}: {}, of it {} data, in {seconds:.2} s",
            version.id,
            self.file.display(),
            human_len(exported.length),
            human_len(exported.data_len),
        );
        print_written(&self.file, context.format, &document, &line)
    }
}
