//! The doors: NBD, FUSE and vhost-user-blk.
//!
//! All serve [`model::device::Device`]s and know nothing of mirrors.
//!
//! | Module | Holds |
//! |---|---|
//! | [`nbd`] | a server of the NBD protocol, on Unix sockets and loopback TCP |
//! | [`fuse`] | a mount in which versions and mirrors are raw files |
//! | [`vhost_user`] | a virtio block device for a guest whose memory is shared with us |
//! | `aside` | threads for requests that may wait |
//! | `socket_file` | listening on a Unix socket |

mod aside;
pub mod fuse;
pub mod nbd;
mod socket_file;
pub mod vhost_user;
