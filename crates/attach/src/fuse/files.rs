//! Open files, and the one device behind all opens of an inode.
//!
//! ```text
//! closed --first open: open the device--> open (count 1..) --last release: drop it--> closed
//!                                            ^                       |
//!                                            |                       | passed through
//!                                            +------ open ------ lingering --forgotten--> closed
//! ```
//!
//! **Invariants**
//! - While a device is being opened or dropped, other opens of the same inode wait; those of other
//!   inodes do not.
//! - The mode of an inode, cached or passed through, is fixed in [`Files::open`] when its device is
//!   opened, and holds until the last release.
//! - A file that was passed through stays held for as long as the kernel remembers its inode: a
//!   mapping of it may outlive every handle, but not the inode.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use model::Result;
use model::device::Device;

use super::nodes::Node;
use super::passthrough::Passthrough;

/// A file that is open.
pub(crate) struct OpenFile {
    /// Its inode number.
    pub(crate) number: u64,
    /// What it stands for.
    pub(crate) node: Node,
    /// Its bytes.
    pub(crate) device: Arc<dyn Device>,
    /// True where it was opened for writing.
    pub(crate) writable: bool,
    /// What the kernel reads instead of asking us, where it does.
    pub(crate) passthrough: Option<Arc<Passthrough>>,
}

#[derive(Default)]
struct Slot {
    device: Option<Arc<dyn Device>>,
    passthrough: Option<Arc<Passthrough>>,
    open_count: u64,
}

/// All open files of a mount.
#[derive(Default)]
pub(crate) struct Files {
    slots: Mutex<HashMap<u64, Arc<Mutex<Slot>>>>,
    handles: RwLock<HashMap<u64, Arc<OpenFile>>>,
    next_handle: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Files {
    /// Opens an inode: with `open` where it is the first, which is passed through where `pass`
    /// finds a way. Gives the handle.
    ///
    /// # Errors
    /// Those of `open`; the next one tries again.
    pub(crate) fn open(
        &self,
        number: u64,
        node: Node,
        writable: bool,
        open: impl FnOnce() -> Result<Arc<dyn Device>>,
        pass: impl FnOnce(&dyn Device) -> Option<Passthrough>,
    ) -> Result<(u64, Arc<OpenFile>)> {
        let slot = Arc::clone(lock(&self.slots).entry(number).or_default());
        let opened = {
            let mut slot = lock(&slot);
            let device = match &slot.device {
                Some(device) => Ok(Arc::clone(device)),
                None => open(),
            };
            device.map(|device| {
                if slot.device.is_none() && slot.passthrough.is_none() {
                    slot.passthrough = pass(&*device).map(Arc::new);
                }
                slot.device = Some(Arc::clone(&device));
                slot.open_count += 1;
                (device, slot.passthrough.clone())
            })
        };
        let (device, passthrough) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.sweep(number, slot);
                return Err(error);
            }
        };
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed) + 1;
        let file = Arc::new(OpenFile { number, node, device, writable, passthrough });
        let mut handles = self.handles.write().unwrap_or_else(PoisonError::into_inner);
        handles.insert(handle, Arc::clone(&file));
        Ok((handle, file))
    }

    /// The file behind a handle.
    pub(crate) fn get(&self, handle: u64) -> Option<Arc<OpenFile>> {
        let handles = self.handles.read().unwrap_or_else(PoisonError::into_inner);
        handles.get(&handle).cloned()
    }

    /// Closes a handle and, with the last one, the device. Gives the inode where its file lingers:
    /// it goes with [`Files::forgotten`], unless `is_remembered` says that the kernel knows of the
    /// inode no more.
    pub(crate) fn release(
        &self,
        handle: u64,
        is_remembered: impl FnOnce(u64) -> bool,
    ) -> Option<u64> {
        let file = {
            let mut handles = self.handles.write().unwrap_or_else(PoisonError::into_inner);
            handles.remove(&handle)
        }?;
        let number = file.number;
        drop(file);
        let slot = lock(&self.slots).get(&number).cloned()?;
        {
            let mut slot = lock(&slot);
            slot.open_count = slot.open_count.saturating_sub(1);
            if slot.open_count == 0 {
                slot.device = None;
            }
        }
        self.settle(number, slot, is_remembered).then_some(number)
    }

    /// The kernel may have forgotten an inode: lets its file go where that is so.
    pub(crate) fn forgotten(&self, number: u64, is_remembered: impl FnOnce(u64) -> bool) {
        let slot = lock(&self.slots).get(&number).cloned();
        if let Some(slot) = slot {
            self.settle(number, slot, is_remembered);
        }
    }

    /// Lets a file go that nobody has open and whose inode is not remembered. True where it stays.
    fn settle(
        &self,
        number: u64,
        slot: Arc<Mutex<Slot>>,
        is_remembered: impl FnOnce(u64) -> bool,
    ) -> bool {
        let lingers = {
            let mut slot = lock(&slot);
            let is_idle = slot.open_count == 0 && slot.passthrough.is_some();
            if is_idle && !is_remembered(number) {
                slot.passthrough = None;
            }
            slot.open_count == 0 && slot.passthrough.is_some()
        };
        self.sweep(number, slot);
        lingers
    }

    /// The length of an inode's device, while it is open.
    pub(crate) fn open_length(&self, number: u64) -> Option<u64> {
        let slot = lock(&self.slots).get(&number).cloned()?;
        let slot = slot.try_lock().ok()?;
        slot.device.as_ref().map(|device| device.length())
    }

    /// Removes a slot that is closed and that nobody else is about to use.
    fn sweep(&self, number: u64, slot: Arc<Mutex<Slot>>) {
        let mut slots = lock(&self.slots);
        // Two: the table's and ours. More can only come from the table, which is locked.
        if Arc::strong_count(&slot) > 2 {
            return;
        }
        let is_closed = {
            let slot = lock(&slot);
            slot.open_count == 0 && slot.passthrough.is_none()
        };
        if is_closed {
            slots.remove(&number);
        }
    }
}

#[cfg(test)]
mod tests {
    use model::device::MemoryDevice;
    use model::{Error, Kind};

    use super::*;

    #[test]
    fn opens_share_one_device_and_the_last_release_drops_it() {
        let files = Files::default();
        let device: Arc<dyn Device> = Arc::new(MemoryDevice::new(vec![0; 5]));
        let weak = Arc::downgrade(&device);
        let refused = files.open(
            7,
            Node::Mirrors,
            false,
            || Err(Error::new(Kind::Refused, "open", "the mirror")),
            |_| None,
        );
        assert!(refused.is_err());
        assert!(files.slots.lock().unwrap().is_empty());
        let (first, _) = files.open(7, Node::Mirrors, false, || Ok(device), |_| None).unwrap();
        let (second, _) = files
            .open(7, Node::Mirrors, true, || unreachable!("it is open already"), |_| None)
            .unwrap();
        assert_eq!(files.open_length(7), Some(5));
        files.release(first, |_| false);
        files.release(first, |_| false);
        assert!(weak.upgrade().is_some());
        files.release(second, |_| false);
        assert!(weak.upgrade().is_none());
        assert!(files.slots.lock().unwrap().is_empty());
        assert_eq!(files.open_length(7), None);
    }
}
