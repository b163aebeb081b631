//! Reads and writes through the vhost-user door of a mirror that has everything present, beside
//! qemu-storage-daemon on the raw file and on a qcow2 overlay.
//!
//! The client is a guest of our own with one ring, the same for all three. The disk is the data of an
//! image without its holes, read once before, so that every byte is in the page cache.

use std::path::{Path, PathBuf};

use model::{Error, Kind, Result};

use super::rows::Contender;
use super::storage_daemon::StorageDaemon;
use super::{Bench, Session, Size, inputs};
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
    // As on a disk that is filled first and changed later. Long writes over pages that came by short
    // ones are slower for every server; here they would be so for larder alone, whose overlay is new.
    ("write", "sequential", 1 << 20, 1),
    ("write", "sequential", 1 << 20, 4),
    ("write", "random", 4096, 1),
    ("write", "random", 4096, 32),
];
/// Who serves; larder is first.
const SERVERS: [&str; 3] = ["larder", "raw file", "qcow2 overlay"];

/// A load.
pub type Job = (&'static str, &'static str, u32, u32);

fn run(session: &mut Session) -> Result<()> {
    let disks = inputs::disks(session)?;
    let folder = session.folder.path().to_path_buf();
    let sockets = inputs::sockets()?;
    let [data, raw, overlay] = ["data", "raw", "overlay"].map(|name| folder.join(name));
    let data_len = inputs::write_data_of(&disks[0], &data)?;
    // Each server writes to a file of its own.
    let copied = std::fs::copy(&data, &raw);
    copied.map_err(|source| Error::io("copy", data.display().to_string(), source))?;
    let mut command = system_program("qemu-img");
    command.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]);
    process::run(command.arg(&data).arg(&overlay))?;
    let larder = inputs::larder(session, "larder")?;
    larder.json(&["import", inputs::text(&data)?, "data"])?;
    let at = SERVERS.map(|name| sockets.path().join(name.replace(' ', "-")));
    let mirror = larder.attach_at("--vhost-user", "data", "bench", &at[0], &[])?;
    let _raw = StorageDaemon::start(&raw, "raw", &at[1])?;
    let _overlay = StorageDaemon::start(&overlay, "qcow2", &at[2])?;
    let client = client(session.size)?;
    let (rounds, seconds) = if session.size == Size::Full { (5, 1.0) } else { (1, 0.1) };
    for socket in &at {
        load(&client, socket, ("read", "sequential", 1 << 20, 1), 2.0 * seconds)?;
    }
    for job in JOBS {
        let mut contenders: Vec<Contender<'_>> = Vec::new();
        for (server, socket) in SERVERS.iter().zip(&at) {
            let client = &client;
            let measure = move || load(client, socket, *job, seconds);
            contenders.push((format!("{}, {server}", name(job)), Box::new(measure)));
        }
        session.rows.alternate(rounds, &mut contenders)?;
    }
    mirror.detach()?;
    say(session, data_len);
    Ok(())
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
    for job in JOBS {
        let of = |server: &str| {
            let row = format!("{}, {server}", name(job));
            session.rows.median(&row, "requests_per_second").unwrap_or(0.0)
        };
        let [larder, raw, overlay] = SERVERS.map(of);
        lines += &format!("- {}: {:.2}, {:.2}\n", name(job), larder / raw, larder / overlay);
    }
    session.notes.push(lines);
}
