//! Machines: what must be known of a booted guest's memory and device state to resume it.
//!
//! ```text
//! 0            memory            segment-aligned end   state        record
//! | the guest's memory, as it lies | zeros           | device state | last 64 KiB |
//! ```
//!
//! A machine is one version of kind `machine`. Its memory lies first, so that whatever shows the
//! version as a file shows a file whose first bytes a monitor can map. The disk is a version of its
//! own: the machine's parent, of the content that the record names.
//!
//! **Not here**: the bytes of the record (`format`), and who makes and resumes machines.

use crate::block::{LENGTH_MAX, SEGMENT_LEN};
use crate::digest::{ContentDigest, DIGEST_LEN};

/// Bytes at the end of a machine that hold its record.
pub const RECORD_REGION_LEN: u64 = 64 << 10;

/// The most bytes of device state: a gigabyte of it would be no device state.
pub const STATE_LEN_MAX: u64 = 1 << 30;

/// How a machine came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MachineOrigin {
    /// Booted for this, until it was ready; made to be grown.
    Baked,
    /// A guest that ran, stopped where it was.
    Suspended,
}

/// The device state, somewhere behind the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateRegion {
    /// Where in the version it starts.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// BLAKE3 over them.
    pub digest: [u8; DIGEST_LEN],
}

/// What the monitor was, and what the guest saw of it. A resume needs all of it to be the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MonitorFacts {
    /// The monitor: `qemu`.
    pub name: String,
    /// Its version, as far as states depend on it: `7.2`.
    pub version: String,
    /// The accelerator: states of `tcg` and `kvm` cannot be exchanged.
    pub accelerator: String,
    /// The versioned machine type: `pc-q35-7.2`.
    pub machine_type: String,
    /// The CPU model.
    pub cpu_model: String,
    /// The features that the model has, by name, ascending, each once.
    pub cpu_features: Vec<String>,
    /// The devices, as the monitor was told of them, in order.
    pub devices: Vec<String>,
}

/// How much there is of processors and memory, and how much there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineShape {
    /// Processors that run.
    pub cpus: u32,
    /// Processors there may be.
    pub cpus_max: u32,
    /// Bytes of memory; a multiple of 1 MiB.
    pub memory_len: u64,
    /// Empty slots for more.
    pub memory_slots: u32,
    /// Bytes of memory there may be.
    pub memory_max_len: u64,
}

/// All that a resume needs, but for the bytes themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineRecord {
    /// How it came to be.
    pub origin: MachineOrigin,
    /// Whether Larder's helper runs in the guest.
    pub has_helper: bool,
    /// Processors and memory.
    pub shape: MachineShape,
    /// The device state.
    pub state: StateRegion,
    /// The identity of the disk, as it was when the guest stopped.
    pub disk: ContentDigest,
    /// What the monitor was.
    pub monitor: MonitorFacts,
}

impl MachineRecord {
    /// Bytes of the version that holds this machine.
    pub fn version_len(&self) -> u64 {
        version_len(self.shape.memory_len, self.state.len)
    }

    /// True where sizes and places fit together.
    pub fn is_sound(&self) -> bool {
        let shape = &self.shape;
        let memory = shape.memory_len;
        let sizes = memory > 0
            && memory.is_multiple_of(1 << 20)
            && memory <= shape.memory_max_len
            && shape.memory_max_len <= LENGTH_MAX / 2
            && (1..=shape.cpus_max).contains(&shape.cpus)
            && self.state.len <= STATE_LEN_MAX;
        sizes && self.state.offset == state_offset(memory)
    }
}

/// Where the device state of a machine with so much memory starts.
pub fn state_offset(memory_len: u64) -> u64 {
    memory_len.next_multiple_of(SEGMENT_LEN)
}

/// Bytes of the version of a machine.
pub fn version_len(memory_len: u64, state_len: u64) -> u64 {
    state_offset(memory_len)
        + state_len.next_multiple_of(crate::BLOCK_LEN as u64)
        + RECORD_REGION_LEN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_first_and_the_rest_begins_at_a_segment() {
        assert_eq!(state_offset(256 << 20), 256 << 20);
        assert_eq!(state_offset(100 << 20), 128 << 20);
        assert_eq!(version_len(100 << 20, 5000), (128 << 20) + 8192 + (64 << 10));
    }
}
