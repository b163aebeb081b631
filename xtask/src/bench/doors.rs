//! Every door of a mirror that has everything present, beside its peers and the raw file itself.
//!
//! ```text
//! fio ── NBD ──► larder | qemu-nbd on the raw file | qemu-nbd on a qcow2 overlay
//! fio ── file ─► larder's FUSE: the version, the mirror | the raw file
//! load ─ vhost ► larder | qemu-storage-daemon on the raw file | on a qcow2 overlay
//! ```
//!
//! The disk is the data of an image without its holes, so that every read is of real bytes. All are
//! read once before, so that every byte is in the page cache, unless a row says that it was dropped.
//! Each writes to a file of its own.

pub mod fio;
mod table;

use std::path::{Path, PathBuf};
use std::time::Instant;

use model::{Error, Kind, Result};

use self::fio::{Job, Target};
use self::table::{Goal, Table};
use super::qemu_nbd::QemuNbd;
use super::rows::Contender;
use super::storage_daemon::StorageDaemon;
use super::{Bench, Session, Size, inputs, vhost};
use crate::process;
use crate::workspace::system_program;

pub const BENCH: Bench = Bench {
    name: "doors",
    about: "Every door of a mirror with everything present, beside its peers and the raw file.",
    in_tests: true,
    tools: &["qemu-nbd", "qemu-storage-daemon", "fio", "nbdcopy"],
    run,
};

const NBD_READS: &[Job] = &[
    Job::new("NBD read seq 64k x1", "read", "64k", 1),
    Job::new("NBD read seq 64k x16", "read", "64k", 16),
    Job::new("NBD read seq 1M x4", "read", "1M", 4),
    Job::new("NBD read random 4k x1", "randread", "4k", 1),
    Job::new("NBD read random 4k x16", "randread", "4k", 16),
];
const WRITES: &[Job] = &[
    Job::new("write random 4k x1", "randwrite", "4k", 1),
    Job::new("write random 4k x16", "randwrite", "4k", 16),
];
const FILE_READS: &[Job] = &[
    Job::new("FUSE read seq 1M", "read", "1M", 1),
    Job::new("FUSE read seq 64k", "read", "64k", 1),
    Job::new("FUSE read random 4k x1", "randread", "4k", 1),
    Job::new("FUSE read random 4k x4", "randread", "4k", 4),
    Job::new("FUSE read seq 1M, dropped", "read", "1M", 1).dropped(),
    Job::new("FUSE read random 4k x4, dropped", "randread", "4k", 4).dropped(),
];
const VHOST: &[vhost::Job] = &[
    ("read", "random", 4096, 1),
    ("read", "random", 4096, 32),
    ("write", "random", 4096, 1),
    ("write", "random", 4096, 32),
];

/// Rounds, and seconds of a measurement.
type Pace = (u32, f64);

fn run(session: &mut Session) -> Result<()> {
    let disks = inputs::disks(session)?;
    let folder = session.folder.path().to_path_buf();
    let sockets = inputs::sockets()?;
    let data = folder.join("data");
    let data_len = inputs::write_data_of(&disks[0], &data)?;
    let larder = inputs::larder(session, "larder")?;
    larder.json(&["import", inputs::text(&data)?, "data"])?;
    let pace = if session.size == Size::Full { (5, 0.8) } else { (1, 0.1) };
    let mut table = Table::default();
    let at = |name: &str| sockets.path().join(name);
    {
        let mirror = larder.attach("data", "nbd", &at("larder"))?;
        nbdcopy(&at("larder"))?;
        let fetched = larder.mirror("nbd")?.number("fetched_bytes")?;
        nbd_reads(session, &mut table, pace, &data, &at("larder"), &at("qemu"))?;
        if larder.mirror("nbd")?.number("fetched_bytes")? != fetched {
            return Err(Error::new(Kind::Invalid, "measure", "the mirror")
                .because("something was fetched, so not everything was present"));
        }
        mirror.detach()?;
    }
    let mount = folder.join("mount");
    std::fs::create_dir(&mount)
        .map_err(|source| Error::io("make", mount.display().to_string(), source))?;
    {
        let served = larder.attach_at("--fuse", "data", "reads", &mount, &["--read-only"])?;
        let base = base(&folder.join("larder/state"))?;
        file_reads(session, &mut table, pace, &data, &mount.join("data/1"), &base)?;
        served.detach()?;
    }
    {
        let served = larder.attach_at("--fuse", "data", "fuse", &mount, &[])?;
        let nbd = larder.attach("data", "writes", &at("writes"))?;
        let file = mount.join("mirrors/fuse");
        writes(session, &mut table, pace, &data, &file, &at("writes"), &at("qemu"))?;
        nbd.detach()?;
        served.detach()?;
    }
    let mirror = larder.attach_at("--vhost-user", "data", "vhost", &at("vhost"), &[])?;
    vhost_jobs(session, &mut table, pace, &data, &at("vhost"), &at("daemon"))?;
    mirror.detach()?;
    session.notes.push(format!("The disk: {data_len} bytes, all of it data."));
    session.notes.push(table.as_text(&session.rows));
    Ok(())
}

