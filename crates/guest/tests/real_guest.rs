//! A real Debian with the helper in it: saved once, resumed twice, grown, and told who it is.
//!
//! The image is the one that `cargo xtask images` makes, or the one that `LARDER_TEST_IMAGE` names: a
//! disk that boots by BIOS, whose root logs in on the serial console without a password.

#![expect(
    clippy::print_stderr,
    reason = "what was measured is for whoever reads the test's output"
)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use env::{Clock, SystemClock, SystemEntropy};
use guest::growth::{self, MacAddress, Wanted};
use guest::helper::install;
use guest::identity::{AuthorizedKeys, Confirmed};
use guest::{
    Accelerator, Console, Drive, Growth, Guest, GuestConfig, Helper, Identity, MemoryFile,
};
use model::Kind;
use serde_json::json;

const BOOT_MAX: Duration = Duration::from_secs(300);
const SOON: Duration = Duration::from_secs(120);
const MEMORY_MIB: u64 = 256;

/// The image to boot; none, said aloud, where there is none.
fn image() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("LARDER_TEST_IMAGE") {
        return Some(path.into());
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/images");
    let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    let mut paths = entries.map(|entry| entry.path());
    let found = paths.find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("minimal-") && name.ends_with(".raw")
    });
    if found.is_none() {
        eprintln!("no image in {}: `cargo xtask images` makes one", folder.display());
    }
    found
}

fn copy(from: &Path, to: &Path) {
    let options = ["--sparse=always", "--reflink=auto"];
    assert!(Command::new("cp").args(options).arg(from).arg(to).status().unwrap().success());
}

/// A machine's files: its disk, its memory, its state.
struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts a guest with room to grow on a disk, booting or waiting for a state.
    fn start(&self, disk: &str, is_incoming: bool) -> (Guest, Helper) {
        let drive = Drive::File { path: self.path(disk), read_only: false };
        let mut config = GuestConfig::new(vec![drive], Console::Scripted);
        config.accelerator = Some(Accelerator::Tcg);
        config.memory_mib = MEMORY_MIB;
        let growth = Growth { cpus_max: 4, memory_max_mib: 4096, memory_slots: 4, port_count: 3 };
        config.growth = Some(growth);
        let path = self.path("memory");
        config.memory_file = Some(MemoryFile { path, is_shared: !is_incoming });
        config.is_incoming = is_incoming;
        let mut guest = Guest::start(&config).unwrap();
        let helper = Helper::new(guest.take_helper().unwrap());
        (guest, helper)
    }

    fn ignore_shared(guest: &Guest) {
        let capability = json!({ "capability": "x-ignore-shared", "state": true });
        let arguments = json!({ "capabilities": [capability] });
        guest.qmp().execute("migrate-set-capabilities", Some(arguments)).unwrap();
    }

    fn state_uri(&self, command: &str) -> serde_json::Value {
        json!({ "uri": format!("exec:{command} {}", self.path("state").display()) })
    }

    /// Boots the disk and saves the machine once it can be logged in to.
    fn bake(&self) {
        File::create(self.path("memory")).unwrap().set_len(MEMORY_MIB << 20).unwrap();
        let (mut guest, mut helper) = self.start("disk", false);
        helper.ping(BOOT_MAX).unwrap();
        guest.console().unwrap().log_in("root", BOOT_MAX).unwrap();
        helper.drop_caches(SOON).unwrap();
        guest.qmp().stop().unwrap();
        Self::ignore_shared(&guest);
        guest.qmp().execute("migrate", Some(self.state_uri("cat >"))).unwrap();
        let deadline = Instant::now() + SOON;
        while guest.qmp().execute("query-migrate", None).unwrap()["status"] != "completed" {
            assert!(Instant::now() < deadline);
        }
        guest.qmp().quit().unwrap();
        guest.wait(Some(SOON)).unwrap();
    }

    fn resume(&self, disk: &str) -> (Guest, Helper, Duration) {
        copy(&self.path("disk"), &self.path(disk));
        let began = Instant::now();
        let (guest, mut helper) = self.start(disk, true);
        Self::ignore_shared(&guest);
        guest.qmp().execute("migrate-incoming", Some(self.state_uri("cat"))).unwrap();
        let deadline = Instant::now() + SOON;
        while guest.qmp().execute("query-migrate", None).unwrap()["status"] != "completed" {
            assert!(Instant::now() < deadline);
        }
        guest.qmp().cont().unwrap();
        helper.ping(SOON).unwrap();
        (guest, helper, began.elapsed())
    }
}

/// What a guest shows on its console.
fn seen(guest: &mut Guest, command: &str) -> String {
    guest.console().unwrap().run(command, SOON).unwrap()
}

fn identify(guest: &mut Guest, helper: &mut Helper, name: &str) -> Confirmed {
    // The kernel's own messages would stand between what commands print.
    seen(guest, "dmesg -n 1");
    let mut identity = Identity::new(name, &SystemEntropy).unwrap();
    let keys = format!("ssh-ed25519 AAAA {name}\n");
    identity.authorized_keys = vec![AuthorizedKeys { user: "root".into(), keys: keys.clone() }];
    identity.user_data = Some(b"#!/bin/sh\necho done >/root/script\n".to_vec());
    let confirmed = identity.give(helper, &SystemClock, SOON).unwrap();
    assert_eq!(seen(guest, "cat /etc/machine-id"), identity.machine_id);
    assert_eq!(seen(guest, "hostname; cat /etc/hostname"), format!("{name}\n{name}"));
    assert_eq!(seen(guest, "cat /root/.ssh/authorized_keys"), keys.trim_end());
    assert!(seen(guest, "getent hosts $(hostname)").contains("127.0.1.1"));
    assert_eq!(confirmed.user_data_taken_by.as_deref(), Some("script"));
    let waited = "until [ -e /root/script ]; do sleep 0.1; done; cat /root/script";
    assert_eq!(seen(guest, waited), "done");
    let before = SystemClock.now().0;
    let clock: i64 = seen(guest, "date +%s%6N").parse().unwrap();
    let after = SystemClock.now().0;
    let error = i64::try_from(confirmed.clock_error_max.as_micros()).unwrap();
    assert!((before - error..=after + error).contains(&clock), "{before} {clock} {after} {error}");
    confirmed
}

