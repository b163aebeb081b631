//! `larder host run`, and what goes through it.

use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{LIMIT, Larder, Random, files_below};
use crate::nbd_client::NbdClient;

const LEN: usize = 4 << 20;

/// A larder with an image `disk`, and its bytes.
fn with_disk() -> (Larder, Vec<u8>) {
    let larder = Larder::new();
    let bytes = Random::new(31).bytes(LEN);
    larder.write("disk.raw", &bytes);
    larder.json("import disk.raw disk");
    (larder, bytes)
}

fn mirror<'a>(mirrors: &'a Value, name: &str) -> &'a Value {
    let mirrors = mirrors["mirrors"].as_array().unwrap();
    mirrors.iter().find(|mirror| mirror["name"] == name).unwrap()
}

/// The metrics of a daemon that tells them on this socket.
pub fn metrics(socket: &Path) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: larder\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    text
}

/// The value of one metric.
pub fn metric(socket: &Path, name: &str) -> f64 {
    let text = metrics(socket);
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{name} is not in\n{text}")).parse().unwrap()
}

#[test]
fn commands_go_through_the_daemon_and_it_tells_what_it_does() {
    let (larder, bytes) = with_disk();
    let daemon = larder.daemon("--metrics ./metrics");
    let process = daemon.ready["process"].as_u64().unwrap();
    assert_eq!(process, u64::from(daemon.process.child.id()));
    let control = std::fs::metadata(larder.path("state/control")).unwrap();
    assert_eq!(control.permissions().mode() & 0o777, 0o600);
    larder.run("attach disk --mirror a --nbd ./a.sock --detach");
    let served = larder.attach("disk --mirror b --nbd ./b.sock");
    for name in ["a", "b"] {
        assert_eq!(mirror(&larder.json("mirrors"), name)["served_by"], process);
    }
    // What one mirror has fetched serves the other.
    let [mut a, mut b] =
        ["a", "b"].map(|name| NbdClient::connect(&larder.path(format!("{name}.sock")), name));
    assert!(a.read_all() == bytes);
    assert!(b.read_all() == bytes);
    let mirrors = larder.json("mirrors");
    assert!(mirror(&mirrors, "a")["fetched_bytes"].as_u64().unwrap() >= LEN as u64);
    assert!(mirror(&mirrors, "b")["fetched_bytes"].as_u64().unwrap() < 4096, "{mirrors}");
    a.write(0, &[1; 4096]);
    a.flush();
    let commit = larder.json("commit a");
    assert_eq!(commit["version"], 2);
    let socket = larder.path("metrics");
    for (name, expected) in [
        ("larder_mirrors{state=\"served\"}", 2.0),
        ("larder_repository_reachable", 1.0),
        ("larder_request_bytes_total{mirror=\"a\",operation=\"write\"}", 4096.0),
        ("larder_request_bytes_total{mirror=\"b\",operation=\"read\"}", LEN as f64),
        ("larder_requests_total{mirror=\"a\",operation=\"flush\"}", 1.0),
    ] {
        assert_eq!(metric(&socket, name), expected, "{name}");
    }
    assert!(metric(&socket, "larder_fetched_plain_bytes_total") >= LEN as f64);
    let refused = larder.fails("attach disk --mirror a --nbd ./c.sock");
    assert!(refused.message.contains("serves it already"), "{refused:?}");
    larder.run("detach a");
    assert!(!larder.path("a.sock").exists());
    served.stop();
    assert!(mirror(&larder.json("mirrors"), "b")["served_by"].is_null());
    larder.run("detach b --discard");
    daemon.stop();
    assert!(!larder.path("state/control").exists() && !larder.path("metrics").exists());
}

#[test]
fn a_state_folder_has_one_daemon_and_a_daemon_one_repository() {
    let (larder, _) = with_disk();
    let daemon = larder.daemon("");
    let refused = larder.fails("host run");
    assert!(refused.message.contains(&daemon.ready["process"].to_string()), "{refused:?}");
    larder.run("import disk.raw disk --repo other --quiet");
    let refused = larder.fails("attach disk --mirror m --nbd ./s --repo other");
    assert!(refused.message.contains("this host's daemon serves"), "{refused:?}");
    assert!(refused.hint.is_some());
    // The same one by another name is the same.
    std::os::unix::fs::symlink("repo", larder.path("link")).unwrap();
    larder.run("attach disk --mirror m --nbd ./s --repo link --detach");
    larder.run("detach m --discard");
    assert!(larder.fails("host run --repo nowhere --state elsewhere").message.contains("nowhere"));
    daemon.stop();
}

