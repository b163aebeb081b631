//! Collect beside other processes: killed, stopped past its lease, several at once.

use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::{LIMIT, Larder, Process, Random};

const MIB: usize = 1 << 20;

/// Collects; waits until the lease of one that was killed a moment ago is over.
pub fn collect_once_free(larder: &Larder) -> serde_json::Value {
    larder.json("collect --apply --quiet --lease-seconds 1")
}

fn file_count(larder: &Larder) -> usize {
    std::fs::read_dir(larder.path("repo/packs")).unwrap().count()
}

/// A disk of which some blocks differ from another.
fn changed(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    for block in changed.chunks_mut(4096).step_by(3) {
        block.copy_from_slice(&random.bytes(block.len()));
    }
    changed
}

#[test]
fn what_was_removed_is_given_back_and_what_is_left_is_whole() {
    let larder = Larder::new();
    let mut random = Random::new(1);
    let (kept, gone) = (random.bytes(3 * MIB), random.bytes(5 * MIB));
    larder.write("kept.raw", &kept);
    larder.write("gone.raw", &gone);
    larder.json("import kept.raw kept");
    larder.json("import gone.raw gone");
    larder.json("remove gone");
    let stored = || larder.json("stats")["stored_bytes"].as_u64().unwrap();
    let before = stored();
    let plan = larder.json("collect");
    assert!(plan["removable_bytes"].as_u64().unwrap() >= 5 * MIB as u64, "{plan}");
    assert_eq!(plan["removed_bytes"], 0);
    assert_eq!(stored(), before);
    let collected = larder.json("collect --apply");
    assert_eq!(collected["removed_bytes"], plan["removable_bytes"]);
    assert!(stored() < before - 5 * MIB as u64);
    larder.json("export kept out.raw");
    assert!(larder.read("out.raw") == kept);
    assert!(larder.run("collect").contains("nothing to collect"));
    assert_eq!(larder.json("collect")["removable_bytes"], 0);
}

/// The digest of the first chunk that the catalog knows.
fn digest_of_a_chunk(larder: &Larder) -> String {
    let machine = repository::repository::Machine::real();
    let repository = repository::Repository::open(&machine, &larder.path("repo")).unwrap();
    let entries = repository.catalog().entries(None, 1000).unwrap();
    let chunk = entries.iter().map(|(_, place)| place.entry).find(|entry| entry.kind == 1).unwrap();
    model::ChunkDigest(chunk.digest).to_string()
}

#[test]
fn a_chunk_is_explained_by_who_refers_to_it() {
    let larder = Larder::new();
    larder.write("disk.raw", &Random::new(2).bytes(MIB));
    larder.json("import disk.raw web");
    larder.json("clone web copy");
    let digest = digest_of_a_chunk(&larder);
    let explained = larder.json(&format!("collect --explain {digest}"));
    assert_eq!(explained["use_count"], 2, "{explained}");
    assert_eq!(explained["uses"][1]["version"], "copy@1");
    assert_eq!(explained["uses"][0]["ranges"][0]["length_bytes"], 256 << 10);
    let text = larder.run(&format!("collect --explain {digest}"));
    assert!(text.contains("used by  web@1 at ") && text.contains("it stays"), "{text}");
    larder.json("remove web");
    larder.json("remove copy");
    let text = larder.run(&format!("collect --explain {digest}"));
    assert!(text.contains("nothing refers to it"), "{text}");
    larder.json("collect --apply");
    let text = larder.run(&format!("collect --explain {digest}"));
    assert!(text.contains("not in the repository"), "{text}");
}

#[test]
fn a_collect_that_is_killed_anywhere_loses_nothing_and_the_next_one_finishes() {
    let larder = Larder::new();
    let mut random = Random::for_test(31);
    let mut bytes = random.bytes(6 * MIB);
    let mut usual = None;
    let mut killed_count = 0;
    for step in 0..8_u32 {
        // Much to do: an old version of which two thirds of each chunk live on, and a dead one.
        larder.write("disk.raw", &bytes);
        larder.json("import disk.raw disk");
        let old = larder.json("show disk")["version"].as_u64().unwrap();
        bytes = changed(&bytes, &mut random);
        larder.write("disk.raw", &bytes);
        larder.json("import disk.raw disk");
        larder.write("gone.raw", &random.bytes(2 * MIB));
        larder.json("import gone.raw gone");
        larder.json("remove gone");
        larder.json(&format!("remove disk@{old}"));
        let mut command = larder.command("collect --apply --quiet --lease-seconds 1");
        let start = Instant::now();
        let mut collect = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
        match usual {
            // The first one gets through, and tells how long that takes.
            None => {
                assert!(collect.ends_within(LIMIT) && collect.child.wait().unwrap().success());
                usual = Some(start.elapsed());
            }
            Some(usual) => {
                // More of them early: the first one may have taken longer than the others would.
                let moment = Duration::mul_f64(usual, f64::from(step - 1) / 14.0);
                killed_count += usize::from(!collect.ends_within(moment));
                collect.kill();
            }
        }
        larder.json("export disk out.raw");
        assert!(larder.read("out.raw") == bytes, "step {step}");
        // The next one is not to be refused because this one was killed a moment ago.
        collect_once_free(&larder);
        larder.json("export disk out.raw");
        assert!(larder.read("out.raw") == bytes, "step {step}");
    }
    assert!(killed_count >= 1, "none was killed in the middle: this tests nothing");
    collect_once_free(&larder);
    let plan = larder.json("collect");
    assert_eq!((&plan["removable_bytes"], &plan["orphans"]["files"]), (&0.into(), &0.into()));
    assert_eq!(plan["packs"], file_count(&larder), "no file that no row names");
    larder.json("export disk out.raw");
    assert!(larder.read("out.raw") == bytes);
}

