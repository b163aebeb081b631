//! qcow2 of all kinds that `qemu-img` makes.

use super::*;

const LENGTH: usize = (1 << 20) + 512;

/// Converts the mixed disk with the creation options `made_with` and reads it back.
fn check_kind(words: &[&str]) {
    let folder = folder();
    let (raw, bytes) = mixed_file(folder.path(), LENGTH);
    let path = folder.path().join("disk.qcow2");
    let mut all = vec!["convert", "-f", "raw", "-O", "qcow2"];
    all.extend_from_slice(words);
    all.extend_from_slice(&[text(&raw), text(&path)]);
    run("qemu-img", &all);
    check_reads(&path, &OpenOptions::default(), &bytes);
}

#[test]
fn every_cluster_size_is_read_plain_and_compressed() {
    for size in ["512", "1k", "2k", "4k", "8k", "16k", "32k", "64k", "128k", "512k", "2M"] {
        let cluster = format!("cluster_size={size}");
        check_kind(&["-o", &cluster]);
        check_kind(&["-c", "-o", &cluster]);
        check_kind(&["-c", "-o", &format!("{cluster},compression_type=zstd")]);
    }
}

#[test]
fn both_versions_and_all_refcount_widths_are_read() {
    check_kind(&["-o", "compat=0.10"]);
    check_kind(&["-c", "-o", "compat=0.10"]);
    check_kind(&["-o", "compat=1.1,lazy_refcounts=on"]);
    for width in ["1", "2", "4", "8", "16", "32", "64"] {
        check_kind(&["-o", &format!("refcount_bits={width}")]);
    }
}

#[test]
fn subclusters_are_read() {
    for size in ["16k", "64k", "2M"] {
        check_kind(&["-o", &format!("extended_l2=on,cluster_size={size}")]);
        check_kind(&["-c", "-o", &format!("extended_l2=on,cluster_size={size}")]);
    }
}

#[test]
fn preallocated_images_are_read() {
    for mode in ["off", "metadata", "falloc", "full"] {
        check_kind(&["-o", &format!("preallocation={mode}")]);
    }
    let folder = folder();
    let path = folder.path().join("empty.qcow2");
    for mode in ["off", "metadata", "falloc"] {
        let mode = format!("preallocation={mode}");
        run("qemu-img", &["create", "-f", "qcow2", "-o", &mode, text(&path), "3M"]);
        check_reads(&path, &OpenOptions::default(), &vec![0; 3 << 20]);
    }
}

#[test]
fn an_empty_disk_and_an_odd_one_are_read() {
    let folder = folder();
    let path = folder.path().join("disk.qcow2");
    for size in ["0", "512", "65536", "66048"] {
        run("qemu-img", &["create", "-f", "qcow2", text(&path), size]);
        check_reads(&path, &OpenOptions::default(), &vec![0; size.parse().unwrap()]);
    }
}

/// Writes with QEMU in an order that leaves clusters scattered, zeroed, discarded and partly
/// written, then reads what QEMU reads.
fn check_after_writes(create: &[&str], last: &str) {
    let folder = folder();
    let path = folder.path().join("disk.qcow2");
    let mut words = vec!["create", "-f", "qcow2"];
    words.extend_from_slice(create);
    words.extend_from_slice(&[text(&path), "8M"]);
    run("qemu-img", &words);
    let commands = [
        "write -P 1 4M 64k",
        "write -P 2 1M 200k",
        "write -P 3 3145728 512",
        "write -P 4 2M 4k",
        "write -P 5 2117632 6k",
        "write -z 1100k 70k",
        "write -z -u 4M 8k",
        "discard 1M 64k",
        "write -P 6 6M 1M",
        "write -P 7 8388096 512",
        last,
    ];
    let mut words = vec!["-f", "qcow2"];
    for command in &commands {
        words.extend_from_slice(&["-c", command]);
    }
    words.push(text(&path));
    run("qemu-io", &words);
    let raw = folder.path().join("expected.raw");
    run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", text(&path), text(&raw)]);
    check_reads(&path, &OpenOptions::default(), &std::fs::read(&raw).unwrap());
}

