//! The disk of an image: one file system, or a boot partition and one.
//!
//! ```text
//! direct      | ext4: everything                               |
//! bios, uefi  | GPT | FAT: kernel, initrd | ext4: everything | more, empty | GPT |
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
    /// Partitions behind it.
    pub partitions: Vec<More>,
}

/// A partition behind that of the system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct More {
    /// Its name.
    pub name: String,
    /// Where it begins.
    pub offset: u64,
    /// Its length.
    pub len: u64,
    /// Where it is mounted.
    pub mount: String,
}

impl Plan {
    /// The plan of a disk that was checked.
    pub(crate) fn of(disk: &Disk, key: &str) -> Plan {
        let whole = len(disk.size.get_ref()).unwrap_or(2 << 30);
        let of_all = |text: &str| len(text).unwrap_or_default();
        let more: u64 = disk.partitions.iter().map(|more| of_all(more.size.get_ref())).sum();
        let (root_offset, root_len) = match disk.boot {
            Boot::Direct => (0, whole),
            Boot::Bios | Boot::Uefi => {
                let boot = len(disk.boot_size.get_ref()).unwrap_or(127 * MIB);
                // The copy of the partition table takes the last MiB.
                (boot::BOOT_OFFSET + boot, whole - 2 * MIB - boot - more)
            }
        };
        let mut end = root_offset + root_len;
        let partitions = disk.partitions.iter().map(|more| {
            let (offset, len) = (end, of_all(more.size.get_ref()));
            end += len;
            let (name, mount) = (more.name.get_ref().clone(), more.mount.get_ref().clone());
            More { name, offset, len, mount }
        });
        let partitions = partitions.collect();
        let root = identity(key, "root");
        Plan { boot: disk.boot, len: whole, root_offset, root_len, root, partitions }
    }
}

/// Writes the table of file systems.
pub(crate) fn write_table(tree: &Tree, plan: &Plan, key: &str) -> Result<()> {
    let mut table = format!("UUID={} / ext4 defaults,noatime 0 1\n", plan.root);
    for More { name, mount, .. } in &plan.partitions {
        let id = identity(&of_partition(key, name), "root");
        table.push_str(&format!("UUID={id} {mount} ext4 defaults,noatime 0 2\n"));
        tree.make_folder(mount, 0o755, (0, 0))?;
    }
    tree.write("/etc/fstab", table.as_bytes(), 0o644, (0, 0))
}

/// What the identity of a partition's file system follows from.
fn of_partition(key: &str, name: &str) -> String {
    format!("{key} {name}")
}

/// Fills the disk.
pub(crate) fn make(job: &Job, plan: &Plan, tree: &Tree, root: &Path, disk: &Path) -> Result<()> {
    if plan.boot != Boot::Direct {
        boot::make(job, plan, tree, disk)?;
    }
    for more in &plan.partitions {
        let empty = job.work.join("empty");
        std::fs::create_dir_all(&empty)
            .map_err(|error| model::Error::io("make", empty.display().to_string(), error))?;
        Tree::open(&empty)?.clamp_times(job.locked.source_date_epoch)?;
        let file_system = FileSystem {
            tree: &empty,
            disk,
            offset: more.offset,
            len: more.len,
            identity: identity(&of_partition(job.key, &more.name), "root"),
            key: &of_partition(job.key, &more.name),
            epoch: job.locked.source_date_epoch,
            work: job.work,
        };
        file_system.make(job.log, job.cancel)?;
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
