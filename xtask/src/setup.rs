//! Which program comes from which Debian package, and how what is missing gets installed.
//!
//! **Failure**: what cannot be installed is said in full, with the command that does it.
//!
//! QEMU's trap: `qemu-system-x86` and `qemu-utils` must come from one suite. A machine whose
//! `qemu-utils` is a backport and whose sources hold no backports cannot install `qemu-system-x86`
//! next to it; there both are named with their suite, and `qemu-utils` goes back to it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use builder::apt_settings;
use clap::ValueEnum;
use model::{Error, Kind, Result};

use crate::process;
use crate::workspace::{find_program, system_program};

/// What a set-up is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum For {
    /// `cargo xtask images`
    Images,
    /// `cargo xtask demo`
    Demo,
    /// `cargo xtask test`
    Test,
    /// `cargo xtask bench`
    Bench,
}

/// What to set up for.
#[derive(clap::Args)]
pub struct Options {
    /// What to install for; everything when left out.
    #[arg(value_enum)]
    tasks: Vec<For>,
}

/// A program (or, with a leading slash, a file) and the package that brings it.
struct Need {
    what: &'static str,
    package: &'static str,
    tasks: &'static [For],
}

const fn need(what: &'static str, package: &'static str, tasks: &'static [For]) -> Need {
    Need { what, package, tasks }
}

use For::{Bench, Demo, Images, Test};

const NEEDS: &[Need] = &[
    need("mmdebstrap", "mmdebstrap", &[Images, Demo, Test, Bench]),
    need(
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "debian-archive-keyring",
        &[Images, Demo, Bench],
    ),
    need("bwrap", "bubblewrap", &[Demo, Test, Bench]),
    need("newuidmap", "uidmap", &[Test]),
    need("fuse2fs", "fuse2fs", &[Test]),
    need("gpg", "gnupg", &[Test]),
    need("mke2fs", "e2fsprogs", &[Images, Demo, Test, Bench]),
    need("sfdisk", "fdisk", &[Images, Demo, Test, Bench]),
    need("mkfs.vfat", "dosfstools", &[Images, Demo, Test, Bench]),
    need("mcopy", "mtools", &[Images, Demo, Test, Bench]),
    need("syslinux", "syslinux", &[Images, Demo, Test, Bench]),
    need("/usr/lib/syslinux/mbr/mbr.bin", "syslinux-common", &[Images, Demo, Test, Bench]),
    need("/usr/lib/systemd/boot/efi/systemd-bootx64.efi", "systemd-boot-efi", &[Test]),
    need("qemu-system-x86_64", "qemu-system-x86", &[Images, Demo, Test, Bench]),
    need("qemu-img", "qemu-utils", &[Demo, Test, Bench]),
    need("qemu-io", "qemu-utils", &[Test, Bench]),
    need("qemu-nbd", "qemu-utils", &[Test, Bench]),
    need("qemu-storage-daemon", "qemu-system-common", &[Test, Bench]),
    need("fusermount3", "fuse3", &[Test, Bench]),
    need("nbdinfo", "libnbd-bin", &[Test, Bench]),
    need("nbdcopy", "libnbd-bin", &[Test, Bench]),
    need("fio", "fio", &[Test, Bench]),
    need("bonnie++", "bonnie++", &[Test, Bench]),
    need("mount", "mount", &[Test, Bench]),
    need("strace", "strace", &[Test]),
    need("systemd-analyze", "systemd", &[Test]),
    need("sqlite3", "sqlite3", &[Test]),
    need("minisign", "minisign", &[Test]),
    need("casync", "casync", &[Test, Bench]),
    need("restic", "restic", &[Bench]),
    need("borg", "borgbackup", &[Bench]),
    // Without it borg shows no archives.
    need("/usr/lib/python3/dist-packages/pyfuse3_asyncio.py", "python3-pyfuse3", &[Bench]),
    need("zstd", "zstd", &[Test, Bench]),
];

/// The packages that must come from one suite.
const ONE_SUITE: [&str; 2] = ["qemu-system-x86", "qemu-utils"];

/// Installs what the chosen tasks need.
pub fn run(options: &Options) -> Result<()> {
    let all = [Images, Demo, Test, Bench];
    let tasks = if options.tasks.is_empty() { &all[..] } else { &options.tasks };
    for task in tasks {
        ensure(*task)?;
    }
    println!("everything that is needed is installed");
    Ok(())
}

