//! `larder bake`, `resume` and `suspend` with a real Debian, baked once and kept beside the build.
//!
//! The image is the one that `cargo xtask images` makes, or the one that `LARDER_TEST_IMAGE` names: its
//! root logs in on the serial console without a password. Without one these tests say so and end.

#![expect(clippy::print_stderr, reason = "what is left out is for whoever reads the output")]

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use env::{Clock, SystemClock};
use guest::ScriptedConsole;
use serde_json::Value;

use crate::harness::{LIMIT, Larder};
use crate::machines::{Copies, bases};

const SOON: Duration = LIMIT;

fn image() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("LARDER_TEST_IMAGE") {
        return Some(path.into());
    }
    let folder = target().join("images");
    let mut paths = std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|e| e.path());
    let found = paths.find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("minimal-") && name.ends_with(".raw")
    });
    if found.is_none() {
        eprintln!("no image in {}: `cargo xtask images` makes one", folder.display());
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

fn log_in(copies: &Copies, guest: usize) -> ScriptedConsole {
    let mut console = ScriptedConsole::new(copies.console(guest)).unwrap();
    console.log_in("root", SOON).unwrap();
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
fn a_debian_that_counts_is_suspended_and_counts_on() {
    let Some(larder) = baked() else { return };
    let copies = Copies::as_told(&larder, "debian-machine --suspendable --mirror own");
    let mut console = log_in(&copies, 0);
    let counter = "i=0; while :; do i=$((i+1)); echo $i >/run/count; sleep 0.05; done";
    console.run(&format!("sh -c '{counter}' & echo $! >/run/counter"), SOON).unwrap();
    console.run("until [ $(cat /run/count || echo 0) -gt 5 ]; do sleep 0.1; done", SOON).unwrap();
    let count = number(&mut console, "cat /run/count");
    let suspended = larder.json("suspend own --end");
    eprintln!("pause {} ms, stored {}", suspended["pause_ms"], suspended["memory_stored_bytes"]);
    drop((console, copies));
    larder.json("detach own --discard");
    let copies = Copies::as_told(&larder, suspended["machine"].as_str().unwrap());
    assert_eq!(copies.told["identity_ms"], Value::Null, "it is who it was");
    let mut console = ScriptedConsole::new(copies.console(0)).unwrap();
    console.wait_for("# ", SOON).unwrap();
    let later = number(&mut console, "cat /run/count");
    assert!(later > count, "{later} after {count}");
    assert!(later < count + 10_000, "it has not begun anew");
    let alive = number(&mut console, "kill -0 $(cat /run/counter); echo $?");
    assert_eq!(alive, 0);
    let more = format!("until [ $(cat /run/count) -gt {later} ]; do sleep 0.1; done");
    console.run(&more, SOON).unwrap();
}
