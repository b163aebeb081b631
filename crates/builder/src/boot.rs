//! The boot partition: kernel and initrd from the image's own files, and the loader that starts them.
//!
//! ```text
//! bios   | GPT, gptmbr | FAT: ldlinux.sys, syslinux.cfg, vmlinuz, initrd.img | ext4 | GPT |
//! uefi   | GPT, gptmbr | FAT: EFI/BOOT/BOOTX64.EFI, loader/, all of the above | ext4 | GPT |
//! ```
//!
//! **Invariants**: kernel and initrd have the same names in both, so that a later stage can replace
//! them without knowing which it is. They are taken out of the image by the tree: a link that a step
//! has put there cannot bring a file of the host.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::{Error, Kind, Result};

use crate::disk::Plan;
use crate::file_system::identity;
use crate::first::Job;
use crate::recipe::Boot;
use crate::tool::{Run, need, program};
use crate::tree::Tree;

const LIMIT: Duration = Duration::from_secs(600);
const MIB: u64 = 1 << 20;
const SECTORS_PER_MIB: u64 = 2048;

/// The first MiB holds the partition table.
pub(crate) const BOOT_OFFSET: u64 = MIB;

const BIOS_CODE: &str = "/usr/lib/syslinux/mbr/gptmbr.bin";
const UEFI_LOADER: &str = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi";

/// The boot code in front of the partition table, in bytes.
const BOOT_CODE_MAX: usize = 440;

/// A FAT of 16 bits has no more clusters of 4 KiB.
const FAT16_LEN_MAX: u64 = 255 * MIB;

/// Kernel and initrd of an image, on this host.
pub(crate) struct Kernel {
    kernel: PathBuf,
    initrd: PathBuf,
}

/// Programs and files that the loaders come from.
pub(crate) fn check_machine(boot: Boot) -> Result<()> {
    let fat = [("mkfs.vfat", "dosfstools"), ("mcopy", "mtools"), ("sfdisk", "fdisk")];
    let bios = (BIOS_CODE, "syslinux syslinux-common");
    let files = match boot {
        Boot::Direct => return Ok(()),
        Boot::Bios => vec![bios],
        Boot::Uefi => vec![(UEFI_LOADER, "systemd-boot-efi"), bios],
    };
    need(&fat)?;
    match files.into_iter().find(|(file, _)| !Path::new(file).exists()) {
        None => Ok(()),
        Some((file, package)) => Err(Error::new(Kind::NotFound, "find the loader", file)
            .because("it is not installed")
            .hint(format!("apt-get install --no-install-recommends {package}"))),
    }
}

impl Kernel {
    /// Takes the newest kernel and its initrd out of an image, into a folder for work.
    ///
    /// # Errors
    /// `NotFound` where the image has none.
    pub(crate) fn take_out(tree: &Tree, work: &Path) -> Result<Kernel> {
        let newest = |prefix: &str| -> Result<String> {
            let mut names: Vec<String> =
                tree.list("/boot")?.into_iter().map(|entry| entry.0).collect();
            names.retain(|name| name.starts_with(prefix));
            names.sort_by_key(|name| natural(name));
            names.pop().ok_or_else(|| {
                Error::new(Kind::NotFound, "find a kernel in", "the image")
                    .because(format!("/boot has no {prefix}*"))
                    .hint("add a kernel to `packages` (linux-image-cloud-amd64, linux-image-686, linux-image-virtual), or `boot = \"direct\"`")
            })
        };
        let out = |name: String, to: &str| -> Result<PathBuf> {
            let path = work.join(to);
            tree.copy_out(&format!("/boot/{name}"), &path)?;
            Ok(path)
        };
        let kernel = out(newest("vmlinuz-")?, "vmlinuz")?;
        let initrd = out(newest("initrd.img-")?, "initrd.img")?;
        Ok(Kernel { kernel, initrd })
    }

    /// Puts both on the boot partition of a disk, over those that are there.
    pub(crate) fn put(&self, disk: &Path, offset: u64, job: &Job) -> Result<()> {
        for (from, to) in [(&self.kernel, "vmlinuz"), (&self.initrd, "initrd.img")] {
            copy(job, from, disk, offset, to)?;
        }
        Ok(())
    }
}

/// What tells one set of kernels from another: their names, lengths and times.
pub(crate) fn kernels(tree: &Tree) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for (name, _) in tree.list("/boot")? {
        if name.starts_with("vmlinuz-") || name.starts_with("initrd.img-") {
            all.push(tree.signature(&format!("/boot/{name}"))?);
        }
    }
    Ok(all)
}

/// Numbers in names count as numbers: `6.1.0-9` is older than `6.1.0-10`.
pub(crate) fn natural(name: &str) -> Vec<(u64, String)> {
    let mut parts = Vec::new();
    for part in name.split_inclusive(|c: char| !c.is_ascii_digit()) {
        let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
        parts.push((digits.parse().unwrap_or(0), part[digits.len()..].to_owned()));
    }
    parts
}

fn run<'a>(job: &'a Job) -> Run<'a> {
    Run { log: job.log, limit: LIMIT, cancel: job.cancel }
}

fn timed(job: &Job, name: &str) -> std::process::Command {
    let mut command = program(name);
    command.env("SOURCE_DATE_EPOCH", job.locked.source_date_epoch.to_string());
    command.env("MTOOLS_SKIP_CHECK", "1").env("TZ", "UTC");
    command
}

fn copy(job: &Job, from: &Path, disk: &Path, offset: u64, to: &str) -> Result<()> {
    let mut command = timed(job, "mcopy");
    command.arg("-o").arg("-i").arg(format!("{}@@{offset}", disk.display()));
    run(job).succeed(command.arg(from).arg(format!("::{to}"))).map_err(|error| {
        if error.to_string().contains("full") {
            return Error::new(Kind::Full, "fill the boot partition", "")
                .because(error.to_string())
                .hint("give the recipe a larger `boot_size` in `[disk]`");
        }
        error
    })
}

