//! Raw files: holes, odd ends, files that shrink, pipes.

use std::fs::File;
use std::io::Write;

use model::Kind;

use super::super::stream::StreamSource;
use super::super::{OutputFormat, create_sink};
use super::*;

#[test]
fn a_raw_file_of_any_length_is_read_byte_for_byte() {
    let folder = folder();
    for length in LENGTHS {
        let (path, bytes) = mixed_file(folder.path(), length as usize);
        check_reads(&path, &OpenOptions::default(), &bytes);
        std::fs::write(&path, vec![0; length as usize]).unwrap();
        check_reads(&path, &OpenOptions::default(), &vec![0; length as usize]);
    }
}

#[test]
fn holes_are_skipped_by_asking_for_them() {
    let folder = folder();
    let path = folder.path().join("sparse");
    let file = File::create(&path).unwrap();
    file.set_len(8 << 30).unwrap();
    file.write_all_at(b"near the end", (8 << 30) - 5000).unwrap();
    let mut source = open_source(&path, &options("raw")).unwrap();
    let mut buffer = vec![0; 1 << 20];
    let run = source.read(&mut buffer).unwrap().unwrap();
    assert!(run.offset > (8 << 30) - (1 << 20), "{run:?}");
    assert_eq!(source.read(&mut buffer).unwrap(), None);
    assert_eq!(source.length(), 8 << 30);
    assert!(source.data_len_hint().unwrap() < 1 << 20);
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_an_error_that_says_so() {
    let folder = folder();
    // Cut within the data, behind it, and to nothing.
    for (data_len, cut) in [(4 << 20, (2 << 20) + 7), (1 << 20, 2 << 20), (4 << 20, 0)] {
        let path = folder.path().join("shrinking");
        let file = File::create(&path).unwrap();
        file.write_all_at(&pattern(data_len, 3), 0).unwrap();
        file.set_len(4 << 20).unwrap();
        let mut source = open_source(&path, &options("raw")).unwrap();
        let mut buffer = vec![0; 256 << 10];
        source.read(&mut buffer).unwrap();
        file.set_len(cut).unwrap();
        let error = read_all(&mut *source, 256 << 10).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.chain().contains("shrank"), "{}", error.chain());
        assert!(error.chain().contains("shrinking"), "{}", error.chain());
    }
}

#[test]
fn a_pipe_is_read_to_its_end_and_its_length_is_known_then() {
    for length in LENGTHS {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let bytes = mixed(length as usize);
        let sent = bytes.clone();
        let feeder = std::thread::spawn(move || writer.write_all(&sent).unwrap());
        let reader = File::from(std::os::fd::OwnedFd::from(reader));
        let mut source = StreamSource::new(reader, "standard input".to_owned(), None);
        assert_eq!(source.length_hint(), None);
        let (disk, _) = read_all(&mut source, 128 << 10).unwrap();
        feeder.join().unwrap();
        check_equal(&disk, &bytes);
    }
}

#[test]
fn a_pipe_of_the_file_system_is_read_as_a_stream_and_only_raw() {
    let folder = folder();
    let path = folder.path().join("fifo");
    run("mkfifo", &[text(&path)]);
    let bytes = mixed(1 << 20);
    let (sent, to) = (bytes.clone(), path.clone());
    let feeder = std::thread::spawn(move || std::fs::write(&to, &sent).unwrap());
    let mut source = open_source(&path, &OpenOptions::default()).unwrap();
    let (disk, _) = read_all(&mut *source, 64 << 10).unwrap();
    feeder.join().unwrap();
    check_equal(&disk, &bytes);
}

#[test]
fn what_is_no_disk_is_refused() {
    let folder = folder();
    assert_eq!(error_of(folder.path(), &OpenOptions::default()).kind(), Kind::Invalid);
    let missing = folder.path().join("missing");
    assert_eq!(error_of(&missing, &OpenOptions::default()).kind(), Kind::NotFound);
    let error = error_of(Path::new("-"), &options("qcow2"));
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.chain().contains("pipe"), "{}", error.chain());
}

#[test]
fn a_block_device_is_read_as_a_whole_and_written_in_place() {
    let folder = folder();
    let (path, bytes) = mixed_file(folder.path(), 2 << 20);
    let device = LoopDevice::attach(&path);
    check_reads(&device.path, &OpenOptions::default(), &bytes);
    // What was there before must not shine through the holes of what is written.
    let mut sink = create_sink(&device.path, OutputFormat::Raw, 1 << 20).unwrap();
    sink.write(4096 + 512, b"new").unwrap();
    sink.finish(1 << 20).unwrap();
    let mut expected = vec![0; 1 << 20];
    expected[4608..4611].copy_from_slice(b"new");
    expected.extend_from_slice(&bytes[1 << 20..]);
    check_reads(&device.path, &options("raw"), &expected);
    let too_long = create_sink(&device.path, OutputFormat::Raw, 4 << 20);
    assert_eq!(too_long.err().unwrap().kind(), Kind::Full);
}

/// A file system with blocks of 1 KiB has holes that begin and end within a block of ours.
#[test]
fn stretches_are_rounded_outwards_to_blocks() {
    let folder = folder();
    let (image, mounted) = (folder.path().join("image"), folder.path().join("mounted"));
    File::create(&image).unwrap().set_len(8 << 20).unwrap();
    run("mke2fs", &["-q", "-t", "ext4", "-b", "1024", text(&image)]);
    std::fs::create_dir(&mounted).unwrap();
    run("mount", &["-o", "loop", text(&image), text(&mounted)]);
    let mounted = Mount { path: mounted };
    let path = mounted.path.join("disk");
    let mut expected = vec![0; 50_000];
    let file = File::create(&path).unwrap();
    for offset in [1024, 3072, 10_240, 23 * 1024, 27 * 1024] {
        expected[offset..offset + 1024].fill(9);
        file.write_all_at(&[9; 1024], offset as u64).unwrap();
    }
    file.set_len(50_000).unwrap();
    drop(file);
    check_reads(&path, &options("raw"), &expected);
}

struct Mount {
    path: PathBuf,
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.path).status();
    }
}

struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    fn attach(file: &Path) -> Self {
        let name = run("losetup", &["--find", "--show", text(file)]);
        LoopDevice { path: PathBuf::from(name.trim()) }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.path).status();
    }
}
