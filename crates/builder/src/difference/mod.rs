//! What changed between two versions: packages, files, blocks.
//!
//! ```text
//! version ─► windows of 1 MiB ─► partition table ─► ext4, read by us ─► files, dpkg's status
//!    └─► layout ─► blocks (no data is read)
//! ```
//!
//! **Invariants**
//! 1. Nothing is mounted: bytes of an image reach no kernel's file system.
//! 2. Memory and work are bounded, whatever an image claims: see the limits in `files`.
//!
//! **Failure**: a file system that is damaged or not of the ext family is an error that says so;
//! blocks can be compared all the same.
//!
//! **Not here**: file systems other than ext2 to ext4.

mod disk;
mod files;
mod packages;

pub(crate) use disk::{damaged, root_file_system};
pub use files::{FileChange, FileDifference, SharedReader, compare_files};
pub use packages::{PackageChange, PackageDifference, compare_packages};