/// Makes the partition table and the boot partition. Kernel and initrd come from the tree.
pub(crate) fn make(job: &Job, plan: &Plan, tree: &Tree, disk: &Path) -> Result<()> {
    partition(job, plan, disk)?;
    let id = &identity(job.key, "boot")[..8];
    let len = plan.root_offset - BOOT_OFFSET;
    let mut command = timed(job, "mkfs.vfat");
    if len <= FAT16_LEN_MAX {
        // Clusters of 4 KiB at boundaries of 4 KiB: kernel and initrd are the same blocks here as in
        // the root file system.
        command.args(["-F", "16", "-s", "8"]);
    }
    command.args(["--invariant", "-n", "BOOT", "-i", id]);
    command.args(["--offset", &(BOOT_OFFSET / MIB * SECTORS_PER_MIB).to_string()]);
    run(job).succeed(command.arg(disk).arg((len / 1024).to_string()))?;
    let options = format!("root=UUID={} rw console=tty0 console=ttyS0", plan.root);
    if plan.boot == Boot::Uefi {
        uefi(job, disk, &options)?;
    }
    bios(job, disk, &options)?;
    Kernel::take_out(tree, job.work)?.put(disk, BOOT_OFFSET, job)
}

fn partition(job: &Job, plan: &Plan, disk: &Path) -> Result<()> {
    let sectors = |len: u64| len / MIB * SECTORS_PER_MIB;
    let boot_type = match plan.boot {
        Boot::Uefi => "C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
        _ => "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7",
    };
    let mut script = format!(
        "label: gpt\nlabel-id: {disk_id}\nunit: sectors\nfirst-lba: 2048\n\
         start={boot_at}, size={boot_size}, type={boot_type}, uuid={boot_id}, name=\"boot\", attrs=\"LegacyBIOSBootable\"\n\
         start={root_at}, size={root_size}, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, uuid={root_id}, name=\"root\"\n",
        disk_id = identity(job.key, "disk"),
        boot_at = sectors(BOOT_OFFSET),
        boot_size = sectors(plan.root_offset - BOOT_OFFSET),
        boot_id = identity(job.key, "boot partition"),
        root_at = sectors(plan.root_offset),
        root_size = sectors(plan.root_len),
        root_id = identity(job.key, "root partition"),
    );
    for partition in &plan.partitions {
        script.push_str(&format!(
            "start={}, size={}, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, uuid={}, name=\"{}\"\n",
            sectors(partition.offset),
            sectors(partition.len),
            identity(job.key, &format!("partition {}", partition.name)),
            partition.name,
        ));
    }
    let path = job.work.join("partitions");
    fs::write(&path, script).map_err(|e| Error::io("write", path.display().to_string(), e))?;
    let mut command = program("sh");
    command.args(["-c", "exec sfdisk --quiet \"$1\" < \"$2\"", "sfdisk"]).arg(disk).arg(&path);
    run(job).succeed(&mut command)
}

fn bios(job: &Job, disk: &Path, options: &str) -> Result<()> {
    let failed = |error| Error::io("write", disk.display().to_string(), error);
    let code = fs::read(BIOS_CODE).map_err(failed)?;
    if code.len() > BOOT_CODE_MAX {
        return Err(Error::new(Kind::Invalid, "write", "the boot code")
            .because(format!("{} bytes do not fit", code.len())));
    }
    File::options()
        .write(true)
        .open(disk)
        .and_then(|file| file.write_all_at(&code, 0))
        .map_err(failed)?;
    let text = format!(
        "DEFAULT linux\nPROMPT 0\nTIMEOUT 0\nLABEL linux\n  LINUX vmlinuz\n  INITRD initrd.img\n  APPEND {options}\n"
    );
    put_text(job, disk, "syslinux.cfg", &text)?;
    let mut command = timed(job, "syslinux");
    command.args(["--offset", &BOOT_OFFSET.to_string(), "--install"]).arg(disk);
    run(job).succeed(&mut command)
}

fn uefi(job: &Job, disk: &Path, options: &str) -> Result<()> {
    let mut command = timed(job, "mmd");
    command.arg("-i").arg(format!("{}@@{BOOT_OFFSET}", disk.display()));
    command.args(["::EFI", "::EFI/BOOT", "::loader", "::loader/entries"]);
    run(job).succeed(&mut command)?;
    copy(job, Path::new(UEFI_LOADER), disk, BOOT_OFFSET, "EFI/BOOT/BOOTX64.EFI")?;
    put_text(job, disk, "loader/loader.conf", "timeout 0\ndefault linux.conf\n")?;
    let entry = format!("title linux\nlinux /vmlinuz\ninitrd /initrd.img\noptions {options}\n");
    put_text(job, disk, "loader/entries/linux.conf", &entry)
}

fn put_text(job: &Job, disk: &Path, to: &str, text: &str) -> Result<()> {
    let path = job.work.join("text");
    fs::write(&path, text).map_err(|e| Error::io("write", path.display().to_string(), e))?;
    copy(job, &path, disk, BOOT_OFFSET, to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_the_one_with_the_highest_numbers() {
        let mut names = ["vmlinuz-6.1.0-10-amd64", "vmlinuz-6.1.0-9-amd64", "vmlinuz-6.12.1-1"];
        names.sort_by_key(|name| natural(name));
        assert_eq!(names[2], "vmlinuz-6.12.1-1");
        assert_eq!(names[1], "vmlinuz-6.1.0-10-amd64");
    }
}
