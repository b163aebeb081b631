//! Files that the kernel reads by itself, without asking us.
//!
//! ```text
//! first open --> one file holds the whole device? --> held --> registered with the kernel
//!                  no: cached, this time               no: cached from now on, said once
//! last release --> "drop the name" --> kernel: FORGET, once no mapping is left --> let go
//! ```
//!
//! A mapping belongs to the registered file: it outlives the handle that it was made through, and
//! the kernel tells us of that handle's release while it is still read from. But it keeps the inode
//! in the kernel's memory. So the file is let go when the inode is forgotten, which the kernel would
//! do when it likes; dropping the name makes it do so at once where nothing is in the way.
//!
//! **Failure**: where the kernel is too old, we are not root, or the host's file system is stacked
//! too deep, files are served through the page cache as if nothing had been tried.
//!
//! **Not here**: which device has such a file.
//!
//! **Source**: `Documentation/filesystems/fuse/fuse-passthrough.rst` of Linux; `backing_file_mmap`
//! in its `fs/backing-file.c`.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::BackingId;
use model::device::{Device, WholeFile};

/// How deep the file systems below may be stacked: overlayfs on a disk's own, as in containers.
pub(crate) const STACK_DEPTH_MAX: u32 = 2;

/// Registers a file with the kernel.
pub(crate) type Register<'a> = dyn Fn(BorrowedFd<'_>) -> io::Result<BackingId> + 'a;

/// A file in the kernel's hands, and what keeps its bytes.
pub(crate) struct Passthrough {
    /// Dropped first.
    id: BackingId,
    _file: Box<dyn WholeFile>,
}

impl Passthrough {
    /// What to tell the kernel at each open.
    pub(crate) fn id(&self) -> &BackingId {
        &self.id
    }
}

/// Whether the kernel of this mount takes files.
#[derive(Default)]
pub(crate) struct Offer {
    is_open: AtomicBool,
}

impl Offer {
    /// The kernel said that it takes files, or why it does not.
    pub(crate) fn set(&self, answer: Result<(), &str>) {
        match answer {
            Ok(()) => self.is_open.store(true, Ordering::Relaxed),
            Err(reason) => self.close(reason),
        }
    }

    fn close(&self, reason: &str) {
        self.is_open.store(false, Ordering::Relaxed);
        tracing::info!(reason, "complete versions are read through us: no kernel passthrough");
    }

    /// Hands the file of a device to the kernel, if it has one and the kernel takes it.
    pub(crate) fn pass(&self, device: &dyn Device, register: &Register<'_>) -> Option<Passthrough> {
        if !self.is_open.load(Ordering::Relaxed) {
            return None;
        }
        let file = match device.whole_file() {
            Ok(file) => file?,
            Err(error) => {
                tracing::warn!(error = error.chain(), "a complete version is read through us");
                return None;
            }
        };
        let id = register(file.fd()?);
        match id {
            Ok(id) => Some(Passthrough { id, _file: file }),
            Err(error) => {
                self.close(&format!("registering a file: {error}"));
                None
            }
        }
    }
}
