//! What an image is made of.

/// What an image is made of. Everything that decides its content is in its text.
#[derive(Debug)]
pub struct Recipe {
    /// A short name, also the guest's host name.
    pub name: &'static str,
    /// Debian's name of the release.
    pub suite: &'static str,
    /// The packages asked for, beside the essential ones.
    pub packages: &'static [&'static str],
    /// The disk's length, in MiB.
    pub disk_mib: u64,
    /// The length of the partition that the firmware boots from, in MiB.
    pub boot_mib: u64,
}

/// Raised when the same recipe is to give another image.
const FORMAT: u32 = 2;

/// A Debian that boots to a login prompt, and nothing more.
pub const MINIMAL: Recipe = Recipe {
    name: "minimal",
    suite: "bookworm",
    packages: &["systemd-sysv", "udev", "dbus", "kmod", "iproute2", "linux-image-cloud-amd64"],
    disk_mib: 2048,
    boot_mib: 63,
};

/// The same with a web server.
pub const NGINX: Recipe = Recipe {
    name: "nginx",
    suite: "bookworm",
    packages: &[
        "systemd-sysv",
        "udev",
        "dbus",
        "kmod",
        "iproute2",
        "linux-image-cloud-amd64",
        "nginx",
    ],
    disk_mib: 2048,
    boot_mib: 63,
};

impl Recipe {
    fn key(&self) -> blake3::Hash {
        blake3::hash(format!("{FORMAT} {self:?}").as_bytes())
    }

    /// The name of this image's files, without an ending.
    pub fn file_stem(&self) -> String {
        format!("{}-{}", self.name, &self.key().to_hex()[..12])
    }

    /// A UUID that is this image's own and the same each time it is built.
    pub fn uuid(&self, purpose: &str) -> String {
        let hex = blake3::keyed_hash(self.key().as_bytes(), purpose.as_bytes()).to_hex();
        // Version 4, variant 1, as tools expect.
        format!(
            "{}-{}-4{}-8{}-{}",
            &hex[..8],
            &hex[8..12],
            &hex[13..16],
            &hex[17..20],
            &hex[20..32]
        )
    }

    /// An id of eight hexadecimal digits for things smaller than a UUID.
    pub fn short_id(&self, purpose: &str) -> String {
        self.uuid(purpose)[..8].to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids_follow_from_the_recipe() {
        assert_ne!(MINIMAL.file_stem(), NGINX.file_stem());
        assert_eq!(MINIMAL.uuid("root"), MINIMAL.uuid("root"));
        assert_ne!(MINIMAL.uuid("root"), MINIMAL.uuid("hash"));
        assert_ne!(MINIMAL.uuid("root"), NGINX.uuid("root"));
        assert_eq!(MINIMAL.uuid("root").len(), 36);
    }
}
