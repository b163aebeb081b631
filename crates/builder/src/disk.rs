//! The disk of an image: one file system, or a boot partition and one.
//!
//! ```text
//! direct      | ext4: everything                               |
//! bios, uefi  | GPT | FAT: kernel, initrd | ext4: everything | GPT |
//! ```

use std::path::Path;

use model::Result;

use crate::boot;
use crate::file_system::{FileSystem, identity};
use crate::first::Job;
use crate::recipe::{Boot, Disk, len};
use crate::tree::Tree;

const MIB: u64 = 1 << 20;

/// Where everything is on a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// How it boots.
    pub boot: Boot,
    /// Its length.
    pub len: u64,
    /// Where the file system begins.
    pub root_offset: u64,
    /// The file system's length.
    pub root_len: u64,
    /// The file system's identity.
    pub root: String,
}

impl Plan {
    /// The plan of a disk that was checked.
    pub(crate) fn of(disk: &Disk, key: &str) -> Plan {
        let whole = len(disk.size.get_ref()).unwrap_or(2 << 30);
        let (root_offset, root_len) = match disk.boot {
            Boot::Direct => (0, whole),
            Boot::Bios | Boot::Uefi => {
                let boot = len(disk.boot_size.get_ref()).unwrap_or(127 * MIB);
                // The copy of the partition table takes the last MiB.
                (boot::BOOT_OFFSET + boot, whole - 2 * MIB - boot)
            }
        };
        Plan { boot: disk.boot, len: whole, root_offset, root_len, root: identity(key, "root") }
    }
}

/// Writes the table of file systems.
pub(crate) fn write_table(tree: &Tree, plan: &Plan) -> Result<()> {
    let table = format!("UUID={} / ext4 defaults,noatime 0 1\n", plan.root);
    tree.write("/etc/fstab", table.as_bytes(), 0o644, (0, 0))
}

/// Fills the disk.
pub(crate) fn make(job: &Job, plan: &Plan, tree: &Tree, root: &Path, disk: &Path) -> Result<()> {
    if plan.boot != Boot::Direct {
        boot::make(job, plan, tree, disk)?;
    }
    // Last: whoever reads a file changes the time at which it was read.
    tree.clamp_times(job.locked.source_date_epoch)?;
    let file_system = FileSystem {
        tree: root,
        disk,
        offset: plan.root_offset,
        len: plan.root_len,
        identity: plan.root.clone(),
        key: job.key,
        epoch: job.locked.source_date_epoch,
        work: job.work,
    };
    file_system.make(job.log, job.cancel)
}
