//! What a machine monitor does for a machine. All that knows QEMU stands behind this trait; what
//! others need is in `docs/machine-monitors.md`.
//!
//! ```text
//! boot ─► LiveGuest ─► give_back_free_memory ─► stop ─► save (device state, facts)
//! resume ─► LiveGuest, where it was
//! ```

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use guest::growth::{Grown, MacAddress, Wanted};
use guest::{Accelerator, Drive, Helper};
use model::Result;
use model::machine::{MachineRecord, MachineShape, MonitorFacts};

/// A guest to be booted so that it can be saved.
pub struct NewGuest {
    /// Processors and memory.
    pub shape: MachineShape,
    /// Which accelerator; none: the best there is.
    pub accelerator: Option<Accelerator>,
    /// Its disk.
    pub drive: Drive,
    /// Its memory: a file without a name, shared with this process, as long as the memory.
    pub memory: Arc<OwnedFd>,
    /// Whether the guest can be asked for the memory that it does not use.
    pub can_give_back: bool,
}

/// A guest to be resumed.
pub struct SavedGuest<'a> {
    /// What is known of it.
    pub record: &'a MachineRecord,
    /// Its disk.
    pub drive: Drive,
    /// Where its memory is mapped from: the first bytes of this file.
    pub memory: PathBuf,
    /// Descriptors that the path needs.
    pub memory_fds: Vec<Arc<OwnedFd>>,
    /// Whether what it writes goes to that file, which is its own then.
    pub is_memory_shared: bool,
    /// The device state, from the descriptor's position on.
    pub state: OwnedFd,
}

/// When things happened, counted from the start of the monitor's process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResumeTimes {
    /// The monitor could be talked to.
    pub greeted: Duration,
    /// The device state was taken in.
    pub restored: Duration,
    /// The guest's processors ran.
    pub running: Duration,
}

/// A machine monitor.
pub trait Monitor: Sync {
    /// What this host's monitor is for machines of this shape, as far as states depend on it; devices
    /// are left out.
    ///
    /// # Errors
    /// `NotFound` where it is not installed.
    fn facts(&self, accelerator: Accelerator, shape: &MachineShape) -> Result<MonitorFacts>;

    /// The devices of a machine of this shape, as this monitor would be told of them.
    ///
    /// # Errors
    /// `Invalid` for a shape that there cannot be.
    fn devices(&self, shape: &MachineShape) -> Result<Vec<String>>;

    /// Boots a guest. Returns as soon as the monitor can be talked to.
    ///
    /// # Errors
    /// Those of a start: not installed, refused, silent.
    fn boot(&self, guest: NewGuest) -> Result<Box<dyn LiveGuest>>;

    /// Resumes a guest. Its processors run when this returns.
    ///
    /// # Errors
    /// Those of a start; `Corrupt` where the monitor refuses the state.
    fn resume(&self, guest: SavedGuest<'_>) -> Result<(Box<dyn LiveGuest>, ResumeTimes)>;
}

/// A guest in a monitor. Dropped, both end at once.
pub trait LiveGuest: Send + Sync {
    /// The monitor's process.
    fn pid(&self) -> u32;

    /// Both ways of the serial console; none the second time.
    fn take_console(&mut self) -> Option<UnixStream>;

    /// Both ways of the helper's port; none the second time.
    fn take_helper(&mut self) -> Option<UnixStream>;

    /// Both ways of the port of QEMU's guest agent; none the second time, or where there is no port.
    fn take_guest_agent(&mut self) -> Option<UnixStream>;

    /// Asks the guest for memory that it does not use, so that it reads as zeros, and takes away what
    /// it was asked by. Bytes that it gave; 0 where it cannot.
    ///
    /// # Errors
    /// `Unavailable` where the guest does not let go of what it was asked by: then it cannot be saved.
    fn give_back_free_memory(&self) -> Result<u64>;

    /// Stops the processors. The disk has all that the guest was told it has.
    fn stop(&self) -> Result<()>;

    /// Lets them go on.
    fn go_on(&self) -> Result<()>;

    /// Adds processors and memory, and returns when the guest has them. `limit` is for the guest.
    ///
    /// # Errors
    /// `Invalid` where there is no room; `Unavailable` where the guest did not take them in time.
    fn grow(&self, helper: &mut Helper, wanted: Wanted, limit: Duration) -> Result<Grown>;

    /// Adds a network card with a random address of its own. Returns the address.
    ///
    /// # Errors
    /// `Invalid` where there is no room.
    fn add_network(&self) -> Result<MacAddress>;

    /// Writes the device state to a file that the guest's monitor inherited, and tells what the
    /// monitor is. The processors must be stopped.
    fn save(&self, state: OwnedFd) -> Result<MonitorFacts>;

    /// Waits until the monitor has ended, or until the limit; none when it still runs.
    fn wait(&self, limit: Option<Duration>) -> Option<ExitStatus>;

    /// Ends guest and monitor as by a power cut, and waits for that.
    fn kill(&self);
}
