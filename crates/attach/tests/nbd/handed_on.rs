//! Long reads whose pages go from a file to the client.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use model::device::{Device, Extent, Take};
use model::{Error, Kind, Result};

use crate::Served;

const MIB: usize = 1 << 20;

/// A disk in a file; of each so many takings one does not count, and ends with bytes that must not be
/// seen.
struct InFile {
    file: File,
    wrong: File,
    len: usize,
    one_in: usize,
    takings: AtomicUsize,
    reads: AtomicUsize,
}

fn refused<T>() -> Result<T> {
    Err(Error::new(Kind::Refused, "change", "the disk"))
}

impl Device for InFile {
    fn length(&self) -> u64 {
        self.len as u64
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.file.read_exact_at(buffer, offset).map_err(|e| Error::io("read", "the file", e))
    }

    fn write(&self, _: u64, _: &[u8]) -> Result<()> {
        refused()
    }

    fn write_zeroes(&self, _: u64, _: u64) -> Result<()> {
        refused()
    }

    fn discard(&self, _: u64, _: u64) -> Result<()> {
        refused()
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn prefetch(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    fn take_from_file(&self, offset: u64, len: usize, take: &mut Take<'_>) -> usize {
        let number = self.takings.fetch_add(1, Ordering::Relaxed);
        if number % self.one_in == self.one_in - 1 {
            assert!(take(self.wrong.as_fd(), offset, len).unwrap() > 0);
            return 0;
        }
        // Runs end in odd places.
        take(self.file.as_fd(), offset, len.min(700_001)).unwrap()
    }

    fn extents(&self, offset: u64, len: u64, _: usize) -> Result<Vec<Extent>> {
        Ok(vec![Extent { offset, len, kind: model::device::ExtentKind::Data }])
    }
}

fn copy_of(served: &Served, folder: &std::path::Path, flags: &[&str]) -> Vec<u8> {
    let to = folder.join("copy");
    let output = Command::new("nbdcopy").args(flags).arg(served.uri()).arg(&to).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read(to).unwrap()
}

#[test]
fn pages_are_handed_on_and_what_does_not_count_is_thrown_away() {
    let folder = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..24 * MIB as u64 / 8 + 100)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect();
    let open = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        File::create(&path).unwrap().write_all(bytes).unwrap();
        File::open(path).unwrap()
    };
    for one_in in [usize::MAX, 3] {
        let disk = Arc::new(InFile {
            file: open("disk", &bytes),
            wrong: open("wrong", &vec![0xee; bytes.len()]),
            len: bytes.len(),
            one_in,
            takings: AtomicUsize::new(0),
            reads: AtomicUsize::new(0),
        });
        for served in [Served::unix(disk.clone()), Served::tcp(disk.clone())] {
            for flags in [&["--request-size=4194304"][..], &["--connections=1", "--synchronous"]] {
                assert!(copy_of(&served, folder.path(), flags) == bytes, "{flags:?}");
            }
        }
        let (takings, reads) =
            (disk.takings.load(Ordering::Relaxed), disk.reads.load(Ordering::Relaxed));
        assert!(takings > 50 && reads < takings, "{takings} takings, {reads} reads");
        assert!(one_in == usize::MAX || reads >= takings / 3, "{takings} takings, {reads} reads");
    }
}
