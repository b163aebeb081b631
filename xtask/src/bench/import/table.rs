//! What the rows mean: a table for people, the goals and what became of them, the chart.

use super::super::Session;
use super::super::chart::{self, LineChart, Series};
use super::super::rows::Rows;
use super::{READ_COUNT, Sum};

/// Contenders that are no tools of their own.
pub const AGAIN: &str = "larder, all again";
pub const ANEW: &str = "larder, all anew";
pub const ZSTD: &str = "zstd -3 -T2, different blocks";
pub const HASH_PIECES: &str = "hashing, long pieces";
pub const HASH_BLOCKS: &str = "hashing, each block";

/// Bytes on the disk after each image, a line for each tool.
pub fn growth_chart<'a>(tools: impl Iterator<Item = (&'static str, &'a Sum)>) -> LineChart {
    let series = tools.map(|(name, sum)| {
        let stored = sum.stored.iter().enumerate();
        let points = stored.map(|(number, (_, disk))| ((number + 1) as f64, *disk as f64));
        Series { name: name.to_owned(), points: [(0.0, 0.0)].into_iter().chain(points).collect() }
    });
    LineChart {
        title: "What a repository takes after each Debian image".to_owned(),
        x_label: "images imported".to_owned(),
        y_label: "bytes on disk, the whole repository".to_owned(),
        log_x: false,
        x_tick: chart::number,
        y_tick: chart::decimal_bytes,
        y_range: 0.0..0.0,
        series: series.collect(),
    }
}

/// Adds the table and the goals to the run's README.
pub fn say(
    session: &mut Session,
    tools: &[&'static str],
    silent: &[(&'static str, String)],
    chosen: &str,
) {
    let mut notes = vec![
        "![bytes on disk after each image](growth.svg)".to_owned(),
        table(&session.rows, tools, silent, chosen),
    ];
    notes.extend(silent.iter().map(|(_, why)| format!("No reads here and there: {why}.")));
    notes.push(
        "All tools run as they come but for what their names say. restic always encrypts, and 0.14 \
         restores holes as zeros; borg's repositories are not encrypted. desync is not among \
         Debian's packages and is left out. Peak memory is that of the largest process."
            .to_owned(),
    );
    notes.push(goals(&session.rows, tools));
    // The sentences that are there already are details: they come last.
    notes.append(&mut session.notes);
    session.notes = notes;
}

fn table(rows: &Rows, tools: &[&str], silent: &[(&'static str, String)], chosen: &str) -> String {
    let mut text = format!(
        "| | stored, on disk | lengths of files | processor | wall | peak memory | restore of \
         {chosen} | shown after | {READ_COUNT} reads of 64 KiB |\n|---|---|---|---|---|---|---|---|---|\n"
    );
    for tool in tools {
        let of = |contender: &str, column: &str| rows.median(contender, column);
        let show = |value: Option<f64>, digits: usize, unit: &str| {
            value.map_or_else(|| "none".to_owned(), |value| format!("{value:.digits$} {unit}"))
        };
        let (restore, reads) = (format!("{tool}: restore"), format!("{tool}: reads"));
        debug_assert!(
            of(&reads, "read_seconds").is_some() || silent.iter().any(|(s, _)| s == tool)
        );
        let cells = [
            show(of(tool, "stored_mb"), 1, "MB"),
            show(of(tool, "files_mb"), 1, "MB"),
            show(of(tool, "cpu_seconds"), 1, "s"),
            show(of(tool, "wall_seconds"), 1, "s"),
            show(of(tool, "peak_mib"), 0, "MiB"),
            show(of(&restore, "wall_seconds"), 2, "s"),
            show(of(&reads, "opened_seconds"), 2, "s"),
            show(of(&reads, "read_seconds"), 3, "s"),
        ];
        text += &format!("| {tool} | {} |\n", cells.join(" | "));
    }
    text
}

/// A goal: what is compared, the most that it may be, what came out.
struct Goal {
    what: &'static str,
    most: f64,
    found: f64,
}

fn goals(rows: &Rows, tools: &[&str]) -> String {
    let of = |contender: &str, column: &str| rows.median(contender, column).unwrap_or(f64::NAN);
    let least = |suffix: &str, column: &str| {
        let peers = tools.iter().filter(|tool| **tool != "larder");
        peers.map(|tool| of(&format!("{tool}{suffix}"), column)).fold(f64::NAN, f64::min)
    };
    let ratio = |column| of("larder", column) / least("", column);
    let goals = [
        Goal { what: "stored on disk / best peer", most: 0.82, found: ratio("stored_mb") },
        Goal { what: "lengths of files / best peer", most: 0.82, found: ratio("files_mb") },
        Goal { what: "processor / least of a peer", most: 1.0 / 3.0, found: ratio("cpu_seconds") },
        Goal {
            what: "wall / zstd of the different blocks",
            most: 1.9,
            found: of(ANEW, "wall_seconds") / of(ZSTD, "wall_seconds"),
        },
        Goal {
            what: "restore / fastest peer",
            most: 1.0 / 3.0,
            found: of("larder: restore", "wall_seconds") / least(": restore", "wall_seconds"),
        },
        Goal { what: "peak memory in MiB", most: 256.0, found: of("larder", "peak_mib") },
        Goal {
            what: "all again / hashing each block",
            most: 1.0,
            found: of(AGAIN, "wall_seconds") / of(HASH_BLOCKS, "wall_seconds"),
        },
        Goal {
            what: "all again / hashing long pieces",
            most: 1.0,
            found: of(AGAIN, "wall_seconds") / of(HASH_PIECES, "wall_seconds"),
        },
    ];
    let mut text = String::from("| goal | at most | found | |\n|---|---|---|---|\n");
    for Goal { what, most, found } in goals {
        let said = match found <= most {
            true => "reached",
            false if found.is_nan() => "no peer is installed",
            false => "**missed**",
        };
        text += &format!("| {what} | {most:.2} | {found:.2} | {said} |\n");
    }
    text
}