#[test]
fn an_import_that_is_stopped_past_its_lease_publishes_nothing_and_leaves_nothing() {
    let larder = Larder::new();
    let kept = Random::new(3).bytes(2 * MIB);
    larder.write("kept.raw", &kept);
    larder.json("import kept.raw kept");
    let mut command = larder.command("import - late --quiet --lease-seconds 2");
    let command = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut import = Process::start(command);
    let mut stdin = import.child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, &Random::new(4).bytes(70 * MIB)).unwrap();
    let start = Instant::now();
    // All it can do with what it got is done: no transaction of its is stopped half way, which would
    // keep everybody from writing.
    while larder.json("collect")["young_packs"].as_u64().unwrap() < 3 {
        assert!(start.elapsed() < LIMIT);
    }
    import.signal(Signal::STOP);
    // A collect waits for it, and no longer than its lease lives; what it has left goes with the next.
    larder.json("collect --apply --quiet");
    let collected = larder.json("collect --apply --quiet");
    assert_eq!(collected["removed_packs"], 3, "{collected}");
    import.signal(Signal::CONT);
    drop(stdin);
    assert!(import.ends_within(LIMIT));
    let output = import.child.wait().unwrap();
    assert_eq!(output.code(), Some(1));
    let mut text = String::new();
    let mut stderr = import.child.stderr.take().unwrap();
    std::io::Read::read_to_string(&mut stderr, &mut text).unwrap();
    assert!(text.contains("the lease has ended or expired"), "{text}");
    let list = larder.json("list");
    assert_eq!(list["images"].as_array().unwrap().len(), 1, "{list}");
    larder.json("collect --apply --quiet");
    assert_eq!(larder.json("collect")["packs"], file_count(&larder));
    larder.json("export kept out.raw");
    assert!(larder.read("out.raw") == kept);
}

#[test]
fn imports_commits_and_collects_of_several_processes_at_once_disturb_nobody() {
    let larder = Larder::new();
    let base = Random::new(5).bytes(3 * MIB);
    larder.write("base.raw", &base);
    larder.json("import base.raw base");
    let served = larder.attach("base --mirror m --nbd ./s");
    let shell = |text: &str| {
        let mut command = std::process::Command::new("sh");
        let larder_command = larder.command("");
        command.args(["-ec", text]).env("LARDER", env!("CARGO_BIN_EXE_larder"));
        for (name, value) in larder_command.get_envs() {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        let folder = larder_command.get_current_dir().unwrap();
        Process::start(command.current_dir(folder).stdout(Stdio::null()))
    };
    let collects = shell(
        "for i in 1 2 3 4 5 6; do $LARDER collect --apply --quiet || test $? = 1; done 2> collects.log",
    );
    let imports = shell(
        "for i in 1 2 3 4; do
            $LARDER import base.raw again --quiet
            $LARDER export again out-imports.raw --quiet
            cmp base.raw out-imports.raw
            $LARDER remove again
         done",
    );
    let commits = shell(
        "for i in 1 2 3 4; do
            qemu-io -f raw -c \"write -q -P $i $((i * 131072)) 65536\" 'nbd+unix:///m?socket=./s'
            $LARDER commit m --quiet
         done",
    );
    for mut process in [imports, commits, collects] {
        assert!(process.ends_within(LIMIT));
        assert_eq!(process.child.wait().unwrap().code(), Some(0));
    }
    let log = String::from_utf8(larder.read("collects.log")).unwrap();
    let refused = |line: &str| line.contains("another collect") || line.starts_with("hint:");
    assert!(log.lines().all(refused), "{log}");
    let mut expected = base.clone();
    for number in 1..=4 {
        expected[number * 131_072..][..65_536].fill(number as u8);
        larder.json(&format!("export base@{} out.raw", number + 1));
        assert!(larder.read("out.raw") == expected, "base@{}", number + 1);
    }
    larder.shell("qemu-img compare -f raw -F raw out.raw 'nbd+unix:///m?socket=./s'");
    served.stop();
    larder.json("collect --apply");
    assert_eq!(larder.json("collect")["packs"], file_count(&larder));
}
