//! Names to versions, hooks to packs, chunks to their places, writers to their leases.
//!
//! | Module | Holds |
//! |---|---|
//! | [`records`] | what goes in and comes out: plain values |
//! | [`catalog`](mod@catalog) | the trait; its promises |
//! | [`contract`] | the trait's promises as a test suite, for every engine |
//! | [`sqlite`] | the catalog in one SQLite file |
//!
//! **Not here**: bytes of any kind. The catalog never opens a pack.

pub mod catalog;
pub mod contract;
pub mod records;
pub mod sqlite;

pub use catalog::Catalog;
pub use records::*;
pub use sqlite::SqliteCatalog;
