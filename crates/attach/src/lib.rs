//! The doors: NBD and FUSE.
