//! The catalog in one SQLite file.

/// The catalog in one SQLite file.
pub struct SqliteCatalog;
