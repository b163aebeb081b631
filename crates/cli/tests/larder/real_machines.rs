//! `larder bake`, `resume` and `suspend` with a real Debian, baked once and kept beside the build.
//!
//! The image is the one that `cargo xtask images` makes, or the one that `LARDER_TEST_IMAGE` names: its
//! root logs in on the serial console without a password. Without one these tests say so and end. What
//! takes minutes is left out where nobody asks for it (`--include-ignored`).

#![expect(clippy::print_stderr, reason = "what is left out is for whoever reads the output")]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use env::{Clock, SystemClock};
use guest::ScriptedConsole;
use serde_json::Value;

use crate::harness::{LIMIT, Larder, Process};
use crate::machines::{Copies, bases, guests_of, temporary_files, wait_until};

const SOON: Duration = LIMIT;

/// How long a guest may go on booting.
const BOOT_MAX: Duration = Duration::from_secs(600);

fn image() -> Option<PathBuf> {
    image_named("LARDER_TEST_IMAGE", "minimal-")
}

/// An image with an SSH server and QEMU's guest agent.
fn image_with_ssh() -> Option<PathBuf> {
    image_named("LARDER_TEST_SSH_IMAGE", "cloud-")
}

fn image_named(variable: &str, prefix: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Some(path.into());
    }
    let folder = target().join("images");
    let mut paths = std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|e| e.path());
    let found = paths.find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(prefix) && name.ends_with(".raw")
    });
    if found.is_none() {
        eprintln!("no {prefix}image in {}: `cargo xtask images` makes one", folder.display());
    }
    found
}

fn target() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target")
}

/// What a baked machine depends on: this larder and the image.
fn key(image: &Path) -> String {
    let told = |path: &Path| {
        let metadata = std::fs::metadata(path).unwrap();
        format!(
            "{} {} {}.{}",
            path.display(),
            metadata.len(),
            metadata.mtime(),
            metadata.mtime_nsec()
        )
    };
    let text = told(Path::new(env!("CARGO_BIN_EXE_larder"))) + &told(image);
    blake3::hash(text.as_bytes()).to_hex()[..16].to_string()
}

