//! Who a booting guest is to be, in the forms that guests read.
//!
//! ```text
//!   Seed --> NoCloud       a disk `cidata`:   meta-data, user-data
//!        |-> ConfigDrive   a disk `config-2`: openstack/latest/meta_data.json, user_data
//!        `-> credentials   SMBIOS strings that systemd reads: keys of root, host name
//! ```
//!
//! **Invariants**
//! - A disk is ISO 9660 with Rock Ridge and Joliet, so a guest needs no more than what reads CDs.
//!
//! **Not here**: EC2's metadata (see [`ec2_metadata`](crate::ec2_metadata)).
//!
//! **Source**: cloud-init, "NoCloud" and "ConfigDrive" of its data sources; systemd,
//! systemd.system-credentials(7) and smbios-type-11(7).

use std::io::Cursor;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hadris_iso::joliet::JolietLevel;
use hadris_iso::read::PathSeparator;
use hadris_iso::rrip::RripOptions;
use hadris_iso::write::options::{BaseIsoLevel, CreationFeatures, IsoFormatOptions};
use hadris_iso::write::{File, InputFiles, IsoImageWriter};
use model::{Error, Kind, Result};
use serde_json::{Value, json};

use crate::identity::{check_host_name, meta_data};

/// The longest user-data or meta-data, in bytes.
pub const DATA_LEN_MAX: usize = 4 << 20;

/// The longest that all credentials may be, in bytes: SMBIOS tables are small.
pub const CREDENTIALS_LEN_MAX: usize = 16 << 10;

/// The size of a sector of a seed's disk, in bytes.
const SECTOR_LEN: usize = 2048;

/// What guests read a seed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeedKind {
    /// A disk with the label `cidata`, for cloud-init anywhere.
    NoCloud,
    /// A disk with the label `config-2`, as OpenStack gives one.
    ConfigDrive,
}

impl SeedKind {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            SeedKind::NoCloud => "nocloud",
            SeedKind::ConfigDrive => "configdrive",
        }
    }

    /// Reads the word for it.
    pub fn parse(word: &str) -> Option<Self> {
        let kinds = [SeedKind::NoCloud, SeedKind::ConfigDrive];
        kinds.into_iter().find(|kind| kind.as_str() == word)
    }
}

/// Who a guest is to be, and what it is to do at its first boot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seed {
    /// Names this life of the guest: cloud-init acts once on each.
    pub instance_id: String,
    /// The host name.
    pub host_name: String,
    /// Public keys of those who may log in, as the user that the image has for that, or as root.
    pub ssh_keys: Vec<String>,
    /// What cloud-init is to do: a script, or YAML that begins with `#cloud-config`.
    pub user_data: Option<Vec<u8>>,
    /// More meta-data, in YAML; it is understood where the guest reads NoCloud.
    pub meta_data: Option<String>,
}

impl Seed {
    /// Checks a seed.
    ///
    /// # Errors
    /// `Invalid`: no host name, a key of more than one line or with quotes, or data longer than
    /// [`DATA_LEN_MAX`].
    pub fn check(&self) -> Result<()> {
        check_host_name(&self.host_name)?;
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if self.instance_id.is_empty() || !self.instance_id.bytes().all(is_plain) {
            return Err(Error::new(Kind::Invalid, "use the instance id", &*self.instance_id)
                .because("it has letters, digits, hyphens, underscores and dots"));
        }
        for key in &self.ssh_keys {
            let is_key = key.contains(' ') && !key.starts_with('#');
            if !is_key || key.chars().any(|sign| sign.is_control() || "\"\\".contains(sign)) {
                return Err(Error::new(Kind::Invalid, "use the SSH key", format!("{key:?}"))
                    .because("it is no line of an authorized_keys file"));
            }
        }
        let len = self.user_data.as_ref().map_or(0, Vec::len);
        if len.max(self.meta_data.as_ref().map_or(0, String::len)) > DATA_LEN_MAX {
            return Err(Error::new(Kind::Invalid, "use", "the user-data or meta-data")
                .because(format!("it is longer than {DATA_LEN_MAX} bytes")));
        }
        Ok(())
    }

    /// The bytes of the disk that a guest reads.
    ///
    /// # Errors
    /// As [`Seed::check`].
    pub fn disk(&self, kind: SeedKind) -> Result<Vec<u8>> {
        self.check()?;
        match kind {
            SeedKind::NoCloud => self.no_cloud(),
            SeedKind::ConfigDrive => self.config_drive(),
        }
    }

