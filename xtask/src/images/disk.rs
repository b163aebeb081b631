//! From an image's files to a disk, without loop devices: one that a BIOS boots, or a bare file system.
//!
//! ```text
//!   0        1 MiB                            1 MiB + boot_mib                     disk_mib
//!   | MBR    | FAT: syslinux, kernel, initrd  | ext4: everything                   |
//! ```

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use model::{Error, Kind, Result};

use super::recipe::Recipe;
use crate::process;
use crate::workspace::system_program;

const SECTORS_PER_MIB: u64 = 2048;
const MIB: u64 = 1024 * 1024;

/// Where the boot partition begins, in MiB.
const BOOT_AT_MIB: u64 = 1;

/// The boot code in front of the partition table, in bytes.
const BOOT_CODE_MAX: usize = 440;

/// Makes the disk, sparse.
pub fn assemble(recipe: &Recipe, root: &Path, disk: &Path, log: &Path) -> Result<()> {
    let failed = |source| Error::io("write", disk.display().to_string(), source);
    let file = File::create_new(disk).map_err(failed)?;
    file.set_len(recipe.disk_mib * MIB).map_err(failed)?;
    if recipe.boot_mib == 0 {
        file_system(recipe, root, disk, log, 0)?;
        return file.sync_all().map_err(failed);
    }
    partition(recipe, disk)?;
    let code = fs::read("/usr/lib/syslinux/mbr/mbr.bin").map_err(failed)?;
    if code.len() > BOOT_CODE_MAX {
        return Err(Error::new(Kind::Invalid, "write", "the boot code")
            .because(format!("{} bytes do not fit", code.len())));
    }
    file.write_all_at(&code, 0).map_err(failed)?;
    boot_partition(recipe, root, disk, log)?;
    file_system(recipe, root, disk, log, BOOT_AT_MIB + recipe.boot_mib)?;
    file.sync_all().map_err(failed)
}

fn partition(recipe: &Recipe, disk: &Path) -> Result<()> {
    let boot_at = BOOT_AT_MIB * SECTORS_PER_MIB;
    let root_at = boot_at + recipe.boot_mib * SECTORS_PER_MIB;
    let script = format!(
        "label: dos\nlabel-id: 0x{id}\nunit: sectors\n\
         start={boot_at}, size={boot_size}, type=e, bootable\nstart={root_at}, type=83\n",
        id = recipe.short_id("disk"),
        boot_size = root_at - boot_at,
    );
    process::output(system_program("sfdisk").arg("--quiet").arg(disk), &script).map(drop)
}

fn boot_partition(recipe: &Recipe, root: &Path, disk: &Path, log: &Path) -> Result<()> {
    let mut command = system_program("mkfs.vfat");
    command.args(["-F", "16", "--invariant", "-n", "BOOT", "-i", &recipe.short_id("boot")]);
    // Clusters of 4 KiB, which mkfs.vfat also aligns to 4 KiB: so the kernel and its initrd lie on
    // the same boundaries as in the root file system, and are the same blocks.
    command.args(["-s", "8"]);
    command.args(["--offset", &(BOOT_AT_MIB * SECTORS_PER_MIB).to_string()]);
    command.arg(disk).arg((recipe.boot_mib * 1024).to_string());
    process::run_logged(&mut command, log)?;

    let settings = disk.with_extension("cfg");
    let text = format!(
        "DEFAULT linux\nPROMPT 0\nTIMEOUT 0\nLABEL linux\n  LINUX vmlinuz\n  INITRD initrd.img\n  \
         APPEND root=UUID={} rw console=ttyS0\n",
        recipe.uuid("root")
    );
    fs::write(&settings, text)
        .map_err(|source| Error::io("write", settings.display().to_string(), source))?;
    let kernel = only(&root.join("boot"), "vmlinuz-")?;
    let initrd = only(&root.join("boot"), "initrd.img-")?;
    let inside = format!("{}@@{}M", disk.display(), BOOT_AT_MIB);
    for (from, to) in
        [(settings, "::syslinux.cfg"), (kernel, "::vmlinuz"), (initrd, "::initrd.img")]
    {
        let mut command = system_program("mcopy");
        command.args(["-i", &inside]).arg(from).arg(to);
        process::run_logged(&mut command, log)?;
    }
    let mut command = system_program("syslinux");
    command.args(["--offset", &(BOOT_AT_MIB * MIB).to_string(), "--install"]).arg(disk);
    process::run_logged(&mut command, log)
}

/// Fills the disk from there on with a file system that holds everything.
fn file_system(recipe: &Recipe, root: &Path, disk: &Path, log: &Path, at_mib: u64) -> Result<()> {
    let mut command = system_program("mke2fs");
    command.args(["-q", "-t", "ext4", "-L", "root", "-U", &recipe.uuid("root")]);
    command.arg("-E").arg(format!(
        "offset={},hash_seed={},lazy_itable_init=1,lazy_journal_init=1",
        at_mib * MIB,
        recipe.uuid("hash")
    ));
    command.arg("-d").arg(root).arg(disk).arg(format!("{}M", recipe.disk_mib - at_mib));
    process::run_logged(&mut command, log)
}

/// The one file of a folder whose name begins so.
fn only(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let failed = |source| Error::io("list", folder.display().to_string(), source);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(entry.path());
        }
    }
    match <[PathBuf; 1]>::try_from(found) {
        Ok([path]) => Ok(path),
        Err(found) => Err(Error::new(Kind::Invalid, "find", format!("{prefix}* in an image"))
            .because(format!("there are {}", found.len()))),
    }
}
