//! How fast a mount is beside the plain file that it serves:
//! `cargo test -p attach --test fuse -- --ignored --nocapture speed`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use attach::fuse::Tree;
use model::device::{Device, Extent, ExtentKind};
use model::{Error, ImageName, Kind, MirrorName, Result, VersionId, VersionNumber};

use crate::mounted::{image, mirror, mount_tree, pattern, run};

/// A plain file.
struct Plain(File, u64);

fn failed(error: std::io::Error) -> Error {
    Error::io("use", "the file", error)
}

impl Device for Plain {
    fn length(&self) -> u64 {
        self.1
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.0.read_exact_at(buffer, offset).map_err(failed)
    }
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.0.write_all_at(bytes, offset).map_err(failed)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.write(offset, &vec![0; len as usize])
    }
    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }
    fn flush(&self) -> Result<()> {
        self.0.sync_data().map_err(failed)
    }
    fn prefetch(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }
    fn extents(&self, offset: u64, len: u64, _max: usize) -> Result<Vec<Extent>> {
        Ok(vec![Extent { offset, len, kind: ExtentKind::Data }])
    }
}

/// `plain/1` and `mirrors/plain` are the one file.
struct PlainTree(Arc<Plain>);

impl Tree for PlainTree {
    fn images(&self) -> Result<Vec<ImageName>> {
        Ok(vec![image("plain")])
    }
    fn versions(&self, _image: &ImageName) -> Result<Vec<VersionNumber>> {
        Ok(vec![VersionNumber::FIRST])
    }
    fn version_length(&self, _version: &VersionId) -> Result<u64> {
        Ok(self.0.1)
    }
    fn open_version(&self, _version: &VersionId) -> Result<Arc<dyn Device>> {
        Ok(self.0.clone())
    }
    fn mirrors(&self) -> Result<Vec<MirrorName>> {
        Ok(vec![mirror("plain")])
    }
    fn open_mirror(&self, _mirror: &MirrorName) -> Result<Arc<dyn Device>> {
        Ok(self.0.clone())
    }
    fn clone_mirror(&self, mirror: &MirrorName, _image: &ImageName) -> Result<VersionId> {
        self.commit_mirror(mirror)
    }
    fn commit_mirror(&self, mirror: &MirrorName) -> Result<VersionId> {
        Err(Error::new(Kind::Refused, "commit", mirror.to_string()))
    }
}

struct Case {
    name: &'static str,
    options: &'static str,
}

const CASES: [Case; 8] = [
    Case { name: "sequential read 1 MiB", options: "--rw=read --bs=1m" },
    Case { name: "sequential read 1 MiB direct", options: "--rw=read --bs=1m --direct=1" },
    Case {
        name: "sequential read 1 MiB direct, 8 deep",
        options: "--rw=read --bs=1m --direct=1 --ioengine=libaio --iodepth=8",
    },
    Case { name: "random read 4 KiB", options: "--rw=randread --bs=4k --fadvise_hint=random" },
    Case { name: "random read 4 KiB direct", options: "--rw=randread --bs=4k --direct=1" },
    Case {
        name: "random read 4 KiB direct, 16 deep",
        options: "--rw=randread --bs=4k --direct=1 --ioengine=libaio --iodepth=16",
    },
    Case { name: "sequential write 1 MiB", options: "--rw=write --bs=1m --end_fsync=1" },
    Case { name: "random write 4 KiB direct", options: "--rw=randwrite --bs=4k --direct=1" },
];

/// MiB/s and operations per second.
fn measure(path: &Path, options: &str, seconds: u32) -> (f64, f64) {
    // The mount's page cache is emptied between runs; the plain file below it stays warm.
    let file = File::open(path).unwrap();
    if path.ends_with("1") || path.ends_with("mirrors/plain") {
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
    let line = format!(
        "fio --name=speed --filename={} --size=256m --time_based=0 --runtime={seconds} \
         --invalidate=0 --allow_file_create=0 --output-format=terse --terse-version=3 {options}",
        path.display()
    );
    let output = run(&line);
    let row = output.lines().find(|line| line.starts_with("3;")).unwrap();
    let fields: Vec<f64> = row.split(';').map(|field| field.parse().unwrap_or(0.0)).collect();
    // Fields 7 and 8 are bandwidth in KiB/s and operations per second of reads; 48, 49 of writes.
    let column = if options.contains("write") { 47 } else { 6 };
    (fields[column] / 1024.0, fields[column + 1])
}

#[test]
#[ignore = "a measurement"]
#[expect(clippy::print_stdout, reason = "the rows are what it is for")]
fn speed_beside_the_plain_file() {
    let scratch = tempfile::tempdir().unwrap();
    let plain = scratch.path().join("plain.img");
    let len = 256 << 20;
    std::fs::write(&plain, pattern(len, 1)).unwrap();
    run(&format!("dd if={} of=/dev/null bs=1M", plain.display()));
    let file = File::options().read(true).write(true).open(&plain).unwrap();
    let device = Arc::new(Plain(file, len as u64));
    let (_mounted, mount) = mount_tree(Arc::new(PlainTree(device)));
    for Case { name, options } in CASES {
        let door = if options.contains("write") { "mirrors/plain" } else { "plain/1" };
        let (raw, raw_operations) = measure(&plain, &options.replace("--direct=1", ""), 10);
        let (fuse, fuse_operations) = measure(&mount.folder().join(door), options, 10);
        println!(
            "{name:40} raw {raw:7.0} MiB/s {raw_operations:8.0}/s   fuse {fuse:7.0} MiB/s \
             {fuse_operations:8.0}/s   {:.2}",
            fuse / raw
        );
    }
}
