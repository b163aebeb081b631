//! Our server against qemu-nbd: the same client, the same file in memory, turn by turn.
//!
//! By hand, in release: `cargo test --release -p attach --test nbd -- --ignored --nocapture speed`.
//! `NBD_ROWS=fio` takes only the rows with that in their names, `NBD_ROUNDS=9` more turns than three.
//! In every run a small one sees to it that this cannot rot.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use crate::Served;
use crate::file_device::FileDevice;

/// One thing that is timed: a name, and the command that is given a URI.
struct Row {
    name: &'static str,
    command: Vec<String>,
}

fn bench(name: &'static str, depth: u32, request_len: &str, step: &str, count: u64) -> Row {
    let text =
        format!("qemu-img bench -f raw -t none -d {depth} -s {request_len} -S {step} -c {count}");
    let command = text.split(' ').map(str::to_string).collect();
    Row { name, command }
}

fn fio(name: &'static str, pattern: &str, request_len: &str, depth: u32, total: &str) -> Row {
    let text = format!(
        "fio --name=x --ioengine=nbd --uri=URI --rw={pattern} --bs={request_len} --iodepth={depth} \
         --io_size={total} --size={total} --randrepeat=1 --output=/dev/null"
    );
    let command = text.split_whitespace().map(str::to_string).collect();
    Row { name, command }
}

impl Row {
    fn seconds(&self, uri: &str) -> f64 {
        let mut arguments = self.command.clone();
        if arguments[0] == "fio" {
            for argument in &mut arguments {
                *argument = argument.replace("URI", uri);
            }
        } else if arguments[0] == "nbdcopy" {
            arguments.extend([uri.to_string(), "null:".to_string()]);
        } else {
            arguments.push(uri.to_string());
        }
        let begin = Instant::now();
        let output = Command::new(&arguments[0]).args(&arguments[1..]).output().unwrap();
        let seconds = begin.elapsed().as_secs_f64();
        assert!(output.status.success(), "{}\n{output:?}", arguments.join(" "));
        seconds
    }
}

/// qemu-nbd on a file; ended when it is dropped.
struct QemuNbd(Child);

impl QemuNbd {
    fn start(file: &Path, socket: &Path) -> QemuNbd {
        let child = Command::new("qemu-nbd")
            .args(["-t", "-e", "16", "-f", "raw", "-x", "disk", "-k"])
            .args([socket, file])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        crate::wait_until(|| socket.exists());
        QemuNbd(child)
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A file of `len` bytes that has no hole, in memory.
fn file_in_memory(folder: &Path, len: u64) -> (std::path::PathBuf, File) {
    let path = folder.join("disk");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    let block: Vec<u8> = (0..1 << 20).map(|i: u32| (i % 251) as u8).collect();
    for offset in (0..len).step_by(block.len()) {
        file.write_all_at(&block, offset).unwrap();
    }
    (path, file)
}

/// Times each row `rounds` times with both servers, in turns; the best of each.
fn compare(rows: &[Row], len: u64, rounds: u32) -> Vec<(&'static str, f64, f64)> {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let (path, file) = file_in_memory(folder.path(), len);
    let served = Served::unix(Arc::new(FileDevice::new(file)));
    let socket = folder.path().join("qemu.sock");
    let _qemu = QemuNbd::start(&path, &socket);
    let theirs = format!("nbd+unix:///disk?socket={}", socket.display());
    rows.iter()
        .map(|row| {
            let mut best = (f64::MAX, f64::MAX);
            for _ in 0..rounds {
                best.0 = best.0.min(row.seconds(&served.uri()));
                best.1 = best.1.min(row.seconds(&theirs));
            }
            (row.name, best.0, best.1)
        })
        .collect()
}

#[test]
fn a_small_comparison_runs() {
    let rows = [
        bench("read 64k", 8, "64k", "64k", 50),
        fio("fio randread 4k", "randread", "4k", 8, "1m"),
        Row { name: "nbdcopy", command: ["nbdcopy", "--no-extents"].map(str::to_string).to_vec() },
    ];
    assert_eq!(compare(&rows, 4 << 20, 1).len(), 3);
}

#[test]
#[ignore = "takes a minute, and means something only in release on a machine at rest"]
#[expect(clippy::print_stdout, reason = "the numbers are what it is for")]
fn speed_beside_qemu_nbd() {
    let copy = |name, options: &[&str]| Row {
        name,
        command: [&["nbdcopy", "--no-extents"], options]
            .concat()
            .iter()
            .map(|t| t.to_string())
            .collect(),
    };
    let rows = [
        bench("bench read 64k depth 1", 1, "64k", "64k", 16_384),
        bench("bench read 64k depth 64", 64, "64k", "64k", 16_384),
        bench("bench read 1m depth 1", 1, "1m", "1m", 2048),
        bench("bench read 1m depth 64", 64, "1m", "1m", 2048),
        // Steps of 4 KiB times a prime visit blocks far apart.
        bench("bench read 4k far apart depth 1", 1, "4k", "4198400", 40_000),
        bench("bench read 4k far apart depth 64", 64, "4k", "4198400", 100_000),
        fio("fio randread 4k depth 1", "randread", "4k", 1, "160m"),
        fio("fio randread 4k depth 64", "randread", "4k", 64, "400m"),
        fio("fio read 64k depth 16", "read", "64k", 16, "1g"),
        fio("fio read 1m depth 16", "read", "1m", 16, "1g"),
        fio("fio randwrite 4k depth 64", "randwrite", "4k", 64, "400m"),
        fio("fio write 64k depth 16", "write", "64k", 16, "1g"),
        copy("nbdcopy", &[]),
        copy("nbdcopy 1 connection", &["--connections=1"]),
        copy("nbdcopy 2 MiB", &["--request-size=2097152"]),
    ];
    let wanted = std::env::var("NBD_ROWS").unwrap_or_default();
    let rounds = std::env::var("NBD_ROUNDS").map_or(3, |text| text.parse().unwrap());
    let rows: Vec<Row> = rows.into_iter().filter(|row| row.name.contains(&wanted)).collect();
    println!("{:34} {:>9} {:>9} {:>7}", "", "ours s", "qemu s", "speed");
    for (name, ours, theirs) in compare(&rows, 1 << 30, rounds) {
        println!("{name:34} {ours:9.3} {theirs:9.3} {:6.2}x", theirs / ours);
    }
}
