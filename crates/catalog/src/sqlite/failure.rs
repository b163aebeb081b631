//! What can go wrong inside a transaction, and what it is called outside.

use std::path::Path;

use model::{Error, Kind};

/// Why a piece of work on a connection did not succeed.
#[derive(Debug)]
pub(super) enum Failure {
    /// SQLite or the way to it failed. Says nothing yet of what was being done.
    Database(sqlx::Error),
    /// The catalog itself said no, in words for the user.
    Told(Error),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Failure::Database(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Told(error)
    }
}

impl Failure {
    /// True where the connection itself may be in a state that nobody knows.
    pub(super) fn spoils_connection(&self) -> bool {
        matches!(self, Failure::Database(error)
            if !matches!(error, sqlx::Error::Database(_) | sqlx::Error::RowNotFound))
    }

    /// As the error that a caller of the catalog sees.
    pub(super) fn into_error(self, operation: &'static str, file: &Path) -> Error {
        let source = match self {
            Failure::Told(error) => return error,
            Failure::Database(source) => source,
        };
        let kind = kind_of(&source);
        let error = Error::new(kind, operation, file.display().to_string());
        let error = match kind {
            Kind::Full => error.because("no space is left").hint("make room, then try again"),
            Kind::Unavailable => error.because("the catalog is busy or cannot be reached"),
            Kind::Corrupt => error
                .because("the catalog is damaged or no catalog")
                .hint("`larder scrub --rebuild` makes it anew from the packs"),
            Kind::Refused => error.because("the catalog may not be written"),
            _ => error,
        };
        error.caused_by(source)
    }
}

/// Sorts SQLite's result codes (<https://www.sqlite.org/rescode.html>) by what the caller should do.
fn kind_of(error: &sqlx::Error) -> Kind {
    const IO_ERROR_CORRUPT_FILE_SYSTEM: i32 = 10 | 33 << 8;
    // The index of the write-ahead log is written out when it is made, so it fails on a full disk.
    const IO_ERROR_SHARED_MEMORY_SIZE: i32 = 10 | 19 << 8;
    let code = match error {
        sqlx::Error::Database(database) => database.code().and_then(|code| code.parse().ok()),
        sqlx::Error::Io(_) | sqlx::Error::WorkerCrashed => return Kind::Unavailable,
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => return Kind::Corrupt,
        _ => return Kind::Bug,
    };
    let Some(code): Option<i32> = code else { return Kind::Bug };
    match code & 0xff {
        _ if code == IO_ERROR_CORRUPT_FILE_SYSTEM => Kind::Corrupt,
        _ if code == IO_ERROR_SHARED_MEMORY_SIZE => Kind::Full,
        3 | 8 | 23 => Kind::Refused, // PERM READONLY AUTH
        5 | 6 | 7 | 9 | 10 | 14 | 15 => Kind::Unavailable, // BUSY LOCKED NOMEM INTERRUPT IOERR CANTOPEN PROTOCOL
        11 | 26 => Kind::Corrupt,                          // CORRUPT NOTADB
        13 | 18 => Kind::Full,                             // FULL TOOBIG
        _ => Kind::Bug,
    }
}
