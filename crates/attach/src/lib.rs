//! The doors: NBD and FUSE.
//!
//! Both serve [`model::device::Device`]s and know nothing of mirrors.
//!
//! | Module | Holds |
//! |---|---|
//! | [`nbd`] | a server of the NBD protocol, on Unix sockets and loopback TCP |
//! | [`fuse`] | a mount in which versions and mirrors are raw files |

pub mod fuse;
pub mod nbd;
