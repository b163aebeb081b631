//! `fio --verify` while daemons are killed and upgraded, and the repository goes away.
//!
//! ```text
//! fio ──┐                     ┌── NBD, which reconnects ──┐
//!       ├─► QEMU's block layer┘                           └─► larder host run ─► repository
//! reader┘   (qemu-storage-daemon)                    killed, upgraded        goes away
//! ```
//!
//! The guest's side of a real virtual machine is QEMU's block layer; here it runs alone, so that a
//! real program can verify at full speed what a guest would see; a whole Linux is in `linux_guest`.
//! `LARDER_SOAK_SECONDS` and `LARDER_SOAK_OUTAGE_SECONDS` say how long all of it takes, and for how
//! long of that the repository is away; `cargo xtask soak survival` sets both.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use crate::daemon::metric;
use crate::harness::{HostDaemon, LIMIT, Larder, Process, Random};
use crate::nbd_client::NbdClient;

const CHUNK: usize = 256 << 10;

/// How long a run is.
pub struct Times {
    /// For how long daemons are killed; upgrades take as long again.
    pub each: Duration,
    /// Kills, and upgrades, in that time.
    pub count: u32,
    /// For how long the repository is away.
    pub outage: Duration,
    is_long: bool,
}

/// From one kill to the next in a long run.
const KILLS_APART: Duration = Duration::from_secs(5);

impl Times {
    /// What is asked for, or what is given.
    pub fn asked_for(each: Duration, count: u32, outage: Duration) -> Times {
        let seconds = |name| {
            let text = std::env::var(name).ok()?;
            Some(Duration::from_secs(text.parse().expect("a number of seconds")))
        };
        let Some(all) = seconds("LARDER_SOAK_SECONDS") else {
            return Times { each, count, outage, is_long: false };
        };
        let outage = seconds("LARDER_SOAK_OUTAGE_SECONDS").unwrap_or(all / 3);
        // Shorter outages follow the long one.
        let each = all.saturating_sub(outage * 12 / 10) / 2;
        let count = (each.as_secs() / KILLS_APART.as_secs()).max(1) as u32;
        Times { each, count, outage, is_long: true }
    }

    /// Bytes of the disk; fio works on the first half, the reader fetches the second.
    fn len(&self) -> usize {
        if self.is_long { 256 << 20 } else { 16 << 20 }
    }
}

/// What goes on beside the disturbances.
struct Load<'a> {
    larder: &'a Larder,
    bytes: &'a [u8],
    is_over: AtomicBool,
    passes: AtomicUsize,
    chunks: AtomicUsize,
}

impl Load<'_> {
    fn export(&self) -> PathBuf {
        self.larder.path("qemu.sock")
    }

    /// Writes the first half and verifies it, again and again.
    fn verify(&self, failed: &Sender<String>) {
        let half = self.bytes.len() / 2;
        let socket = self.export().display().to_string();
        while !self.is_over.load(Ordering::SeqCst) {
            let pass = self.passes.load(Ordering::SeqCst);
            let (done, text) = self.larder.try_shell(&format!(
                "fio --name=verify --ioengine=nbd --uri='nbd+unix:///m?socket={socket}' \
                 --rw=randwrite --bs=4k --iodepth=16 --size={half} --fsync=64 --randseed={pass} \
                 --verify=crc32c --verify_fatal=1 --verify_backlog=512 --do_verify=1"
            ));
            if !done {
                // Nobody listens any more where the test has failed elsewhere.
                let _told = failed.send(text);
                return;
            }
            self.passes.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Reads chunks of the second half that are not on this host yet, one for each that is asked for.
    fn fetch(&self, asked: &Receiver<()>, failed: &Sender<String>) {
        let half = self.bytes.len() / 2;
        let mut client = NbdClient::connect(&self.export(), "m");
        // An outage may last longer than anything else here.
        client.wait_for_ever();
        // Downwards, so that nothing is fetched ahead.
        for index in (0..half / CHUNK).rev() {
            if asked.recv().is_err() {
                return;
            }
            let offset = half + index * CHUNK;
            if client.read(offset as u64, 4096) != self.bytes[offset..offset + 4096] {
                let _told = failed.send(format!("wrong bytes at {offset}"));
                return;
            }
            self.chunks.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Ends the load, however a test ends.
struct EndsLoad<'a>(&'a Load<'a>, Process);

impl Drop for EndsLoad<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::SeqCst);
        let _killed = self.1.child.kill();
    }
}

/// The side of those who disturb.
struct Disturbance<'a> {
    larder: &'a Larder,
    load: &'a Load<'a>,
    ask: Sender<()>,
    failed: Receiver<String>,
    asked_count: usize,
    daemon: Option<HostDaemon>,
    longest_stall: Duration,
}