    /// NoCloud's meta-data, with the keys.
    fn no_cloud_meta_data(&self) -> String {
        let mut rest = self.meta_data.clone().unwrap_or_default();
        if !rest.is_empty() && !rest.ends_with('\n') {
            rest.push('\n');
        }
        if !self.ssh_keys.is_empty() {
            rest += "public-keys:\n";
            for key in &self.ssh_keys {
                rest += &format!("  - \"{key}\"\n");
            }
        }
        meta_data(&self.instance_id, &self.host_name, &rest)
    }

    fn no_cloud(&self) -> Result<Vec<u8>> {
        iso(
            "cidata",
            vec![
                file("meta-data", self.no_cloud_meta_data().into_bytes()),
                file("user-data", self.user_data()),
            ],
        )
    }

    fn config_drive(&self) -> Result<Vec<u8>> {
        let keys: serde_json::Map<String, Value> = self
            .ssh_keys
            .iter()
            .enumerate()
            .map(|(index, key)| (format!("key{index}"), json!(key)))
            .collect();
        let meta_data = json!({
            "uuid": self.instance_id,
            "name": self.host_name,
            "hostname": self.host_name,
            "public_keys": keys,
        });
        let latest = vec![
            file("meta_data.json", meta_data.to_string().into_bytes()),
            file("user_data", self.user_data()),
        ];
        iso("config-2", vec![folder("openstack", vec![folder("latest", latest)])])
    }

    /// The user-data; a cloud-config that asks for nothing where there is none.
    pub fn user_data(&self) -> Vec<u8> {
        self.user_data.clone().unwrap_or_else(|| b"#cloud-config\n{}\n".to_vec())
    }

    /// Arguments for QEMU that give a guest the host name and root's keys as systemd's credentials.
    /// A systemd older than 252 leaves them alone.
    ///
    /// # Errors
    /// As [`Seed::check`]; `Invalid` when they are longer than [`CREDENTIALS_LEN_MAX`].
    pub fn credential_arguments(&self) -> Result<Vec<String>> {
        self.check()?;
        let name = &self.host_name;
        // `system.hostname` came after 252: the second line is for that one.
        let mut files = format!("f+ /etc/hostname 0644 root root - {name}\n");
        files += &format!("w /proc/sys/kernel/hostname - - - - {name}\n");
        let mut credentials = vec![("system.hostname", name.clone()), ("tmpfiles.extra", files)];
        if !self.ssh_keys.is_empty() {
            credentials.push(("ssh.authorized_keys.root", self.ssh_keys.join("\n") + "\n"));
        }
        let arguments: Vec<String> = credentials
            .iter()
            .flat_map(|(name, value)| {
                // Base 64 has no comma, which would begin another option.
                let value = STANDARD.encode(value);
                [
                    "-smbios".into(),
                    format!("type=11,value=io.systemd.credential.binary:{name}={value}"),
                ]
            })
            .collect();
        if arguments.iter().map(String::len).sum::<usize>() > CREDENTIALS_LEN_MAX {
            return Err(Error::new(Kind::Invalid, "use", "the SSH keys")
                .because(format!("with the rest they are more than {CREDENTIALS_LEN_MAX} bytes")));
        }
        Ok(arguments)
    }
}

fn file(name: &str, contents: Vec<u8>) -> File {
    File::File { name: Arc::new(name.to_owned()), contents }
}

fn folder(name: &str, children: Vec<File>) -> File {
    File::Directory { name: Arc::new(name.to_owned()), children }
}

