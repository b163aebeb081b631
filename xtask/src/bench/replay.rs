//! A boot's block trace, replayed without think times: a fresh mirror beside qemu-nbd.
//!
//! ```text
//!   guest --NBD--> recorder --> raw file          once
//!                     `-> trace --+--NBD--> larder attach, nothing present     each round
//!                                 `--NBD--> qemu-nbd, fresh copy of the file   each round
//! ```
//!
//! [`link`] replays it once more, the repository behind a link.
//!
//! **Invariants**: a mirror has a state folder of its own each round, so nothing is present; both
//! answer the same bytes, which a digest of the first 512 of each read checks where requests go one by one.

mod client;
mod kernel;
mod link;
mod recorder;
pub(super) mod trace;

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use attach::nbd::{Address, Export, NbdServer};
use guest::{Console, Drive, Guest, GuestConfig};
use model::{Error, Kind, Result};

pub use self::client::Client;
use self::recorder::Recorder;
pub use self::trace::Call;
use super::qemu_nbd::QemuNbd;
use super::rows::Contender;
use super::{Bench, Session, Size, inputs};
use crate::demo::larder::Larder;
use crate::workspace::system_program;
use crate::{images, process, workspace};

pub const BENCH: Bench = Bench {
    name: "replay",
    about: "The block trace of a boot without think times: a fresh mirror beside qemu-nbd.",
    in_tests: true,
    tools: &["qemu-nbd", "qemu-system-x86_64"],
    run,
};

/// How a trace is replayed.
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    /// Requests under way.
    depth: usize,
    /// Whether the page cache is emptied before each replay.
    cold: bool,
    /// Whether this host had a mirror of the version before, so that its base is there.
    known: bool,
    /// Whether the boot working set is known.
    set: bool,
}

const WAYS: &[Way] = &[
    Way { name: "one by one", depth: 1, cold: false, known: false, set: false },
    Way { name: "4 under way", depth: 4, cold: false, known: false, set: false },
    Way { name: "cold, one by one", depth: 1, cold: true, known: false, set: false },
    Way { name: "next mirror, one by one", depth: 1, cold: false, known: true, set: false },
    Way { name: "next mirror, 4 under way", depth: 4, cold: false, known: true, set: false },
    Way { name: "set known, one by one", depth: 1, cold: false, known: false, set: true },
    Way { name: "set known, 4 under way", depth: 4, cold: false, known: false, set: true },
    Way { name: "set known, cold, one by one", depth: 1, cold: true, known: false, set: true },
];

fn run(session: &mut Session) -> Result<()> {
    let disk = inputs::disks(session)?.remove(0);
    let calls = trace_of(session, &disk)?;
    let place = Place::new(session, "larder", &disk, calls)?;
    let rounds = if session.size == Size::Full { 9 } else { 1 };
    for way in WAYS {
        // Only root may empty the page cache, and nobody should in a test run.
        if way.cold && (session.size == Size::Small || !rustix::process::geteuid().is_root()) {
            continue;
        }
        if way.set && !place.has_set() {
            place.record_set()?;
        }
        let digests = RefCell::new(Vec::new());
        let mirror = || place.on_mirror(*way, &digests);
        let peer = || place.on_qemu_nbd(*way, &digests);
        let mut contenders: Vec<Contender<'_>> = vec![
            (format!("larder, {}", way.name), Box::new(mirror)),
            (format!("qemu-nbd, {}", way.name), Box::new(peer)),
        ];
        session.rows.alternate(rounds, &mut contenders)?;
        drop(contenders);
        let digests = digests.into_inner();
        if way.depth == 1 && digests.iter().any(|digest| *digest != digests[0]) {
            return Err(Error::new(Kind::Corrupt, "replay", "a trace")
                .because("the mirror and qemu-nbd answered different bytes"));
        }
    }
    say(session, &place.calls);
    link::run(session, &place)
}

