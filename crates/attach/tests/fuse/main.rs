//! The FUSE door through real mounts, with the tools that people use on raw files.
//!
//! Needs root (or `fusermount3`), `/dev/fuse`, and the Debian packages `qemu-utils`, `qemu-system-x86`, `fio`,
//! `e2fsprogs` and a C compiler.

mod mounted;

mod files;
mod hostile;
mod ioctls;
mod mounting;
mod passthrough;
mod property;
mod slow;
mod speed;
mod tools;
