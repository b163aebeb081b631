//! Raw and qcow2 destinations.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use model::Kind;
use model::source::DiskSink;

use super::super::stream::StreamSink;
use super::super::{OutputFormat, create_sink};
use super::*;

const FORMATS: [OutputFormat; 2] = [OutputFormat::Raw, OutputFormat::Qcow2];

/// Writes `bytes` in steps of `step`, whole blocks of zeros left out where `gaps` says so.
fn fill(sink: &mut dyn DiskSink, bytes: &[u8], step: usize, gaps: bool) {
    for (index, part) in bytes.chunks(step).enumerate() {
        if !(gaps && part.iter().all(|byte| *byte == 0)) {
            sink.write((index * step) as u64, part).unwrap();
        }
    }
}

fn entries(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap();
    names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_raw_export_is_the_disk_byte_for_byte_at_any_length_and_step() {
    let folder = folder();
    for length in LENGTHS {
        for (step, gaps) in [(4096, true), (1000, false), (1 << 20, true), (70_000, true)] {
            let path = folder.path().join("out.raw");
            let bytes = mixed(length as usize);
            let mut sink = create_sink(&path, OutputFormat::Raw, length).unwrap();
            fill(&mut *sink, &bytes, step, gaps);
            sink.finish(length).unwrap();
            check_equal(&std::fs::read(&path).unwrap(), &bytes);
        }
    }
}

#[test]
fn a_qcow2_export_passes_check_and_compare_at_any_length_and_step() {
    let folder = folder();
    for length in LENGTHS {
        for (step, gaps) in [(4096, true), (1000, false), (1 << 20, true)] {
            let (raw, bytes) = mixed_file(folder.path(), length as usize);
            let path = folder.path().join("out.qcow2");
            let mut sink = create_sink(&path, OutputFormat::Qcow2, length).unwrap();
            fill(&mut *sink, &bytes, step, gaps);
            sink.finish(length).unwrap();
            run("qemu-img", &["check", "-f", "qcow2", text(&path)]);
            let words = ["compare", "-f", "raw", "-F", "qcow2", text(&raw), text(&path)];
            run("qemu-img", &words);
            let mut padded = bytes.clone();
            padded.resize(bytes.len().next_multiple_of(512), 0);
            check_reads(&path, &options("qcow2"), &padded);
        }
    }
}

#[test]
fn a_long_sparse_qcow2_export_has_several_tables_and_stays_small() {
    let folder = folder();
    let (raw, path) = (folder.path().join("disk.raw"), folder.path().join("out.qcow2"));
    let length = 3 << 40;
    let file = File::create(&raw).unwrap();
    file.set_len(length).unwrap();
    let mut sink = create_sink(&path, OutputFormat::Qcow2, length).unwrap();
    for offset in [0, (512 << 20) - 65_536, (40 << 30) + 12_345, length - 70_000] {
        let bytes = pattern(70_000, offset + 1);
        file.write_all_at(&bytes, offset).unwrap();
        sink.write(offset, &bytes).unwrap();
    }
    sink.finish(length).unwrap();
    run("qemu-img", &["check", "-f", "qcow2", text(&path)]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", text(&raw), text(&path)]);
    assert!(std::fs::metadata(&path).unwrap().len() < 4 << 20);
}

#[test]
fn a_qcow2_export_of_many_clusters_counts_them_in_several_refcount_blocks() {
    let folder = folder();
    let path = folder.path().join("out.qcow2");
    let length: u64 = (2 << 30) + (128 << 20);
    let mut sink = create_sink(&path, OutputFormat::Qcow2, length).unwrap();
    // One byte in each cluster is enough for it to be given out.
    let mut part = vec![0; 16 << 20];
    part.iter_mut().step_by(65_536).for_each(|byte| *byte = 1);
    for offset in (0..length).step_by(part.len()) {
        sink.write(offset, &part).unwrap();
    }
    sink.finish(length).unwrap();
    let said = run("qemu-img", &["check", "-f", "qcow2", text(&path)]);
    assert!(said.contains("No errors were found"), "{said}");
    assert!(std::fs::metadata(&path).unwrap().len() > length);
}

#[test]
fn zeros_that_are_written_become_holes() {
    let folder = folder();
    for (format, blocks_max) in [(OutputFormat::Raw, 64), (OutputFormat::Qcow2, 640)] {
        let path = folder.path().join(format!("out.{format}"));
        let mut sink = create_sink(&path, format, 8 << 20).unwrap();
        let mut bytes = vec![0; 8 << 20];
        bytes[5 << 20] = 1;
        sink.write(0, &bytes).unwrap();
        sink.finish(8 << 20).unwrap();
        let blocks = std::fs::metadata(&path).unwrap().blocks();
        assert!(blocks <= blocks_max, "{format}: {blocks} sectors");
        check_reads(&path, &OpenOptions::default(), &bytes);
    }
}

#[test]
fn a_sink_that_is_dropped_leaves_what_was_there() {
    let folder = folder();
    for format in FORMATS {
        let path = folder.path().join("out");
        let mut sink = create_sink(&path, format, 1 << 20).unwrap();
        sink.write(0, &pattern(100_000, 1)).unwrap();
        drop(sink);
        assert_eq!(entries(folder.path()), Vec::<String>::new());
        std::fs::write(&path, b"old").unwrap();
        let mut sink = create_sink(&path, format, 1 << 20).unwrap();
        sink.write(0, &pattern(100_000, 1)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        drop(sink);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(entries(folder.path()), ["out"]);
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn an_export_replaces_a_file_and_keeps_its_mode_and_the_link_to_it() {
    let folder = folder();
    let (path, link) = (folder.path().join("out"), folder.path().join("link"));
    std::fs::write(&path, b"a longer file that was there before").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink("out", &link).unwrap();
    let mut sink = create_sink(&link, OutputFormat::Raw, 3).unwrap();
    sink.write(0, b"new").unwrap();
    sink.finish(3).unwrap();
    assert!(link.is_symlink());
    assert_eq!(std::fs::read(&path).unwrap(), b"new");
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
}

#[test]
fn a_pipe_gets_holes_as_zeros() {
    let (reader, writer) = std::io::pipe().unwrap();
    let reading = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut { reader }, &mut bytes).unwrap();
        bytes
    });
    let bytes = mixed((1 << 20) + 1);
    let output = File::from(std::os::fd::OwnedFd::from(writer));
    let mut sink = Box::new(StreamSink::new(output, "standard output".to_owned()));
    fill(&mut *sink, &bytes, 4096, true);
    sink.finish(bytes.len() as u64 + 100_000).unwrap();
    let mut expected = bytes;
    expected.resize(expected.len() + 100_000, 0);
    check_equal(&reading.join().unwrap(), &expected);
}

#[test]
fn what_cannot_be_written_is_refused() {
    let folder = folder();
    let error = create_sink(Path::new("-"), OutputFormat::Qcow2, 1).err().unwrap();
    assert_eq!(error.kind(), Kind::Invalid);
    let error = create_sink(folder.path(), OutputFormat::Raw, 1).err().unwrap();
    assert_eq!(error.kind(), Kind::Invalid);
    let path = folder.path().join("no/such/folder");
    assert_eq!(create_sink(&path, OutputFormat::Raw, 1).err().unwrap().kind(), Kind::NotFound);
    for format in FORMATS {
        let path = folder.path().join("out");
        let mut sink = create_sink(&path, format, 10).unwrap();
        sink.write(100, b"later").unwrap();
        assert_eq!(sink.write(0, b"earlier").unwrap_err().kind(), Kind::Bug);
        assert_eq!(sink.finish(50).unwrap_err().kind(), Kind::Bug);
        assert!(entries(folder.path()).is_empty());
    }
}
