//! What people use: libnbd's tools and QEMU's.

use std::process::Command;
use std::sync::Arc;

use model::device::{Device, MemoryDevice};

use crate::Served;

const MIB: usize = 1 << 20;

/// Runs a tool; its standard output, or a panic with everything it said.
fn run(tool: &str, arguments: &[&str]) -> String {
    let output = Command::new(tool).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool} {}\n{text}{errors}", arguments.join(" "));
    text
}

/// Runs a tool that must fail; everything it said.
fn run_failing(tool: &str, arguments: &[&str]) -> String {
    let output = Command::new(tool).args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(!output.status.success(), "{tool} {} did not fail\n{text}", arguments.join(" "));
    text
}

/// Bytes that do not repeat where a mistake would move them.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..len.div_ceil(8)).flat_map(|_| next().to_le_bytes()).take(len).collect()
}

/// Data, a hole, data, a long hole, and an end that is not a whole block.
fn sparse_disk() -> Vec<u8> {
    let mut bytes = vec![0; 9 * MIB + 512];
    bytes[..MIB].copy_from_slice(&pattern(MIB, 1));
    bytes[3 * MIB..4 * MIB].copy_from_slice(&pattern(MIB, 2));
    bytes[9 * MIB..].copy_from_slice(&pattern(512, 3));
    bytes
}

#[test]
fn nbdinfo_sees_what_the_server_can_do() {
    for served in [
        Served::unix(Arc::new(MemoryDevice::new(sparse_disk()))),
        Served::tcp(Arc::new(MemoryDevice::new(sparse_disk()))),
    ] {
        let text = run("nbdinfo", &[&served.uri()]);
        for line in [
            "newstyle-fixed without TLS, using structured packets",
            "export=\"disk\":",
            "description: the disk disk",
            "export-size: 9437696",
            "contexts:\n\t\tbase:allocation",
            "is_read_only: false",
            "can_multi_conn: true",
            "can_flush: true",
            "can_fua: true",
            "can_trim: true",
            "can_zero: true",
            "can_fast_zero: true",
            "can_cache: true",
            "can_df: true",
            "block_size_minimum: 1",
            "block_size_preferred: 4096",
            "block_size_maximum: 33554432",
        ] {
            assert!(text.contains(line), "`{line}` is missing in\n{text}");
        }
        assert!(run("nbdinfo", &["--list", &served.uri()]).contains("export=\"disk\":"));
    }
}

#[test]
fn the_default_export_is_the_first_one() {
    let served = Served::tcp(Arc::new(MemoryDevice::new(vec![1; 4096])));
    let uri = served.uri();
    let default = uri.strip_suffix("disk").unwrap();
    assert_eq!(run("nbdinfo", &["--size", default]).trim(), "4096");
    run_failing("nbdinfo", &["--size", &format!("{default}other")]);
}

#[test]
fn a_map_has_one_line_for_each_stretch() {
    let served = Served::unix(Arc::new(MemoryDevice::new(sparse_disk())));
    let map = run("nbdinfo", &["--map", &served.uri()]);
    let rows: Vec<Vec<&str>> =
        map.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
    assert_eq!(
        rows,
        [
            ["0", "1048576", "0"],
            ["1048576", "2097152", "3"],
            ["3145728", "1048576", "0"],
            ["4194304", "5242880", "3"],
            ["9437184", "512", "0"],
        ]
    );
    let map = run("qemu-img", &["map", "-f", "raw", "--output=json", &served.uri()]);
    assert!(
        map.contains("\"start\": 1048576, \"length\": 2097152") && map.contains("\"zero\": true")
    );
}

#[test]
fn nbdcopy_moves_a_disk_out_and_in() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    let (from, to) = (from.to_str().unwrap(), to.to_str().unwrap());
    let mut bytes = sparse_disk();
    bytes.truncate(9 * MIB);
    std::fs::write(from, &bytes).unwrap();

    let device = Arc::new(MemoryDevice::new(vec![7; 9 * MIB]));
    for served in [Served::unix(device.clone()), Served::tcp(device.clone())] {
        device.write(0, &vec![7; 9 * MIB]).unwrap();
        run("nbdcopy", &["--flush", from, &served.uri()]);
        assert!(device.to_vec() == bytes, "what nbdcopy wrote is not what the device holds");
        for option in [&["--connections=1"][..], &["--connections=4"], &["--synchronous"]] {
            run("nbdcopy", &[option, &[&served.uri(), to]].concat());
            assert!(std::fs::read(to).unwrap() == bytes, "{option:?}");
        }
        // Pieces of 3 MiB need more than one chunk each.
        run("nbdcopy", &["--request-size=4194304", "--no-extents", &served.uri(), to]);
        assert!(std::fs::read(to).unwrap() == bytes);
    }
}

