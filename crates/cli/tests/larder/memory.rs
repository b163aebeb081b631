//! The memory of an import and of a write is bounded, however long they are.

use std::io::Write;
use std::process::Stdio;

use crate::harness::{Larder, Random};

const MIB: usize = 1 << 20;

/// The most memory that a process has had so far, in bytes.
fn peak_len(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<usize>().unwrap() << 10
}

#[test]
fn an_import_of_any_length_stays_below_256_mib() {
    let larder = Larder::new();
    stays_below_256_mib(&larder, "import - noise");
}

#[test]
fn a_write_of_any_length_stays_below_256_mib() {
    let larder = Larder::new();
    larder.json("create noise --length 1000");
    stays_below_256_mib(&larder, "write noise --offset 511 -");
}

fn stays_below_256_mib(larder: &Larder, line: &str) {
    let mut import =
        larder.command(line).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut input = import.stdin.take().unwrap();
    let mut random = Random::new(7);
    let mut peaks = Vec::new();
    // Nothing in it is alike or can be compressed: the most work and the most bytes under way.
    for _ in 0..640 {
        input.write_all(&random.bytes(MIB)).unwrap();
        peaks.push(peak_len(import.id()));
    }
    drop(input);
    assert!(import.wait().unwrap().success());
    let last = peaks[peaks.len() - 1];
    assert!(last < 256 * MIB, "{last} bytes at the end");
    // What grows with the length would be twice as much; how much is under way at once is the
    // scheduler's to say.
    assert!(last < peaks[319] + peaks[319] / 2, "it grows: {} then {last}", peaks[319]);
}
