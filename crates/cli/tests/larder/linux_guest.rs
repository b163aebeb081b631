//! A Linux guest that verifies its disks while their daemon dies and the repository goes away.
//!
//! ```text
//! Linux ─┬─ vda: its root file system ── NBD, which reconnects ─┐
//!        ├─ vdb ── vhost-user, which reconnects ────────────────┼─► larder host run ─► repository
//!        └─ vdc ── NBD, reads fail after a second ──────────────┘   killed, upgraded   goes away
//! ```
//!
//! fio verifies on vda and vdb all the time. What the guest is asked over its second serial port and
//! says there is told with the image's recipe, in `xtask/src/images/verify.rs`.
//!
//! The test needs that image, in `LARDER_VERIFY_IMAGE`: `cargo xtask test` makes it once and names it.
//! `LARDER_SOAK_SECONDS` makes it long; `cargo xtask soak survival` sets that.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::harness::{HostDaemon, Larder, Process, Random};
use crate::soak::Times;

const PIECE: usize = 256 << 10;
/// Pieces of the second disk. fio works on the first few; the last are asked for first, so that
/// nothing is fetched ahead.
const PIECE_COUNT: usize = 512;
const VERIFIED_PIECE_COUNT: usize = 32;
/// The longest that the guest may take from its power switch to its first verified round.
const BOOT_MAX: Duration = Duration::from_secs(300);
/// The longest that it may take to go on; the slowest processor is meant.
const WAY_BACK_MAX: Duration = Duration::from_secs(180);

struct Guest {
    _qemu: Process,
    port: UnixStream,
    lines: Receiver<String>,
    pass_count: u64,
    /// Asked for and not answered yet.
    open: Vec<(&'static str, usize)>,
    /// The digest of each answer, none where a read failed.
    answers: HashMap<(String, usize), Option<String>>,
}

impl Guest {
    fn start(larder: &Larder) -> Guest {
        let node = "{\"driver\":\"nbd\",\"server\":{\"type\":\"unix\",\"path\":\"NAME.sock\"},\
                    \"export\":\"NAME\",\"node-name\":\"NAME\",\"reconnect-delay\":86400}";
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.current_dir(larder.path(""))
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
            .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "512"])
            .args(["-machine", "pc,memory-backend=memory"])
            .args(["-object", "memory-backend-memfd,id=memory,size=512M,share=on"])
            .args(["-chardev", "socket,id=data,path=data.sock,reconnect=1"])
            .args(["-blockdev", &node.replace("NAME", "root")])
            .args(["-blockdev", &node.replace("NAME", "hasty")])
            // In this order Linux calls them vda, vdb and vdc.
            .args(["-device", "virtio-blk-pci,drive=root,bootindex=0"])
            .args(["-device", "vhost-user-blk-pci,chardev=data"])
            .args(["-device", "virtio-blk-pci,drive=hasty"]);
        qemu.args(["-serial", "file:console.log"])
            .args(["-chardev", "socket,id=port,path=port.sock,server=on,wait=off"])
            .args(["-serial", "chardev:port"])
            .stdin(Stdio::null());
        let mut qemu = Process::start(&mut qemu);
        let mut port = None;
        assert!(qemu.runs_until(|| {
            port = UnixStream::connect(larder.path("port.sock")).ok();
            port.is_some()
        }));
        let port = port.unwrap();
        let (send, lines) = channel();
        let said = BufReader::new(port.try_clone().unwrap());
        std::thread::spawn(move || {
            for line in said.lines().map_while(Result::ok) {
                // Nobody listens any more when the test is over.
                let _told = send.send(line);
            }
        });
        let (open, answers) = (Vec::new(), HashMap::new());
        Guest { _qemu: qemu, port, lines, pass_count: 0, open, answers }
    }

    fn ask(&mut self, disk: &'static str, piece: usize) {
        writeln!(self.port, "{disk} {piece}").unwrap();
        self.open.push((disk, piece));
    }

    fn take(&mut self, line: &str) {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["up"] | [] => (),
            ["pass", _] => self.pass_count += 1,
            ["sum", disk, piece, digest] => self.answered(disk, piece, Some(digest)),
            ["failed", disk, piece] => self.answered(disk, piece, None),
            _ => panic!("the guest says: {line}"),
        }
    }

    fn answered(&mut self, disk: &str, piece: &str, digest: Option<&str>) {
        let piece = piece.parse().unwrap();
        self.open.retain(|open| *open != (disk, piece));
        self.answers.insert((disk.to_string(), piece), digest.map(str::to_string));
    }

    /// Listens for a time.
    fn pass(&mut self, time: Duration) {
        let end = Instant::now() + time;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => self.take(&line),
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => panic!("the guest has ended"),
            }
        }
    }

    /// Listens until something holds.
    fn until(&mut self, limit: Duration, what: &str, mut holds: impl FnMut(&Guest) -> bool) {
        let end = Instant::now() + limit;
        while !holds(self) {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => self.take(&line),
                Err(error) => panic!("waited in vain until {what}: {error}"),
            }
        }
    }

    fn answer(&mut self, disk: &'static str, piece: usize) -> Option<String> {
        let key = (disk.to_string(), piece);
        self.until(WAY_BACK_MAX, "it answers", |guest| guest.answers.contains_key(&key));
        self.answers.remove(&key).unwrap()
    }
}