#[test]
fn qemu_img_converts_compares_and_describes() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let (raw, qcow2) = (path("disk.raw"), path("disk.qcow2"));
    std::fs::write(&raw, sparse_disk()).unwrap();
    let length = 9 * MIB + 512;
    let device = Arc::new(MemoryDevice::new(vec![9; length]));
    let served = Served::unix(device.clone());
    let uri = served.uri();

    assert!(run("qemu-img", &["info", "-f", "raw", &uri]).contains("(9437696 bytes)"));
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &raw, &uri]);
    assert!(device.to_vec() == sparse_disk());
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &uri, &raw]);
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, &qcow2]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &uri, &qcow2]);
    // A foreign format written through the door reads back as that format.
    run("qemu-img", &["create", "-f", "qcow2", &uri, "8M"]);
    assert!(run("qemu-img", &["info", &uri]).contains("file format: qcow2"));
}

#[test]
fn qemu_io_writes_trims_and_zeroes() {
    let device = Arc::new(MemoryDevice::new(vec![1; 4 * MIB]));
    let served = Served::tcp(device.clone());
    let script = [
        "write -P 0xaa 4k 64k",
        "write -f -P 0xbb 1m 4k",
        "aio_write -P 0xcc 2m 1m",
        "aio_flush",
        "read -P 0xaa 4k 64k",
        "read -P 0xbb 1m 4k",
        "read -P 0xcc 2m 1m",
        "read -P 0x01 0 4k",
        "write -z 8k 8k",
        "write -z -u 24k 8k",
        "write -z -f 40k 512",
        "discard 1m 4k",
        "flush",
        "read -P 0 8k 8k",
        "read -P 0 24k 8k",
        "read -P 0xaa 4k 4k",
        "read -P 0xaa 16k 8k",
        "read -P 0 1m 4k",
        "read -P 0xaa 41472 512",
    ];
    let mut arguments = vec!["-f", "raw", "-t", "none"];
    for line in &script {
        arguments.extend(["-c", line]);
    }
    let uri = served.uri();
    arguments.push(&uri);
    let text = run("qemu-io", &arguments);
    assert!(!text.contains("failed"), "{text}");
    let bytes = device.to_vec();
    assert_eq!((bytes[4096], bytes[8192], bytes[MIB], bytes[2 * MIB]), (0xaa, 0, 0, 0xcc));
}

#[test]
fn a_read_only_export_says_so_and_keeps_its_bytes() {
    let device = Arc::new(MemoryDevice::read_only(vec![1; MIB]));
    let served = Served::unix(device.clone());
    let text = run("nbdinfo", &[&served.uri()]);
    for line in ["is_read_only: true", "can_trim: false", "can_zero: false", "can_multi_conn: true"]
    {
        assert!(text.contains(line), "`{line}` is missing in\n{text}");
    }
    run_failing("qemu-io", &["-f", "raw", "-c", "write 0 4k", &served.uri()]);
    run("qemu-io", &["-r", "-f", "raw", "-c", "read -P 1 0 1m", &served.uri()]);
    assert!(device.to_vec().iter().all(|byte| *byte == 1));
}

#[test]
fn a_file_system_is_made_through_the_door_and_is_clean() {
    let folder = tempfile::tempdir().unwrap();
    let mount = folder.path().join("mount");
    std::fs::create_dir(&mount).unwrap();
    let (disk, pid) = (mount.join("disk"), folder.path().join("pid"));
    let device = Arc::new(MemoryDevice::new(vec![3; 16 * MIB]));
    let served = Served::unix(device.clone());
    let mut nbdfuse = Command::new("nbdfuse")
        .args(["-P", pid.to_str().unwrap(), disk.to_str().unwrap(), &served.uri()])
        .spawn()
        .unwrap();
    crate::wait_until(|| pid.exists());
    run("mke2fs", &["-q", "-F", "-t", "ext4", disk.to_str().unwrap()]);
    run("e2fsck", &["-f", "-n", disk.to_str().unwrap()]);
    run("fusermount3", &["-u", mount.to_str().unwrap()]);
    assert!(nbdfuse.wait().unwrap().success());

    let copy = folder.path().join("copy");
    std::fs::write(&copy, device.to_vec()).unwrap();
    run("e2fsck", &["-f", "-n", copy.to_str().unwrap()]);
}
