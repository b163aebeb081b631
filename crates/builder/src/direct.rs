//! Disks that are one file system and have no loader: QEMU starts the kernel that is in them.
//!
//! ```text
//! | (no boot code) ext4: boot/vmlinuz-6.1.0-10, boot/initrd.img-6.1.0-10 |  ─►  -kernel, -initrd, -append
//! ```
//!
//! **Invariants**: nothing is mounted; no more than `KERNEL_LEN_MAX` bytes of each are taken out.
//!
//! **Failure**: a disk's file system is not trusted: what is damaged is an error.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use ext4_view::Ext4;
use format::partitions::is_ext;
use guest::kernel_names::{kernel_files, newest_alone};
use model::{Error, Kind, Result};

use crate::difference::{SharedReader, damaged, root_file_system};

/// The longest kernel or initrd that is taken out, in bytes.
const KERNEL_LEN_MAX: u64 = 1 << 30;

/// What the kernel is told.
const OPTIONS: &str = "root=/dev/vda rw console=tty0 console=ttyS0";

/// Where a boot sector would be, and what the ext family leaves free in front of itself.
const BOOT_CODE_LEN: usize = 1024;

const START_LEN: usize = format::partitions::START_LEN;
const READ_LEN: usize = 1 << 20;

/// QEMU's arguments that start a version whose disk has no loader; none where it has one, or has
/// neither a loader nor a kernel. Kernel and initrd are put into `folder`, where they must stay as
/// long as the guest runs. The disk is to be the guest's first.
///
/// Cost: reads a few blocks where there is a loader; otherwise the kernel and its initrd.
///
/// # Errors
/// `Corrupt` where the file system is damaged; those of reading the version and of writing.
pub fn arguments(version: &SharedReader, folder: &Path) -> Result<Option<Vec<OsString>>> {
    // File systems come from guests: what a reader of one cannot cope with must not end us.
    let taken = std::thread::scope(|scope| scope.spawn(|| take_out(version, folder)).join());
    let taken = taken.unwrap_or_else(|_| {
        let subject = version.version().id.to_string();
        Err(Error::new(Kind::Corrupt, "read the kernel of", subject)
            .because("what its file system holds is not possible"))
    });
    let Some((kernel, initrd)) = taken? else { return Ok(None) };
    let mut arguments: Vec<OsString> = vec!["-kernel".into(), kernel.into()];
    if let Some(initrd) = initrd {
        arguments.extend(["-initrd".into(), initrd.into()]);
    }
    arguments.extend(["-append".into(), OPTIONS.into()]);
    Ok(Some(arguments))
}

fn take_out(version: &SharedReader, folder: &Path) -> Result<Option<(PathBuf, Option<PathBuf>)>> {
    let length = version.length();
    if length < START_LEN as u64 {
        return Ok(None);
    }
    let mut start = [0; START_LEN];
    version.read_at(0, &mut start)?;
    let has_code = start[..BOOT_CODE_LEN].iter().any(|byte| *byte != 0);
    if has_code || !is_ext(&start, length) {
        return Ok(None);
    }
    let files = root_file_system(version)?;
    let mut list = |folder: &str| names(version, &files, folder);
    let (kernel, initrd) = match kernel_files(&mut list)?.pop() {
        Some(newest) => (newest.kernel, Some(newest.initrd)),
        None => match newest_alone(&mut list)? {
            Some(kernel) => (kernel, None),
            None => return Ok(None),
        },
    };
    let take = |path: &str, to: &str| copy_out(version, &files, path, &folder.join(to));
    let kernel = take(&kernel, "kernel")?;
    let initrd = initrd.map(|path| take(&path, "initrd")).transpose()?;
    Ok(Some((kernel, initrd)))
}

/// What is in a folder; nothing where there is no such folder.
fn names(version: &SharedReader, files: &Ext4, folder: &str) -> Result<Vec<String>> {
    let failed = |error| damaged(version, folder, error);
    let is_folder = |facts: ext4_view::Metadata| facts.is_dir();
    if !files.exists(folder).map_err(failed)?
        || !files.metadata(folder).map(is_folder).map_err(failed)?
    {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in files.read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if let Ok(name) = std::str::from_utf8(entry.file_name().as_ref())
            && name != "."
            && name != ".."
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn copy_out(version: &SharedReader, files: &Ext4, path: &str, to: &Path) -> Result<PathBuf> {
    let failed = |error| damaged(version, path, error);
    let unwritten = |error| Error::io("write", to.display().to_string(), error);
    let mut from = files.open(path).map_err(failed)?;
    let mut file = File::create(to).map_err(unwritten)?;
    let (mut buffer, mut left) = (vec![0; READ_LEN], KERNEL_LEN_MAX);
    loop {
        let len = from.read_bytes(&mut buffer).map_err(failed)?;
        if len == 0 && left < KERNEL_LEN_MAX {
            return Ok(to.to_path_buf());
        }
        left = left.checked_sub(len as u64).filter(|_| len > 0).ok_or_else(|| {
            Error::new(Kind::Corrupt, "take out", path)
                .because(format!("it is empty, or longer than {KERNEL_LEN_MAX} bytes"))
        })?;
        file.write_all(&buffer[..len]).map_err(unwritten)?;
    }
}
