//! `write`, `append` and `read`: versions as byte ranges.

use std::io::Write as _;
use std::process::Stdio;

use crate::harness::{LIMIT, Larder, Process, Random};

fn read(larder: &Larder, line: &str) -> Vec<u8> {
    let outcome = larder.attempt(&format!("read {line}"));
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    outcome.stdout
}

#[test]
fn what_is_written_and_appended_is_read_from_any_version() {
    let larder = Larder::new();
    let patch = Random::new(1).bytes(700_001);
    larder.write("patch.bin", &patch);
    larder.json("create web --length 10000");
    let written = larder.json("write web --offset 123 patch.bin");
    assert_eq!((&written["image"], &written["version"]), (&"web".into(), &2.into()));
    assert_eq!((&written["parent"], &written["offset"]), (&"web@1".into(), &123.into()));
    assert_eq!(written["written_bytes"], 700_001);
    assert_eq!(written["length_bytes"], 700_124);
    assert!(written["stored_bytes"].as_u64().unwrap() > 700_000, "{written}");
    let outcome = larder.run_with_input("append web - --format json", b"the end");
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let appended: serde_json::Value = serde_json::from_slice(&outcome.stdout).unwrap();
    assert_eq!((&appended["version"], &appended["offset"]), (&3.into(), &700_124.into()));
    larder.run("tag web@2 middle");
    let whole = [&[0; 123], &patch[..], b"the end"].concat();
    assert!(read(&larder, "web --offset 0 --length 700131") == whole);
    assert!(read(&larder, "web:middle --offset 0 --length 700124") == whole[..700_124]);
    assert!(read(&larder, "web@1 --offset 0 --length 10000") == vec![0; 10_000]);
    assert!(read(&larder, "web@3 --offset 700124 --length 7") == b"the end");
    let shown = larder.json("read web@2 --offset 4000 --length 5000 --output part.bin");
    assert_eq!((&shown["version"], &shown["length_bytes"]), (&2.into(), &5000.into()));
    assert!(larder.read("part.bin") == whole[4000..9000]);
}

#[test]
fn writers_of_several_processes_at_once_all_get_through() {
    let larder = Larder::new();
    larder.json("create web --length 4096");
    let writers: Vec<Process> = (0..8)
        .map(|writer| {
            larder.write(&format!("{writer}.bin"), &[writer + 1; 512]);
            let line = format!("write web --offset {} {writer}.bin", 512 * u32::from(writer));
            Process::start(larder.command(&line).stdout(Stdio::null()))
        })
        .collect();
    for mut writer in writers {
        assert!(writer.ends_within(LIMIT));
        assert_eq!(writer.child.wait().unwrap().code(), Some(0));
    }
    let expected: Vec<u8> = (1..9).flat_map(|byte| [byte; 512]).collect();
    assert!(read(&larder, "web@9 --offset 0 --length 4096") == expected);
}

#[test]
fn a_writer_that_is_killed_blocks_nobody() {
    let larder = Larder::new();
    larder.json("create web --length 4096");
    let mut killed = Process::start(larder.command("write web --offset 0 -").stdin(Stdio::piped()));
    let mut input = killed.child.stdin.take().unwrap();
    // More than pipes and windows hold: some of it is in the store when the process is killed.
    let bytes = Random::new(3).bytes(1 << 20);
    for _ in 0..100 {
        input.write_all(&bytes).unwrap();
    }
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    larder.write("next.bin", b"next");
    assert_eq!(larder.json("write web --offset 1 next.bin")["version"], 2);
    assert_eq!(read(&larder, "web --offset 0 --length 6"), b"\0next\0");
}

#[test]
fn what_cannot_be_written_or_read_is_one_line_and_changes_nothing() {
    let larder = Larder::new();
    larder.write("some.bin", b"some");
    larder.json("create web --length 4096");
    std::fs::create_dir(larder.path("folder")).unwrap();
    let before = larder.inventory();
    for (line, reason) in [
        ("write none --offset 0 some.bin", "none"),
        ("append none some.bin", "none"),
        ("write web --offset 0 missing.bin", "missing.bin"),
        ("write web --offset 0 folder", "read folder: it is a folder"),
        ("write web --offset 1125899906842621 some.bin", "1125899906842624 bytes"),
        ("write web --offset 16383TiB some.bin", "1125899906842624 bytes"),
        ("read web --offset 4000 --length 97 --output out", "it has 4096 bytes"),
        ("read web --offset 4097 --length 0 --output out", "it has 4096 bytes"),
        ("read web@2 --offset 0 --length 1 --output out", "web"),
        ("read web --offset 0 --length 1 --output no/such", "no/such"),
    ] {
        let failure = larder.fails(line);
        assert!(failure.message.contains(reason), "larder {line}: {failure:?}");
        assert_eq!(larder.inventory(), before, "larder {line}");
    }
    assert!(!larder.path("out").exists());
}
