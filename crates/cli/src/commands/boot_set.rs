use catalog::ImageFilter;
use clap::Subcommand;
use env::{Clock, SystemClock};
use host::stock::stock_folder;
use model::name::LabelKey;
use model::{Error, Kind, Reference, Result};
use repository::repository::Machine;
use repository::{Stock, SyncRequest, Wanted};
use serde_json::json;

use crate::arguments::Format;
use crate::commands::attach::state_folder;
use crate::commands::length::Length;
use crate::commands::list::parse_label;
use crate::context::Context;
use crate::interrupt::cancel_flag;
use crate::output::{human_len, print_json, print_line};

/// Look at the blocks that a guest of a version reads first, which are brought at attach.
///
/// A boot working set is recorded by itself at the first boots of a version: when the guest reads
/// nothing new for 10 seconds. `larder attach --record NAME` records another, of whatever runs.
#[derive(Debug, clap::Args)]
pub struct BootSet {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show what a set holds.
    Show {
        /// The version.
        reference: Reference,
        /// Which of its sets.
        #[arg(long, value_name = "NAME", default_value = model::boot_set::BOOT)]
        name: String,
    },
    Sync(Sync),
}

/// Keep this host stocked with the boot working sets of images.
///
/// Without references: those of the latest version of each image, and of its tagged versions. What is
/// stocked is deduplicated and compressed; a guest of such a version boots without reading from the
/// repository. The most used come first, then the newest; what does not fit, or is not wanted any more,
/// goes. `larder host run --stock-limit SIZE` does the same every ten minutes.
#[derive(Debug, clap::Args)]
struct Sync {
    /// Only these versions.
    #[arg(conflicts_with_all = ["label", "search"])]
    references: Vec<Reference>,
    /// Bytes of this host's disk that the stock may take.
    #[arg(long, value_name = "SIZE", default_value = "10GiB")]
    limit: Length,
    /// Only images that carry this label; may be given several times.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
    label: Vec<(LabelKey, String)>,
    /// Only images with this text in name, tags, labels or origin.
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
}

impl BootSet {
    pub fn run(self, context: &Context) -> Result<()> {
        let (reference, name) = match self.action {
            Action::Show { reference, name } => (reference, name),
            Action::Sync(sync) => return sync.run(context),
        };
        let repository = context.repository()?;
        let version = repository.catalog().version(&reference)?;
        let found = repository.boot_set(&version, &name)?.ok_or_else(|| {
            Error::new(
                Kind::NotFound,
                "find the working set",
                format!("`{name}` of {}", version.id),
            )
            .because("none was recorded yet")
            .hint("boot a guest from it: the set is recorded by itself")
        })?;
        let sizes = repository.boot_set_sizes(&found)?;
        let is_inherited = found.record.content != version.facts.content;
        let last_ms = found.set.reads().last().map_or(0, |read| read.read.at_ms);
        if context.format == Format::Json {
            return print_json(&json!({
                "version": version.id.to_string(),
                "name": name,
                "boots": found.record.boots,
                "inherited": is_inherited,
                "blocks": sizes.blocks,
                "plain_bytes": sizes.plain_len,
                "stored_bytes": sizes.stored_len,
                "reads": found.set.reads().len(),
                "chunks": found.set.sources().len(),
                "seconds": f64::from(last_ms) / 1000.0,
            }));
        }
        let of = if is_inherited { "inherited" } else { "its own" };
        print_line(&format!("{name} of {}: {of}, from {} boots", version.id, found.record.boots))?;
        print_line(&format!(
            "{} in {} blocks, stored in {}; they lie in {} chunks",
            human_len(sizes.plain_len),
            sizes.blocks,
            human_len(sizes.stored_len),
            found.set.sources().len(),
        ))?;
        print_line(&format!("last first read after {:.1} s", f64::from(last_ms) / 1000.0))
    }
}

impl Sync {
    fn run(self, context: &Context) -> Result<()> {
        let repository = context.repository()?;
        let wanted = match self.references.is_empty() {
            true => Wanted::Images(ImageFilter { labels: self.label, search: self.search }),
            false => {
                let version = |reference| repository.catalog().version(reference);
                Wanted::Versions(self.references.iter().map(version).collect::<Result<_>>()?)
            }
        };
        let stock = Stock::open_or_create(&Machine::real(), &stock_folder(&state_folder(context)))?;
        let began = SystemClock.monotonic();
        let progress = context.progress("stocking boot working sets");
        let synced = stock.sync(&SyncRequest {
            from: &repository,
            wanted,
            limit_len: self.limit.0,
            progress: &progress,
            cancel: cancel_flag()?,
        })?;
        drop(progress);
        let seconds = (SystemClock.monotonic() - began).as_secs_f64();
        if context.format == Format::Json {
            return print_json(&json!({
                "wanted": synced.wanted,
                "without_set": synced.without_set,
                "stocked": synced.stocked,
                "added": synced.added,
                "evicted": synced.evicted,
                "left_out": synced.left_out,
                "failed": synced.failed,
                "fetched_bytes": synced.fetched_len,
                "plain_bytes": synced.plain_len,
                "stored_bytes": synced.stored_len,
                "limit_bytes": self.limit.0,
                "seconds": seconds,
            }));
        }
        print_line(&format!(
            "{} sets of {} versions on this host, {} in {} of {}",
            synced.stocked,
            synced.wanted,
            human_len(synced.plain_len),
            human_len(synced.stored_len),
            human_len(self.limit.0),
        ))?;
        print_line(&format!(
            "{} came, {} went; {} have no set yet, {} did not fit, {} could not be read",
            synced.added, synced.evicted, synced.without_set, synced.left_out, synced.failed,
        ))
    }
}
