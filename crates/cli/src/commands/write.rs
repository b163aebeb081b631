use std::path::PathBuf;

use env::{Clock, SystemClock};
use model::{ImageName, Result};
use repository::{Repository, WriteRequest, Written};
use serde_json::json;

use crate::arguments::Format;
use crate::commands::length::Length;
use crate::commands::stream::Input;
use crate::context::Context;
use crate::interrupt::cancel_flag;
use crate::output::{human_len, print_facts, print_json};

/// Write bytes into an image.
///
/// Its latest version, with them, becomes its next version. What others publish while the bytes are read stays, but for what is written over. Behind the end
/// the image grows; a gap reads as zeros. The offset may be any; bytes around it stay as they are.
#[derive(Debug, clap::Args)]
pub struct Write {
    /// The image.
    image: ImageName,
    /// Where the bytes go, in bytes or as `20GiB`.
    #[arg(long, allow_negative_numbers = true)]
    offset: Length,
    /// The file with the bytes; `-` for stdin.
    file: PathBuf,
}

/// Write bytes behind the end of an image.
///
/// Its latest version, with them, becomes its next version. The end is that of the version that is the latest when the new one is published: of several who
/// append at once each gets a place of its own, which the output names.
#[derive(Debug, clap::Args)]
pub struct Append {
    /// The image.
    image: ImageName,
    /// The file with the bytes; `-` for stdin.
    file: PathBuf,
}

impl Write {
    pub fn run(self, context: &Context) -> Result<()> {
        let verb = |repository: &Repository, input: &mut Input, request: &WriteRequest| {
            repository.write(self.offset.0, input, request)
        };
        publish(context, "write", &self.image, &self.file, verb)
    }
}

impl Append {
    pub fn run(self, context: &Context) -> Result<()> {
        let verb = |repository: &Repository, input: &mut Input, request: &WriteRequest| {
            repository.append(input, request)
        };
        publish(context, "append", &self.image, &self.file, verb)
    }
}

fn publish(
    context: &Context,
    verb: &str,
    image: &ImageName,
    file: &std::path::Path,
    run: impl Fn(&Repository, &mut Input, &WriteRequest) -> Result<Written>,
) -> Result<()> {
    let start = SystemClock.monotonic();
    let repository = context.repository()?;
    let mut input = Input::open(file)?;
    let progress = context.progress(&format!("{verb} {image}"));
    model::progress::Progress::expect(&progress, input.len());
    let before = repository.catalog().statistics()?.catalog_len;
    let request = WriteRequest {
        image: image.clone(),
        origin: format!("{verb} {}", file.display()),
        progress: &progress,
        cancel: cancel_flag()?,
    };
    let written = run(&repository, &mut input, &request)?;
    let grown = repository.catalog().statistics()?.catalog_len.saturating_sub(before);
    drop(progress);
    let seconds = (SystemClock.monotonic() - start).as_secs_f64();
    let Written { version, offset, len, new_len, stored_len, .. } = written;
    let stored_len = stored_len + grown;
    let (id, facts) = (&version.id, &version.facts);
    if context.format == Format::Json {
        return print_json(&json!({
            "image": id.image,
            "version": id.version,
            "parent": facts.parent.as_ref().map(ToString::to_string),
            "digest": facts.content,
            "offset": offset,
            "written_bytes": len,
            "length_bytes": facts.length,
            "new_bytes": new_len,
            "stored_bytes": stored_len,
            "seconds": seconds,
        }));
    }
    let rate = (len as f64 / seconds.max(0.001)) as u64;
    print_facts(&[
        ("version", id.to_string()),
        ("digest", facts.content.to_string()),
        ("offset", offset.to_string()),
        ("written", human_len(len)),
        ("length", human_len(facts.length)),
        ("new", human_len(new_len)),
        ("stored", human_len(stored_len)),
        ("time", format!("{seconds:.2} s ({}/s)", human_len(rate))),
    ])
}
