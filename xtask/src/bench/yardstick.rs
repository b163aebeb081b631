//! What this machine does with an image's bytes without Larder: the peers that an import is held
//! against.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use model::{Error, Result};

use super::measure::measure;
use super::rows::Contender;
use super::{Bench, Session, Size};
use crate::images;
use crate::workspace::system_program;

pub const BENCH: Bench = Bench {
    name: "yardstick",
    about: "Compressing and copying an image's bytes with the system's own tools.",
    in_tests: true,
    tools: &["zstd", "cp"],
    run,
};

fn run(session: &mut Session) -> Result<()> {
    let (disk, rounds) = match session.size {
        Size::Small => (made_up(&session.folder.path().join("made-up.raw"))?, 1),
        Size::Full => (images::ensure(&[&images::MINIMAL])?.remove(0), 5),
    };
    let to = session.folder.path().join("out");
    let zstd = || {
        let mut command = system_program("zstd");
        command.args(["-3", "-T2", "-q", "-f", "-o"]).arg(&to).arg(&disk);
        columns(&to, measure(&mut command)?.columns())
    };
    let copy = || {
        let mut command = system_program("cp");
        command.args(["--sparse=always", "--reflink=never", "--"]).arg(&disk).arg(&to);
        columns(&to, measure(&mut command)?.columns())
    };
    let mut contenders: Vec<Contender<'_>> =
        vec![("zstd -3 -T2".into(), Box::new(zstd)), ("cp --sparse".into(), Box::new(copy))];
    session.rows.alternate(rounds, &mut contenders)
}

/// Adds how much of the disk the result takes, and removes it.
fn columns(made: &Path, mut columns: Vec<(&'static str, f64)>) -> Result<Vec<(&'static str, f64)>> {
    use std::os::unix::fs::MetadataExt;
    let failed = |source| Error::io("measure", made.display().to_string(), source);
    let blocks = made.metadata().map_err(failed)?.blocks();
    fs::remove_file(made).map_err(failed)?;
    // The kernel counts in units of 512 bytes, whatever the file system's own.
    columns.push(("stored_bytes", (blocks * 512) as f64));
    Ok(columns)
}

/// Writes a sparse file of 16 MiB, of which 4 MiB are text-like data.
fn made_up(path: &Path) -> Result<PathBuf> {
    let failed = |source| Error::io("write", path.display().to_string(), source);
    let mut file = File::create(path).map_err(failed)?;
    let text: String = (0..400_000).map(|line| format!("line {line}\n")).collect();
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.set_len(16 * 1024 * 1024).map_err(failed)?;
    Ok(path.to_path_buf())
}
