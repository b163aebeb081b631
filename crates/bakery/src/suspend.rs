//! Suspend: a guest that runs is kept as a machine, and goes on.
//!
//! ```text
//! flush ─► stop ─► save ─► copy memory ─► seal the disk ─► go on      (the pause)
//!                                                └─► publish both, while the guest runs
//! ```
//!
//! **Failure**: whatever fails, the guest goes on, its mirror keeps its changes, and there is a machine
//! and its disk, or neither.
//!
//! **Source**: `bench/runs`, "resume", row "suspend".

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mirror::Mirror;
use mirror::seal::Sealed;
use model::device::Device;
use model::machine::{MachineOrigin, MachineShape, MonitorFacts};
use model::progress::{Cancel, Silent};
use model::{ImageName, Result, TagName};
use repository::{MachineRequest, PublishedMachine, Repository};

use crate::machine_file::{MachineFile, Made};
use crate::monitor::LiveGuest;

/// A guest that can be suspended.
pub struct Suspendable<'a> {
    /// The guest.
    pub guest: &'a dyn LiveGuest,
    /// Its memory, a file that it shares with this process.
    pub memory: &'a Arc<OwnedFd>,
    /// Processors and memory.
    pub shape: MachineShape,
    /// Whether Larder's helper runs in it.
    pub has_helper: bool,
    /// The mirror of its disk, which this process owns.
    pub mirror: &'a Arc<Mirror>,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Suspended {
    /// The versions.
    pub published: PublishedMachine,
    /// How long the guest stood still.
    pub pause: Duration,
    /// Bytes of device state.
    pub state_len: u64,
}

/// Keeps a guest as a machine of `image`; its disk becomes a version of `image/disk`.
///
/// # Errors
/// Those of the monitor and of a commit; the guest goes on in any case.
pub fn suspend(
    repository: &Repository,
    running: &Suspendable<'_>,
    image: &ImageName,
    tag: Option<TagName>,
) -> Result<Suspended> {
    let Suspendable { guest, memory, shape, has_helper, mirror } = running;
    // What is flushed before need not be flushed in the pause.
    mirror.flush()?;
    let began = Instant::now();
    guest.stop()?;
    let stood_still = stand_still(*guest, memory, shape.memory_len, mirror);
    guest.go_on()?;
    let pause = began.elapsed();
    let (machine, monitor, sealed) = stood_still?;
    let request = MachineRequest {
        parent: mirror.binding().parent,
        disk_image: ImageName::new(&format!("{image}/disk"))?,
        image: image.clone(),
        tag,
        origin: format!("suspend {}", mirror.name()),
        progress: &Silent,
        cancel: &Cancel::new(),
        compression_level: None,
    };
    let mut state_len = 0;
    let made = Made { origin: MachineOrigin::Suspended, has_helper: *has_helper };
    let mut source = |disk| {
        let record = machine.finish(made, *shape, monitor.clone(), disk)?;
        state_len = record.state.len;
        machine.source()
    };
    // The changes stay the mirror's: its next commit goes where it always did.
    let published = repository.publish_machine(&sealed, &mut source, &request)?;
    Ok(Suspended { published, pause, state_len })
}

fn stand_still(
    guest: &dyn LiveGuest,
    memory: &Arc<OwnedFd>,
    memory_len: u64,
    mirror: &Arc<Mirror>,
) -> Result<(MachineFile, MonitorFacts, Sealed)> {
    let machine = MachineFile::copy_of(memory, memory_len)?;
    let monitor = guest.save(machine.state_writer()?)?;
    Ok((machine, monitor, mirror.seal()?))
}
