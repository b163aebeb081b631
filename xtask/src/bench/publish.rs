//! `bench/runs/<date>-<what>/`: what was measured, where, how, and every row.

use std::fs;
use std::path::{Path, PathBuf};

use env::{Clock, SystemClock};
use model::{Error, Result};
use serde_json::json;

use super::machine;
use super::{Bench, Session};
use crate::workspace;

/// Writes a run's folder and returns it. A second run of one day gets a number.
pub fn publish(bench: &Bench, session: &Session) -> Result<PathBuf> {
    let now = SystemClock.now().to_rfc3339();
    let date = now.split('T').next().unwrap_or(&now);
    let folder =
        new_folder(&workspace::root().join("bench/runs"), &format!("{date}-{}", bench.name))?;
    let command = format!("cargo xtask bench {} --size full", bench.name);
    let facts = machine::facts(bench.tools);
    write(&folder.join("rows.tsv"), &session.rows.to_tsv())?;
    let document = json!({
        "bench": bench.name, "when": now, "command": command, "facts": facts,
        "rows": session.rows.to_json(),
    });
    write(&folder.join("rows.json"), &format!("{document:#}\n"))?;
    for (name, text) in &session.attachments {
        write(&folder.join(name), text)?;
    }
    let readme = readme(bench, session, &now, &command, &facts);
    write(&folder.join("README.md"), &readme)?;
    Ok(folder)
}

fn readme(bench: &Bench, session: &Session, when: &str, command: &str, facts: &[String]) -> String {
    let mut text = format!("# {}\n\n{}\n\n", bench.name, bench.about);
    text += &format!("    {command}\n\n{when}\n\n");
    text += &facts.iter().map(|fact| format!("- {fact}\n")).collect::<String>();
    text += &format!("\n```text\n{}\n```\n", session.rows.medians_as_text());
    for note in &session.notes {
        text += &format!("\n{note}\n");
    }
    text + "\nEvery row: `rows.tsv`, `rows.json`.\n"
}

/// Makes a folder of this name, or of this name and the first number that is free.
fn new_folder(within: &Path, name: &str) -> Result<PathBuf> {
    let failed = |path: &Path, source| Error::io("make", path.display().to_string(), source);
    fs::create_dir_all(within).map_err(|source| failed(within, source))?;
    let mut path = within.join(name);
    for number in 2.. {
        match fs::create_dir(&path) {
            Ok(()) => break,
            Err(source) if source.kind() == std::io::ErrorKind::AlreadyExists => {
                path = within.join(format!("{name}-{number}"));
            }
            Err(source) => return Err(failed(&path, source)),
        }
    }
    Ok(path)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|source| Error::io("write", path.display().to_string(), source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_run_of_one_day_gets_a_number() {
        let folder = tempfile::tempdir().unwrap();
        let runs = folder.path().join("runs");
        assert_eq!(new_folder(&runs, "d-x").unwrap(), runs.join("d-x"));
        assert_eq!(new_folder(&runs, "d-x").unwrap(), runs.join("d-x-2"));
        assert_eq!(new_folder(&runs, "d-x").unwrap(), runs.join("d-x-3"));
    }
}
