use std::path::PathBuf;

use env::{Clock, SystemClock};
use format::foreign::{OutputFormat, create_sink};
use model::progress::Progress;
use model::{Reference, Result};
use serde_json::json;

use crate::commands::length::Length;
use crate::context::Context;
use crate::interrupt::cancel_flag;
use crate::output::{human_len, print_written};

/// Read bytes of a version.
///
/// Any range of any version, whatever is written to its image meanwhile. Every byte is verified.
#[derive(Debug, clap::Args)]
pub struct Read {
    /// The version.
    reference: Reference,
    /// The first byte, in bytes or as `20GiB`.
    #[arg(long, allow_negative_numbers = true)]
    offset: Length,
    /// How many bytes, in bytes or as `20GiB`.
    #[arg(long, allow_negative_numbers = true)]
    length: Length,
    /// The file for the bytes, sparse; `-` for stdout.
    #[arg(long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
}

impl Read {
    pub fn run(self, context: &Context) -> Result<()> {
        let start = SystemClock.monotonic();
        let cancel = cancel_flag()?;
        let repository = context.repository()?;
        let reader = repository.open_version(&self.reference)?;
        // Before the file is made.
        reader.check_range(self.offset.0, self.length.0)?;
        let sink = create_sink(&self.output, OutputFormat::Raw, self.length.0)?;
        let id = &reader.version().id;
        let progress = context.progress(&format!("read {id}"));
        progress.expect(Some(self.length.0));
        let data_len = reader.read(self.offset.0, self.length.0, sink, &progress, cancel)?;
        drop(progress);
        let seconds = (SystemClock.monotonic() - start).as_secs_f64();
        let document = json!({
            "image": id.image,
            "version": id.version,
            "offset": self.offset.0,
            "length_bytes": self.length.0,
            "data_bytes": data_len,
            "seconds": seconds,
        });
        let line = format!(
            "read {} of {id} from {} on to {}, of it {} data, in {seconds:.2} s",
            human_len(self.length.0),
            self.offset.0,
            self.output.display(),
            human_len(data_len),
        );
        print_written(&self.output, context.format, &document, &line)
    }
}
