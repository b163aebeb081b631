//! Machines: how soon a copy of a baked Debian answers, and how many bytes machines take.
//!
//! Times are those that larder tells: from the start of QEMU's process. What runs beside it on the
//! machine shows in all of them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use model::{Error, Kind, Result};
use serde_json::Value;

use super::rows::Row;
use super::{Bench, Session, Size, inputs};
use crate::demo::larder::Larder;
use crate::{images, process};

pub const BENCH: Bench = Bench {
    name: "resume",
    about: "How soon copies of a baked Debian answer, and how many bytes machines take.",
    in_tests: false,
    tools: &["qemu-system-x86_64"],
    run,
};

/// How long copies may take to end.
const END_MAX: Duration = Duration::from_secs(60);

/// Copies that are resumed at once.
const MANY: &str = "20";

/// A folder in which baked machines stay from one run to the next: a run on a machine that is kept free
/// for it then has no boots in it. None: they are baked anew.
const KEPT: &str = "LARDER_BENCH_MACHINES";

/// How many rounds; 0 only bakes.
const ROUNDS: &str = "LARDER_BENCH_ROUNDS";

fn run(session: &mut Session) -> Result<()> {
    let rounds = if session.size == Size::Full { 10 } else { 1 };
    let asked = std::env::var(ROUNDS).ok();
    let rounds = asked.and_then(|text| text.parse().ok()).unwrap_or(rounds);
    let own = session.folder.path().join("larder");
    let folder = std::env::var_os(KEPT).map_or(own, PathBuf::from);
    let larder = Larder::new(inputs::binary(session.size)?, &folder);
    let boot = bakes(session, &larder, &folder.join("bakes.json"))?;
    if rounds == 0 {
        return Ok(());
    }
    let state = folder.join("state");
    let repository = folder.join("repository");
    let warm: &[&str] = &["resume", "minimal-machine", "--no-network"];
    // Who it is comes after the answer, and is measured in the others.
    let cold = [warm, &["--no-identity"]].concat();
    let grown = [warm, &["--cpus", "2", "--memory", "512MiB"]].concat();
    bring_all(&larder, &cold)?;
    for round in 0..rounds {
        let mut measure = |who: &str, is_here: bool, options: &[&str]| -> Result<()> {
            let told = resume(&larder, options)?;
            session.rows.add(Row { contender: who.into(), round, columns: times(&told)? });
            end(&told)?;
            match told["memory_was_here"] == is_here {
                true => Ok(()),
                false => Err(Error::new(Kind::Bug, "measure", who)
                    .because("its memory was elsewhere than this row says")),
            }
        };
        measure("warm", true, warm)?;
        measure("grown to 2 CPUs, 512 MiB", true, &grown)?;
        forget(&state)?;
        measure("cold, all of it on this host", true, &cold)?;
        fs::remove_dir_all(state.join("bases")).ok();
        forget(&repository)?;
        forget(&state)?;
        measure("cold, none of it here", false, &cold)?;
        bring_all(&larder, &cold)?;
    }
    many(session, &larder, rounds.min(3))?;
    suspend(session, &larder, rounds.min(5))?;
    let median = |who: &str, column: &str| session.rows.median(who, column).unwrap_or(0.0);
    let answered = median("warm", "answered_ms");
    let note = format!(
        "A copy answers {:.0} times sooner than its version boots on the same machine. {MANY} copies \
         at once: the last answers after {:.1} times what {MANY} warm ones take one after the other, \
         divided by the processors.",
        boot * 1000.0 / answered,
        median("many at once", "answered_ms") / (answered * 20.0 / processors()),
    );
    session.notes.push(note);
    Ok(())
}

/// Bakes what there is not yet. Returns how many seconds the boot of the first took.
fn bakes(session: &mut Session, larder: &Larder, kept: &Path) -> Result<f64> {
    if let Ok(text) = fs::read(kept) {
        let rows: Vec<(String, [f64; COLUMNS.len()])> =
            serde_json::from_slice(&text).map_err(|source| {
                Error::new(Kind::Invalid, "read", kept.display().to_string()).caused_by(source)
            })?;
        let boot = rows.first().map_or(0.0, |(_, values)| values[0]);
        rows.into_iter().for_each(|(name, values)| session.rows.add(baked_row(name, values)));
        return Ok(boot);
    }
    let disks = images::ensure(&[&images::MINIMAL, &images::NGINX])?;
    let mut rows = Vec::new();
    for (disk, name, options) in [
        (&disks[0], "minimal", &[][..]),
        (&disks[1], "nginx", &[]),
        (&disks[0], "minimal", &["--memory", "512MiB", "--to", "big"]),
    ] {
        if options.is_empty() {
            larder.json(&["import", inputs::text(disk)?, name])?;
        }
        let baked = larder.json(&[&["bake", name], options].concat())?;
        let mut values = [0.0; COLUMNS.len()];
        for (value, (_, key)) in values.iter_mut().zip(COLUMNS) {
            *value = baked.fraction(key)?;
            if key.ends_with("_bytes") {
                *value /= f64::from(1 << 20);
            }
        }
        let name = [&["bake", name], options].concat().join(" ");
        session.rows.add(baked_row(name.clone(), values));
        rows.push((name, values));
    }
    let failed = |error| Error::io("write", kept.display().to_string(), error);
    fs::write(kept, serde_json::json!(rows).to_string()).map_err(failed)?;
    Ok(rows[0].1[0])
}

