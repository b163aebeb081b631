//! The doors: NBD and FUSE.

pub mod nbd;
