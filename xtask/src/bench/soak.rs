//! A long random life of a repository, which the repository's own test lives: imports, commits, clones,
//! removals, holds and collects, then every version that is left is read back.

use env::{Clock, SystemClock};
use model::{Error, Kind, Result};

use super::rows::Row;
use super::{Bench, Session, Size};
use crate::process;
use crate::workspace::cargo;

pub const BENCH: Bench = Bench {
    name: "soak",
    about: "Thousands of random operations, then every version verified: bytes beside a fresh import.",
    // The test that it runs is in every test run as it is.
    in_tests: false,
    tools: &[],
    run,
};

const TEST: &str =
    "a_random_life_ends_with_every_version_whole_and_little_more_than_a_fresh_import";

fn run(session: &mut Session) -> Result<()> {
    let (seeds, steps) = match session.size {
        Size::Small => (1, 150),
        Size::Full => (3, 5000),
    };
    for seed in 0..seeds {
        let mut command = cargo();
        command.args(["test", "--quiet", "--package", "repository", "--test", "lives", TEST]);
        command.args(["--", "--nocapture"]);
        command.env("LARDER_SEED", (100 + seed).to_string()).env("LARDER_SEEDS", "1");
        command.env("LARDER_STEPS", u32::to_string(&steps));
        let start = SystemClock.monotonic();
        let text = process::output(&mut command, "")?;
        let seconds = (SystemClock.monotonic() - start).as_secs_f64();
        let [lived, fresh] = numbers(&text)?;
        session.rows.add(Row {
            contender: format!("{steps} operations"),
            round: seed,
            columns: vec![
                ("stored_bytes", lived),
                ("fresh_bytes", fresh),
                ("ratio", lived / fresh),
                ("seconds", seconds),
            ],
        });
    }
    session.notes.push(format!(
        "The test is `{TEST}` of `crates/repository/tests/lives.rs`: it also checks that each version \
         reads back byte for byte, that a further collect has nothing to do, and that no file is left \
         that the catalog does not name. Bytes are those of all files of the repository."
    ));
    Ok(())
}

/// The two numbers of the line `N bytes, fresh M: R`.
fn numbers(text: &str) -> Result<[f64; 2]> {
    let read = |line: &str| {
        let (lived, rest) = line.split_once(" bytes, fresh ")?;
        let (fresh, _) = rest.split_once(':')?;
        Some([lived.parse().ok()?, fresh.parse().ok()?])
    };
    text.lines().find_map(read).ok_or_else(|| {
        Error::new(Kind::Bug, "read", "what the test printed").because(text.to_owned())
    })
}
