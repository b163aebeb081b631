//! `kill -9` at each call to the system that changes a file, one after the other, until the command
//! gets through. strace counts the calls and kills.

use std::process::Command;

use crate::collects::collect_once_free;
use crate::harness::{Larder, Random};

/// The calls that leave something behind, and at which of them to kill: each, or each so many.
const CALLS: [(&str, u32); 5] = [
    ("fsync", 1),
    ("fdatasync", 1),
    ("rename,renameat,renameat2", 1),
    ("ftruncate", 1),
    ("pwrite64", 2),
];

/// Runs larder, killed at its nth such call; true where it got through before.
fn gets_through(larder: &Larder, line: &str, calls: &str, nth: u32) -> bool {
    let plain = larder.command(line);
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={calls}")]);
    command.args(["-e", &format!("inject={calls}:signal=KILL:when={nth}")]);
    command.arg(plain.get_program()).args(plain.get_args());
    command.current_dir(larder.path(""));
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code().is_none_or(|code| code == 0), "larder {line}: {stderr}");
    output.status.success()
}

/// Kills a command at each step of each kind, from the same start; `check` looks at what is left.
pub fn kill_at_each_step(larder: &Larder, line: &str, mut check: impl FnMut(&str)) {
    larder.shell("mkdir start && cp -r repo start/ && test ! -e state || cp -r state start/");
    let mut kill_count = 0;
    for (calls, stride) in CALLS {
        for nth in (1..).step_by(stride as usize) {
            larder.shell("rm -rf repo state && cp -r start/* .");
            let is_through = gets_through(larder, line, calls, nth);
            check(&format!("{line}, killed at {calls} number {nth}"));
            if is_through {
                break;
            }
            kill_count += 1;
        }
    }
    assert!(kill_count > 10, "only {kill_count} steps: this tests little");
}

fn version_count(larder: &Larder, image: &str) -> usize {
    let list = larder.json("list");
    let images = list["images"].as_array().unwrap();
    let found = images.iter().find(|found| found["name"] == image);
    found.map_or(0, |found| found["versions"].as_array().unwrap().len())
}

fn check_export(larder: &Larder, reference: &str, bytes: &[u8], step: &str) {
    larder.json(&format!("export {reference} out.raw"));
    assert!(larder.read("out.raw") == bytes, "{reference}: {step}");
}

#[test]
fn an_import_that_is_killed_at_any_step_leaves_no_version_or_a_whole_one() {
    let larder = Larder::new();
    let (old, new) = (Random::new(1).bytes(1 << 20), Random::new(2).bytes(1 << 20));
    larder.write("old.raw", &old);
    larder.write("new.raw", &new);
    larder.json("import old.raw old");
    kill_at_each_step(&larder, "import new.raw new", |step| {
        if version_count(&larder, "new") > 0 {
            check_export(&larder, "new", &new, step);
        }
        larder.json("import new.raw new");
        check_export(&larder, "new", &new, step);
        check_export(&larder, "old", &old, step);
    });
}

#[test]
fn a_commit_that_is_killed_at_any_step_leaves_the_old_version_or_the_new_one() {
    let larder = Larder::new();
    let old = Random::new(1).bytes(1 << 20);
    larder.write("old.raw", &old);
    larder.json("import old.raw disk");
    let served = larder.attach("disk --mirror m --nbd ./s");
    let mut new = old.clone();
    new[5000..300_000].copy_from_slice(&Random::new(3).bytes(295_000));
    crate::nbd_client::NbdClient::connect(&larder.path("s"), "m").write(5000, &new[5000..300_000]);
    served.stop();
    kill_at_each_step(&larder, "commit m", |step| {
        check_export(&larder, "disk@1", &old, step);
        if version_count(&larder, "disk") == 2 {
            check_export(&larder, "disk@2", &new, step);
        }
        // The mirror has all it had: its next commit holds it.
        larder.json("commit m");
        check_export(&larder, "disk", &new, step);
    });
}

#[test]
fn a_collect_that_is_killed_at_any_step_leaves_every_version_whole() {
    let larder = Larder::new();
    let mut random = Random::new(1);
    let mut bytes = random.bytes(1 << 20);
    larder.write("disk.raw", &bytes);
    larder.json("import disk.raw disk");
    for block in bytes.chunks_mut(4096).step_by(2) {
        block.copy_from_slice(&random.bytes(block.len()));
    }
    larder.write("disk.raw", &bytes);
    larder.json("import disk.raw disk");
    larder.write("gone.raw", &random.bytes(1 << 20));
    larder.json("import gone.raw gone");
    larder.json("remove gone");
    larder.json("remove disk@1");
    let mut step_count = 0;
    kill_at_each_step(&larder, "collect --apply --quiet --lease-seconds 1", |step| {
        check_export(&larder, "disk", &bytes, step);
        step_count += 1;
        if step_count % 8 == 0 {
            collect_once_free(&larder);
            check_export(&larder, "disk", &bytes, step);
            assert_eq!(larder.json("collect")["removable_bytes"], 0, "{step}");
        }
    });
}
