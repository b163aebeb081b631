//! Whether this machine can run the programs of an image.
//!
//! **Source**: the kernel's `admin-guide/binfmt-misc`.

use std::path::Path;

use model::{Error, Kind, Result};

/// Where the kernel tells which foreign programs it runs, and by what.
const EMULATORS: &str = "/proc/sys/fs/binfmt_misc";

/// An image's architecture, the processors that run it as their own, and QEMU's name for it.
const KNOWN: [(&str, &[&str], &str); 3] = [
    ("amd64", &["x86_64"], "qemu-x86_64"),
    ("i386", &["x86_64", "x86"], "qemu-i386"),
    ("arm64", &["aarch64"], "qemu-aarch64"),
];

/// Fails where programs of an image cannot run here: its packages' scripts could not.
///
/// # Errors
/// `NotFound`, with what to install.
pub(crate) fn check(arch: &str) -> Result<()> {
    check_on(arch, std::env::consts::ARCH, Path::new(EMULATORS))
}

fn check_on(arch: &str, machine: &str, emulators: &Path) -> Result<()> {
    let known = KNOWN.iter().find(|(name, _, _)| *name == arch);
    let (_, natives, emulator) = known.copied().unwrap_or((arch, &[], "qemu"));
    let is_emulated = || {
        let told = std::fs::read_to_string(emulators.join(emulator)).unwrap_or_default();
        // With `F` the emulator is found in a root that has none.
        told.starts_with("enabled")
            && told.lines().any(|line| line.starts_with("flags:") && line.contains('F'))
    };
    if natives.contains(&machine) || is_emulated() {
        return Ok(());
    }
    Err(Error::new(Kind::NotFound, "run programs of", arch)
        .because(format!("this machine is {machine}, and its kernel knows no emulator of {arch}"))
        .hint("apt-get install --no-install-recommends qemu-user-static binfmt-support; the lock is written and stays"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_programs_need_an_emulator_that_is_found_in_any_root() {
        let folder = tempfile::tempdir().unwrap();
        let check = |arch: &str| check_on(arch, "x86_64", folder.path());
        check("amd64").unwrap();
        check("i386").unwrap();
        let error = check("arm64").unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.hint_text().unwrap().contains("qemu-user-static"));
        let file = folder.path().join("qemu-aarch64");
        std::fs::write(&file, "enabled\ninterpreter /usr/bin/qemu-aarch64\nflags: OC\n").unwrap();
        assert!(check("arm64").is_err());
        std::fs::write(&file, "enabled\ninterpreter /usr/bin/qemu-aarch64\nflags: OCF\n").unwrap();
        check("arm64").unwrap();
        std::fs::write(&file, "disabled\nflags: OCF\n").unwrap();
        assert!(check("arm64").is_err());
    }
}
