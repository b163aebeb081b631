//! One error type above the layers of bytes: what was done, to what, why, and what to do.
//!
//! `Display` prints `operation subject: reason` and never its source; whoever reports the error
//! prints the chain once (see [`Error::chain`]).

use std::error::Error as StdError;
use std::fmt;

/// The result of everything that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Kinds of errors, sorted by what the caller should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The thing asked for does not exist: ask for another.
    NotFound,
    /// The thing exists already: choose another name, or use the one there is.
    Exists,
    /// It may work later: try again.
    Unavailable,
    /// Bytes are not what their digest or layout says: fetch another copy.
    Corrupt,
    /// The world moved on: look again, then decide again.
    Stale,
    /// A policy or a lock says no.
    Refused,
    /// The request itself is wrong: fix it.
    Invalid,
    /// No space is left: make room.
    Full,
    /// The caller stopped the work.
    Cancelled,
    /// A mistake in Larder.
    Bug,
}

/// An error: kind, operation, subject, reason, hint, source.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    operation: &'static str,
    subject: String,
    reason: Option<String>,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync + 'static>>,
}

impl Error {
    /// Makes an error that says which operation failed on which subject. The operation is a verb
    /// phrase ("import", "read the pack"), the subject a name that the user knows.
    pub fn new(kind: Kind, operation: &'static str, subject: impl Into<String>) -> Self {
        Error { kind, operation, subject: subject.into(), reason: None, hint: None, source: None }
    }

    /// Adds why it failed.
    #[must_use]
    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// Adds what the user can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the error that caused this one.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Makes an error from an I/O error; the kind follows from the error's.
    pub fn io(operation: &'static str, subject: impl Into<String>, source: std::io::Error) -> Self {
        let kind = match source.kind() {
            std::io::ErrorKind::NotFound => Kind::NotFound,
            std::io::ErrorKind::AlreadyExists => Kind::Exists,
            std::io::ErrorKind::PermissionDenied => Kind::Refused,
            std::io::ErrorKind::StorageFull
            | std::io::ErrorKind::QuotaExceeded
            | std::io::ErrorKind::FileTooLarge => Kind::Full,
            std::io::ErrorKind::InvalidInput | std::io::ErrorKind::IsADirectory => Kind::Invalid,
            std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof => Kind::Corrupt,
            _ => Kind::Unavailable,
        };
        Error::new(kind, operation, subject).caused_by(source)
    }

    /// What the caller should do.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What the user can do, if there is something to say, of this error or of one behind it.
    pub fn hint_text(&self) -> Option<&str> {
        if let Some(hint) = &self.hint {
            return Some(hint);
        }
        let mut cause = self.source();
        while let Some(error) = cause {
            if let Some(hint) = error.downcast_ref::<Error>().and_then(|e| e.hint.as_deref()) {
                return Some(hint);
            }
            cause = error.source();
        }
        None
    }

    /// The whole chain on one line: this error, then each cause behind it.
    pub fn chain(&self) -> String {
        let mut line = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            line.push_str(": ");
            line.push_str(&error.to_string());
            cause = error.source();
        }
        line.replace('\n', " ")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.operation)?;
        if !self.subject.is_empty() {
            write!(f, " {}", self.subject)?;
        }
        match &self.reason {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_one_line_and_says_each_cause_once() {
        let inner = Error::new(Kind::NotFound, "open", "disk.qcow2").hint("look elsewhere");
        let outer = Error::new(Kind::Invalid, "import", "debian").because("bad").caused_by(inner);
        assert_eq!(outer.chain(), "import debian: bad: open disk.qcow2");
        assert_eq!(outer.hint_text(), Some("look elsewhere"));
    }
}