/// A disk with a label and files.
fn iso(label: &str, files: Vec<File>) -> Result<Vec<u8>> {
    let options = IsoFormatOptions {
        volume_name: label.to_owned(),
        system_id: None,
        volume_set_id: None,
        publisher_id: None,
        preparer_id: None,
        application_id: None,
        sector_size: SECTOR_LEN,
        features: CreationFeatures {
            filenames: BaseIsoLevel::Level1 { supports_lowercase: false, supports_rrip: true },
            joliet: Some(JolietLevel::Level3),
            rock_ridge: Some(RripOptions::default()),
            ..CreationFeatures::default()
        },
        path_separator: PathSeparator::ForwardSlash,
        strict_charset: false,
    };
    let files = InputFiles { path_separator: PathSeparator::ForwardSlash, files };
    let mut disk = Cursor::new(Vec::new());
    IsoImageWriter::create(&mut disk, files, options).map_err(|source| {
        Error::new(Kind::Bug, "make", "the seed's disk").because(source.to_string())
    })?;
    Ok(disk.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::process::Command;

    fn seed() -> Seed {
        Seed {
            instance_id: "i-1".into(),
            host_name: "web-1".into(),
            ssh_keys: vec!["ssh-ed25519 AAAA me@here".into()],
            user_data: Some(b"#!/bin/sh\necho hello\n".to_vec()),
            meta_data: None,
        }
    }

    /// What genisoimage's reader says of a disk.
    fn isoinfo(disk: &Path, options: &[&str]) -> String {
        let output = Command::new("isoinfo").args(options).arg("-i").arg(disk).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn another_program_reads_the_disks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("seed.iso");
        std::fs::write(&path, seed().disk(SeedKind::NoCloud).unwrap()).unwrap();
        assert!(isoinfo(&path, &["-d"]).contains("Volume id: cidata\n"));
        for tree in ["-R", "-J"] {
            let text = isoinfo(&path, &[tree, "-x", "/meta-data"]);
            assert_eq!(
                text,
                "instance-id: i-1\nlocal-hostname: web-1\npublic-keys:\n  - \"ssh-ed25519 AAAA me@here\"\n"
            );
            assert_eq!(isoinfo(&path, &[tree, "-x", "/user-data"]), "#!/bin/sh\necho hello\n");
        }
        std::fs::write(&path, seed().disk(SeedKind::ConfigDrive).unwrap()).unwrap();
        assert!(isoinfo(&path, &["-d"]).contains("Volume id: config-2\n"));
        let text = isoinfo(&path, &["-R", "-x", "/openstack/latest/meta_data.json"]);
        let meta_data: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(meta_data["hostname"], "web-1");
        assert_eq!(meta_data["public_keys"]["key0"], "ssh-ed25519 AAAA me@here");
        let large = Seed { user_data: Some(vec![b'x'; 3_000_000]), ..seed() };
        std::fs::write(&path, large.disk(SeedKind::ConfigDrive).unwrap()).unwrap();
        let text = isoinfo(&path, &["-R", "-x", "/openstack/latest/user_data"]);
        assert_eq!(text.len(), 3_000_000);
    }

    #[test]
    fn credentials_are_strings_without_a_comma_in_their_values() {
        let arguments = seed().credential_arguments().unwrap();
        let prefix = "type=11,value=io.systemd.credential.binary:";
        let values: Vec<&str> =
            arguments.iter().filter_map(|word| word.strip_prefix(prefix)).collect();
        assert_eq!(values.len(), 3);
        assert!(values.iter().all(|value| !value.contains(',')));
        let (name, value) = values[2].split_once('=').unwrap();
        assert_eq!(name, "ssh.authorized_keys.root");
        assert_eq!(STANDARD.decode(value).unwrap(), b"ssh-ed25519 AAAA me@here\n");
    }

    #[test]
    fn what_would_become_something_else_is_refused() {
        let check = |change: &dyn Fn(&mut Seed)| {
            let mut seed = seed();
            change(&mut seed);
            assert_eq!(seed.check().unwrap_err().kind(), Kind::Invalid, "{seed:?}");
        };
        check(&|seed| seed.host_name = "a\nb: c".into());
        check(&|seed| seed.instance_id = String::new());
        check(&|seed| seed.ssh_keys = vec!["ssh-ed25519 A\nother".into()]);
        check(&|seed| seed.ssh_keys = vec!["ssh-ed25519 \"A".into()]);
        check(&|seed| seed.ssh_keys = vec!["# comment".into()]);
        check(&|seed| seed.user_data = Some(vec![0; DATA_LEN_MAX + 1]));
        let many = Seed { ssh_keys: vec![format!("ssh-rsa {}", "A".repeat(500)); 40], ..seed() };
        assert_eq!(many.credential_arguments().unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn a_word_is_read_back() {
        for kind in [SeedKind::NoCloud, SeedKind::ConfigDrive] {
            assert_eq!(SeedKind::parse(kind.as_str()), Some(kind));
        }
        assert_eq!(SeedKind::parse("ec2"), None);
    }
}