/// The side of those who disturb.
struct Disturbance<'a> {
    larder: &'a Larder,
    guest: Guest,
    daemon: Option<HostDaemon>,
    bytes: &'a [u8],
    next_piece: usize,
    way_back_max: Duration,
    failed_count: usize,
}

impl Disturbance<'_> {
    fn program(&self) -> PathBuf {
        self.larder.path("larder")
    }

    fn start_daemon(&mut self) {
        self.daemon = Some(start_daemon(self.larder, &self.program()));
    }

    fn new_piece(&mut self) -> usize {
        self.next_piece -= 1;
        assert!(self.next_piece > VERIFIED_PIECE_COUNT, "all of the disk has been read");
        self.next_piece
    }

    fn digest(&self, piece: usize) -> String {
        self.larder.write("piece", &self.bytes[piece * PIECE..][..PIECE]);
        self.larder.shell("md5sum < piece").split_whitespace().next().unwrap().to_string()
    }

    /// The disturbance is over: what was asked for before comes, and both disks are verified again.
    fn goes_on(&mut self, piece: usize) {
        let start = Instant::now();
        let digest = self.guest.answer("vdb", piece);
        self.way_back_max = self.way_back_max.max(start.elapsed());
        assert_eq!(digest, Some(self.digest(piece)), "piece {piece}");
    }

    /// Waits for rounds that began after this.
    fn verifies(&mut self) {
        let enough = self.guest.pass_count + 2;
        self.guest.until(WAY_BACK_MAX, "it verifies", |guest| guest.pass_count >= enough);
    }

    fn kill(&mut self, away: Duration) {
        let piece = self.new_piece();
        self.guest.ask("vdb", piece);
        self.daemon.take().unwrap().kill();
        self.guest.pass(away);
        self.start_daemon();
        self.goes_on(piece);
    }

    /// Another file takes the program's place; the daemon is told to end, and the next one starts.
    fn upgrade(&mut self) {
        std::fs::copy(env!("CARGO_BIN_EXE_larder"), self.larder.path("larder.new")).unwrap();
        std::fs::rename(self.larder.path("larder.new"), self.program()).unwrap();
        let piece = self.new_piece();
        self.guest.ask("vdb", piece);
        self.daemon.take().unwrap().stop();
        self.start_daemon();
        self.goes_on(piece);
    }

    /// The repository is away for a time: one disk's reads wait, the other's fail, and both are right
    /// when it is back.
    fn lose_repository(&mut self, away: Duration, how: Loss, is_killed: bool) {
        how.begin(self.larder);
        let (waiting, failing) = (self.new_piece(), self.new_piece());
        self.guest.ask("vdb", waiting);
        self.guest.ask("vdc", failing);
        assert_eq!(self.guest.answer("vdc", failing), None, "a read whose time is over fails");
        self.failed_count += 1;
        self.guest.pass(away / 2);
        if is_killed {
            self.daemon.take().unwrap().kill();
            self.start_daemon();
        }
        self.guest.pass(away / 2);
        assert!(self.guest.open.contains(&("vdb", waiting)), "a read that waits has come");
        how.end(self.larder);
        self.goes_on(waiting);
        self.guest.ask("vdc", failing);
        assert_eq!(self.guest.answer("vdc", failing), Some(self.digest(failing)));
    }
}

