//! `larder bake` and `larder resume`, with a guest of forty instructions: what a real one does is in
//! `real_machines`.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{LIMIT, Larder, Process, files_below};

/// A disk that says `login: `, and to each byte that it is sent answers with the next letter of the
/// alphabet, which it keeps in memory.
///
/// ```text
///   xor ax, ax ; mov ds, ax ; mov dx, 0x3f8 ; mov si, text
///   say: lodsb ; test al, al ; jz wait ; out dx, al ; jmp say
///   wait: mov dx, 0x3fd ; in al, dx ; test al, 1 ; jz wait ; mov dx, 0x3f8 ; in al, dx
///   inc byte [0x7df0] ; mov al, [0x7df0] ; out dx, al ; jmp wait
/// ```
pub fn counting_disk(text: &[u8]) -> Vec<u8> {
    const CODE: [u8; 40] = [
        0x31, 0xc0, 0x8e, 0xd8, 0xba, 0xf8, 0x03, 0xbe, 0x28, 0x7c, // set up
        0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8, // say
        0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf8, 0xba, 0xf8, 0x03, 0xec, // wait
        0xfe, 0x06, 0xf0, 0x7d, 0xa0, 0xf0, 0x7d, 0xee, 0xeb, 0xea, // count, say
    ];
    let mut disk = vec![0; 1 << 20];
    disk[..CODE.len()].copy_from_slice(&CODE);
    disk[CODE.len()..CODE.len() + text.len()].copy_from_slice(text);
    disk[0x1f0] = b'a';
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

/// A disk that resets the machine as soon as it is started.
fn resetting_disk() -> Vec<u8> {
    let mut disk = vec![0; 1 << 20];
    disk[..6].copy_from_slice(&[0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe]);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

pub const BAKE: &str = "bake guest --memory 32MiB --accel tcg --keep-free-memory --no-helper";

pub fn import(larder: &Larder, bytes: &[u8]) {
    larder.write("disk.raw", bytes);
    larder.json("import disk.raw guest");
}

pub fn baked() -> Larder {
    let larder = Larder::new();
    import(&larder, &counting_disk(b"login: "));
    larder.json(BAKE);
    larder
}

/// Copies that run in the background, until they are dropped.
pub struct Copies {
    pub told: Value,
}

impl Copies {
    pub fn resume(larder: &Larder, line: &str) -> Copies {
        // Forty instructions have no room for a helper, and no driver for a network card.
        Self::as_told(larder, &format!("{line} --no-identity --no-network"))
    }

    pub fn as_told(larder: &Larder, line: &str) -> Copies {
        Copies { told: larder.json(&format!("resume {line} --detach")) }
    }

    pub fn guests(&self) -> &[Value] {
        self.told["guests"].as_array().unwrap()
    }

    pub fn console(&self, guest: usize) -> UnixStream {
        let console = UnixStream::connect(self.guests()[guest]["console"].as_str().unwrap());
        let console = console.unwrap();
        console.set_read_timeout(Some(LIMIT)).unwrap();
        console
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        for guest in self.guests() {
            end(guest["pid"].as_u64().unwrap());
        }
        let owner = self.told["larder_pid"].as_u64().unwrap();
        wait_until("larder ends with its guests", || !is_alive(owner));
    }
}

/// What a guest says up to a byte.
pub fn said_until(console: &mut UnixStream, last: u8) -> Vec<u8> {
    let mut said = Vec::new();
    let mut byte = [0];
    while said.last() != Some(&last) {
        console.read_exact(&mut byte).unwrap();
        said.push(byte[0]);
    }
    said
}

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < LIMIT, "{what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

fn pid(number: u64) -> rustix::process::Pid {
    rustix::process::Pid::from_raw(i32::try_from(number).unwrap()).unwrap()
}

pub fn end(process: u64) {
    let _ = rustix::process::kill_process(pid(process), rustix::process::Signal::KILL);
}

/// Whether a process runs; one that has ended and that nobody has waited for does not.
pub fn is_alive(process: u64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

/// The threads of a process that have not ended, and the first one in any case.
fn thread_count(process: u64) -> usize {
    std::fs::read_dir(format!("/proc/{process}/task")).map_or(0, Iterator::count)
}

/// The processes whose command line has some text.
pub fn processes_with(text: &str) -> Vec<u64> {
    let has_it = |path: PathBuf| {
        let line = std::fs::read(path.join("cmdline")).ok()?;
        let number = path.file_name()?.to_str()?.parse().ok()?;
        (String::from_utf8_lossy(&line).contains(text) && is_alive(number)).then_some(number)
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| has_it(entry.path())).collect()
}

/// The processes of guests that a larder of this folder has started.
pub fn guests_of(larder: &Larder) -> Vec<u64> {
    let folder = larder.temporary().display().to_string();
    let of_this = |process: &u64| {
        let environment = std::fs::read(format!("/proc/{process}/environ"));
        String::from_utf8_lossy(&environment.unwrap_or_default()).contains(&folder)
    };
    processes_with("qemu-system").into_iter().filter(of_this).collect()
}

/// What killed processes left where temporary files are.
pub fn temporary_files(larder: &Larder) -> Vec<PathBuf> {
    std::fs::read_dir(larder.temporary()).unwrap().flatten().map(|entry| entry.path()).collect()
}

/// The bytes of the bases that are on this host: name and digest of each.
pub fn bases(larder: &Larder) -> Vec<(PathBuf, blake3::Hash)> {
    let is_data = |path: &Path| path.ends_with("data");
    files_below(&larder.path("state/bases"))
        .into_iter()
        .filter(|path| is_data(path))
        .map(|path| (path.clone(), blake3::hash(&std::fs::read(path).unwrap())))
        .collect()
}

#[test]
fn a_bake_makes_a_machine_and_its_disk_and_leaves_nothing_else() {
    let larder = Larder::new();
    import(&larder, &counting_disk(b"login: "));
    let baked = larder.json(BAKE);
    assert_eq!(baked["machine"], "guest-machine@1");
    assert_eq!(baked["disk"], "guest-machine/disk@1");
    assert!(baked["state_bytes"].as_u64().unwrap() > 10_000, "{baked}");
    assert!(baked["memory_stored_bytes"].as_u64().unwrap() > 0, "{baked}");
    assert_eq!(baked["memory_bytes"], 32 << 20);
    assert_eq!(larder.json("mirrors")["mirrors"], serde_json::json!([]));
    assert_eq!(larder.json("show guest-machine")["parent"], "guest-machine/disk@1");
    assert_eq!(larder.json("show guest-machine/disk")["parent"], "guest@1");
    larder.json("bake guest --memory 32MiB --accel tcg --keep-free-memory --no-helper --to other --tag good");
    assert_eq!(larder.json("show other:good")["version"], 1);
    assert_eq!(larder.json(BAKE)["machine"], "guest-machine@2");
    larder.json("scrub");
}

#[test]
fn copies_go_on_where_the_machine_was_stopped_each_with_memory_of_its_own() {
    let larder = baked();
    let before = bases(&larder);
    let copies = Copies::resume(&larder, "guest-machine --count 2");
    assert_eq!(copies.guests().len(), 2);
    for key in ["running_ms", "answered_ms", "restored_ms"] {
        assert!(copies.told[key].as_f64().unwrap() > 0.0, "{key}");
    }
    assert_eq!(copies.told["memory_was_here"], true, "the bake has left it here");
    let mut first = copies.console(0);
    // The first letter answered larder's own question.
    assert_eq!(said_until(&mut first, b'b'), b"b");
    first.write_all(b"xx").unwrap();
    assert_eq!(said_until(&mut first, b'd'), b"cd");
    let mut second = copies.console(1);
    second.write_all(b"x").unwrap();
    assert_eq!(said_until(&mut second, b'c'), b"bc");
    drop((first, second, copies));
    let again = Copies::resume(&larder, "guest-machine");
    assert_eq!(said_until(&mut again.console(0), b'b'), b"b");
    drop(again);
    assert_eq!(larder.json("mirrors")["mirrors"], serde_json::json!([]));
    assert!(bases(&larder) == before, "no copy has changed what the others map");
}

#[test]
fn a_machine_that_is_not_on_this_host_is_fetched_while_it_runs() {
    let larder = baked();
    std::fs::rename(larder.path("state"), larder.path("before")).unwrap();
    let copies = Copies::resume(&larder, "guest-machine --mirror kept");
    assert_eq!(copies.told["memory_was_here"], false);
    let mut console = copies.console(0);
    console.write_all(b"x").unwrap();
    assert_eq!(said_until(&mut console, b'c'), b"bc");
    drop((console, copies));
    let kept = larder.json("mirrors")["mirrors"][0].clone();
    assert_eq!((&kept["name"], &kept["base"]), (&"kept".into(), &"guest-machine/disk@1".into()));
    larder.json("detach kept --discard");
    // In the background the rest came.
    wait_until("the machine is on this host", || {
        Copies::resume(&larder, "guest-machine").told["memory_was_here"] == true
    });
}

#[test]
fn a_machine_keeps_its_disk_and_is_no_disk_itself() {
    let larder = baked();
    let refused = larder.fails("remove guest-machine/disk@1");
    assert!(refused.message.contains("guest-machine@1"), "{refused:?}");
    let attached = larder.fails("attach guest-machine --mirror m --nbd ./nbd.sock");
    assert!(attached.message.contains("machine"), "{attached:?}");
    assert_eq!(attached.hint.as_deref(), Some("`larder resume guest-machine@1` brings it to life"));
    let resumed = larder.fails("resume guest");
    assert_eq!(resumed.hint.as_deref(), Some("`larder bake guest@1` makes a machine of it"));
    larder.fails("bake guest-machine");
    let nobody = larder.fails("resume guest-machine");
    assert!(nobody.hint.unwrap().contains("--no-identity"));
    let grown = larder.fails("resume guest-machine --no-identity --cpus 2");
    assert!(grown.message.contains("no helper"), "{grown:?}");
    larder.write("patch", b"x");
    larder.fails("write guest-machine --offset 0 patch");
    larder.json("remove guest-machine@1");
    larder.json("remove guest-machine/disk@1");
}

#[test]
fn a_guest_that_is_never_ready_or_reboots_leaves_nothing() {
    let larder = Larder::new();
    import(&larder, &counting_disk(b"no prompt here"));
    let before = larder.inventory();
    let failure = larder.fails(&format!("{BAKE} --timeout 2"));
    assert!(failure.message.contains("not ready within 2 s"), "{failure:?}");
    assert!(failure.message.contains("no prompt here"), "{failure:?}");
    assert_eq!(larder.inventory(), before);
    import(&larder, &resetting_disk());
    let before = larder.inventory();
    let failure = larder.fails(BAKE);
    assert!(failure.message.contains("the guest ended or rebooted"), "{failure:?}");
    assert_eq!(larder.inventory(), before);
    assert_eq!(larder.json("mirrors")["mirrors"], serde_json::json!([]));
    assert_eq!(larder.fails("bake guest --memory 1KiB").message.lines().count(), 1);
}

#[test]
fn a_state_that_this_host_cannot_take_is_refused_before_a_guest_starts() {
    let larder = baked();
    let facts = larder.path("state/tcg-qemu.json");
    let known = std::fs::read_to_string(&facts).unwrap();
    let check = |from: &str, to: &str, expected: &str| {
        assert!(known.contains(from), "{known}");
        std::fs::write(&facts, known.replace(from, to)).unwrap();
        let refused = larder.fails("resume guest-machine");
        assert!(refused.message.contains(expected), "{refused:?}");
        let hint = "bake it anew on a host like this: `larder bake guest@1 --to guest-machine`";
        assert_eq!(refused.hint.as_deref(), Some(hint));
    };
    check("\"version\":\"", "\"version\":\"1", "its state is of QEMU");
    check("\"machine_type\":\"pc", "\"machine_type\":\"xc", "its state is of the machine type");
    check("\"aes\",", "", "its CPU has aes, which this host's has not");
    // What was kept of another QEMU counts for nothing.
    std::fs::write(&facts, known.replace("\"key\":\"", "\"key\":\"another ")).unwrap();
    Copies::resume(&larder, "guest-machine");
}

#[test]
fn damage_is_told_in_one_line_and_no_guest_is_left() {
    let larder = baked();
    std::fs::rename(larder.path("state"), larder.path("before")).unwrap();
    for pack in files_below(&larder.path("repo/packs")) {
        let mut bytes = std::fs::read(&pack).unwrap();
        // Behind the header, where entries begin.
        let end = bytes.len().min(4096);
        bytes[64..end].iter_mut().for_each(|byte| *byte ^= 0x55);
        std::fs::write(&pack, bytes).unwrap();
    }
    let failure = larder.fails("resume guest-machine");
    assert!(!failure.message.is_empty());
    assert_eq!(larder.json("mirrors")["mirrors"], serde_json::json!([]));
}

#[test]
fn a_bake_that_is_killed_at_any_step_leaves_no_guest_and_a_whole_machine_or_none() {
    let larder = Larder::new();
    import(&larder, &counting_disk(b"login: "));
    let mut was_done = false;
    for step in 0.. {
        let mut bake = Process::start(&mut larder.command(BAKE));
        let began = Instant::now();
        let moment = Duration::from_millis(150 * step);
        was_done |= !bake.runs_until(|| began.elapsed() >= moment);
        bake.kill();
        let images = larder.json("list")["images"].clone();
        let names: Vec<&str> = images
            .as_array()
            .unwrap()
            .iter()
            .map(|image| image["name"].as_str().unwrap())
            .collect();
        let whole = ["guest", "guest-machine", "guest-machine/disk"];
        assert!(names == ["guest"] || names == whole, "step {step}: {names:?}");
        wait_until("no guest is left", || guests_of(&larder).is_empty());
        if was_done {
            break;
        }
    }
    larder.json(BAKE);
    assert_eq!(larder.json("mirrors")["mirrors"], serde_json::json!([]), "the next has tidied up");
    assert_eq!(temporary_files(&larder), Vec::<PathBuf>::new(), "the next has tidied up");
    Copies::resume(&larder, "guest-machine");
}

#[test]
fn a_resume_that_is_killed_takes_its_guests_with_it() {
    let larder = baked();
    std::fs::rename(larder.path("state"), larder.path("before")).unwrap();
    let told = larder.json("resume guest-machine --count 2 --no-identity --no-network --detach");
    let killed = told["larder_pid"].as_u64().unwrap();
    end(killed);
    for guest in told["guests"].as_array().unwrap() {
        let pid = guest["pid"].as_u64().unwrap();
        wait_until("the guest ends with larder", || !is_alive(pid));
    }
    // Its guests end with its first thread; its locks go with the last.
    wait_until("larder's last thread ends", || thread_count(killed) <= 1 && !is_alive(killed));
    let again = Copies::resume(&larder, "guest-machine");
    assert_eq!(said_until(&mut again.console(0), b'b'), b"b");
    assert_eq!(larder.json("mirrors")["mirrors"].as_array().unwrap().len(), 1, "tidied up");
}

#[test]
fn a_guest_that_runs_is_suspended_goes_on_and_is_brought_back() {
    let larder = Larder::new();
    import(&larder, &counting_disk(b"login: "));
    let mut command = larder.command("run guest --mirror m --memory 32MiB --accel tcg");
    let said = std::fs::File::create(larder.path("said")).unwrap();
    command.stdin(std::process::Stdio::piped()).stdout(said);
    let mut running = Process::start(&mut command);
    let mut keys = running.child.stdin.take().unwrap();
    let has_said = |text: &[u8]| larder.read("said").windows(text.len()).any(|said| said == text);
    wait_until("the guest runs", || has_said(b"login: "));
    keys.write_all(b"xx").unwrap();
    wait_until("the guest counts", || has_said(b"bc"));

    let suspended = larder.json("suspend m");
    assert_eq!(suspended["machine"], "guest-suspended@1");
    assert!(suspended["pause_ms"].as_f64().unwrap() > 0.0, "{suspended}");
    keys.write_all(b"x").unwrap();
    wait_until("the guest goes on", || has_said(b"bcd"));

    let copies = Copies::resume(&larder, "guest-suspended");
    assert_eq!(said_until(&mut copies.console(0), b'd'), b"d", "it has counted to c");
    let name = copies.guests()[0]["mirror"].as_str().unwrap().to_string();
    let refused = larder.fails(&format!("suspend {name}"));
    assert!(refused.hint.unwrap().contains("--suspendable"));
    drop(copies);
    let copies = Copies::resume(&larder, "guest-suspended --suspendable --mirror own");
    let again = larder.json("suspend own --tag later --end");
    assert_eq!(again["machine"], "guest-suspended@2");
    drop(copies);
    // On another host: a copy of the repository, and nothing else.
    larder.shell("mv state before; mv repo moved; mkdir repo; cp -r moved/. repo");
    let copies = Copies::resume(&larder, "guest-suspended:later");
    assert_eq!(said_until(&mut copies.console(0), b'e'), b"e", "it had answered once more");
    drop(copies);
    larder.shell("rm -r state; mv before state");

    let refused = larder.fails("suspend nobody");
    assert!(refused.message.contains("no guest"), "{refused:?}");
    running.signal(rustix::process::Signal::TERM);
    assert!(running.ends_within(LIMIT));
    larder.json("commit m");
    let mut other = Process::start(
        larder
            .command("run guest --mirror o --memory 32MiB --accel tcg -- -name extra")
            .stdout(std::fs::File::create(larder.path("said")).unwrap()),
    );
    wait_until("the guest runs", || has_said(b"login: "));
    let refused = larder.fails("suspend o");
    assert!(refused.message.contains("arguments for QEMU"), "{refused:?}");
    other.signal(rustix::process::Signal::TERM);
    assert!(other.ends_within(LIMIT));
}