/// A folder with a repository in which `debian-machine` has been baked; none where there is no image.
fn baked() -> Option<Larder> {
    let image = image()?;
    let folder = target().join("machines");
    std::fs::create_dir_all(&folder).unwrap();
    // Whoever comes first bakes, the others wait.
    let lock = File::create(folder.join("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let kept = folder.join(key(&image));
    let larder = Larder::new();
    if !kept.exists() {
        for old in std::fs::read_dir(&folder).unwrap().flatten().filter(|e| e.path().is_dir()) {
            std::fs::remove_dir_all(old.path()).unwrap();
        }
        larder.json(&format!("import {} debian", image.display()));
        let baked = larder.json("bake debian");
        assert_eq!(baked["has_helper"], true, "{baked}");
        let part = kept.with_extension("part");
        larder
            .shell(&format!("mkdir {0} && cp -r --sparse=always repo state {0}/", part.display()));
        std::fs::rename(part, kept).unwrap();
        return Some(larder);
    }
    drop(lock);
    larder.shell(&format!("cp -r --sparse=always {}/. .", kept.display()));
    Some(larder)
}

/// Who logs in presses return first: the guest may have asked for a name before it was stopped.
fn log_in(copies: &Copies, guest: usize) -> ScriptedConsole {
    let mut stream = copies.console(guest);
    stream.set_read_timeout(Some(BOOT_MAX)).unwrap();
    stream.write_all(b"\n").unwrap();
    let mut console = ScriptedConsole::new(stream).unwrap();
    console.log_in("root", BOOT_MAX).unwrap();
    console.run("dmesg -n 1", SOON).unwrap();
    console
}

fn number(console: &mut ScriptedConsole, command: &str) -> u64 {
    let text = console.run(command, SOON).unwrap();
    text.trim().parse().unwrap_or_else(|_| panic!("{command}: {text}"))
}

#[test]
fn copies_of_a_debian_have_their_own_identity_and_grow() {
    let Some(larder) = baked() else { return };
    let before = bases(&larder);
    let copies = Copies::as_told(&larder, "debian-machine --count 2 --cpus 2 --memory 512MiB");
    let guests = copies.guests();
    for key in ["machine_id", "host_name", "ssh_host_key", "mac_address", "mirror"] {
        let values: BTreeSet<String> = guests.iter().map(|guest| guest[key].to_string()).collect();
        // A guest without SSH has no key.
        assert!(values.len() == 2 || values.contains("null"), "{key}: {values:?}");
    }
    for guest in guests {
        eprintln!(
            "answered {} ms, identity {} ms, grown {} ms",
            guest["answered_ms"], guest["identity_ms"], guest["grown_ms"]
        );
    }
    let mut boots = BTreeSet::new();
    for (index, told) in guests.iter().enumerate() {
        let mut console = log_in(&copies, index);
        let said =
            |console: &mut ScriptedConsole, command: &str| console.run(command, SOON).unwrap();
        assert_eq!(said(&mut console, "cat /etc/machine-id"), told["machine_id"].as_str().unwrap());
        assert_eq!(said(&mut console, "hostname"), told["host_name"].as_str().unwrap());
        let cards = said(&mut console, "cat /sys/class/net/e*/address");
        assert_eq!(cards, told["mac_address"].as_str().unwrap());
        assert_eq!(said(&mut console, "nproc"), "2");
        assert!(number(&mut console, "awk '/MemTotal/ {print $2}' /proc/meminfo") > 380 << 10);
        let clock = number(&mut console, "date +%s");
        let now = u64::try_from(SystemClock.now().0 / 1_000_000).unwrap();
        assert!(clock.abs_diff(now) <= 2, "{clock} {now}");
        boots.insert(said(&mut console, "cat /proc/sys/kernel/random/boot_id"));
        assert!(number(&mut console, "cut -d. -f1 /proc/uptime") > 5, "it has booted long ago");
        // What a guest gives back stays with it.
        assert_eq!(
            said(
                &mut console,
                "ls -d /sys/bus/virtio/drivers/virtio_balloon/virtio* 2>/dev/null | wc -l"
            ),
            "0"
        );
        said(&mut console, "fstrim / 2>/dev/null; echo 3 >/proc/sys/vm/drop_caches; sync");
        said(&mut console, "head -c 40000000 /dev/urandom >/run/much; rm /run/much");
    }
    assert_eq!(boots.len(), 1, "all go on from one boot");
    drop(copies);
    assert!(bases(&larder).iter().filter(|base| before.contains(base)).count() >= 1);
    let machine: Value = larder.json("show debian-machine");
    let unchanged = |bases: &[(PathBuf, blake3::Hash)]| {
        let content = machine["digest"].as_str().unwrap();
        bases.iter().find(|(path, _)| path.to_string_lossy().contains(content)).unwrap().1
    };
    assert_eq!(unchanged(&before), unchanged(&bases(&larder)), "siblings' bytes are equal");
}

#[test]
fn what_one_copy_throws_away_its_sibling_still_has() {
    let Some(larder) = baked() else { return };
    // All of it is here before, so that what guests read adds nothing.
    larder.json("pin debian-machine --quiet");
    larder.json("pin debian-machine/disk --quiet");
    let before = bases(&larder);
    let copies = Copies::as_told(&larder, "debian-machine --count 2 --no-identity --no-network");
    let mut consoles: Vec<ScriptedConsole> = (0..2).map(|guest| log_in(&copies, guest)).collect();
    // Of the sibling's memory: a file that is there only; of its disk: what it reads again.
    let sums =
        "echo 3 >/proc/sys/vm/drop_caches; cat /run/kept /usr/lib/os-release /bin/* | md5sum";
    let kept = "head -c 8000000 /dev/urandom >/run/kept";
    consoles[1].run(kept, SOON).unwrap();
    let sum = consoles[1].run(sums, SOON).unwrap();
    let trimmed =
        consoles[0].run("rm -r /usr/share/doc /usr/share/locale; sync; fstrim -v /", SOON);
    assert!(trimmed.as_ref().is_ok_and(|said| said.contains("trimmed")), "{trimmed:?}");
    consoles[0].run("head -c 60000000 /dev/urandom >/run/much; rm /run/much", SOON).unwrap();
    assert_eq!(consoles[1].run(sums, SOON).unwrap(), sum);
    drop((consoles, copies));
    let after = bases(&larder);
    assert!(before.iter().all(|base| after.contains(base)), "{before:?} {after:?}");
}

#[test]
fn keys_and_a_script_arrive_in_a_copy() {
    let Some(larder) = baked() else { return };
    larder.write("keys", b"ssh-ed25519 AAAA somebody\n");
    larder.write("script", b"#!/bin/sh\necho \"$(hostname) did\" >/run/did\n");
    let line = "debian-machine --host-name web --ssh-keys keys --user-data script --no-network";
    let copies = Copies::as_told(&larder, line);
    let mut console = log_in(&copies, 0);
    let mut said = |command: &str| console.run(command, SOON).unwrap();
    assert_eq!(said("cat /root/.ssh/authorized_keys"), "ssh-ed25519 AAAA somebody");
    assert_eq!(said("until [ -s /run/did ]; do sleep 0.1; done; cat /run/did"), "web did");
}

#[test]
fn a_resume_reads_pages_that_it_needs_and_not_their_neighbours() {
    let Some(larder) = baked() else { return };
    let set = larder.json("boot-set show debian-machine --name resume");
    let machine = larder.json("show debian-machine");
    let part = set["plain_bytes"].as_f64().unwrap() / machine["data_bytes"].as_f64().unwrap();
    eprintln!("{} of {} bytes", set["plain_bytes"], machine["data_bytes"]);
    assert!(part < 0.5, "{part}: {set}");
}

#[test]
#[ignore = "it kills a real guest at many steps"]
fn a_growth_that_is_killed_at_any_step_leaves_no_guest() {
    let Some(larder) = baked() else { return };
    for step in 1.. {
        let said = File::create(larder.path("said")).unwrap();
        let line = "resume debian-machine --no-identity --cpus 2 --memory 512MiB";
        let mut resume = Process::start(larder.command(line).stdout(said));
        let (began, moment) = (Instant::now(), Duration::from_millis(250) * step);
        assert!(resume.runs_until(|| began.elapsed() >= moment), "it runs until it is ended");
        resume.kill();
        wait_until("no guest is left", || guests_of(&larder).is_empty());
        if !larder.read("said").is_empty() {
            break;
        }
    }
    let copies = Copies::as_told(&larder, "debian-machine --no-identity --cpus 2 --memory 512MiB");
    assert_eq!(log_in(&copies, 0).run("nproc", SOON).unwrap(), "2");
    drop(copies);
    assert_eq!(larder.json("mirrors")["mirrors"], serde_json::json!([]));
    assert_eq!(temporary_files(&larder), Vec::<PathBuf>::new());
}

#[test]
#[ignore = "it boots twice"]
fn a_debian_is_ready_when_its_helper_answers_or_its_port_says_a_line() {
    let Some(image) = image() else { return };
    let larder = Larder::new();
    larder.json(&format!("import {} debian", image.display()));
    for (ready, has_helper) in [("helper", true), ("port", false)] {
        let baked = larder.json(&format!("bake debian --ready {ready} --to {ready}"));
        assert_eq!(baked["has_helper"], has_helper, "{baked}");
        let identity = if has_helper { "" } else { "--no-identity" };
        let copies = Copies::as_told(&larder, &format!("{ready} --no-wait {identity}"));
        let mut console = log_in(&copies, 0);
        assert_eq!(
            console.run("cat /sys/class/virtio-ports/*/name | grep -c larder", SOON).unwrap(),
            "1"
        );
    }
}

#[test]
#[ignore = "it boots an image with more in it"]
fn copies_have_ssh_host_keys_of_their_own_and_not_the_image_s() {
    let Some(image) = image_with_ssh() else { return };
    let larder = Larder::new();
    larder.json(&format!("import {} debian", image.display()));
    let baked = larder.json("bake debian --ready agent --timeout 900");
    assert_eq!(baked["has_helper"], true, "{baked}");
    let key_of = |copies: &Copies, guest: usize| {
        let key = "cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub";
        log_in(copies, guest).run(key, SOON).unwrap()
    };
    let original = Copies::as_told(&larder, "debian-machine --no-identity --no-wait");
    let mut keys = BTreeSet::from([key_of(&original, 0)]);
    drop(original);
    let copies = Copies::as_told(&larder, "debian-machine --count 2 --no-wait");
    for (index, told) in copies.guests().iter().enumerate() {
        let key = key_of(&copies, index);
        assert!(told["ssh_host_key"].as_str().unwrap().starts_with(&key), "{told}");
        keys.insert(key);
    }
    assert_eq!(keys.len(), 3, "{keys:?}");
    assert!(keys.iter().all(|key| key.starts_with("ssh-ed25519 ")), "{keys:?}");
}

/// Checks the file system of a version's disk once its journal has been replayed.
fn check_disk(larder: &Larder, version: &str) {
    larder.run(&format!("export {version} whole.raw"));
    // The image's partitions: one for the firmware of 63 MiB behind the first MiB, then the system's.
    larder.shell("dd if=whole.raw of=system.raw bs=1M skip=64 conv=sparse status=none");
    larder.shell("e2fsck -y -E journal_only system.raw; e2fsck -fn system.raw");
}

#[test]
fn a_debian_that_counts_is_suspended_and_counts_on() {
    let Some(larder) = baked() else { return };
    let copies = Copies::as_told(&larder, "debian-machine --suspendable --mirror own");
    let mut console = log_in(&copies, 0);
    // Whoever looks between the opening of a file and the writing finds nothing in it.
    let count = "i=$((i+1)); echo $i >/run/next; mv /run/next /run/count";
    let counter = format!("i=0; while :; do {count}; sleep 0.05; done");
    console.run(&format!("sh -c '{counter}' & echo $! >/run/counter"), SOON).unwrap();
    console.run("until [ $(cat /run/count || echo 0) -gt 5 ]; do sleep 0.1; done", SOON).unwrap();
    let count = number(&mut console, "cat /run/count");
    let suspended = larder.json("suspend own --end");
    eprintln!("pause {} ms, stored {}", suspended["pause_ms"], suspended["memory_stored_bytes"]);
    drop((console, copies));
    larder.json("detach own --discard");
    check_disk(&larder, suspended["disk"].as_str().unwrap());
    // Another host, with a copy of the repository.
    let there = Larder::new();
    there.shell(&format!("cp -r {} repo", larder.path("repo").display()));
    let line = format!("{} --mirror again", suspended["machine"].as_str().unwrap());
    let copies = Copies::as_told(&there, &line);
    assert_eq!(copies.told["identity_ms"], Value::Null, "it is who it was");
    let mut console = ScriptedConsole::new(copies.console(0)).unwrap();
    console.wait_for("# ", SOON).unwrap();
    let later = number(&mut console, "cat /run/count");
    // It may have been stopped before it counted on; that it does is waited for below.
    assert!((count..count + 10_000).contains(&later), "{later} after {count}");
    let alive = number(&mut console, "kill -0 $(cat /run/counter); echo $?");
    assert_eq!(alive, 0);
    let more = format!("until [ $(cat /run/count) -gt {later} ]; do sleep 0.1; done");
    console.run(&more, SOON).unwrap();
    drop((console, copies));
    let resumed = there.json("commit again");
    check_disk(&there, &format!("{}@{}", resumed["image"].as_str().unwrap(), resumed["version"]));
}
