//! A host's daemon: from the order to attach to the first byte, 64 attaches at once, memory.
//!
//! Orders go over the daemon's socket, so that no start of a process is measured.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use model::{Error, Kind, Result};
use serde_json::{Value, json};

use super::replay::{Call, Client};
use super::{Bench, Session, Size, inputs};
use crate::demo::larder::Larder;
use crate::process::{self, Registered};

pub const BENCH: Bench = Bench {
    name: "host",
    about: "A host's daemon: attach to first byte, 64 attaches at once, memory.",
    in_tests: true,
    tools: &[],
    run,
};

/// Connections that have not ended after this long are in the memory that is measured.
const CONNECTIONS_END_MAX: Duration = Duration::from_secs(5);

/// A daemon that runs.
struct Daemon {
    folder: PathBuf,
    child: Child,
    _registered: Registered,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        process::end(&mut self.child);
    }
}

impl Daemon {
    fn start(mut command: Command, folder: &Path) -> Result<Daemon> {
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let (mut child, registered) = process::start(&mut command)?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout)
                .read_line(&mut line)
                .map_err(|source| Error::io("start", "the daemon", source))?;
        }
        let daemon = Daemon { folder: folder.to_path_buf(), child, _registered: registered };
        match line.contains("ready") {
            true => Ok(daemon),
            false => Err(Error::new(Kind::Unavailable, "start", "the daemon")),
        }
    }

    fn ask(&self, request: &Value, answer: &str) -> Result<Value> {
        let failed = |source| Error::io("ask", "the daemon", source);
        let socket = self.folder.join("state/control");
        let mut stream = UnixStream::connect(socket).map_err(failed)?;
        writeln!(stream, "{request}").map_err(failed)?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).map_err(failed)?;
        let value: Value = serde_json::from_str(&line).unwrap_or_default();
        match value.get(answer) {
            Some(found) => Ok(found.clone()),
            None if value == answer => Ok(value),
            None => Err(Error::new(Kind::Invalid, "ask", "the daemon").because(line)),
        }
    }

    fn attach(&self, image: &str, mirror: &str, socket: &Path) -> Result<()> {
        let nbd = format!("unix:{}", socket.display());
        let record = json!({ "mirror": mirror, "nbd": nbd, "read_only": false });
        let repository = self.folder.join("repository");
        let order = json!({ "reference": image, "repository": repository, "record": record });
        self.ask(&json!({ "attach": order }), "attached").map(drop)
    }

    fn discard(&self, mirror: &str) -> Result<()> {
        let request = json!({ "detach": { "discard": true } });
        let request = json!({ "mirror": { "name": mirror, "request": request } });
        self.ask(&request, "detaching").map(drop)
    }

    /// Memory that it has in use, in MiB.
    fn memory(&self) -> f64 {
        self.status("VmRSS:")
    }

    /// The most that it had in use so far, in MiB.
    fn peak(&self) -> f64 {
        self.status("VmHWM:")
    }

    /// Connections end a moment after their clients. What it takes that long for in vain counts.
    fn wait_for_connections_to_end(&self) {
        let began = Instant::now();
        while began.elapsed() < CONNECTIONS_END_MAX && self.has_connections() {
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    fn has_connections(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let name = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("comm"));
        threads.is_ok_and(|mut threads| {
            threads.any(|thread| thread.and_then(name).is_ok_and(|name| name.trim() == "aside"))
        })
    }

    fn status(&self, name: &str) -> f64 {
        let path = format!("/proc/{}/status", self.child.id());
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        let kib: f64 = line.trim().trim_end_matches(" kB").parse().unwrap_or_default();
        kib / 1024.0
    }
}

fn run(session: &mut Session) -> Result<()> {
    let disk = inputs::disks(session)?.remove(0);
    let folder = session.folder.path().join("larder");
    let sockets = inputs::sockets()?;
    let larder = inputs::larder(session, "larder")?;
    larder.json(&["import", inputs::text(&disk)?, "image"])?;
    // Nothing but length: what takes longer there follows the length. ext4 has no file of 16 TiB.
    larder.json(&["create", "long", "--length", "1TiB"])?;
    larder.json(&["create", "longer", "--length", "15TiB"])?;
    let daemon = Daemon::start(larder.command(&["host", "run"]), &folder)?;
    let (rounds, count) = if session.size == Size::Full { (20, 64) } else { (2, 4) };
    let idle = daemon.memory();
    for image in ["image", "long", "longer"] {
        for round in 0..rounds {
            let socket = sockets.path().join("one");
            let began = Instant::now();
            daemon.attach(image, "one", &socket)?;
            let attached = began.elapsed();
            Client::connect(&socket)?.replay(&[Call::Read { offset: 0, len: 4096 }], 1)?;
            let columns = vec![
                ("attach_ms", attached.as_secs_f64() * 1000.0),
                ("first_byte_ms", began.elapsed().as_secs_f64() * 1000.0),
            ];
            let contender = match image {
                "long" => "1 TiB of zeros".to_owned(),
                "longer" => "15 TiB of zeros".to_owned(),
                _ => inputs::text(&disk)?.rsplit('/').next().unwrap_or_default().to_owned(),
            };
            session.rows.add(super::rows::Row { contender, round, columns });
            daemon.discard("one")?;
        }
    }
    for round in 0..rounds.min(5) {
        let began = Instant::now();
        let before = daemon.memory();
        let attached: Vec<Result<()>> = std::thread::scope(|scope| {
            let attaches: Vec<_> = (0..count)
                .map(|index| {
                    let (daemon, socket) = (&daemon, sockets.path().join(index.to_string()));
                    scope.spawn(move || daemon.attach("image", &format!("m{index}"), &socket))
                })
                .collect();
            attaches
                .into_iter()
                .map(|attach| {
                    attach.join().unwrap_or_else(|_| {
                        Err(Error::new(Kind::Bug, "attach", "a mirror").because("a panic"))
                    })
                })
                .collect()
        });
        attached.into_iter().collect::<Result<()>>()?;
        let seconds = began.elapsed().as_secs_f64();
        let memory = daemon.memory();
        let columns = vec![
            ("wall_seconds", seconds),
            ("memory_mib", memory),
            ("mib_for_each_mirror", (memory - before) / f64::from(count)),
        ];
        let contender = format!("{count} attaches at once");
        session.rows.add(super::rows::Row { contender, round, columns });
        for index in 0..count {
            daemon.discard(&format!("m{index}"))?;
        }
    }
    let note = format!("The daemon has {idle:.1} MiB in use before the first attach.");
    session.notes.push(note);
    drop(daemon);
    touch(session, &larder, &folder, &sockets.path().join("touched"))
}

