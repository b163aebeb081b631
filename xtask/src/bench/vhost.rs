//! Reads and writes through the vhost-user door of a mirror that has everything present, beside
//! qemu-storage-daemon on the raw file and on a qcow2 overlay.
//!
//! The client is a guest of our own with one ring, the same for all three. The disk is the data of an
//! image without its holes, read once before, so that every byte is in the page cache.

use std::path::{Path, PathBuf};

use model::{Error, Kind, Result};
use tempfile::TempDir;

use super::rows::Contender;
use super::storage_daemon::StorageDaemon;
use super::{Bench, Session, Size, inputs};
use crate::demo::larder::{Attached, Larder};
use crate::process;
use crate::workspace::{self, cargo, system_program};

pub const BENCH: Bench = Bench {
    name: "vhost",
    about: "Reads and writes over vhost-user-blk, beside qemu-storage-daemon.",
    in_tests: true,
    tools: &["qemu-storage-daemon", "qemu-img"],
    run,
};

/// What the client does: direction, order, bytes, requests under way.
const JOBS: &[(&str, &str, u32, u32)] = &[
    ("read", "random", 4096, 1),
    ("read", "random", 4096, 32),
    ("read", "sequential", 1 << 20, 1),
    ("read", "sequential", 1 << 20, 4),
    // As on a disk that is filled first and changed later.
    ("write", "sequential", 1 << 20, 1),
    ("write", "sequential", 1 << 20, 4),
    ("write", "random", 4096, 1),
    ("write", "random", 4096, 32),
];
/// What it does on another disk that was written to at random first. Long writes over pages that came by
/// short ones are slower; the raw file has none, since it was copied in one go.
const JOBS_OVER_SHORT_WRITES: &[(&str, &str, u32, u32)] =
    &[("write", "sequential", 1 << 20, 1), ("write", "sequential", 1 << 20, 4)];
/// The short writes.
const SHORT_WRITES: Job = ("write", "random", 4096, 32);
/// What is behind the names of the jobs over them.
const OVER_SHORT_WRITES: &str = ", over short ones";
/// Who serves; larder is first.
const SERVERS: [&str; 3] = ["larder", "raw file", "qcow2 overlay"];

/// A load.
pub type Job = (&'static str, &'static str, u32, u32);

fn run(session: &mut Session) -> Result<()> {
    let disks = inputs::disks(session)?;
    let data = session.folder.path().join("data");
    let data_len = inputs::write_data_of(&disks[0], &data)?;
    let larder = inputs::larder(session, "larder")?;
    larder.json(&["import", inputs::text(&data)?, "data"])?;
    let client = client(session.size)?;
    let (rounds, seconds) = if session.size == Size::Full { (5, 1.0) } else { (1, 0.1) };
    let read_all = ("read", "sequential", 1 << 20, 1);
    let phases = [
        ("first", JOBS, "", vec![read_all]),
        ("second", JOBS_OVER_SHORT_WRITES, OVER_SHORT_WRITES, vec![read_all, SHORT_WRITES]),
    ];
    for (mirror, jobs, suffix, before) in phases {
        let served = Served::start(&larder, &data, mirror)?;
        for job in before {
            served.at.iter().try_for_each(|at| load(&client, at, job, 2.0 * seconds).map(drop))?;
        }
        for job in jobs {
            let mut contenders: Vec<Contender<'_>> = Vec::new();
            for (server, socket) in SERVERS.iter().zip(&served.at) {
                let client = &client;
                let measure = move || load(client, socket, *job, seconds);
                contenders.push((format!("{}{suffix}, {server}", name(job)), Box::new(measure)));
            }
            session.rows.alternate(rounds, &mut contenders)?;
        }
        served.mirror.detach()?;
    }
    say(session, data_len);
    Ok(())
}

/// A disk, by each of the servers: larder with a mirror that is new, the others with files of their own.
struct Served<'a> {
    at: [PathBuf; SERVERS.len()],
    mirror: Attached<'a>,
    _others: [StorageDaemon; 2],
    _sockets: TempDir,
}

impl<'a> Served<'a> {
    fn start(larder: &'a Larder, data: &Path, mirror: &'static str) -> Result<Self> {
        let sockets = inputs::sockets()?;
        let [raw, overlay] = ["raw", "overlay"].map(|name| data.with_extension(name));
        let _ = std::fs::remove_file(&overlay);
        let copied = std::fs::copy(data, &raw);
        copied.map_err(|source| Error::io("copy", data.display().to_string(), source))?;
        let mut command = system_program("qemu-img");
        command.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]);
        process::run(command.arg(data).arg(&overlay))?;
        let at = SERVERS.map(|name| sockets.path().join(name.replace(' ', "-")));
        Ok(Served {
            mirror: larder.attach_at("--vhost-user", "data", mirror, &at[0], &[])?,
            _others: [
                StorageDaemon::start(&raw, "raw", &at[1])?,
                StorageDaemon::start(&overlay, "qcow2", &at[2])?,
            ],
            at,
            _sockets: sockets,
        })
    }
}

/// What a load is called.
pub fn name((direction, order, bytes, depth): &Job) -> String {
    format!("{order} {direction} {} KiB x{depth}", bytes / 1024)
}

/// Builds the client.
pub fn client(size: Size) -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--locked", "--quiet", "--package", "attach"]);
    command.args(["--example", "vhost_user_load"]);
    let folder = match size {
        Size::Small => "debug",
        Size::Full => {
            command.arg("--release");
            "release"
        }
    };
    process::run(&mut command)?;
    Ok(workspace::target().join(folder).join("examples/vhost_user_load"))
}

/// Does one job for some seconds.
pub fn load(
    client: &Path,
    socket: &Path,
    (direction, order, bytes, depth): Job,
    seconds: f64,
) -> Result<Vec<(&'static str, f64)>> {
    let mut command = std::process::Command::new(client);
    command.arg(socket).args([direction, order]);
    command.args([bytes.to_string(), depth.to_string(), seconds.to_string()]);
    let text = process::output(&mut command, "")?;
    let failed = || Error::new(Kind::Invalid, "read", "the client's answer");
    let answer: serde_json::Value =
        serde_json::from_str(&text).map_err(|source| failed().caused_by(source))?;
    ["requests_per_second", "mib_per_second", "mean_us"]
        .into_iter()
        .map(|key| {
            let number = answer[key].as_f64();
            Ok((key, number.ok_or_else(|| failed().because("a number is missing"))?))
        })
        .collect()
}

fn say(session: &mut Session, data_len: u64) {
    let mut lines = format!(
        "The disk: {data_len} bytes, all of it data. Larder's speed as a multiple of \
         qemu-storage-daemon's on the raw file and on the overlay (goal: 1.0 at least):\n\n"
    );
    let over = JOBS_OVER_SHORT_WRITES.iter().map(|job| (job, OVER_SHORT_WRITES));
    for (job, suffix) in JOBS.iter().map(|job| (job, "")).chain(over) {
        let of = |server: &str| {
            let row = format!("{}{suffix}, {server}", name(job));
            session.rows.median(&row, "requests_per_second").unwrap_or(0.0)
        };
        let [larder, raw, overlay] = SERVERS.map(of);
        let (raw, overlay) = (larder / raw, larder / overlay);
        lines += &format!("- {}{suffix}: {raw:.2}, {overlay:.2}\n", name(job));
    }
    session.notes.push(lines);
}
