use std::sync::Arc;

use builder::difference::{FileDifference, PackageDifference, compare_files, compare_packages};
use env::{Clock, SystemClock};
use model::{Reference, Result};
use repository::BlockDifference;
use serde_json::{Value, json};

use crate::arguments::Format;
use crate::context::Context;
use crate::interrupt::cancel_flag;
use crate::output::{human_len, print_facts, print_json, print_line, print_table};

/// Rows that people get of each section unless they ask for all.
const ROWS_MAX: usize = 40;

/// Say what changed from one version to another: packages, files, blocks.
///
/// Files and packages are read from the image's root file system (ext2, ext3 or ext4, bare or in a
/// partition) without mounting it. Without a choice of sections all are shown that can be had: those that
/// cannot say why. Blocks are compared wherever they lie, without reading them.
#[derive(Debug, clap::Args)]
pub struct Diff {
    /// The version from which.
    from: Reference,
    /// The version to which.
    to: Reference,
    /// Compare packages.
    #[arg(long)]
    packages: bool,
    /// Compare files.
    #[arg(long)]
    files: bool,
    /// Compare blocks.
    #[arg(long)]
    bytes: bool,
    /// Show all rows, however many.
    #[arg(long)]
    all: bool,
}

impl Diff {
    pub fn run(self, context: &Context) -> Result<()> {
        let start = SystemClock.monotonic();
        let cancel = cancel_flag()?;
        let repository = context.repository()?;
        let from = Arc::new(repository.open_version(&self.from)?);
        let to = Arc::new(repository.open_version(&self.to)?);
        let is_chosen = self.packages || self.files || self.bytes;
        let blocks = match self.bytes || !is_chosen {
            true => Some(repository.compare_blocks(&from, &to)?),
            false => None,
        };
        let packages = (self.packages || !is_chosen)
            .then(|| compare_packages(&repository, &from, &to))
            .map(|found| told(found, is_chosen))
            .transpose()?;
        let files = (self.files || !is_chosen)
            .then(|| compare_files(&from, &to, cancel))
            .map(|found| told(found, is_chosen))
            .transpose()?;
        let seconds = (SystemClock.monotonic() - start).as_secs_f64();
        if context.format == Format::Json {
            let mut document = json!({
                "from": from.version().id.to_string(),
                "to": to.version().id.to_string(),
                "seconds": seconds,
            });
            if let Some(blocks) = blocks {
                document["new_bytes"] = json!(blocks.new_len);
                document["shared_bytes"] = json!(blocks.shared_len);
                document["gone_bytes"] = json!(blocks.gone_len);
            }
            put(&mut document, "packages", packages.as_ref(), packages_json);
            put(&mut document, "files", files.as_ref(), files_json);
            return print_json(&document);
        }
        match &packages {
            Some(Ok(found)) => self.rows("package", package_rows(found))?,
            Some(Err(reason)) => print_line(&format!("packages: not compared: {reason}\n"))?,
            None => {}
        }
        match &files {
            Some(Ok(found)) => self.rows("file", file_rows(found))?,
            Some(Err(reason)) => print_line(&format!("files: not compared: {reason}\n"))?,
            None => {}
        }
        blocks.map_or(Ok(()), print_blocks)
    }

    fn rows(&self, what: &str, mut rows: Vec<Vec<String>>) -> Result<()> {
        let count = rows.len();
        if count == 0 {
            return print_line(&format!("no {what} differs\n"));
        }
        let shown = if self.all { count } else { count.min(ROWS_MAX) };
        rows.truncate(shown);
        print_table(&["change", what, "what"], rows)?;
        match count - shown {
            0 => print_line(""),
            more => print_line(&format!("and {more} more; `--all` shows them\n")),
        }
    }
}

/// A section that was asked for must be had; of others the reason is told.
fn told<T>(found: Result<T>, is_chosen: bool) -> Result<Result<T, String>> {
    match found {
        Ok(found) => Ok(Ok(found)),
        Err(error) if is_chosen || error.kind() == model::Kind::Cancelled => Err(error),
        Err(error) => Ok(Err(error.chain())),
    }
}

fn put<T>(
    document: &mut Value,
    name: &str,
    section: Option<&Result<T, String>>,
    to_json: impl Fn(&T) -> Value,
) {
    match section {
        Some(Ok(found)) => document[name] = to_json(found),
        Some(Err(reason)) => document[name] = json!({ "not_compared": reason }),
        None => {}
    }
}

fn packages_json(found: &PackageDifference) -> Value {
    let one = |key: &'static str, list: &[builder::difference::PackageChange]| -> Vec<Value> {
        list.iter()
            .map(|change| {
                let mut value = json!({"name": change.name, "architecture": change.architecture});
                match key {
                    "changed" => {
                        value["from"] = json!(change.from);
                        value["to"] = json!(change.to);
                    }
                    _ => value["version"] = json!(change.to.as_ref().or(change.from.as_ref())),
                }
                value
            })
            .collect()
    };
    json!({
        "added": one("added", &found.added),
        "removed": one("removed", &found.removed),
        "changed": one("changed", &found.changed),
    })
}

fn files_json(found: &FileDifference) -> Value {
    let changed: Vec<Value> = found
        .changed
        .iter()
        .map(|change| json!({"path": change.path, "what": change.what}))
        .collect();
    json!({"added": found.added, "removed": found.removed, "changed": changed})
}

fn package_rows(found: &PackageDifference) -> Vec<Vec<String>> {
    let all = [("added", &found.added), ("removed", &found.removed), ("changed", &found.changed)];
    let rows = all.into_iter().flat_map(|(verb, list)| list.iter().map(move |c| (verb, c)));
    rows.map(|(verb, change)| {
        let versions = [&change.from, &change.to];
        let versions: Vec<&str> = versions.into_iter().flatten().map(String::as_str).collect();
        // From a guest's list: what would steer a terminal is escaped.
        let versions = versions.join(" -> ");
        vec![
            verb.into(),
            change.name.escape_debug().to_string(),
            versions.escape_debug().to_string(),
        ]
    })
    .collect()
}

fn file_rows(found: &FileDifference) -> Vec<Vec<String>> {
    let row = |verb: &str, path: &str, what: String| {
        // Names come from guests: what would steer a terminal is escaped.
        vec![verb.to_string(), path.escape_debug().to_string(), what]
    };
    let added = found.added.iter().map(|path| row("added", path, String::new()));
    let removed = found.removed.iter().map(|path| row("removed", path, String::new()));
    let changed = found.changed.iter().map(|c| row("changed", &c.path, c.what.join(" ")));
    added.chain(removed).chain(changed).collect()
}

fn print_blocks(blocks: BlockDifference) -> Result<()> {
    print_facts(&[
        ("new", human_len(blocks.new_len)),
        ("shared", human_len(blocks.shared_len)),
        ("gone", human_len(blocks.gone_len)),
    ])
}