/// The blocks that are written, and then read and written again: one in each of these.
const TOUCHED_LEN: u64 = 64 << 10;
/// Connections to each mirror, where several read at once.
const CONNECTIONS: u64 = 4;
/// Requests of 1 MiB that each of them has under way.
const UNDER_WAY: usize = 4;

/// What mirrors take that have been read and written throughout. Each number is of a daemon of its own,
/// so that none has what another gave back.
fn touch(session: &mut Session, larder: &Larder, folder: &Path, socket: &Path) -> Result<()> {
    let gib = 1 << 30;
    let (short, long) =
        if session.size == Size::Full { (gib, 10 * gib) } else { (8 << 20, 64 << 20) };
    for (image, length, seed) in [("short", short, 1), ("a", long, 2), ("b", long, 3)] {
        let image = format!("touched-{image}");
        larder.json(&["create", &image, "--length", &length.to_string()])?;
        let daemon = Daemon::start(larder.command(&["host", "run"]), folder)?;
        daemon.attach(&image, "writer", socket)?;
        write_throughout(socket, length, seed)?;
        let written = daemon.memory();
        larder.json(&["commit", "writer"])?;
        let columns = vec![("written_mib", written), ("peak_mib", daemon.peak())];
        let contender = format!("{image}, {} MiB committed", (length / TOUCHED_LEN * 4096) >> 20);
        session.rows.add(super::rows::Row { contender, round: 0, columns });
        daemon.discard("writer")?;
    }
    for (image, length) in [("touched-short", short), ("touched-a", long)] {
        let daemon = Daemon::start(larder.command(&["host", "run"]), folder)?;
        let idle = daemon.memory();
        daemon.attach(image, "reader", socket)?;
        Client::connect(socket)?.replay(&reads(0..length), UNDER_WAY)?;
        let read = daemon.memory();
        write_throughout(socket, length, 9)?;
        let columns = vec![
            ("idle_mib", idle),
            ("read_mib", read),
            ("read_and_written_mib", daemon.memory()),
            ("peak_mib", daemon.peak()),
        ];
        daemon.discard("reader")?;
        let contender = format!("a mirror of {} MiB, touched throughout", length >> 20);
        session.rows.add(super::rows::Row { contender, round: 0, columns });
    }
    let daemon = Daemon::start(larder.command(&["host", "run"]), folder)?;
    let idle = daemon.memory();
    read_two_at_once(&daemon, socket, long)?;
    daemon.wait_for_connections_to_end();
    let columns =
        vec![("idle_mib", idle), ("read_mib", daemon.memory()), ("peak_mib", daemon.peak())];
    let contender = format!("two mirrors of {} MiB, read at once", long >> 20);
    session.rows.add(super::rows::Row { contender, round: 0, columns });
    Ok(())
}

/// Writes a block of noise into each part of a mirror.
fn write_throughout(socket: &Path, length: u64, seed: u64) -> Result<()> {
    let mut client = Client::connect(socket)?;
    let mut noise = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    let mut block = [0; 4096];
    for part in 0..length / TOUCHED_LEN {
        noise.fill(&mut block);
        client.write_once(part * TOUCHED_LEN, &block)?;
    }
    client.replay(&[Call::Flush], 1).map(drop)
}

fn reads(range: std::ops::Range<u64>) -> Vec<Call> {
    let read = |at| Call::Read { offset: at << 20, len: 1 << 20 };
    (range.start >> 20..range.end >> 20).map(read).collect()
}

fn read_two_at_once(daemon: &Daemon, socket: &Path, length: u64) -> Result<()> {
    let mirrors = ["a", "b"].map(|image| (image, socket.with_extension(image)));
    for (image, socket) in &mirrors {
        daemon.attach(&format!("touched-{image}"), image, socket)?;
    }
    let part_len = length / CONNECTIONS;
    std::thread::scope(|scope| {
        let readers =
            mirrors.iter().flat_map(|(_, socket)| (0..CONNECTIONS).map(move |n| (socket, n)));
        let reading: Vec<_> = readers
            .map(|(socket, part)| {
                let calls = reads(part * part_len..(part + 1) * part_len);
                scope.spawn(move || Client::connect(socket)?.replay(&calls, UNDER_WAY))
            })
            .collect();
        reading.into_iter().try_for_each(|reader| match reader.join() {
            Ok(read) => read.map(drop),
            Err(_) => Err(Error::new(Kind::Bug, "read", "a mirror").because("a panic")),
        })
    })
}
