//! What can be wrong with a qcow2, with the evidence.

use std::io;

use model::{Error, Kind};

/// Why a qcow2 is not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is no qcow2: the magic is missing")]
    Magic,
    #[error("qcow2 version {0} is unknown")]
    Version(u32),
    #[error("it is truncated: {what} at {offset} ends behind the file's {file_len} bytes")]
    Truncated { what: &'static str, offset: u64, file_len: u64 },
    #[error("the header's {field} is {value}, which cannot be")]
    Field { field: &'static str, value: u64 },
    #[error("{what} at {offset} is not at a cluster's start")]
    Misaligned { what: &'static str, offset: u64 },
    #[error("its tables use more {what} than a file of {file_len} bytes has room for")]
    Overcommitted { what: &'static str, file_len: u64 },
    #[error("the table entry for offset {guest_offset} contradicts itself")]
    Entry { guest_offset: u64 },
    #[error("the compressed cluster at {host_offset} does not unpack")]
    Compressed { host_offset: u64 },
    #[error("it is marked as corrupt")]
    MarkedCorrupt,
    #[error("it needs the unknown incompatible features {bits:#x}")]
    Feature { bits: u64 },
    #[error("its compression method {0} is unknown")]
    Compression(u8),
    #[error("it is encrypted")]
    Encrypted,
    #[error("it lies on the backing file \"{0}\"")]
    Backing(String),
    #[error("its data lie in another file, \"{0}\"")]
    DataFile(String),
    #[error("it shrank while it was read")]
    Shrunk,
}

impl Fault {
    fn kind(&self) -> Kind {
        match self {
            Fault::Backing(_) | Fault::DataFile(_) => Kind::Refused,
            Fault::Version(_)
            | Fault::Feature { .. }
            | Fault::Compression(_)
            | Fault::Encrypted
            | Fault::Magic => Kind::Invalid,
            _ => Kind::Corrupt,
        }
    }

    fn hint(&self) -> Option<&'static str> {
        match self {
            Fault::Backing(_) => Some(
                "flatten it first (qemu-img convert), or allow it with --allow-backing if you \
                 trust the disk with every file that you can read",
            ),
            Fault::DataFile(_) => {
                Some("flatten it first: qemu-img convert -O qcow2 FILE FLAT.qcow2")
            }
            Fault::MarkedCorrupt => Some("repair a copy of it first: qemu-img check -r all FILE"),
            Fault::Encrypted => Some("decrypt it first: qemu-img convert with its secret"),
            Fault::Magic => Some("give --input-format raw if it is the disk itself"),
            Fault::Truncated { .. } | Fault::Shrunk => {
                Some("fetch it again, or look whether somebody still writes to it")
            }
            _ => None,
        }
    }

    /// The error that the caller sees.
    pub(super) fn into_error(self, operation: &'static str, subject: &str) -> Error {
        if let Fault::Io(error) = self {
            return Error::io(operation, subject, error);
        }
        let error = Error::new(self.kind(), operation, subject).because(self.to_string());
        match self.hint() {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}