#[test]
fn what_a_daemon_served_is_served_again_after_kill_9_and_after_an_upgrade() {
    let (larder, mut bytes) = with_disk();
    let mut daemon = larder.daemon("");
    for name in ["a", "b", "c"] {
        larder.run(&format!("attach disk --mirror {name} --nbd ./{name}.sock --detach"));
    }
    let waiting = larder.attach("disk --mirror d --nbd ./d.sock");
    larder.run("detach b");
    for round in 0..4_u8 {
        let mut client = NbdClient::connect(&larder.path("a.sock"), "a");
        bytes[usize::from(round) * 4096..][..4096].fill(round);
        client.write(u64::from(round) * 4096, &[round; 4096]);
        client.flush();
        if round == 2 {
            // What the next commit follows is another version from now on.
            larder.json("commit a");
        }
        match round % 2 {
            0 => daemon.kill(),
            _ => daemon.stop(),
        }
        daemon = larder.daemon("");
        assert_eq!((&daemon.ready["served"], &daemon.ready["waiting"]), (&3.into(), &0.into()));
        let mut client = NbdClient::connect(&larder.path("a.sock"), "a");
        assert!(client.read_all() == bytes);
        NbdClient::connect(&larder.path("c.sock"), "c");
    }
    assert!(!larder.path("b.sock").exists(), "what was detached stays detached");
    // The command in the foreground has outlived four daemons, and ends with its mirror.
    larder.run("detach d");
    waiting.stop_by_itself();
    // What is detached while no daemon runs is not taken up by the next.
    daemon.kill();
    larder.run("detach c");
    larder.run("detach a --discard");
    let daemon = larder.daemon("");
    assert_eq!(daemon.ready["served"], 0);
    // The socket of the daemon that was killed is there still; nobody is behind it.
    assert!(NbdClient::try_connect(&larder.path("c.sock"), "c").is_err());
    daemon.stop();
}

#[test]
fn a_mirror_that_cannot_be_served_yet_is_served_as_soon_as_it_can() {
    let (larder, bytes) = with_disk();
    let daemon = larder.daemon("");
    for name in ["a", "b"] {
        std::fs::create_dir(larder.path(name)).unwrap();
        larder.run(&format!("attach disk --mirror {name} --nbd ./{name}/s --detach"));
    }
    daemon.kill();
    std::fs::rename(larder.path("a"), larder.path("away")).unwrap();
    let daemon = larder.daemon("");
    assert_eq!((&daemon.ready["served"], &daemon.ready["waiting"]), (&1.into(), &1.into()));
    assert!(daemon.log().contains("cannot be served yet"), "{}", daemon.log());
    std::fs::rename(larder.path("away"), larder.path("a")).unwrap();
    let mut client = loop {
        match NbdClient::try_connect(&larder.path("a/s"), "a") {
            Ok(client) => break client,
            Err(_) => std::thread::yield_now(),
        }
    };
    assert!(client.read_all() == bytes);
    daemon.kill();
    // One that waits is detached like any other.
    std::fs::rename(larder.path("a"), larder.path("away")).unwrap();
    let daemon = larder.daemon("");
    larder.run("detach a");
    daemon.kill();
    std::fs::rename(larder.path("away"), larder.path("a")).unwrap();
    let daemon = larder.daemon("");
    assert_eq!((&daemon.ready["served"], &daemon.ready["waiting"]), (&1.into(), &0.into()));
    daemon.stop();
}

#[test]
fn the_service_manager_is_told_when_it_serves_and_when_it_ends() {
    let (larder, _) = with_disk();
    let socket = UnixDatagram::bind(larder.path("notify")).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let mut command = larder.command("host run");
    command.env("NOTIFY_SOCKET", larder.path("notify"));
    let mut daemon = crate::harness::Process::start(&mut command);
    let told = || {
        let mut text = [0; 64];
        let len = socket.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..len]).trim().to_string()
    };
    assert_eq!(told(), "READY=1");
    daemon.signal(Signal::TERM);
    assert_eq!(told(), "STOPPING=1");
    assert!(daemon.ends_within(LIMIT));
}

