use std::path::PathBuf;

use env::{Clock, SystemClock};
use format::foreign::{InputFormat, OpenOptions, open_source};
use model::{BLOCK_LEN, ImageName, Result, TagName, VersionKind};
use repository::ImportRequest;
use serde_json::json;

use crate::arguments::Format;
use crate::context::Context;
use crate::interrupt::{cancel_flag, cancel_signal};
use crate::output::{human_len, print_facts, print_json};

/// Make a disk file the next version of an image.
///
/// Reads raw files, block devices, qcow2 and what else qemu-img knows; `-` is a raw disk from
/// stdin. Holes are skipped; blocks that the repository has already are not stored again. The file
/// is only read. A format that is not given is found by looking; give `--input-format raw` for raw
/// disks that an untrusted guest has written.
#[derive(Debug, clap::Args)]
pub struct Import {
    /// The disk file; `-` for a raw disk from stdin.
    file: PathBuf,
    /// The image; made if there is none.
    image: ImageName,
    /// A tag for the new version.
    #[arg(long)]
    tag: Option<TagName>,
    /// What the file is: raw, qcow2, vmdk, vdi, vhdx...
    #[arg(long, value_name = "FORMAT")]
    input_format: Option<InputFormat>,
    /// Follow the file's reference to a backing file. It may name any file that you can read.
    #[arg(long)]
    allow_backing: bool,
}

impl Import {
    pub fn run(self, context: &Context) -> Result<()> {
        let start = SystemClock.monotonic();
        let options = OpenOptions {
            format: self.input_format,
            allow_backing: self.allow_backing,
            interrupt: Some(cancel_signal()?),
        };
        let mut source = open_source(&self.file, &options)?;
        let repository = context.repository_or_new()?;
        let progress = context.progress(&format!("import {}", self.image));
        let file = self.file.display();
        let imported = repository.import(
            &mut *source,
            &ImportRequest {
                image: self.image.clone(),
                tag: self.tag,
                origin: format!("import {file}"),
                kind: VersionKind::Disk,
                progress: &progress,
                cancel: cancel_flag()?,
            },
        )?;
        drop(progress);
        let seconds = (SystemClock.monotonic() - start).as_secs_f64();
        let facts = &imported.version.facts;
        let id = &imported.version.id;
        let data_len = facts.data_len.min(facts.length.next_multiple_of(BLOCK_LEN as u64));
        if context.format == Format::Json {
            return print_json(&json!({
                "image": id.image,
                "version": id.version,
                "digest": imported.content,
                "length_bytes": facts.length,
                "data_bytes": data_len,
                "new_bytes": imported.new_len,
                "stored_bytes": imported.stored_len,
                "seconds": seconds,
            }));
        }
        let rate = (data_len as f64 / seconds.max(0.001)) as u64;
        print_facts(&[
            ("version", id.to_string()),
            ("digest", imported.content.to_string()),
            ("length", human_len(facts.length)),
            ("data", human_len(data_len)),
            ("new", human_len(imported.new_len)),
            ("stored", human_len(imported.stored_len)),
            ("time", format!("{seconds:.2} s ({}/s)", human_len(rate))),
        ])
    }
}