#[test]
fn an_image_that_a_guest_has_written_to_is_read() {
    check_after_writes(&[], "write -c -P 9 7M 64k");
    check_after_writes(&["-o", "compression_type=zstd"], "write -c -P 9 7M 64k");
    check_after_writes(&["-o", "cluster_size=4k"], "write -P 9 7M 64k");
    check_after_writes(&["-o", "extended_l2=on"], "write -P 9 7M 64k");
    check_after_writes(&["-o", "extended_l2=on,cluster_size=16k"], "write -P 9 7M 64k");
    check_after_writes(&["-o", "compat=0.10"], "write -P 9 7M 64k");
    check_after_writes(&["-o", "preallocation=metadata"], "write -P 9 7M 64k");
}

#[test]
fn internal_snapshots_do_not_change_what_is_read() {
    let folder = folder();
    let (raw, mut bytes) = mixed_file(folder.path(), 1 << 20);
    let path = folder.path().join("disk.qcow2");
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", text(&raw), text(&path)]);
    run("qemu-img", &["snapshot", "-c", "before", text(&path)]);
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 7 64k 192k", text(&path)]);
    bytes[65_536..65_536 + 196_608].fill(7);
    check_reads(&path, &OpenOptions::default(), &bytes);
}

#[test]
fn holes_and_zero_clusters_are_skipped_and_counted_out() {
    let folder = folder();
    let path = folder.path().join("disk.qcow2");
    run("qemu-img", &["create", "-f", "qcow2", text(&path), "100G"]);
    let write = ["-c", "write -P 1 50G 1M", "-c", "write -z 50G 512k", text(&path)];
    run("qemu-io", &write);
    let mut source = open_source(&path, &options("qcow2")).unwrap();
    assert_eq!(source.data_len_hint(), Some(512 << 10));
    let mut buffer = vec![0; 1 << 20];
    let run = source.read(&mut buffer).unwrap().unwrap();
    assert_eq!((run.offset, run.len), ((50 << 30) + (512 << 10), 512 << 10));
    assert_eq!(source.read(&mut buffer).unwrap(), None);
}

#[test]
fn a_big_buffer_is_filled_with_consecutive_clusters() {
    let folder = folder();
    let raw = folder.path().join("disk.raw");
    std::fs::write(&raw, pattern(6 << 20, 1)).unwrap();
    for word in ["-p", "-c"] {
        let path = folder.path().join("disk.qcow2");
        run("qemu-img", &["convert", word, "-f", "raw", "-O", "qcow2", text(&raw), text(&path)]);
        let mut source = open_source(&path, &options("qcow2")).unwrap();
        let mut buffer = vec![0; 4 << 20];
        assert_eq!(source.read(&mut buffer).unwrap().unwrap().len, 4 << 20);
        assert_eq!(source.read(&mut buffer).unwrap().unwrap().len, 2 << 20);
    }
}

#[test]
fn a_backing_file_is_read_when_it_is_allowed() {
    let folder = folder();
    let (raw, mut bytes) = mixed_file(folder.path(), 1 << 20);
    let path = folder.path().join("top.qcow2");
    // A relative name counts from the folder of the image.
    let words = ["create", "-f", "qcow2", "-b", "disk.raw", "-F", "raw", text(&path)];
    assert!(raw.ends_with("disk.raw"));
    run("qemu-img", &words);
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 7 64k 192k", text(&path)]);
    bytes[65_536..65_536 + 196_608].fill(7);
    let allowed =
        OpenOptions { format: Some(InputFormat::Qcow2), allow_backing: true, interrupt: None };
    check_reads(&path, &allowed, &bytes);
}
