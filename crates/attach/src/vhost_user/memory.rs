//! The guest's memory, mapped.
//!
//! **Invariant**: a slice that is handed out lies inside a mapping, which lives as long as this.

use std::fs::File;

use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap,
    MmapRegion, VolatileSlice,
};

/// The most regions of one guest.
pub(super) const REGION_COUNT_MAX: usize = 32;

/// A stretch of the guest's memory, by its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) address: GuestAddress,
    pub(super) len: u32,
}

/// One region: where the guest and the front end see it.
#[derive(Clone, Copy, Debug)]
struct Region {
    guest: u64,
    user: u64,
    len: u64,
}

/// All of the guest's memory that we were given.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    map: GuestMemoryMmap,
    regions: Vec<Region>,
}

impl Memory {
    /// No memory: every access fails.
    pub(super) fn none() -> Self {
        Memory { map: GuestMemoryMmap::new(), regions: Vec::new() }
    }

    /// This memory and one more region. `None` where it overlaps another, cannot be mapped, or is
    /// longer than its file.
    pub(super) fn with(&self, region: &VhostUserMemoryRegion, file: File) -> Option<Self> {
        if self.regions.len() >= REGION_COUNT_MAX {
            return None;
        }
        let (guest, user, len) = (region.guest_phys_addr, region.user_addr, region.memory_size);
        user.checked_add(len)?;
        let offset = region.mmap_offset;
        if file.metadata().ok()?.len() < offset.checked_add(len)? {
            return None;
        }
        let file = FileOffset::new(file, offset);
        let mapping = MmapRegion::from_file(file, usize::try_from(len).ok()?).ok()?;
        let mapped = GuestRegionMmap::new(mapping, GuestAddress(guest))?;
        let map = self.map.insert_region(mapped.into()).ok()?;
        let mut regions = self.regions.clone();
        regions.push(Region { guest, user, len });
        Some(Memory { map, regions })
    }

    /// This memory without a region.
    pub(super) fn without(&self, guest: u64, len: u64) -> Option<Self> {
        let (map, _) = self.map.remove_region(GuestAddress(guest), len).ok()?;
        let mut regions = self.regions.clone();
        regions.retain(|region| region.guest != guest);
        Some(Memory { map, regions })
    }

    /// The guest's address of what the front end sees at `user`.
    pub(super) fn guest_address(&self, user: u64) -> Option<GuestAddress> {
        let region =
            self.regions.iter().find(|r| user.checked_sub(r.user).is_some_and(|at| at < r.len))?;
        Some(GuestAddress(region.guest + (user - region.user)))
    }

    /// What rings are read and written through.
    pub(super) fn map(&self) -> &GuestMemoryMmap {
        &self.map
    }

    /// True when the whole segment is the guest's.
    pub(super) fn holds(&self, segment: Segment) -> bool {
        self.map.check_range(segment.address, segment.len as usize)
    }

    /// Copies out of the guest; false where the range is not all its own.
    pub(super) fn read(&self, address: GuestAddress, bytes: &mut [u8]) -> bool {
        self.map.read_slice(bytes, address).is_ok()
    }

    /// Copies into the guest; false where the range is not all its own.
    pub(super) fn write(&self, address: GuestAddress, bytes: &[u8]) -> bool {
        self.map.write_slice(bytes, address).is_ok()
    }

    /// The bytes of the segments, with neighbours joined. `None` where one is not all the guest's.
    pub(super) fn stretches<'a>(&'a self, segments: &[Segment]) -> Option<Vec<Stretch<'a>>> {
        let mut stretches: Vec<Stretch<'a>> = Vec::with_capacity(segments.len());
        for segment in segments {
            let slices =
                GuestMemoryBackend::get_slices(&self.map, segment.address, segment.len as usize);
            for slice in slices {
                let slice = slice.ok()?;
                stretches.push(Stretch(slice));
            }
        }
        Some(stretches)
    }
}

/// Bytes of the guest that follow each other in our address space.
pub(super) struct Stretch<'a>(VolatileSlice<'a, ()>);

impl Stretch<'_> {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Copies from the guest.
    pub(super) fn copy_to(&self, bytes: &mut [u8]) {
        self.0.copy_to(bytes);
    }

    /// Copies to the guest.
    pub(super) fn copy_from(&self, bytes: &[u8]) {
        self.0.copy_from(bytes);
    }

    /// The bytes, for a device to read.
    ///
    /// What the guest changes while `f` runs is the guest's own loss: `f` gets bytes that may be
    /// old or new, and must not take a second look for the truth of its first.
    pub(super) fn with<R>(&self, f: impl FnOnce(&[u8]) -> R) -> R {
        let guard = self.0.ptr_guard();
        // SAFETY: the slice lies inside a mapping that lives as long as `self`, and bytes of any
        // value are valid. The guest may change them meanwhile: devices hand them to the system or
        // copy them, and decide nothing by them that is not the guest's own.
        f(unsafe { std::slice::from_raw_parts(guard.as_ptr(), self.0.len()) })
    }

    /// The bytes, for a device to fill.
    pub(super) fn with_mut<R>(&self, f: impl FnOnce(&mut [u8]) -> R) -> R {
        let guard = self.0.ptr_guard_mut();
        // SAFETY: as in `with`; in this process nobody else holds a reference to these bytes unless
        // the guest gave them to two requests, and then both only have bytes stored to them.
        f(unsafe { std::slice::from_raw_parts_mut(guard.as_ptr(), self.0.len()) })
    }
}