#[test]
fn a_crowd_attaches_at_once_and_all_are_noted() {
    let (larder, bytes) = with_disk();
    let daemon = larder.daemon("");
    let attaches: Vec<_> = (0..12)
        .map(|index| {
            let line = format!("attach disk --mirror m{index} --nbd ./{index}.sock --detach");
            crate::harness::Process::start(
                larder.command(&line).stdout(std::process::Stdio::null()),
            )
        })
        .collect();
    for mut attach in attaches {
        assert!(attach.ends_within(LIMIT));
        assert!(attach.child.wait().unwrap().success());
    }
    daemon.kill();
    let daemon = larder.daemon("");
    assert_eq!(daemon.ready["served"], 12);
    for index in [0, 5, 11] {
        let socket = larder.path(format!("{index}.sock"));
        let mut client = NbdClient::connect(&socket, &format!("m{index}"));
        assert!(client.read(0, 65536) == bytes[..65536]);
    }
    daemon.stop();
}

#[test]
#[allow(clippy::print_stderr, reason = "whoever looks is told what was not tested")]
fn the_unit_is_one_that_systemd_understands() {
    let larder = Larder::new();
    if !larder.try_shell("command -v systemd-analyze").0 {
        eprintln!("skipped: there is no systemd-analyze");
        return;
    }
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../contrib/larder-host.service");
    let text = std::fs::read_to_string(unit).unwrap();
    // It looks for the program too.
    let text = text.replace("/usr/local/bin/larder", env!("CARGO_BIN_EXE_larder"));
    assert!(text.contains("Type=notify"));
    larder.write("larder-host.service", text.as_bytes());
    let said = larder.shell("systemd-analyze verify --man=no ./larder-host.service");
    assert_eq!(said, "");
}

/// How many marks say that the kernel has a base's file.
fn mark_count(larder: &Larder) -> usize {
    let files = files_below(&larder.path("state/bases"));
    let is_mark = |path: &&std::path::PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("held."))
    };
    files.iter().filter(is_mark).count()
}

#[test]
fn a_daemon_shows_versions_and_mirrors_in_a_mount_and_passes_complete_ones_through() {
    let (larder, mut bytes) = with_disk();
    let daemon = larder.daemon("");
    std::fs::create_dir(larder.path("mount")).unwrap();
    larder.run("attach disk --mirror a --fuse mount --detach");
    let version = larder.path("mount/disk/1");
    // The first reading brings everything, through us; the next is the kernel's own.
    assert!(std::fs::read(&version).unwrap() == bytes);
    assert_eq!(mark_count(&larder), 0);
    let file = std::fs::File::open(&version).unwrap();
    assert_eq!(mark_count(&larder), 1, "{}", daemon.log());
    let mut found = vec![0; LEN];
    file.read_exact_at(&mut found, 0).unwrap();
    assert!(found == bytes);
    // Beside it the mirror is written, and what is committed is read.
    let mirror = std::fs::File::options().write(true).open(larder.path("mount/mirrors/a")).unwrap();
    bytes[8192..12288].fill(7);
    mirror.write_all_at(&[7; 4096], 8192).unwrap();
    mirror.sync_all().unwrap();
    assert_eq!(larder.json("commit a")["version"], 2);
    assert!(std::fs::read(larder.path("mount/disk/2")).unwrap() == bytes);
    assert!(std::fs::read(larder.path("mount/mirrors/a")).unwrap() == bytes);
    file.read_exact_at(&mut found, 0).unwrap();
    assert!(found[8192..12288] != bytes[8192..12288], "a version never changes");
    drop((file, mirror));
    let began = std::time::Instant::now();
    while mark_count(&larder) > 0 {
        assert!(began.elapsed() < LIMIT, "the kernel does not let go");
        std::thread::yield_now();
    }
    larder.run("detach a --discard");
    assert_eq!(std::fs::read_dir(larder.path("mount")).unwrap().count(), 0, "it is unmounted");
    daemon.stop();
}

#[test]
fn a_killed_daemons_mount_is_served_again_by_the_next_one() {
    let (larder, mut bytes) = with_disk();
    let daemon = larder.daemon("");
    std::fs::create_dir(larder.path("mount")).unwrap();
    larder.run("attach disk --mirror a --fuse mount --detach");
    let path = larder.path("mount/mirrors/a");
    bytes[..4096].fill(9);
    let mirror = std::fs::File::options().write(true).open(&path).unwrap();
    mirror.write_all_at(&[9; 4096], 0).unwrap();
    mirror.sync_all().unwrap();
    drop(mirror);
    daemon.kill();
    let daemon = larder.daemon("");
    assert_eq!((&daemon.ready["served"], &daemon.ready["waiting"]), (&1.into(), &0.into()));
    assert!(std::fs::read(&path).unwrap() == bytes);
    larder.run("detach a --discard");
    daemon.stop();
}