/// What the rounds share.
struct Place {
    larder: Larder,
    state: PathBuf,
    copy: PathBuf,
    sockets: tempfile::TempDir,
    disk: PathBuf,
    calls: Vec<Call>,
}

impl Place {
    /// A repository of its own, with the disk in it.
    fn new(session: &Session, name: &str, disk: &Path, calls: Vec<Call>) -> Result<Place> {
        let length = disk.metadata().map(|meta| meta.len()).unwrap_or(0);
        client::check(&calls, length)?;
        let place = Place {
            larder: inputs::larder(session, name)?,
            state: session.folder.path().join(name).join("state"),
            copy: session.folder.path().join("copy.raw"),
            sockets: inputs::sockets()?,
            disk: disk.to_path_buf(),
            calls,
        };
        place.larder.json(&["import", inputs::text(disk)?, "image"])?;
        Ok(place)
    }
}

type Columns = Vec<(&'static str, f64)>;

impl Place {
    fn on_mirror(&self, way: Way, digests: &RefCell<Vec<blake3::Hash>>) -> Result<Columns> {
        let socket = self.sockets.path().join("mirror");
        if way.known {
            // A mirror of its own, whose changes go with it; the base stays.
            inputs::remove(&self.state.join("mirrors"))?;
        } else {
            inputs::remove(&self.state)?;
        }
        rest(way.cold)?;
        let began = Instant::now();
        let attached = self.larder.attach("image", "fresh", &socket)?;
        let attach = began.elapsed().as_secs_f64();
        let mut columns = self.replay(&socket, way.depth, digests)?;
        columns.push(("start_seconds", attach));
        let fetched = self.larder.mirror("fresh")?.number("fetched_bytes")?;
        columns.push(("fetched_mib", fetched as f64 / f64::from(1 << 20)));
        attached.detach()?;
        Ok(columns)
    }

    fn has_set(&self) -> bool {
        self.larder.json(&["boot-set", "show", "image"]).is_ok()
    }

    /// Records the trace as the version's boot working set.
    fn record_set(&self) -> Result<()> {
        inputs::remove(&self.state)?;
        let socket = self.sockets.path().join("mirror");
        let attached = self.larder.attach_with("image", "fresh", &socket, &["--record", "boot"])?;
        Client::connect(&socket)?.replay(&self.calls, 1)?;
        attached.detach()
    }

    fn on_qemu_nbd(&self, way: Way, digests: &RefCell<Vec<blake3::Hash>>) -> Result<Columns> {
        let mut command = system_program("cp");
        command.args(["--sparse=always", "--"]).arg(&self.disk).arg(&self.copy);
        process::run(&mut command)?;
        rest(way.cold)?;
        let began = Instant::now();
        let peer = QemuNbd::start(&self.copy, "raw", &self.sockets.path().join("qemu"))?;
        let start = began.elapsed().as_secs_f64();
        let mut columns = self.replay(peer.socket(), way.depth, digests)?;
        columns.push(("start_seconds", start));
        drop(peer);
        inputs::remove(&self.copy)?;
        Ok(columns)
    }

    fn replay(
        &self,
        socket: &Path,
        depth: usize,
        digests: &RefCell<Vec<blake3::Hash>>,
    ) -> Result<Columns> {
        let client = Client::connect(socket)?;
        let began = Instant::now();
        let digest = client.replay(&self.calls, depth)?;
        let wall = began.elapsed().as_secs_f64();
        digests.borrow_mut().push(digest);
        Ok(vec![("replay_seconds", wall)])
    }
}

/// Lets no one pay for another's writes; empties the page cache where asked.
fn rest(cold: bool) -> Result<()> {
    inputs::settle();
    if cold {
        let path = "/proc/sys/vm/drop_caches";
        fs::write(path, "3").map_err(|source| Error::io("write", path, source))?;
    }
    Ok(())
}

/// The calls that a bench replays: of a real boot, or made up for a small disk.
pub(super) fn trace_of(session: &mut Session, disk: &Path) -> Result<Vec<Call>> {
    match session.size {
        Size::Small => Ok(made_up()),
        Size::Full => boot_trace(session, disk, Boot::FromDisk),
    }
}

/// Where a guest's kernel comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Boot {
    /// From the disk, by a boot loader.
    FromDisk,
    /// From the host, with its initrd, as clouds and micro virtual machines do it.
    KernelGiven,
}

