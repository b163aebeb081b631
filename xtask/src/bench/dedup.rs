//! How many duplicates the bounded index finds, and in how much memory.
//!
//! ```text
//!   corpus       image 1, image 2 ... image 8
//!   boot sets    what a boot reads of image 1, of image 2 ...
//!   grown        2048 packs of others, image 1, 64 packs of others, image 2, 64 ...
//!
//!   each, with one block in 8, 16, 32, 64, 128 as a hook  --> found, bytes of hooks, bytes of lists
//!   each, with every block in the index                   --> what there is to find
//! ```
//!
//! **Invariants**: the index under test is the product's: the pipeline's `Duplicates` and
//! `PackLists`, the SQLite catalog, block lists read back from packs. Left out are the chunks' bytes.

mod index;
mod inputs;

use model::Result;

use self::index::{BoundedIndex, Exhaustive};
use self::inputs::{Scenario, Step};
use super::chart::{self, LineChart, Series};
use super::rows::Row;
use super::{Bench, Session};

pub const BENCH: Bench = Bench {
    name: "dedup",
    about: "Duplicates that the bounded index finds, of those that are there, against its memory.",
    in_tests: true,
    tools: &[],
    run,
};

/// One block in so many is a hook.
const REDUCTIONS: [u8; 5] = [8, 16, 32, 64, 128];

/// What repositories are written with.
const CHOSEN: u8 = 64;

fn run(session: &mut Session) -> Result<()> {
    let scenarios = inputs::scenarios(session)?;
    let mut lines: Vec<(String, Vec<Measured>)> = Vec::new();
    for scenario in &scenarios {
        let exhaustive = exhaust(scenario);
        let mut line = Vec::new();
        for reduction in REDUCTIONS.into_iter().rev() {
            let measured = measure(session, scenario, reduction, &exhaustive)?;
            let contender = format!("{}, one in {reduction}", scenario.name);
            session.rows.add(Row { contender, round: 0, columns: measured.columns(&exhaustive) });
            line.push(measured);
        }
        lines.push((scenario.name.to_owned(), line));
        say(session, scenario.name, &exhaustive);
    }
    session.notes.push(inputs::NOTE.to_owned());
    session.notes.push(index::NOTE.to_owned());
    let absolute = chart(&lines, "memory of the index: hooks and block lists", |m| m.memory_len());
    let relative =
        chart(&lines, "memory of an index of every block / memory of the index", |m| m.saved);
    session.attachments.push(("memory.svg", absolute.to_svg()?));
    let relative = LineChart { x_tick: chart::number, ..relative };
    session.attachments.push(("reduction.svg", relative.to_svg()?));
    Ok(())
}

fn exhaust(scenario: &Scenario) -> Exhaustive {
    let mut exhaustive = Exhaustive::default();
    for step in &scenario.steps {
        match step {
            Step::Import(digests) => exhaustive.import(digests),
            Step::Others { pack_count } => exhaustive.others(*pack_count),
        }
    }
    exhaustive
}

/// What one sampling gave.
struct Measured {
    efficiency: f64,
    saved: f64,
    hooks_len: u64,
    lists_len: u64,
    found: u64,
    pack_count: u64,
}

impl Measured {
    fn memory_len(&self) -> f64 {
        (self.hooks_len + self.lists_len) as f64
    }

    fn columns(&self, exhaustive: &Exhaustive) -> Vec<(&'static str, f64)> {
        vec![
            ("efficiency_percent", self.efficiency * 100.0),
            ("found_blocks", self.found as f64),
            ("duplicate_blocks", exhaustive.duplicates as f64),
            ("hooks_bytes", self.hooks_len as f64),
            ("lists_bytes", self.lists_len as f64),
            ("exhaustive_bytes", exhaustive.memory_len() as f64),
            ("times_smaller", self.saved),
            ("packs", self.pack_count as f64),
        ]
    }
}

fn measure(
    session: &Session,
    scenario: &Scenario,
    reduction: u8,
    exhaustive: &Exhaustive,
) -> Result<Measured> {
    let file = session.folder.path().join("catalog.sqlite");
    let mut index = BoundedIndex::new(&file, reduction)?;
    let mut found = 0;
    for step in &scenario.steps {
        match step {
            Step::Import(digests) => found += index.import(digests)?,
            Step::Others { pack_count } => index.others(*pack_count)?,
        }
    }
    let (hooks_len, lists_len) = (index.hooks_len()?, index.lists_len_max());
    let pack_count = index.pack_count()?;
    index.remove()?;
    Ok(Measured {
        efficiency: found as f64 / exhaustive.duplicates.max(1) as f64,
        saved: exhaustive.memory_len() as f64 / (hooks_len + lists_len).max(1) as f64,
        hooks_len,
        lists_len,
        found,
        pack_count,
    })
}

fn chart(
    lines: &[(String, Vec<Measured>)],
    x_label: &str,
    x: impl Fn(&Measured) -> f64,
) -> LineChart {
    let to_series = |(name, line): &(String, Vec<Measured>)| {
        let mut points: Vec<_> = line.iter().map(|m| (x(m), m.efficiency)).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Series { name: name.clone(), points }
    };
    LineChart {
        title: "Duplicates found, of those that an index of every 4 KiB block finds".to_owned(),
        x_label: format!("{x_label} (one block in 8, 16, 32, 64, 128)"),
        y_label: "duplicates found".to_owned(),
        log_x: true,
        x_tick: chart::binary_bytes,
        y_tick: chart::percent,
        y_range: 0.97..1.0,
        series: lines.iter().map(to_series).collect(),
    }
}

/// The line that the goals are about.
fn say(session: &mut Session, name: &str, exhaustive: &Exhaustive) {
    let of = |column| {
        session.rows.median(&format!("{name}, one in {CHOSEN}"), column).unwrap_or_default()
    };
    let note = format!(
        "{name}, one block in {CHOSEN}: {:.2} % of {} duplicates (goal: 99 %), in {:.2} MB of hooks and \
         {:.2} MB of lists; an index of every block takes {:.1} MB, {:.1} times as much (goal where it has grown: 35).",
        of("efficiency_percent"),
        exhaustive.duplicates,
        of("hooks_bytes") / 1e6,
        of("lists_bytes") / 1e6,
        exhaustive.memory_len() as f64 / 1e6,
        of("times_smaller"),
    );
    println!("{note}");
    session.notes.push(note);
}
