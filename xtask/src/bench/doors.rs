//! Reads over NBD from a mirror that has everything present, beside qemu-nbd on the raw file.
//!
//! The disk is the data of an image without its holes, so that every read is of real bytes. Both are
//! read once before, so that every byte is in the page cache.

use std::path::Path;
use std::time::Instant;

use model::{Error, Kind, Result};

use super::qemu_nbd::QemuNbd;
use super::rows::Contender;
use super::{Bench, Session, Size, inputs};
use crate::process;
use crate::workspace::system_program;

pub const BENCH: Bench = Bench {
    name: "doors",
    about: "Reads over NBD from a mirror with everything present, beside qemu-nbd.",
    in_tests: true,
    tools: &["qemu-nbd", "fio", "nbdcopy"],
    run,
};

/// What fio does: its name, how it reads, bytes of a read, reads under way.
const JOBS: &[(&str, &str, &str, u32)] = &[
    ("fio seq 64k x1", "read", "64k", 1),
    ("fio seq 64k x16", "read", "64k", 16),
    ("fio seq 1M x4", "read", "1M", 4),
    ("fio random 4k x1", "randread", "4k", 1),
    ("fio random 4k x16", "randread", "4k", 16),
];

/// Who serves, and where.
struct Served<'a> {
    name: &'static str,
    socket: &'a Path,
}

fn run(session: &mut Session) -> Result<()> {
    let disks = inputs::disks(session)?;
    let folder = session.folder.path().to_path_buf();
    let sockets = inputs::sockets()?;
    let data = folder.join("data");
    let data_len = inputs::write_data_of(&disks[0], &data)?;
    let larder = inputs::larder(session, "larder")?;
    larder.json(&["import", inputs::text(&data)?, "data"])?;
    let at = sockets.path().join("mirror");
    let mirror = larder.attach("data", "bench", &at)?;
    let peer = QemuNbd::start(&data, &sockets.path().join("qemu"))?;
    let served = [
        Served { name: "larder", socket: &at },
        Served { name: "qemu-nbd", socket: peer.socket() },
    ];
    for one in &served {
        nbdcopy(one.socket)?;
    }
    let fetched = larder.mirror("bench")?.number("fetched_bytes")?;
    let (rounds, seconds) = if session.size == Size::Full { (5, 2.0) } else { (1, 0.2) };
    for (name, how, bytes, depth) in JOBS {
        let mut contenders: Vec<Contender<'_>> = Vec::new();
        for one in &served {
            let measure = move || fio(one.socket, how, bytes, *depth, seconds);
            contenders.push((format!("{name}, {}", one.name), Box::new(measure)));
        }
        session.rows.alternate(rounds, &mut contenders)?;
    }
    type Client = fn(&Path) -> Result<()>;
    let whole: [(&str, Client); 2] = [("nbdcopy", nbdcopy), ("qemu-img bench 4k x16", qemu_img)];
    for (name, client) in whole {
        let mut contenders: Vec<Contender<'_>> = Vec::new();
        for one in &served {
            let measure = move || {
                let began = Instant::now();
                client(one.socket)?;
                Ok(vec![("wall_seconds", began.elapsed().as_secs_f64())])
            };
            contenders.push((format!("{name}, {}", one.name), Box::new(measure)));
        }
        session.rows.alternate(rounds, &mut contenders)?;
    }
    if larder.mirror("bench")?.number("fetched_bytes")? != fetched {
        return Err(Error::new(Kind::Invalid, "measure", "the mirror")
            .because("something was fetched, so not everything was present"));
    }
    mirror.detach()?;
    say(session, data_len);
    Ok(())
}

/// Reads everything once and throws it away.
fn nbdcopy(socket: &Path) -> Result<()> {
    let mut command = system_program("nbdcopy");
    process::output(command.arg(inputs::nbd_uri(socket)).arg("null:"), "").map(drop)
}

/// Reads 4 KiB pieces one behind the other.
fn qemu_img(socket: &Path) -> Result<()> {
    let mut command = system_program("qemu-img");
    command.args(["bench", "-f", "raw", "-c", "50000", "-d", "16", "-s", "4096"]);
    process::output(command.arg(inputs::nbd_uri(socket)), "").map(drop)
}

/// Reads with fio for some seconds.
fn fio(
    socket: &Path,
    how: &str,
    bytes: &str,
    depth: u32,
    seconds: f64,
) -> Result<Vec<(&'static str, f64)>> {
    let mut command = system_program("fio");
    command.args(["--name=bench", "--ioengine=nbd", "--output-format=json", "--time_based"]);
    command.arg(format!("--uri={}", inputs::nbd_uri(socket)));
    command.arg(format!("--rw={how}")).arg(format!("--bs={bytes}"));
    command.arg(format!("--iodepth={depth}")).arg("--randseed=1");
    command.arg(format!("--runtime={}ms", (seconds * 1000.0) as u64));
    let text = process::output(&mut command, "")?;
    // Its warnings may stand before its answer.
    let json = text.find('{').map_or("", |at| &text[at..]);
    let failed = || Error::new(Kind::Invalid, "read", "fio's answer");
    let answer: serde_json::Value =
        serde_json::from_str(json).map_err(|source| failed().caused_by(source))?;
    let read = &answer["jobs"][0]["read"];
    let number = |value: &serde_json::Value| {
        value.as_f64().ok_or_else(|| failed().because("a number is missing"))
    };
    Ok(vec![
        ("mib_per_second", number(&read["bw_bytes"])? / f64::from(1 << 20)),
        ("reads_per_second", number(&read["iops"])?),
        ("mean_us", number(&read["lat_ns"]["mean"])? / 1000.0),
    ])
}

fn say(session: &mut Session, data_len: u64) {
    let mut lines = format!(
        "The disk: {data_len} bytes, all of it data. Larder's speed as a multiple of qemu-nbd's \
         (goal: 0.9 at least):\n\n"
    );
    let median = |name: &str, who: &str, column| {
        session.rows.median(&format!("{name}, {who}"), column).unwrap_or(0.0)
    };
    for (name, ..) in JOBS {
        let of = |who| median(name, who, "reads_per_second");
        lines += &format!("- {name}: {:.2}\n", of("larder") / of("qemu-nbd"));
    }
    for name in ["nbdcopy", "qemu-img bench 4k x16"] {
        let of = |who| median(name, who, "wall_seconds");
        lines += &format!("- {name}: {:.2}\n", of("qemu-nbd") / of("larder"));
    }
    session.notes.push(lines);
}
