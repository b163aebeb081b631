//! A stage upon another version, without a loop device: its parent's files are copied into a folder,
//! changed there, and a disk is made of them anew.
//!
//! ```text
//! version ◄─mirror─ FUSE file ◄─fuse2fs, read-only─ files ──cp──► tree ──steps──► tree ──mke2fs──► disk
//!                      └──────────── what is around the file system ──────────────────────────────►┘
//! ```
//!
//! **Invariants**: the file system keeps its place, its length and its identity, by which the boot
//! loader and the table of file systems know it. What reads the parent's files is in namespaces of
//! its own, and ends with them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use catalog::VersionRecord;
use env::{Clock, SystemClock};
use model::{Error, Kind, Result};
use repository::Repository;

use crate::attached::Attached;
use crate::boot::{Kernel, kernels};
use crate::contained::Inside;
use crate::derive::LOOK_LIMIT;
use crate::file_system::FileSystem;
use crate::first::{Job, Part};
use crate::tool::{Run, need, program};
use crate::tree::Tree;

const COPY_LIMIT: Duration = Duration::from_secs(3600);

/// Copies all files with their owners, times, links and attributes.
const COPY: &str = r#"
set -e
mkdir "$4"
fuse2fs -o "ro,norecovery,offset=$3" "$1" "$2" 2>&1
cp -a "$2/." "$4/"
rm -rf "$4/lost+found"
umount "$2"
"#;

/// Makes the disk of a stage; and how long it took to files that can be changed.
pub(crate) fn make(
    repository: &Repository,
    job: &Job,
    parent: &VersionRecord,
) -> Result<(PathBuf, Duration)> {
    need(&[("fuse2fs", "fuse2fs"), ("mke2fs", "e2fsprogs")])?;
    let began = SystemClock.monotonic();
    let run = Run { log: job.log, limit: LOOK_LIMIT, cancel: job.cancel };
    let attached = Attached::open(repository, parent, job.work)?;
    let (offset, len) = attached.root(&run)?;
    let boot_partition = attached.boot_partition(&run)?;
    let root = job.work.join("root");
    copy_files(job, attached.file(), offset, &root)?;
    let tree = Tree::open(&root)?;
    let opened = SystemClock.monotonic().saturating_sub(began);
    let inside = Inside {
        root: root.clone(),
        holder: None,
        epoch: job.locked.source_date_epoch,
        room: Some(len),
    };
    let before = kernels(&tree)?;
    job.work_on(&tree, &inside, Part::Whole)?;
    let changed = boot_partition.filter(|_| kernels(&tree).is_ok_and(|now| now != before));
    let kernel = changed.map(|_| Kernel::take_out(&tree, job.work)).transpose()?;
    let disk = job.work.join("disk.raw");
    copy_around(&attached, (offset, len), &disk)?;
    tree.clamp_times(job.locked.source_date_epoch)?;
    let file_system = FileSystem {
        tree: &root,
        disk: &disk,
        offset,
        len,
        identity: attached.identity(offset)?,
        key: job.key,
        epoch: job.locked.source_date_epoch,
        work: job.work,
    };
    file_system.make(job.log, job.cancel)?;
    if let (Some(kernel), Some(at)) = (kernel, boot_partition) {
        job.log.say("another kernel: it goes to the boot partition");
        kernel.put(&disk, at, job)?;
    }
    Ok((disk, opened))
}

fn copy_files(job: &Job, file: &Path, offset: u64, root: &Path) -> Result<()> {
    job.log.say("copying the files of its parent");
    let mount = job.work.join("files");
    std::fs::create_dir_all(&mount)
        .map_err(|error| Error::io("make", mount.display().to_string(), error))?;
    let mut command = program("unshare");
    command.args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]);
    command
        .args(["sh", "-c", COPY, "copy"])
        .arg(file)
        .arg(&mount)
        .arg(offset.to_string())
        .arg(root);
    let run = Run { log: job.log, limit: COPY_LIMIT, cancel: job.cancel };
    run.succeed(&mut command)
}

/// Makes a disk with all that is around the root file system.
fn copy_around(attached: &Attached, (offset, len): (u64, u64), disk: &Path) -> Result<()> {
    let failed = |error| Error::io("make", disk.display().to_string(), error);
    let whole = attached.length();
    let end = offset.checked_add(len).filter(|end| *end <= whole).ok_or_else(|| {
        Error::new(Kind::Invalid, "make", disk.display().to_string()).because("no such partition")
    })?;
    let file = File::create_new(disk).map_err(failed)?;
    file.set_len(whole).map_err(failed)?;
    let mut buffer = vec![0; 1 << 20];
    for (begin, end) in [(0, offset), (end, whole)] {
        let mut at = begin;
        while at < end {
            let part = &mut buffer[..(end - at).min(1 << 20) as usize];
            attached.read(at, part)?;
            if part.iter().any(|byte| *byte != 0) {
                file.write_all_at(part, at).map_err(failed)?;
            }
            at += part.len() as u64;
        }
    }
    Ok(())
}
