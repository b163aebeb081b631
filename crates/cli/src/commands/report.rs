use std::path::PathBuf;

use host::report::Report as Told;
use model::{Error, MirrorName, Result};

use crate::arguments::Format;
use crate::commands::attach::state_folder;
use crate::context::Context;
use crate::output::{human_len, print_json, print_line};

/// Tell what a mirror's boot fetched, when, from where, and what it waited for.
///
/// Of the last time that the mirror was attached: from then until its guest was quiet for 10 seconds,
/// and once more when it was detached.
#[derive(Debug, clap::Args)]
pub struct Report {
    /// The mirror.
    name: MirrorName,
    /// Also draw it: reads and fetches over time and address.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

impl Report {
    pub fn run(self, context: &Context) -> Result<()> {
        let report = Told::read(&state_folder(context), &self.name)?;
        if let Some(path) = &self.svg {
            std::fs::write(path, report.to_svg())
                .map_err(|error| Error::io("write", path.display().to_string(), error))?;
        }
        if context.format == Format::Json {
            let document = serde_json::to_value(&report)
                .map_err(|error| Error::new(model::Kind::Bug, "print", "it").caused_by(error))?;
            return print_json(&document);
        }
        print_line(&format!("{} of {}", report.mirror, report.version))?;
        let rows = [
            ("read by the guest", human_len(report.read_bytes)),
            ("fetched from the repository", human_len(report.fetched_bytes)),
            ("came from chunks", human_len(report.from_chunks_bytes)),
            ("came with the boot working set", human_len(report.prefetched_bytes)),
            ("of which the guest read", human_len(report.prefetch_used_bytes)),
            ("of the set, not in this version", human_len(report.misfit_bytes)),
            ("reads that waited", report.waits.to_string()),
            ("waited, all together", format!("{:.1} ms", report.waited_ms)),
        ];
        rows.iter().try_for_each(|(what, much)| print_line(&format!("  {what:<34}{much:>12}")))?;
        let longest = report.waited.iter().max_by(|a, b| a.took_ms.total_cmp(&b.took_ms));
        if let Some(wait) = longest {
            print_line(&format!(
                "  the longest wait: {:.1} ms, {} at {}, {:.0} ms after the attach",
                wait.took_ms,
                human_len(wait.len),
                human_len(wait.offset),
                wait.at_ms
            ))?;
        }
        Ok(())
    }
}