/// What is told of a bake: the column, and larder's key for it.
const COLUMNS: [(&str, &str); 5] = [
    ("boot_seconds", "boot_seconds"),
    ("bake_seconds", "seconds"),
    ("data_mib", "memory_data_bytes"),
    ("new_mib", "memory_new_bytes"),
    ("stored_mib", "memory_stored_bytes"),
];

fn baked_row(contender: String, values: [f64; COLUMNS.len()]) -> Row {
    let columns = COLUMNS.iter().map(|(column, _)| *column).zip(values).collect();
    Row { contender, round: 0, columns }
}

fn processors() -> f64 {
    std::thread::available_parallelism().map_or(1.0, |count| count.get() as f64)
}

/// Copies that run in the background; what larder says of them.
fn resume(larder: &Larder, options: &[&str]) -> Result<Value> {
    let mut command = larder.command(options);
    let output = process::output(command.arg("--detach"), "")?;
    serde_json::from_str(&output).map_err(|source| {
        Error::new(Kind::Invalid, "read", process::shown(&command))
            .because(format!("its output is no JSON: {output:?}"))
            .caused_by(source)
    })
}

fn times(told: &Value) -> Result<Vec<(&'static str, f64)>> {
    let keys = ["running_ms", "answered_ms", "identity_ms", "grown_ms", "total_ms"];
    let found = keys.into_iter().filter_map(|key| Some((key, told[key].as_f64()?)));
    let columns: Vec<_> = found.collect();
    match columns.is_empty() {
        false => Ok(columns),
        true => Err(Error::new(Kind::Invalid, "read", "what larder says of a copy")),
    }
}

fn guests(told: &Value) -> impl Iterator<Item = u64> {
    told["guests"].as_array().into_iter().flatten().filter_map(|guest| guest["pid"].as_u64())
}

/// Resumes copies until one maps the machine's own file: all of it is on this host then.
fn bring_all(larder: &Larder, options: &[&str]) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < END_MAX {
        let told = resume(larder, options)?;
        while is_completing(told["larder_pid"].as_u64().unwrap_or(0)) && began.elapsed() < END_MAX {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        end(&told)?;
        if told["memory_was_here"] == true {
            return Ok(());
        }
    }
    Err(Error::new(Kind::Unavailable, "bring", "a machine to this host"))
}

/// Whether a larder has a thread that brings the rest of a machine.
fn is_completing(larder: u64) -> bool {
    let threads = fs::read_dir(format!("/proc/{larder}/task"));
    let mut names = threads
        .into_iter()
        .flatten()
        .flatten()
        .map(|thread| fs::read_to_string(thread.path().join("comm")).unwrap_or_default());
    names.any(|name| name.trim() == "complete")
}

/// Ends copies, and waits until larder has tidied up behind them.
fn end(told: &Value) -> Result<()> {
    for pid in guests(told) {
        if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
            // It may have ended by itself.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    let larder = told["larder_pid"].as_u64().unwrap_or(0);
    let began = Instant::now();
    while Path::new(&format!("/proc/{larder}")).exists() {
        if began.elapsed() > END_MAX {
            return Err(Error::new(Kind::Unavailable, "end", "copies of a machine"));
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
    Ok(())
}

/// Drops what the kernel keeps of the files below a folder.
fn forget(folder: &Path) -> Result<()> {
    rustix::fs::sync();
    let failed = |error| Error::io("drop the pages of", folder.display().to_string(), error);
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(failed)?.flatten() {
            let path = entry.path();
            match entry.file_type().map_err(failed)? {
                kind if kind.is_dir() => folders.push(path),
                kind if kind.is_file() => {
                    let file = File::open(&path).map_err(failed)?;
                    let advice = rustix::fs::Advice::DontNeed;
                    rustix::fs::fadvise(&file, 0, None, advice).map_err(|e| failed(e.into()))?;
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn many(session: &mut Session, larder: &Larder, rounds: u32) -> Result<()> {
    let options = ["resume", "minimal-machine", "--no-network", "--no-identity", "--count", MANY];
    for round in 0..rounds {
        let told = resume(larder, &options)?;
        let mut columns = times(&told)?;
        let sum = |key: &str| guests(&told).map(|pid| rollup_mib(pid, key)).sum::<f64>();
        let (rss, pss) = (sum("Rss:"), sum("Pss:"));
        columns.extend([("rss_mib", rss), ("pss_mib", pss)]);
        session.rows.add(Row { contender: "many at once".into(), round, columns });
        end(&told)?;
    }
    Ok(())
}

/// A line of a process's `smaps_rollup`.
fn rollup_mib(pid: u64, key: &str) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    let kib: f64 = line.split_ascii_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0.0);
    kib / 1024.0
}

fn suspend(session: &mut Session, larder: &Larder, rounds: u32) -> Result<()> {
    let options = ["resume", "big", "--suspendable", "--mirror", "big"];
    let told = resume(larder, &options)?;
    for round in 0..rounds {
        let suspended = larder.json(&["suspend", "big", "--to", "kept"])?;
        let stored = suspended.number("memory_stored_bytes")? as f64 / f64::from(1 << 20);
        let columns = vec![
            ("pause_ms", suspended.fraction("pause_ms")?),
            ("seconds", suspended.fraction("seconds")?),
            ("stored_mib", stored),
        ];
        session.rows.add(Row { contender: "suspend 512 MiB".into(), round, columns });
    }
    end(&told)
}
