//! What is wrong with bytes that do not decode.

use model::{Error, Kind};

/// Why bytes were refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// They end too early.
    #[error("the {what} ends too early, at byte {offset}")]
    Truncated {
        /// Which structure.
        what: &'static str,
        /// Where the missing bytes would start.
        offset: usize,
    },
    /// A field has a value that no encoder writes.
    #[error("the {what} has an unsound {field}: {value}")]
    Unsound {
        /// Which structure.
        what: &'static str,
        /// Which field.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
    /// It is of a format that this code does not know.
    #[error("the {what} has format {found}; this larder knows format {known}")]
    NewerFormat {
        /// Which structure.
        what: &'static str,
        /// The number found.
        found: u32,
        /// The number known.
        known: u32,
    },
    /// The bytes are not those that were summed.
    #[error("the {what} does not have its checksum")]
    Checksum {
        /// Which structure.
        what: &'static str,
    },
}

impl From<FormatError> for Error {
    fn from(error: FormatError) -> Self {
        match error {
            FormatError::NewerFormat { .. } => Error::new(Kind::Refused, "read", "the repository")
                .hint("use a newer larder")
                .caused_by(error),
            _ => Error::new(Kind::Corrupt, "read", "the repository")
                .hint("`larder scrub` names what is damaged")
                .caused_by(error),
        }
    }
}