/// The calls of a boot up to the login prompt: as recorded before, or recorded now.
fn boot_trace(session: &mut Session, disk: &Path, boot: Boot) -> Result<Vec<Call>> {
    let stem = disk.file_stem().unwrap_or_default().to_string_lossy();
    let (ending, attachment) = match boot {
        Boot::FromDisk => ("trace", "boot.trace"),
        Boot::KernelGiven => ("kernel-given.trace", "kernel-given.trace"),
    };
    let kept = workspace::target().join("images").join(format!("{stem}.{ending}"));
    let calls = match fs::read_to_string(&kept) {
        Ok(text) => trace::from_text(&text)?,
        Err(_) => {
            let calls = record(session, disk, boot)?;
            fs::write(&kept, trace::to_text(&calls))
                .map_err(|source| Error::io("write", kept.display().to_string(), source))?;
            calls
        }
    };
    session.attachments.push((attachment, trace::to_text(&calls)));
    Ok(calls)
}

fn record(session: &Session, disk: &Path, boot: Boot) -> Result<Vec<Call>> {
    println!("recording a boot");
    let copy = session.folder.path().join("recorded.raw");
    let sockets = inputs::sockets()?;
    let socket = sockets.path().join("recorder");
    let mut command = system_program("cp");
    process::run(command.args(["--sparse=always", "--"]).arg(disk).arg(&copy))?;
    let recorder = Arc::new(Recorder::open(&copy)?);
    let device: Arc<dyn model::device::Device> = Arc::<Recorder>::clone(&recorder);
    let export = Export { name: String::new(), device, description: String::new() };
    let server = NbdServer::start(&Address::Unix(socket.clone()), vec![export])?;
    let drive = Drive::NbdUnix { socket, export: String::new(), read_only: false };
    let mut config = GuestConfig::new(vec![drive], Console::Scripted);
    if boot == Boot::KernelGiven {
        config.extra_arguments = kernel::arguments(disk, session.folder.path())?;
    }
    let mut guest = Guest::start(&config)?;
    let registered = process::register(guest.pid())?;
    guest.console()?.wait_for("login: ", images::BOOT_MAX)?;
    let calls = recorder.calls();
    drop((guest, registered, server));
    inputs::remove(&copy)?;
    Ok(calls)
}

/// Calls of all kinds on a disk of 16 MiB.
fn made_up() -> Vec<Call> {
    let mut calls = Vec::new();
    for step in 0..200_u64 {
        let offset = step * 7919 % 4000 * 4096;
        calls.push(match step % 10 {
            8 => Call::Write { offset: offset + 512, len: 5000 },
            9 => Call::Flush,
            6 if step % 30 == 6 => Call::Zeroes { offset, len: 8192 },
            6 if step % 30 == 16 => Call::Discard { offset, len: 8192 },
            _ => Call::Read { offset, len: 16384 },
        });
    }
    calls
}

fn say(session: &mut Session, calls: &[Call]) {
    let mut text = format!(
        "The trace: {}. A mirror starts with nothing present, qemu-nbd with a fresh copy of the \
         whole file; a next mirror finds what an earlier one on the host has fetched; with the set known, the blocks of an earlier boot are brought by the boot working set. Time on the mirror as a multiple of qemu-nbd's (goal: 1.3 at most):\n\n",
        trace::summary(calls)
    );
    for Way { name, .. } in WAYS {
        let of = |who: &str| session.rows.median(&format!("{who}, {name}"), "replay_seconds");
        if let (Some(mirror), Some(peer)) = (of("larder"), of("qemu-nbd")) {
            text += &format!("- {name}: {:.2}\n", mirror / peer);
        }
    }
    session.notes.push(text);
}
