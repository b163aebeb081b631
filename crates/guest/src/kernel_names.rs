//! Where Linux distributions put a kernel and its initrd.
//!
//! | | Kernel | Initrd |
//! |---|---|---|
//! | Debian and its kin | `/boot/vmlinuz-VERSION` | `/boot/initrd.img-VERSION` |
//! | Fedora and its kin | `/lib/modules/VERSION/vmlinuz`, `/boot/vmlinuz-VERSION` | `/boot/initramfs-VERSION.img`, `/lib/modules/VERSION/initrd` |
//!
//! **Source**: kernel-install(8), installkernel(8), dracut(8).

use model::Result;

const BOOT: &str = "/boot";

/// Behind the link that `/lib` is in most; some readers of file systems follow none.
const MODULES: [&str; 2] = ["/usr/lib/modules", "/lib/modules"];

/// A kernel of a system and its initrd, as paths in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelFiles {
    /// The kernel.
    pub kernel: String,
    /// The initrd that is for it.
    pub initrd: String,
}

/// All kernels of a system that have an initrd, the newest last. `list` gives the names in a folder,
/// none where there is no such folder.
///
/// # Errors
/// Those of listing.
pub fn kernel_files(list: &mut dyn FnMut(&str) -> Result<Vec<String>>) -> Result<Vec<KernelFiles>> {
    let boot = list(BOOT)?;
    let mut found: Vec<(String, KernelFiles)> = Vec::new();
    let mut add = |version: &str, kernel: String, initrd: String| {
        if found.iter().all(|(known, _)| known != version) {
            found.push((version.to_owned(), KernelFiles { kernel, initrd }));
        }
    };
    let in_boot = |version: &str| {
        let names = [format!("initrd.img-{version}"), format!("initramfs-{version}.img")];
        let name = names.into_iter().find(|name| boot.contains(name));
        name.map(|name| format!("{BOOT}/{name}"))
    };
    for version in boot.iter().filter_map(|name| name.strip_prefix("vmlinuz-")) {
        if let Some(initrd) = in_boot(version) {
            add(version, format!("{BOOT}/vmlinuz-{version}"), initrd);
        }
    }
    for folder in MODULES {
        for version in list(folder)? {
            let names = list(&format!("{folder}/{version}"))?;
            let beside = |name: &str| {
                let is_there = names.iter().any(|found| found == name);
                is_there.then(|| format!("{folder}/{version}/{name}"))
            };
            if let (Some(kernel), Some(initrd)) =
                (beside("vmlinuz"), in_boot(&version).or_else(|| beside("initrd")))
            {
                add(&version, kernel, initrd);
            }
        }
    }
    found.sort_by_key(|(version, _)| natural(version));
    Ok(found.into_iter().map(|(_, files)| files).collect())
}

/// The newest kernel in `/boot`, whether or not there is an initrd for it: some need none.
///
/// # Errors
/// Those of listing.
pub fn newest_alone(list: &mut dyn FnMut(&str) -> Result<Vec<String>>) -> Result<Option<String>> {
    let names = list(BOOT)?;
    let versions = names.iter().filter_map(|name| name.strip_prefix("vmlinuz-"));
    Ok(versions
        .max_by_key(|version| natural(version))
        .map(|version| format!("{BOOT}/vmlinuz-{version}")))
}

/// Numbers in names count as numbers: `6.1.0-9` is older than `6.1.0-10`.
fn natural(name: &str) -> Vec<(u64, String)> {
    let parts = name.split_inclusive(|c: char| !c.is_ascii_digit());
    parts
        .map(|part| {
            let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
            (digits.parse().unwrap_or(0), part[digits.len()..].to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(files: &[&str], expected: &[(&str, &str)]) {
        let mut list = |folder: &str| {
            let below = format!("{folder}/");
            let names = files.iter().filter_map(|file| file.strip_prefix(&below));
            let mut names: Vec<String> =
                names.filter_map(|rest| rest.split('/').next().map(str::to_owned)).collect();
            names.dedup();
            Ok(names)
        };
        let found = kernel_files(&mut list).unwrap();
        let found: Vec<_> = found.iter().map(|f| (f.kernel.as_str(), f.initrd.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_kernel_is_found_with_the_initrd_that_is_for_it_and_the_newest_is_last() {
        check(&[], &[]);
        check(&["/boot/vmlinuz-1", "/boot/initrd.img-2"], &[]);
        check(
            &[
                "/boot/vmlinuz-6.1.0-10",
                "/boot/vmlinuz-6.1.0-9",
                "/boot/initrd.img-6.1.0-9",
                "/boot/initrd.img-6.1.0-10",
            ],
            &[
                ("/boot/vmlinuz-6.1.0-9", "/boot/initrd.img-6.1.0-9"),
                ("/boot/vmlinuz-6.1.0-10", "/boot/initrd.img-6.1.0-10"),
            ],
        );
        check(
            &[
                "/boot/vmlinuz-0-rescue-ab",
                "/boot/initramfs-0-rescue-ab.img",
                "/boot/initramfs-6.9.fc41.img",
                "/usr/lib/modules/6.9.fc41/vmlinuz",
                "/usr/lib/modules/6.10.fc41/vmlinuz",
                "/usr/lib/modules/6.10.fc41/initrd",
            ],
            &[
                ("/boot/vmlinuz-0-rescue-ab", "/boot/initramfs-0-rescue-ab.img"),
                ("/usr/lib/modules/6.9.fc41/vmlinuz", "/boot/initramfs-6.9.fc41.img"),
                ("/usr/lib/modules/6.10.fc41/vmlinuz", "/usr/lib/modules/6.10.fc41/initrd"),
            ],
        );
    }
}
