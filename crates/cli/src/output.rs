//! Tables for people, JSON for programs, errors for both.

use std::io::Write;
use std::path::Path;

use anstream::{eprintln, stdout};
use comfy_table::{ContentArrangement, Table, presets};
use model::{Error, Kind, Result};
use owo_colors::OwoColorize;
use serde_json::Value;

use crate::arguments::Format;

/// Prints one JSON document on stdout.
pub fn print_json(document: &Value) -> Result<()> {
    print_line(&document.to_string())
}

/// Tells how bytes were written to `file`: a document or a line. Where the bytes went to stdout (`-`),
/// the document goes to stderr, so that it does not mix with them, and the line is left out.
pub fn print_written(file: &Path, format: Format, document: &Value, line: &str) -> Result<()> {
    match (format, file.as_os_str() == "-") {
        (Format::Json, true) => {
            eprintln!("{document}");
            Ok(())
        }
        (Format::Json, false) => print_json(document),
        (_, true) => Ok(()),
        (_, false) => print_line(line),
    }
}

/// Prints one line on stdout. A reader that went away is neither an error nor a panic.
pub fn print_line(line: &str) -> Result<()> {
    let mut out = stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        // Whoever read has seen enough, as `head` has.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|error| Error::io("print", "the result", error)),
    }
}

/// Prints a table with a heading line.
pub fn print_table(head: &[&str], rows: Vec<Vec<String>>) -> Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head.iter().map(|text| text.to_uppercase()));
    table.add_rows(rows);
    let text: Vec<String> = table.lines().map(|line| line.trim_end().to_string()).collect();
    // Columns are padded on both sides; the first needs none on its left.
    let text: Vec<&str> = text.iter().map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
    print_line(&text.join("\n"))
}

/// Prints names and values, one a line, values aligned.
pub fn print_facts(facts: &[(&str, String)]) -> Result<()> {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<String> =
        facts.iter().map(|(name, value)| format!("{name:width$}  {value}")).collect();
    print_line(&lines.join("\n"))
}

/// A size as people read it: `1.5 GiB`.
pub fn human_len(len: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = len as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{len} B"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

/// Prints an error: one line, then a hint where one helps.
pub fn print_error(error: &Error) {
    eprintln!("{} {}", "larder:".red().bold(), error.chain());
    if let Some(hint) = error.hint_text() {
        eprintln!("{} {hint}", "hint:".yellow());
    }
    if error.kind() == Kind::Bug {
        eprintln!("{} this is a mistake in larder; please report it", "hint:".yellow());
    }
}

/// How a command's log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    /// Lines for people; only warnings unless more is asked for.
    Warnings,
    /// Lines for people; what happens, too.
    Events,
    /// The same, one JSON document a line.
    JsonEvents,
}

/// Logs to stderr: warnings always, more when asked, `LARDER_LOG` over both.
pub fn start_logging(verbose: u8, log: Log) {
    let level = match verbose + u8::from(log != Log::Warnings) {
        // FUSE calls it an error when the kernel has given up a request before its answer came.
        0 => "warn,fuser=off",
        1 => "info,fuser=off",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("LARDER_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    match log {
        Log::JsonEvents => lines.json().flatten_event(true).init(),
        Log::Warnings | Log::Events => lines.init(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        for (len, text) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2 << 30, "2.0 GiB")] {
            assert_eq!(human_len(len), text);
        }
    }
}