/// Makes sure that everything a task needs is installed.
///
/// # Errors
/// `Refused`: something is missing and this is not root; the hint is the command to run.
/// `Unavailable`: the packages could not be installed.
pub fn ensure(task: For) -> Result<()> {
    let missing = missing_packages(task, &is_there);
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.iter().copied().collect::<Vec<_>>().join(" ");
    let command = format!("apt-get install --no-install-recommends {list}");
    if !rustix::process::geteuid().is_root() {
        return Err(Error::new(Kind::Refused, "install", list)
            .because("only root may install packages")
            .hint(format!("sudo {command}")));
    }
    println!("installing {list}");
    install(&missing)?;
    let still = missing_packages(task, &is_there);
    if still.is_empty() {
        return Ok(());
    }
    let still = still.into_iter().collect::<Vec<_>>().join(" ");
    Err(Error::new(Kind::Unavailable, "install", still)
        .because("the packages were installed, but the programs are not there"))
}

fn is_there(what: &str) -> bool {
    if what.starts_with('/') { Path::new(what).exists() } else { find_program(what).is_some() }
}

/// The packages that a task misses; of those that must come from one suite, all or none.
fn missing_packages(task: For, is_there: &dyn Fn(&str) -> bool) -> BTreeSet<&'static str> {
    let mut missing: BTreeSet<&'static str> = NEEDS
        .iter()
        .filter(|need| need.tasks.contains(&task) && !is_there(need.what))
        .map(|need| need.package)
        .collect();
    if ONE_SUITE.iter().any(|package| missing.contains(package)) {
        missing.extend(ONE_SUITE);
    }
    missing
}

/// The ways to ask apt for packages, the plainest first: as they are, then with QEMU's two named
/// with the release's suite, which may bring one of them back to it.
fn ways(packages: &BTreeSet<&str>, suite: Option<&str>) -> Vec<Vec<String>> {
    let plain = packages.iter().map(|package| (*package).to_owned()).collect();
    let mut ways = vec![plain];
    if let Some(suite) = suite
        && ONE_SUITE.iter().all(|package| packages.contains(package))
    {
        let pinned = packages.iter().map(|package| {
            if ONE_SUITE.contains(package) {
                format!("{package}/{suite}")
            } else {
                (*package).to_owned()
            }
        });
        ways.push(["--allow-downgrades".to_owned()].into_iter().chain(pinned).collect());
    }
    ways
}

/// Installs packages by the first way that apt can work out; when there is none, or it fails, once
/// more with fresh lists.
fn install(packages: &BTreeSet<&str>) -> Result<()> {
    let suite =
        fs::read_to_string("/etc/os-release").ok().and_then(|text| apt_settings::codename(&text));
    let ways = ways(packages, suite.as_deref());
    let mut lists_are_fresh = false;
    if !has_lists(Path::new("/var/lib/apt/lists")) {
        process::run(apt_get().arg("update"))?;
        lists_are_fresh = true;
    }
    loop {
        let workable =
            ways.iter().find(|way| process::output(apt_install(way).arg("--simulate"), "").is_ok());
        let done = match workable {
            Some(way) => process::run(&mut apt_install(way)),
            // Said by apt itself, with its reasons.
            None => process::run(&mut apt_install(&ways[0])),
        };
        process::go_on()?;
        match done {
            Ok(()) => return Ok(()),
            Err(error) if lists_are_fresh => {
                let list = packages.iter().copied().collect::<Vec<_>>().join(" ");
                return Err(Error::new(Kind::Unavailable, "install", list).caused_by(error));
            }
            Err(_) => {
                process::run(apt_get().arg("update"))?;
                lists_are_fresh = true;
            }
        }
    }
}

fn apt_get() -> Command {
    let mut command = system_program("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").arg("--quiet");
    command
}

fn apt_install(way: &[String]) -> Command {
    let mut command = apt_get();
    command.args(["install", "--yes", "--no-install-recommends"]).args(way);
    command
}

fn has_lists(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|entries| {
        entries
            .filter_map(std::result::Result::ok)
            .any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemus_two_packages_are_asked_for_together() {
        let missing = missing_packages(Test, &|what| what != "qemu-system-x86_64");
        assert_eq!(missing.into_iter().collect::<Vec<_>>(), ONE_SUITE);
        assert!(missing_packages(Test, &|_| true).is_empty());
        assert_eq!(missing_packages(Bench, &|what| what != "fio").len(), 1);
    }

    #[test]
    fn the_second_way_names_the_suite_of_qemus_packages_only() {
        let packages = BTreeSet::from(["fio", "qemu-system-x86", "qemu-utils"]);
        let expected =
            ["--allow-downgrades", "fio", "qemu-system-x86/bookworm", "qemu-utils/bookworm"];
        assert_eq!(ways(&packages, Some("bookworm"))[1], expected);
        assert_eq!(ways(&packages, None).len(), 1);
        assert_eq!(ways(&BTreeSet::from(["fio"]), Some("bookworm")), [["fio"]]);
    }
}
