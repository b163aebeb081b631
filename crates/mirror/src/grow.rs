//! A mirror's disk becomes longer than its version.
//!
//! ```text
//! base      |== version ==|
//! overlay   |.............:...................|   files as long as the disk, holes at first
//! log       binding (length of the base), length (of the disk), states
//! ```
//!
//! The log begins a new life with the new length, in one step, as after a commit: live states, whose
//! layout depends on the length, get a new file with it.
//!
//! **Invariants**: the overlay files are as long as the log says, or longer, before the log says so;
//! nobody is told of the new length before it is durable. What lies behind the base is in the overlay
//! or a hole, also the rest of a block that the base ends in.
//!
//! **Failure**: a crash leaves the old length or the new one; files that are too long are cut when
//! the mirror is opened again.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use model::block::LENGTH_MAX;
use model::device::Device;
use model::{Error, Kind, Result};

use crate::live::LiveStates;
use crate::mirror::{Mirror, guard, overlay_len};
use crate::state_folder::too_long;

impl Mirror {
    /// Makes the disk longer; what is added reads as zeros. Returns how long it was. Durable when it
    /// returns. A commit that runs has the old length, the next one the new.
    ///
    /// Cost: a flush, then a pause for writers of three syncs; nothing where it has that length.
    ///
    /// # Errors
    /// `Refused` for less than it has: what lies behind the new end would be lost. `Invalid` for more
    /// than a disk can have. `Full`, `Unavailable`: it is as long as it was.
    pub fn grow(&self, length: u64) -> Result<u64> {
        let operation = "resize the mirror";
        if length > LENGTH_MAX {
            return Err(Error::new(Kind::Invalid, operation, self.name.as_str())
                .because(format!("{length} bytes is longer than a disk can be")));
        }
        // Most bytes are synced before writers are held.
        self.flush_all()?;
        let mut log = guard(&self.log);
        let mut gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let before = self.length();
        if length < before {
            return Err(shrinks(self.name.as_str(), before, length));
        }
        if length == before {
            return Ok(before);
        }
        if gate.closed {
            return Err(Error::new(Kind::Refused, operation, self.name.as_str())
                .because("the mirror is closed"));
        }
        self.check_syncs()?;
        for file in &self.files {
            let grown = file.set_len(overlay_len(length));
            grown.map_err(|error| too_long(operation, self.name.to_string(), error))?;
            file.sync().map_err(|error| self.sync_error(operation, error))?;
        }
        let epoch = log.epoch() + 1;
        let live = LiveStates::open(self.state.file_system(), &self.folder, epoch, length)
            .map_err(|error| self.io_error(operation, error))?;
        self.snapshot(&mut log, epoch, length, false)?;
        gate.live = live;
        self.length.store(length, Ordering::Release);
        drop(gate);
        // Best effort: states of an earlier life never count.
        let _ = LiveStates::remove_others(self.state.file_system(), &self.folder, epoch);
        Ok(before)
    }
}

/// A disk of `before` bytes was to have fewer.
fn shrinks(name: &str, before: u64, length: u64) -> Error {
    Error::new(Kind::Refused, "resize the mirror", name)
        .because(format!("it has {before} bytes, and {length} would cut off what lies behind"))
        .hint("a mirror can be made longer only")
}