/// How a repository goes away.
#[derive(Clone, Copy)]
enum Loss {
    /// Its folder has another name for a time.
    Folder,
    /// The decorator of its store says so.
    Link,
}

impl Loss {
    fn begin(self, larder: &Larder) {
        match self {
            Loss::Folder => {
                std::fs::rename(larder.path("repo"), larder.path("elsewhere")).unwrap();
            }
            Loss::Link => larder.write("away", b""),
        }
    }

    fn end(self, larder: &Larder) {
        match self {
            Loss::Folder => {
                std::fs::rename(larder.path("elsewhere"), larder.path("repo")).unwrap();
            }
            Loss::Link => std::fs::remove_file(larder.path("away")).unwrap(),
        }
    }
}

fn start_daemon(larder: &Larder, program: &Path) -> HostDaemon {
    larder.daemon_of(program, "--metrics ./metrics", &[("LARDER_LINK", "away=away")])
}

#[test]
#[ignore = "boots a Linux; `cargo xtask test` makes its image and runs it"]
fn a_linux_guest_stalls_and_goes_on_without_a_wrong_byte_on_both_doors() {
    let image = std::env::var("LARDER_VERIFY_IMAGE").expect("the image's path");
    let times = Times::asked_for(Duration::from_secs(3), 2, Duration::from_secs(4));
    let larder = Larder::new();
    let bytes = Random::new(43).bytes(PIECE_COUNT * PIECE);
    larder.write("data.raw", &bytes);
    larder.json("import data.raw data");
    larder.json(&format!("import {image} linux"));
    let program = larder.path("larder");
    std::fs::copy(env!("CARGO_BIN_EXE_larder"), &program).unwrap();
    let daemon = start_daemon(&larder, &program);
    larder.run("attach linux --mirror root --nbd ./root.sock --detach");
    larder.run("attach data --mirror data --vhost-user ./data.sock --detach");
    larder.run("attach data --mirror hasty --nbd ./hasty.sock --fetch-timeout 1 --detach");
    let start = Instant::now();
    let mut disturbance = Disturbance {
        larder: &larder,
        guest: Guest::start(&larder),
        daemon: Some(daemon),
        bytes: &bytes,
        next_piece: PIECE_COUNT,
        way_back_max: Duration::ZERO,
        failed_count: 0,
    };
    disturbance.guest.until(BOOT_MAX, "it has verified once", |guest| guest.pass_count > 0);
    let boot = start.elapsed();
    let pause = times.each / times.count;
    for _ in 0..times.count {
        disturbance.guest.pass(pause / 2);
        disturbance.kill(pause / 2);
    }
    disturbance.verifies();
    for _ in 0..times.count {
        disturbance.guest.pass(pause);
        disturbance.upgrade();
    }
    disturbance.verifies();
    disturbance.lose_repository(times.outage, Loss::Folder, false);
    disturbance.lose_repository(times.outage / 10, Loss::Folder, true);
    disturbance.lose_repository(times.outage / 10, Loss::Link, false);
    disturbance.verifies();
    // For the report of a long run.
    let _shown = writeln!(
        std::io::stderr(),
        "Linux: verified after {boot:?}; kills {}, upgrades {}, outages of {:?}, {:?} and {:?}; rounds \
         verified {}, pieces compared {}, reads that failed by policy {}, longest way back {:?}",
        times.count + 1,
        times.count,
        times.outage,
        times.outage / 10,
        times.outage / 10,
        disturbance.guest.pass_count,
        PIECE_COUNT - disturbance.next_piece,
        disturbance.failed_count,
        disturbance.way_back_max,
    );
    let Disturbance { guest, daemon, .. } = disturbance;
    drop(guest);
    let daemon = daemon.unwrap();
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
    daemon.stop();
}
