//! Tests of foreign formats against the real `qemu-img`.

mod lies;
mod others;
mod qcow2;
mod raw;
mod sinks;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use model::source::DiskSource;
use model::{BLOCK_LEN, Error};

use super::{InputFormat, OpenOptions, open_source};

/// The lengths that every round trip is tried at.
const LENGTHS: [u64; 9] = [0, 1, 511, 4095, 4096, 4097, 65_537, (1 << 20) + 1, 3 << 20];

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Runs a program that must succeed; returns what it said.
fn run(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {words:?}: {complaint}");
    String::from_utf8(output.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn options(format: &str) -> OpenOptions {
    OpenOptions { format: Some(format.parse().unwrap()), allow_backing: false, interrupt: None }
}

/// Bytes that neither compress to nothing nor stay as they are: lines of text with a counter.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 32);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(format!("line {:>8} of {seed}\n", state % 100_000).as_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A disk with data, holes of several sizes, written zeros, and an odd end.
fn mixed(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let stretches =
        [(0, 700), (5000, 300), (65_536, 200_000), (300_001, 5), (524_288, 131_072), (900_000, 1)];
    for (start, len) in stretches {
        let end = (start + len).min(length);
        if start < end {
            bytes[start..end].copy_from_slice(&pattern(end - start, start as u64 + 1));
        }
    }
    if let Some(last) = bytes.last_mut() {
        *last = 0x5a;
    }
    bytes
}

/// Writes `bytes` as a file whose zero blocks are holes.
fn sparse_file(path: &Path, bytes: &[u8]) {
    let file = File::create(path).unwrap();
    for (index, block) in bytes.chunks(BLOCK_LEN).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            file.write_all_at(block, (index * BLOCK_LEN) as u64).unwrap();
        }
    }
    file.set_len(bytes.len() as u64).unwrap();
}

/// A raw file with [`mixed`] bytes in `folder`.
fn mixed_file(folder: &Path, length: usize) -> (PathBuf, Vec<u8>) {
    let path = folder.join("disk.raw");
    let bytes = mixed(length);
    sparse_file(&path, &bytes);
    (path, bytes)
}

/// Reads a source to its end and checks its contract on the way; also says how many bytes it gave.
fn read_all(source: &mut dyn DiskSource, buffer_len: usize) -> Result<(Vec<u8>, u64), Error> {
    // Not zeros: what a source does not fill must not pass for a hole.
    let mut buffer = vec![0xee; buffer_len];
    let mut disk = Vec::new();
    let mut given = 0;
    while let Some(run) = source.read(&mut buffer)? {
        assert!(run.len > 0 && run.len <= buffer.len());
        assert!(run.offset.is_multiple_of(BLOCK_LEN as u64), "{run:?}");
        assert!(run.offset >= disk.len() as u64, "stretches overlap: {run:?}");
        let end = run.offset + run.len as u64;
        if !run.len.is_multiple_of(BLOCK_LEN) {
            assert_eq!(source.length_hint(), Some(end), "an odd stretch is the last: {run:?}");
        }
        disk.resize(run.offset as usize, 0);
        disk.extend_from_slice(&buffer[..run.len]);
        given += run.len as u64;
        buffer.fill(0xee);
    }
    assert!(source.length() >= disk.len() as u64);
    disk.resize(source.length() as usize, 0);
    assert_eq!(source.length_hint(), Some(source.length()));
    Ok((disk, given))
}

#[track_caller]
fn check_reads(path: &Path, options: &OpenOptions, expected: &[u8]) {
    for buffer_len in [4096, 12_288 + 5, 1 << 20] {
        let mut source = open_source(path, options).map_err(|e| e.chain()).unwrap();
        let (disk, _) = read_all(&mut *source, buffer_len).map_err(|e| e.chain()).unwrap();
        check_equal(&disk, expected);
    }
}

#[track_caller]
fn check_equal(disk: &[u8], expected: &[u8]) {
    let different = disk.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!(different, None, "first different byte");
    assert_eq!(disk.len(), expected.len());
}

/// Opens and reads; the error must come, on one line.
#[track_caller]
fn error_of(path: &Path, options: &OpenOptions) -> Error {
    let outcome = open_source(path, options).and_then(|mut source| read_all(&mut *source, 1 << 16));
    let error = outcome.expect_err("it is refused");
    assert!(!error.chain().contains('\n'));
    error
}

#[test]
fn an_unnamed_format_is_guessed_from_the_magic() {
    let folder = folder();
    let (raw, bytes) = mixed_file(folder.path(), 1 << 20);
    for format in ["raw", "qcow2", "vmdk", "vdi", "vhdx", "qed", "qcow", "parallels"] {
        let path = folder.path().join(format!("copy.{format}"));
        run("qemu-img", &["convert", "-f", "raw", "-O", format, text(&raw), text(&path)]);
        check_reads(&path, &OpenOptions::default(), &bytes);
    }
}

#[test]
fn a_raw_disk_whose_guest_wrote_another_magic_is_read_as_raw_when_told_so() {
    let folder = folder();
    let (raw, _) = mixed_file(folder.path(), 1 << 20);
    let inner = folder.path().join("inner.qcow2");
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", text(&raw), text(&inner)]);
    let bytes = std::fs::read(&inner).unwrap();
    check_reads(&inner, &options("raw"), &bytes);
    assert_eq!(options("raw").format, Some(InputFormat::Raw));
}
