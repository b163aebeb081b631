//! The FUSE door: versions and mirrors as raw files that any hypervisor opens.
//!
//! ```text
//! FOLDER/debian/1            version 1 of the image `debian`, read-only
//! FOLDER/debian/2
//! FOLDER/debian/minimal/1    image `debian/minimal`: a folder may hold versions and folders
//! FOLDER/mirrors/web         a writable mirror
//!
//!  kernel --/dev/fuse--> event threads --> Core --> Tree (what there is), Device (its bytes)
//!                             \--> workers, when all event threads but one are busy
//! ```
//!
//! | Module | Holds |
//! |---|---|
//! | [`tree`] | what the mount shows: the trait that the layers above implement, and its fake |
//! | [`mount`] | mounting, unmounting, and what a killed server left behind |
//! | `core` | what each request does, on types of ours |
//! | `door` | `fuser`'s trait, translated to `core` |
//! | `nodes` | inode numbers |
//! | `files` | open files and the devices behind them |
//! | `passthrough` | files that the kernel reads by itself |
//! | `workers` | the threads that wait so that the event threads need not |
//! | `ioctl` | CLONE and COMMIT, as in `include/larder.h` |
//! | `mount_table` | what is mounted where |
//!
//! **Invariants**
//! - A device is opened at the first open of its file and dropped at the last release; all opens
//!   in between share it. How an inode is served, through the page cache or by kernel passthrough
//!   of a version that is complete, is fixed for that same time, for the kernel refuses to mix the
//!   two: it is decided in `files` at the first open and nowhere else.
//! - No writeback cache: a `write` that returned has reached the device. What was written through a
//!   shared mapping reaches it at `msync`, `fsync` or `close`.
//! - One event thread is always free to receive: a slow fetch holds up whoever asked for it and,
//!   until `workers` is full too, nobody else.
//! - Serving threads wait on trees and devices only, never on this mount: nothing in here opens a
//!   path below the folder.
//! - Files neither grow nor shrink, come nor go through the mount.
//!
//! **Failure**: an error of a tree or device becomes an errno (`Full` `ENOSPC`, `Refused` `EACCES`,
//! `Invalid` `EINVAL`, `NotFound` `ENOENT`, `Stale` `ESTALE`, all others `EIO`) and a log line; it
//! is never answered with zeros. A panic while serving a request answers `EIO` and ends nothing
//! else. A killed server leaves a dead mount where `fusermount3` was missing; mounting there again
//! clears it away.
//!
//! **Not here**: where versions and mirrors come from; who may write a mirror at which time.
//!
//! **Source**: the mirroring file system of BlobSeer (`/blob_id/blob_version`, CLONE and COMMIT as
//! ioctls); `Documentation/filesystems/fuse` of Linux.

mod core;
mod door;
mod errno;
mod files;
#[cfg(test)]
mod hostile;
mod ioctl;
pub mod mount;
mod mount_table;
mod nodes;
mod passthrough;
pub mod tree;
mod workers;

pub use mount::FuseMount;
pub use tree::{MemoryTree, Tree};