/// What cannot be written is refused, and none of it is taken for a command.
fn refuses_a_file(helper: &mut Helper) {
    let name = helper.report(SOON).unwrap().host_name;
    let bytes = b"1 host-name hacked\n".repeat(2000);
    let error = helper.put("/proc/no/such", 0o600, &bytes, SOON).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert_eq!(helper.report(SOON).unwrap().host_name, name);
}

fn grows(guest: &mut Guest, helper: &mut Helper) {
    let wanted = Wanted { cpus: Some(3), memory_mib: Some(512) };
    let grown = growth::grow(guest.qmp(), helper, wanted, SOON).unwrap();
    assert_eq!((grown.cpus_added, grown.memory_added_mib), (2, 256));
    assert_eq!(seen(guest, "nproc"), "3");
    let memory = seen(guest, "grep -c . /dev/null; sed -n 's/^MemTotal: *//p' /proc/meminfo");
    let kib: u64 = memory.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib > 380 << 10, "{memory}");
    eprintln!("grown in {:?}: {:?}", grown.took, grown.report);
    let error = growth::grow(guest.qmp(), helper, Wanted { cpus: Some(9), memory_mib: None }, SOON);
    assert_eq!(error.unwrap_err().kind(), Kind::Invalid);
    let again = Wanted { cpus: Some(4), memory_mib: Some(640) };
    let grown = growth::grow(guest.qmp(), helper, again, SOON).unwrap();
    assert_eq!((grown.cpus_added, grown.memory_added_mib), (1, 128));
}

fn takes_devices(files: &Files, guest: &mut Guest) {
    let address = MacAddress::random(&SystemEntropy);
    assert_eq!(growth::free_ports(guest.qmp()).unwrap(), ["port0", "port1", "port2"]);
    growth::add_network(guest.qmp(), address).unwrap();
    let waited = format!("until grep {address} /sys/class/net/*/address; do sleep 0.1; done");
    assert!(seen(guest, &waited).contains(&address.to_string()));
    std::fs::write(files.path("more"), vec![b'm'; 1 << 20]).unwrap();
    let drive = Drive::File { path: files.path("more"), read_only: true };
    growth::add_drive(guest.qmp(), &drive).unwrap();
    let waited = "until [ -b /dev/vdb ]; do sleep 0.1; done; head -c 4 /dev/vdb";
    assert_eq!(seen(guest, waited), "mmmm");
    assert_eq!(growth::free_ports(guest.qmp()).unwrap(), ["port2"]);
    let missing = Drive::File { path: files.path("missing"), read_only: true };
    assert_eq!(growth::add_drive(guest.qmp(), &missing).unwrap_err().kind(), Kind::Invalid);
    growth::add_drive(guest.qmp(), &drive).unwrap();
    assert_eq!(growth::add_drive(guest.qmp(), &drive).unwrap_err().kind(), Kind::Full);
}

#[test]
fn two_resumed_copies_are_two_machines_and_grow() {
    let Some(image) = image() else { return };
    let files = Files { folder: tempfile::tempdir().unwrap() };
    copy(&image, &files.path("disk"));
    install::install(&files.path("disk")).unwrap();
    files.bake();
    let (mut one, mut helper, answered) = files.resume("one");
    eprintln!("answered after {answered:?}");
    let first = identify(&mut one, &mut helper, "copy-1");
    let uuid = "cat /proc/sys/kernel/random/uuid";
    let first_random = seen(&mut one, uuid);
    eprintln!("identity: {first:?}");
    refuses_a_file(&mut helper);
    grows(&mut one, &mut helper);
    takes_devices(&files, &mut one);
    let (mut two, mut helper, _) = files.resume("two");
    let second = identify(&mut two, &mut helper, "copy-2.example");
    assert_ne!(first.machine_id, second.machine_id);
    assert_ne!(first_random, seen(&mut two, uuid));
    assert_eq!(seen(&mut one, "cat /etc/machine-id"), first.machine_id);
}

#[test]
fn a_disk_takes_the_helper_twice_and_is_whole_without_it() {
    let Some(image) = image() else { return };
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    copy(&image, &disk);
    let root = install::install(&disk).unwrap();
    assert_eq!(install::install(&disk).unwrap(), root);
    let clean = || {
        let name = format!("{}?offset={}", disk.display(), root.offset);
        let output = Command::new("/usr/sbin/e2fsck").args(["-fn", &name]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    };
    clean();
    install::remove(&disk).unwrap();
    install::remove(&disk).unwrap();
    clean();
}

#[test]
fn a_disk_without_a_root_file_system_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    for len in [0, 100, 1 << 20] {
        std::fs::write(&disk, vec![0x53; len]).unwrap();
        assert_eq!(install::install(&disk).unwrap_err().kind(), Kind::NotFound);
    }
    // A magic number, and nonsense behind it.
    let mut bytes = vec![0xff; 1 << 20];
    bytes[1080..1082].copy_from_slice(&[0x53, 0xef]);
    std::fs::write(&disk, bytes).unwrap();
    install::install(&disk).unwrap_err();
}
