//! How fast a disk file becomes a version, beside compressing the same bytes, and in how much memory.
//!
//! Larder reads the sparse disk file; zstd gets a file of the same bytes without the holes, so it
//! does not spend time on them. Larder syncs what it stores and zstd does not.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use model::{Error, Kind, Result};

use super::measure::measure;
use super::rows::Contender;
use super::{Bench, Session, Size, inputs};
use crate::demo::larder::Larder;
use crate::workspace::system_program;

pub const BENCH: Bench = Bench {
    name: "one-image",
    about: "One disk file becomes a version: time, CPU, memory, beside zstd and casync.",
    in_tests: true,
    tools: &["zstd", "casync"],
    run,
};

const MIB: u64 = 1 << 20;

fn run(session: &mut Session) -> Result<()> {
    let disks = inputs::disks(session)?;
    let folder = session.folder.path().to_path_buf();
    let larder = inputs::larder(session, "larder")?;
    let data = folder.join("data");
    let data_len = inputs::write_data_of(&disks[0], &data)?;
    let rounds = if session.size == Size::Full { 7 } else { 1 };

    let (first, second) = (inputs::text(&disks[0])?, inputs::text(&disks[1])?);
    let in_new_repository = || {
        inputs::remove(&folder.join("larder"))?;
        import(&larder, &folder, first, "first")
    };
    let alike = || import(&larder, &folder, second, "second");
    let known = || {
        let columns = import(&larder, &folder, first, "first")?;
        match columns.iter().find(|(name, _)| *name == "new_mib") {
            Some((_, 0.0)) => Ok(columns),
            _ => {
                Err(Error::new(Kind::Invalid, "import again", first).because("it was stored twice"))
            }
        }
    };
    let zstd = || {
        let to = folder.join("data.zst");
        let mut command = system_program("zstd");
        command.args(["-3", "-T2", "-q", "-f", "-o"]).arg(&to).arg(&data);
        peer(&mut command, &to)
    };
    let casync = || {
        let store = folder.join("casync");
        let mut command = system_program("casync");
        command.arg("make").arg(format!("--store={}", store.display()));
        command.arg(folder.join("first.caibx")).arg(&disks[0]);
        peer(&mut command, &store)
    };
    let mut contenders: Vec<Contender<'_>> = vec![
        ("larder, empty repository".into(), Box::new(in_new_repository)),
        ("zstd -3 -T2".into(), Box::new(zstd)),
    ];
    session.rows.alternate(rounds, &mut contenders)?;
    let mut contenders: Vec<Contender<'_>> = vec![
        ("larder, the same again".into(), Box::new(known)),
        ("casync make".into(), Box::new(casync)),
    ];
    session.rows.alternate(rounds.min(2), &mut contenders)?;
    let mut contenders: Vec<Contender<'_>> = vec![("larder, image alike".into(), Box::new(alike))];
    session.rows.alternate(1, &mut contenders)?;
    inputs::remove(&data)?;

    memory(session, &larder, &folder)?;
    say(session, data_len);
    Ok(())
}

/// Peak memory with a long disk of almost nothing, and with one of much that is not alike.
fn memory(session: &mut Session, larder: &Larder, folder: &Path) -> Result<()> {
    let (sparse_mib, noise_mib) = match session.size {
        Size::Small => (1024, 8),
        Size::Full => (20 * 1024, 4096),
    };
    let disk = folder.join("long.raw");
    let repository = folder.join("larder");
    let mut contenders: Vec<Contender<'_>> = Vec::new();
    for (what, len_mib, every_mib) in [("sparse", sparse_mib, 64), ("noise", noise_mib, 1)] {
        let (larder, disk, repository) = (&larder, disk.clone(), repository.clone());
        let measure = move || {
            write_noise(&disk, len_mib, every_mib)?;
            inputs::remove(&repository)?;
            let columns = import(larder, folder, inputs::text(&disk)?, "long");
            inputs::remove(&disk)?;
            inputs::remove(&repository)?;
            columns
        };
        contenders.push((format!("larder, {len_mib} MiB of {what}"), Box::new(measure)));
    }
    session.rows.alternate(1, &mut contenders)
}

/// Writes a file of this length in which every so many MiB one is noise.
fn write_noise(path: &Path, len_mib: u64, every_mib: u64) -> Result<()> {
    let failed = |source| Error::io("write", path.display().to_string(), source);
    let mut file = File::create(path).map_err(failed)?;
    let mut noise = inputs::noise(3);
    for at in (0..len_mib).step_by(every_mib as usize) {
        io::Seek::seek(&mut file, io::SeekFrom::Start(at * MIB)).map_err(failed)?;
        io::copy(&mut (&mut noise).take(MIB), &mut file).map_err(failed)?;
    }
    file.set_len(len_mib * MIB).map_err(failed)
}

fn import(
    larder: &Larder,
    folder: &Path,
    disk: &str,
    image: &str,
) -> Result<Vec<(&'static str, f64)>> {
    let answer: PathBuf = folder.join("answer.json");
    let failed = |source| Error::io("read", answer.display().to_string(), source);
    let mut command = larder.command(&["--quiet", "import", disk, image]);
    command.stdout(File::create(&answer).map_err(failed)?);
    inputs::settle();
    let mut columns = measure(&mut command)?.columns();
    let text = std::fs::read_to_string(&answer).map_err(failed)?;
    let answer: serde_json::Value = serde_json::from_str(&text)
        .map_err(|source| Error::new(Kind::Invalid, "read", "larder's answer").caused_by(source))?;
    for (column, key) in [("new_mib", "new_bytes"), ("stored_mib", "stored_bytes")] {
        let bytes = answer[key]
            .as_u64()
            .ok_or_else(|| Error::new(Kind::Invalid, "read", format!("`{key}` in {text}")))?;
        columns.push((column, bytes as f64 / MIB as f64));
    }
    Ok(columns)
}

/// Measures another's program, and removes what it made.
fn peer(command: &mut Command, made: &Path) -> Result<Vec<(&'static str, f64)>> {
    command.stdout(std::process::Stdio::null());
    inputs::remove(made)?;
    inputs::settle();
    let mut columns = measure(command)?.columns();
    columns.push(("stored_mib", inputs::size_of(made)?.0 as f64 / MIB as f64));
    inputs::remove(made)?;
    Ok(columns)
}

fn say(session: &mut Session, data_len: u64) {
    let median = |contender: &str, column| session.rows.median(contender, column).unwrap_or(0.0);
    let larder = median("larder, empty repository", "wall_seconds");
    let zstd = median("zstd -3 -T2", "wall_seconds");
    let lines = [
        format!("The first image holds {data_len} bytes of data outside its holes."),
        format!(
            "Import takes {:.2} times as long as `zstd -3 -T2` on the same data (goal: 1.6 at \
             most). Larder leaves out blocks that repeat, and syncs what it stores; zstd does neither.",
            larder / zstd
        ),
        "Peak memory may not grow with the image: the goal is below 256 MiB for all of them."
            .to_owned(),
    ];
    session.notes.extend(lines);
}
