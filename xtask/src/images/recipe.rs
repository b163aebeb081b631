//! What an image is made of.

use super::verify::{self, VERIFY};

/// What an image is made of. Everything that decides its content is in its text.
pub struct Recipe {
    /// A short name, also the guest's host name.
    pub name: &'static str,
    /// Debian's name of the release.
    pub suite: &'static str,
    /// The packages asked for, beside the essential ones.
    pub packages: &'static [&'static str],
    /// The disk's length, in MiB.
    pub disk_mib: u64,
    /// The length of the partition that the firmware boots from, in MiB; 0 for a disk that is a file
    /// system and nothing else.
    pub boot_mib: u64,
    /// Which of the release's packages.
    pub state: State,
}

/// Which of a release's packages an image gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Those that this machine's own settings name.
    Own,
    /// As released, without what was corrected since its last point release.
    Released,
    /// With all corrections.
    Patched,
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
    state: State::Own,
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
    state: State::Own,
};

/// The minimal one with QEMU's guest agent, for commits that freeze the guest's file systems.
pub const AGENT: Recipe = Recipe {
    name: "agent",
    suite: "bookworm",
    packages: &[
        "systemd-sysv",
        "udev",
        "dbus",
        "kmod",
        "iproute2",
        "linux-image-cloud-amd64",
        "qemu-guest-agent",
    ],
    disk_mib: 2048,
    boot_mib: 63,
    state: State::Own,
};

/// The same with cloud-init and an SSH server.
///
/// QEMU's guest agent is there too: by it a bake knows that all services have started.
pub const CLOUD: Recipe = Recipe {
    name: "cloud",
    suite: "bookworm",
    packages: &[
        "systemd-sysv",
        "udev",
        "dbus",
        "kmod",
        "iproute2",
        "linux-image-cloud-amd64",
        "cloud-init",
        "netplan.io",
        "openssh-server",
        "qemu-guest-agent",
    ],
    disk_mib: 2048,
    boot_mib: 63,
    state: State::Own,
};

impl Recipe {
    /// Everything that decides the image's content.
    fn text(&self) -> String {
        let Recipe { name, suite, packages, disk_mib, boot_mib, state } = self;
        let mut text = format!(
            "{FORMAT} Recipe {{ name: {name:?}, suite: {suite:?}, packages: {packages:?}, \
             disk_mib: {disk_mib}, boot_mib: {boot_mib} }}"
        );
        // Left out where it is not said, as images that are kept somewhere were named.
        if *state != State::Own {
            text += &format!(" {state:?}");
        }
        for (name, mode, content) in self.files() {
            text += &format!(" {name:?} {mode:o} {content:?}");
        }
        text
    }

    /// Its files beside those of packages: name, mode, text.
    pub fn files(&self) -> &'static [(&'static str, u32, &'static str)] {
        if self.name == VERIFY.name { verify::FILES } else { &[] }
    }

    fn key(&self) -> blake3::Hash {
        blake3::hash(self.text().as_bytes())
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

    #[test]
    fn images_that_were_kept_are_found_again() {
        assert_eq!(MINIMAL.file_stem(), "minimal-33b700f9dbaa");
        assert_eq!(NGINX.file_stem(), "nginx-ad404564e053");
    }

    #[test]
    fn a_patched_image_is_another_than_the_released_one() {
        let of = |state| Recipe { state, ..MINIMAL }.file_stem();
        assert_ne!(of(State::Released), of(State::Patched));
        assert_ne!(of(State::Released), of(State::Own));
    }
}
