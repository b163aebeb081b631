//! The names of foreign formats, and how one is recognised from a file's first bytes.
//!
//! Recognising is guessing: a raw disk belongs to its guest, who may write another format's magic
//! into its first sector. What such a disk can reach is bounded by what a reader follows (no
//! backing file, no data file, no second extent), but what it reads as is not: whoever imports
//! disks of strangers names the format.

use std::fmt;
use std::str::FromStr;

/// A disk format that can be read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum InputFormat {
    /// The bytes of the disk, as they are.
    Raw,
    /// QEMU's format, versions 2 and 3.
    Qcow2,
    /// A format that `qemu-img` reads for us, by its name there; one of those that
    /// [`InputFormat::from_str`] accepts.
    Other(String),
}

/// A disk format that can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutputFormat {
    /// The bytes of the disk, as they are; zeros become holes.
    Raw,
    /// qcow2 version 3, 64 KiB clusters, not compressed.
    Qcow2,
}

/// A word that names no format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{word}\" is no disk format known here; use one of: {known}")]
pub struct UnknownFormat {
    /// What was given.
    pub word: String,
    /// What could have been given.
    pub known: String,
}

/// What `qemu-img` may be asked to read. Its protocols (nbd, ssh, https...) and its filters are
/// not formats of a file and would reach beyond it.
const OTHERS: [&str; 7] = ["vmdk", "vdi", "vhdx", "vpc", "qed", "qcow", "parallels"];

/// How many first bytes [`InputFormat::recognise`] looks at.
pub(super) const PROBE_LEN: usize = 512;

impl InputFormat {
    /// The format that a file's first bytes (up to [`PROBE_LEN`]) speak for; raw where none does.
    pub(super) fn recognise(first: &[u8]) -> InputFormat {
        let other = |name: &str| InputFormat::Other(name.to_owned());
        if first.starts_with(b"QFI\xfb") {
            return match first.get(4..8) {
                Some([0, 0, 0, 1]) => other("qcow"),
                _ => InputFormat::Qcow2,
            };
        }
        let at_start: [(&[u8], &str); 7] = [
            (b"KDMV", "vmdk"),
            (b"COWD", "vmdk"),
            (b"# Disk DescriptorFile", "vmdk"),
            (b"vhdxfile", "vhdx"),
            (b"conectix", "vpc"),
            (b"QED\0", "qed"),
            (b"WithoutFreeSpace", "parallels"),
        ];
        if let Some((_, name)) = at_start.iter().find(|(magic, _)| first.starts_with(magic)) {
            return other(name);
        }
        if first.starts_with(b"WithouFreSpacExt") {
            return other("parallels");
        }
        if first.get(0x40..0x44) == Some(&[0x7f, 0x10, 0xda, 0xbe]) {
            return other("vdi");
        }
        InputFormat::Raw
    }
}

impl FromStr for InputFormat {
    type Err = UnknownFormat;

    fn from_str(word: &str) -> Result<Self, UnknownFormat> {
        match word {
            "raw" => Ok(InputFormat::Raw),
            "qcow2" => Ok(InputFormat::Qcow2),
            "vhd" => Ok(InputFormat::Other("vpc".to_owned())),
            other if OTHERS.contains(&other) => Ok(InputFormat::Other(other.to_owned())),
            other => Err(UnknownFormat {
                word: other.to_owned(),
                known: format!("raw, qcow2, {}", OTHERS.join(", ")),
            }),
        }
    }
}

impl fmt::Display for InputFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            InputFormat::Raw => "raw",
            InputFormat::Qcow2 => "qcow2",
            InputFormat::Other(name) => name,
        })
    }
}

impl FromStr for OutputFormat {
    type Err = UnknownFormat;

    fn from_str(word: &str) -> Result<Self, UnknownFormat> {
        match word {
            "raw" => Ok(OutputFormat::Raw),
            "qcow2" => Ok(OutputFormat::Qcow2),
            other => Err(UnknownFormat { word: other.to_owned(), known: "raw, qcow2".to_owned() }),
        }
    }
}

impl fmt::Display for OutputFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OutputFormat::Raw => "raw",
            OutputFormat::Qcow2 => "qcow2",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protocol_of_qemu_is_no_format() {
        for word in ["nbd", "ssh", "https", "blkdebug", "luks", "", "RAW", "json:{}"] {
            assert!(word.parse::<InputFormat>().is_err(), "{word}");
        }
    }

    #[test]
    fn a_format_is_read_back_from_its_name() {
        for word in ["raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc", "qed", "qcow", "parallels"] {
            assert_eq!(word.parse::<InputFormat>().unwrap().to_string(), word);
        }
        assert_eq!("vhd".parse::<InputFormat>().unwrap().to_string(), "vpc");
        assert_eq!("qcow2".parse(), Ok(OutputFormat::Qcow2));
        assert!("vmdk".parse::<OutputFormat>().is_err());
    }

    #[test]
    fn a_disk_without_a_known_magic_is_raw() {
        for first in [&b""[..], b"\xebc\x90", b"LUKS\xba\xbe", b"QFI", &[0; 512]] {
            assert_eq!(InputFormat::recognise(first), InputFormat::Raw);
        }
        assert_eq!(InputFormat::recognise(b"QFI\xfb\0\0\0\x03"), InputFormat::Qcow2);
        assert_eq!(InputFormat::recognise(b"QFI\xfb"), InputFormat::Qcow2);
        assert_eq!(
            InputFormat::recognise(b"QFI\xfb\0\0\0\x01"),
            InputFormat::Other("qcow".to_owned())
        );
    }
}