/// The file of the only base of a state folder.
fn base(state: &Path) -> Result<PathBuf> {
    let bases = state.join("bases");
    let failed = |source| Error::io("list", bases.display().to_string(), source);
    let entries = std::fs::read_dir(&bases).map_err(failed)?;
    let mut files = entries.flatten().map(|entry| entry.path().join("data"));
    files.find(|file| file.exists()).ok_or_else(|| {
        Error::new(Kind::NotFound, "find", "the mirror's base").because(bases.display().to_string())
    })
}

/// A copy of the data, to be written to.
fn copy(data: &Path, name: &str) -> Result<PathBuf> {
    let copy = data.with_file_name(name);
    std::fs::copy(data, &copy)
        .map_err(|source| Error::io("copy", data.display().to_string(), source))?;
    inputs::settle();
    Ok(copy)
}

/// A qcow2 overlay over the data.
pub fn overlay(data: &Path, name: &str) -> Result<PathBuf> {
    let overlay = data.with_file_name(name);
    let mut command = system_program("qemu-img");
    command.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]);
    process::run(command.arg(data).arg(&overlay))?;
    Ok(overlay)
}

/// Measures one job at several places, in turn.
fn alternate(
    session: &mut Session,
    job: &Job,
    (rounds, seconds): Pace,
    targets: &[(&str, Target<'_>)],
) -> Result<()> {
    let mut contenders: Vec<Contender<'_>> = Vec::new();
    for (who, target) in targets {
        let measure = move || job.run(target, seconds);
        contenders.push((format!("{}, {who}", job.name), Box::new(measure)));
    }
    session.rows.alternate(rounds, &mut contenders)
}

fn nbd_reads(
    session: &mut Session,
    table: &mut Table,
    pace: Pace,
    data: &Path,
    larder: &Path,
    socket: &Path,
) -> Result<()> {
    let peer = QemuNbd::start(data, "raw", socket)?;
    nbdcopy(peer.socket())?;
    let targets = [
        ("larder", Target::Nbd(larder)),
        ("qemu-nbd", Target::Nbd(peer.socket())),
        ("raw file", Target::File(data, data)),
    ];
    for job in NBD_READS {
        alternate(session, job, pace, &targets)?;
        table.add(job.name, "larder", "qemu-nbd", Goal::AtLeast(1.0));
        table.add(job.name, "larder", "raw file", Goal::None);
    }
    type Client = fn(&Path) -> Result<()>;
    let whole: [(&str, Client); 2] = [("nbdcopy", nbdcopy), ("qemu-img bench 4k x16", qemu_img)];
    for (name, client) in whole {
        let mut contenders: Vec<Contender<'_>> = Vec::new();
        for (who, socket) in [("larder", larder), ("qemu-nbd", peer.socket())] {
            let measure = move || {
                let began = Instant::now();
                client(socket)?;
                let seconds = began.elapsed().as_secs_f64();
                Ok(vec![("wall_seconds", seconds), ("requests_per_second", 1.0 / seconds)])
            };
            contenders.push((format!("{name}, {who}"), Box::new(measure)));
        }
        let rounds = if session.size == Size::Full { 3 * pace.0 } else { pace.0 };
        session.rows.alternate(rounds, &mut contenders)?;
        table.add(name, "larder", "qemu-nbd", Goal::AtLeast(1.0));
    }
    Ok(())
}

fn file_reads(
    session: &mut Session,
    table: &mut Table,
    pace: Pace,
    data: &Path,
    version: &Path,
    base: &Path,
) -> Result<()> {
    // The first reading brings what is missing, through larder; the next ones may pass it by.
    for path in [version, data] {
        process::run(system_program("cmp").arg(path).arg(data))?;
    }
    let open = std::fs::File::open(version)
        .map_err(|source| Error::io("open", version.display().to_string(), source))?;
    let passed = base.parent().and_then(|folder| std::fs::read_dir(folder).ok()).is_some_and(
        |mut entries| {
            entries.any(|entry| {
                entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("held."))
            })
        },
    );
    session.notes.push(match passed {
        true => "The kernel read the version by itself (FUSE passthrough).".to_owned(),
        false => "The version was read through larder: no FUSE passthrough here.".to_owned(),
    });
    for job in FILE_READS {
        let mut targets =
            vec![("larder", Target::File(version, base)), ("raw file", Target::File(data, data))];
        let (mut rounds, seconds) = pace;
        if job.is_dropped {
            // The disk decides, and others use it: more rounds, and what the same bytes take without a door.
            targets.push(("base's file", Target::File(base, base)));
            rounds *= 3;
        }
        alternate(session, job, (rounds, seconds), &targets)?;
        table.add(job.name, "larder", "raw file", Goal::AtLeast(0.95));
        if job.is_dropped {
            table.add(job.name, "larder", "base's file", Goal::None);
        }
    }
    drop(open);
    Ok(())
}

fn writes(
    session: &mut Session,
    table: &mut Table,
    pace: Pace,
    data: &Path,
    fuse: &Path,
    nbd: &Path,
    socket: &Path,
) -> Result<()> {
    let [plain, served] = [copy(data, "plain")?, copy(data, "served")?];
    let raw = QemuNbd::start(&served, "raw", &socket.with_extension("raw"))?;
    let qcow2 = overlay(data, "nbd.qcow2")?;
    let qcow2 = QemuNbd::start(&qcow2, "qcow2", &socket.with_extension("qcow2"))?;
    let targets = [
        ("larder NBD", Target::Nbd(nbd)),
        ("larder FUSE", Target::File(fuse, fuse)),
        ("larder FUSE, direct", Target::Direct(fuse)),
        ("qcow2, qemu-nbd", Target::Nbd(qcow2.socket())),
        ("raw, qemu-nbd", Target::Nbd(raw.socket())),
        ("raw file", Target::File(&plain, &plain)),
    ];
    for job in WRITES {
        alternate(session, job, pace, &targets)?;
        for ours in ["larder NBD", "larder FUSE", "larder FUSE, direct"] {
            table.add(job.name, ours, "qcow2, qemu-nbd", Goal::AtLeast(1.0));
        }
        table.add(job.name, "larder NBD", "raw, qemu-nbd", Goal::None);
        table.add(job.name, "larder FUSE", "raw file", Goal::None);
    }
    Ok(())
}

fn vhost_jobs(
    session: &mut Session,
    table: &mut Table,
    (rounds, seconds): Pace,
    data: &Path,
    larder: &Path,
    socket: &Path,
) -> Result<()> {
    let raw_file = copy(data, "vhost.raw")?;
    let qcow2 = overlay(data, "vhost.qcow2")?;
    let [raw_at, qcow2_at] = ["raw", "qcow2"].map(|name| socket.with_extension(name));
    let _raw = StorageDaemon::start(&raw_file, "raw", &raw_at)?;
    let _qcow2 = StorageDaemon::start(&qcow2, "qcow2", &qcow2_at)?;
    let client = vhost::client(session.size)?;
    let servers = [("larder", larder), ("raw, daemon", &*raw_at), ("qcow2, daemon", &*qcow2_at)];
    for (_, at) in servers {
        vhost::load(&client, at, ("read", "sequential", 1 << 20, 1), 2.0 * seconds)?;
    }
    for job in VHOST {
        let title = format!("vhost {}", vhost::name(job));
        let mut contenders: Vec<Contender<'_>> = Vec::new();
        for (who, at) in servers {
            let client = &client;
            let measure = move || vhost::load(client, at, *job, seconds);
            contenders.push((format!("{title}, {who}"), Box::new(measure)));
        }
        session.rows.alternate(rounds, &mut contenders)?;
        table.add(&title, "larder", "raw, daemon", Goal::AtLeast(1.0));
        table.add(&title, "larder", "qcow2, daemon", Goal::AtLeast(1.0));
    }
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