impl Disturbance<'_> {
    fn start_daemon(&mut self) {
        self.daemon = Some(self.larder.daemon("--metrics ./metrics"));
    }

    /// Lets time pass, in which nobody may fail.
    fn pass(&self, time: Duration) {
        if let Ok(text) = self.failed.recv_timeout(time) {
            panic!("{text}");
        }
    }

    fn ask_for_chunk(&mut self) {
        self.ask.send(()).unwrap();
        self.asked_count += 1;
    }

    /// Waits until everything that was asked for has come.
    fn goes_on(&mut self) {
        let start = Instant::now();
        while self.load.chunks.load(Ordering::SeqCst) < self.asked_count {
            self.pass(Duration::from_millis(1));
            assert!(start.elapsed() < LIMIT, "it does not go on");
        }
        self.longest_stall = self.longest_stall.max(start.elapsed());
    }

    fn kill(&mut self, away: Duration) {
        self.ask_for_chunk();
        self.daemon.take().unwrap().kill();
        self.pass(away);
        self.start_daemon();
        self.goes_on();
    }

    fn upgrade(&mut self) {
        self.ask_for_chunk();
        self.daemon.take().unwrap().stop();
        self.start_daemon();
        self.goes_on();
    }

    /// The repository is away for a time; in its middle the daemon is killed, if so wanted.
    fn lose_repository(&mut self, away: Duration, is_killed: bool) {
        let [repo, elsewhere] = ["repo", "elsewhere"].map(|name| self.larder.path(name));
        std::fs::rename(&repo, &elsewhere).unwrap();
        self.ask_for_chunk();
        let start = Instant::now();
        let socket = self.larder.path("metrics");
        while metric(&socket, "larder_waiting_reads") < 1.0 {
            self.pass(Duration::from_millis(1));
            assert!(start.elapsed() < LIMIT, "no read waits");
        }
        self.pass(away / 2);
        if is_killed {
            self.daemon.take().unwrap().kill();
            self.start_daemon();
        }
        self.pass(away / 2);
        std::fs::rename(&elsewhere, &repo).unwrap();
        self.goes_on();
    }
}

/// QEMU's block layer between the daemon's NBD door and an NBD door of its own.
fn start_qemu(larder: &Larder) -> Process {
    let text = |name: &str| larder.path(name).display().to_string();
    let node = format!(
        "driver=nbd,node-name=disk,server.type=unix,server.path={},export=m,reconnect-delay=86400",
        text("m.sock")
    );
    let mut qemu = std::process::Command::new("qemu-storage-daemon");
    qemu.args(["--blockdev", &node])
        .args(["--nbd-server", &format!("addr.type=unix,addr.path={}", text("qemu.sock"))])
        .args(["--export", "type=nbd,id=out,node-name=disk,name=m,writable=on"])
        .stdout(Stdio::null());
    let mut qemu = Process::start(&mut qemu);
    let socket = larder.path("qemu.sock");
    assert!(qemu.runs_until(|| std::os::unix::net::UnixStream::connect(&socket).is_ok()));
    qemu
}

#[test]
fn guests_stall_and_go_on_without_a_wrong_byte_when_daemons_die_and_the_repository_goes_away() {
    let brief = Duration::from_millis(600);
    let times = Times::asked_for(brief, 3, brief);
    let larder = Larder::new();
    let bytes = Random::new(41).bytes(times.len());
    larder.write("disk.raw", &bytes);
    larder.json("import disk.raw disk");
    let daemon = larder.daemon("--metrics ./metrics");
    larder.run("attach disk --mirror m --nbd ./m.sock --detach");
    let qemu = start_qemu(&larder);
    let load = Load {
        larder: &larder,
        bytes: &bytes,
        is_over: AtomicBool::new(false),
        passes: AtomicUsize::new(0),
        chunks: AtomicUsize::new(0),
    };
    std::thread::scope(|scope| {
        let ending = EndsLoad(&load, qemu);
        let (ask, asked) = channel();
        let (fail, failed) = channel();
        let verifier = {
            let (load, fail) = (&load, fail.clone());
            scope.spawn(move || load.verify(&fail))
        };
        let reader = {
            let load = &load;
            scope.spawn(move || load.fetch(&asked, &fail))
        };
        let (daemon, longest_stall) = (Some(daemon), Duration::ZERO);
        let mut disturbance = Disturbance {
            larder: &larder,
            load: &load,
            ask,
            failed,
            asked_count: 0,
            daemon,
            longest_stall,
        };
        let pause = times.each / times.count;
        for _ in 0..times.count {
            disturbance.pass(pause / 2);
            disturbance.kill(pause / 2);
        }
        for _ in 0..times.count {
            disturbance.pass(pause);
            disturbance.upgrade();
        }
        disturbance.lose_repository(times.outage, false);
        disturbance.lose_repository(times.outage / 10, true);
        load.is_over.store(true, Ordering::SeqCst);
        verifier.join().unwrap();
        disturbance.pass(Duration::ZERO);
        let stall = disturbance.longest_stall;
        let (passes, chunks) =
            (load.passes.load(Ordering::SeqCst), load.chunks.load(Ordering::SeqCst));
        assert!(passes > 0);
        // For the report of a long run.
        let kills = times.count + 1;
        let upgrades = times.count;
        let _shown = writeln!(
            std::io::stderr(),
            "kills {kills}, upgrades {upgrades}, outages 2 of {:?} and {:?}; verified passes of \
             {} MiB {passes}, chunks fetched {chunks}, longest way back {stall:?}",
            times.outage,
            times.outage / 10,
            times.len() >> 21,
        );
        drop(disturbance);
        reader.join().unwrap();
        drop(ending);
    });
    // Nobody has written to the second half: it is what was imported.
    let daemon = larder.daemon("");
    let mut client = NbdClient::connect(&larder.path("m.sock"), "m");
    let half = times.len() / 2;
    for offset in (half..times.len()).step_by(CHUNK) {
        assert!(client.read(offset as u64, CHUNK) == bytes[offset..offset + CHUNK]);
    }
    daemon.stop();
}
