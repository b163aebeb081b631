//! What was wrong with the bytes, and where.

use model::{Error, Kind};

/// Why bytes could not be read as the structure that they were taken for.
///
/// `what` names the structure, `field` its field as the page in `docs/formats/` does; offsets are
/// bytes from the start of the structure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The bytes end before the structure does.
    #[error("{what}: the bytes end at offset {offset}")]
    Truncated {
        /// The structure.
        what: &'static str,
        /// Where more was needed.
        offset: u64,
    },
    /// A field holds what it cannot hold.
    #[error("{what}: {field} at offset {offset} cannot be {value}")]
    Unsound {
        /// The structure.
        what: &'static str,
        /// The field.
        field: &'static str,
        /// Where the field lies.
        offset: u64,
        /// What it holds.
        value: u64,
    },
    /// The structure is of another kind altogether: its magic bytes are missing.
    #[error("{what}: the magic bytes are missing")]
    Magic {
        /// The structure.
        what: &'static str,
    },
    /// A newer Larder wrote this.
    #[error("{what}: format {found} is newer than {known}, the newest known here")]
    NewerFormat {
        /// The structure.
        what: &'static str,
        /// The format number that the bytes carry.
        found: u32,
        /// The newest format number that this code reads.
        known: u32,
    },
    /// The bytes are not those that were written.
    #[error("{what}: the checksum does not match")]
    Checksum {
        /// The structure.
        what: &'static str,
    },
    /// Bytes follow where the structure should have ended.
    #[error("{what}: bytes follow behind its end at offset {offset}")]
    Trailing {
        /// The structure.
        what: &'static str,
        /// Where it should have ended.
        offset: u64,
    },
    /// The same value has another encoding, which is the only one allowed.
    #[error("{what}: not the canonical encoding, from offset {offset} on")]
    NotCanonical {
        /// The structure.
        what: &'static str,
        /// The first byte that differs from the canonical encoding.
        offset: u64,
    },
    /// The structure is longer than it may be.
    #[error("{what}: {len} bytes are more than the {max} allowed")]
    TooLong {
        /// The structure.
        what: &'static str,
        /// Its length.
        len: u64,
        /// The longest allowed.
        max: u64,
    },
    /// zstd could not decompress the bytes.
    #[error("{what}: zstd: {reason}")]
    Decompress {
        /// The structure.
        what: &'static str,
        /// What zstd said.
        reason: String,
    },
}

/// `Corrupt` (fetch another copy), or `Refused` where only a newer Larder can read the bytes. Says
/// nothing about whose bytes they were: whoever knows wraps it.
impl From<FormatError> for Error {
    fn from(error: FormatError) -> Self {
        let newer = matches!(error, FormatError::NewerFormat { .. });
        let kind = if newer { Kind::Refused } else { Kind::Corrupt };
        let wrapped = Error::new(kind, "decode the stored bytes", "").caused_by(error);
        match newer {
            true => wrapped.hint("use the newer larder that wrote this, or one as new"),
            false => wrapped,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_a_newer_larder_are_refused_with_a_hint_and_others_are_corrupt() {
        let newer: Error = FormatError::NewerFormat { what: "pack", found: 9, known: 1 }.into();
        assert_eq!(newer.kind(), Kind::Refused);
        assert!(newer.hint_text().unwrap().contains("newer larder"));
        let corrupt: Error = FormatError::Checksum { what: "pack" }.into();
        assert_eq!(corrupt.kind(), Kind::Corrupt);
        assert_eq!(corrupt.chain(), "decode the stored bytes: pack: the checksum does not match");
    }
}
