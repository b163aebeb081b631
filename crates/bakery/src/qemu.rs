//! QEMU as a monitor of machines.
//!
//! ```text
//! memory   a file: shared with this process while a guest is baked, mapped privately when resumed
//! state    a migration stream without the memory (capability `x-ignore-shared`), to and from a
//!          descriptor that is handed over
//! ```
//!
//! **Failure**: QEMU is killed by the kernel when this process ends, however it ends.
//!
//! **Source**: QEMU 7.2, docs/devel/migration.rst; `bench/runs`, "resume".

mod balloon;
mod facts;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use env::SystemEntropy;
use guest::growth::{self, Grown, MacAddress, Wanted};
use guest::{
    Accelerator, Console, Drive, Growth, Guest, GuestConfig, Helper, MemoryFile, Network, Qmp,
};
use model::machine::{MachineShape, MonitorFacts};
use model::{Error, Kind, Result};
use serde_json::json;

use crate::machine_file::path_of;
use crate::monitor::{LiveGuest, Monitor, NewGuest, ResumeTimes, SavedGuest};

/// For how long device state may be on its way. It is some 500 KB.
const STATE_MAX: Duration = Duration::from_secs(60);

/// How often it is looked whether QEMU has come further.
const LOOK: Duration = Duration::from_millis(1);

/// QEMU, as this host has it.
#[derive(Clone, Debug)]
pub struct Qemu {
    /// Where what was found out about it is kept; none: it is found out each time.
    facts_folder: Option<PathBuf>,
}

impl Qemu {
    /// QEMU; what is found out about it is kept in a folder.
    pub fn new(facts_folder: impl Into<PathBuf>) -> Self {
        Qemu { facts_folder: Some(facts_folder.into()) }
    }
}

impl Monitor for Qemu {
    fn facts(&self, accelerator: Accelerator, shape: &MachineShape) -> Result<MonitorFacts> {
        let mut facts = facts::of_host(accelerator, self.facts_folder.as_deref())?;
        if shape.memory_slots == 0 {
            // Its two families are numbered alike.
            facts.machine_type = facts.machine_type.replace("q35", "i440fx");
        }
        Ok(facts)
    }

    fn devices(&self, shape: &MachineShape) -> Result<Vec<String>> {
        // Which disk, and where it is, the guest cannot tell.
        let drive = Drive::File { path: PathBuf::new(), read_only: false };
        guest::arguments::devices(&config(shape, drive)?)
    }

    fn boot(&self, new: NewGuest) -> Result<Box<dyn LiveGuest>> {
        let config = GuestConfig {
            accelerator: new.accelerator,
            has_balloon: new.can_give_back,
            memory_file: Some(MemoryFile { path: path_of(&new.memory), is_shared: true }),
            inherited: vec![new.memory],
            ..config(&new.shape, new.drive)?
        };
        Ok(Box::new(QemuGuest { guest: Guest::start(&config)?, config }))
    }

    fn resume(&self, saved: SavedGuest<'_>) -> Result<(Box<dyn LiveGuest>, ResumeTimes)> {
        let monitor = &saved.record.monitor;
        let memory_file =
            Some(MemoryFile { path: saved.memory, is_shared: saved.is_memory_shared });
        let config = GuestConfig {
            accelerator: Accelerator::parse(&monitor.accelerator),
            machine_type: Some(monitor.machine_type.clone()),
            memory_file,
            is_incoming: true,
            inherited: saved.memory_fds,
            ..config(&saved.record.shape, saved.drive)?
        };
        let began = Instant::now();
        let guest = Guest::start(&config)?;
        let greeted = began.elapsed();
        let qmp = guest.qmp();
        ignore_memory(qmp)?;
        qmp.give_descriptor("state", saved.state.as_fd())?;
        qmp.execute("migrate-incoming", Some(json!({ "uri": "fd:state" })))?;
        wait_for_migration(qmp, "restore").map_err(|error| match guest.is_running() {
            true => error,
            false => refused_state(&guest),
        })?;
        let restored = began.elapsed();
        qmp.cont()?;
        let running = began.elapsed();
        let times = ResumeTimes { greeted, restored, running };
        Ok((Box::new(QemuGuest { guest, config }), times))
    }
}

fn config(shape: &MachineShape, drive: Drive) -> Result<GuestConfig> {
    // A guest that may not grow was started by `larder run`, and has its network.
    let may_grow = shape.memory_slots > 0;
    let guest_agent = if may_grow { None } else { Some(Arc::new(unheard()?)) };
    Ok(GuestConfig {
        memory_mib: shape.memory_len >> 20,
        cpus: shape.cpus,
        growth: may_grow.then_some(Growth {
            cpus_max: shape.cpus_max,
            memory_max_mib: shape.memory_max_len >> 20,
            memory_slots: shape.memory_slots,
            port_count: Growth::DEFAULT.port_count,
        }),
        network: if may_grow { Network::None } else { Network::User },
        guest_agent,
        ..GuestConfig::new(vec![drive], Console::Stream)
    })
}

/// A listener that nobody finds: a guest of `larder run` has a port for QEMU's agent, and a copy must
/// have the same devices.
fn unheard() -> Result<UnixListener> {
    let failed = |error| Error::io("listen for", "a guest's agent", error);
    let folder = tempfile::tempdir().map_err(failed)?;
    UnixListener::bind(folder.path().join("agent")).map_err(failed)
}

/// The shape of a guest that may not grow.
///
/// # Errors
/// `Refused` where the guest has something that a resume would not give it.
pub fn shape_of(config: &GuestConfig) -> Result<MachineShape> {
    let refused = |reason: &str| {
        Err(Error::new(Kind::Refused, "suspend", "the guest").because(reason.to_string()))
    };
    if !config.extra_arguments.is_empty() {
        return refused("it was started with arguments for QEMU that nobody else knows");
    }
    if config.growth.is_some() || config.network != Network::User || config.drives.len() != 1 {
        return refused("it is not as `larder run` starts guests");
    }
    let memory_len = config.memory_mib << 20;
    Ok(MachineShape {
        cpus: config.cpus,
        cpus_max: config.cpus,
        memory_len,
        memory_slots: 0,
        memory_max_len: memory_len,
    })
}

/// Leaves memory that is a shared file out of the state; there, takes none in.
fn ignore_memory(qmp: &Qmp) -> Result<()> {
    let capability = json!({ "capability": "x-ignore-shared", "state": true });
    // Told of by an event, so that nobody has to ask again and again.
    let events = json!({ "capability": "events", "state": true });
    let capabilities = json!({ "capabilities": [capability, events] });
    qmp.execute("migrate-set-capabilities", Some(capabilities)).map(drop)
}

/// Waits until a state has gone out or come in.
fn wait_for_migration(qmp: &Qmp, what: &'static str) -> Result<()> {
    let deadline = Instant::now() + STATE_MAX;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let event = qmp.wait_event("MIGRATION", left)?;
        match event.data["status"].as_str() {
            Some("completed") => return Ok(()),
            Some("failed" | "cancelled") => {
                let status = qmp.execute("query-migrate", None).unwrap_or_default();
                let reason = status["error-desc"].as_str().unwrap_or("QEMU gave no reason");
                return Err(Error::new(Kind::Corrupt, what, "the device state").because(reason));
            }
            _ => {}
        }
    }
}

/// Waits until a guest whose state has gone out may go on: QEMU says that it is complete a moment
/// before.
fn wait_until_saved(qmp: &Qmp) -> Result<()> {
    let deadline = Instant::now() + STATE_MAX;
    while qmp.status()? == "finish-migrate" {
        if Instant::now() > deadline {
            return Err(Error::new(Kind::Unavailable, "save", "the device state")
                .because("QEMU did not finish"));
        }
        std::thread::park_timeout(LOOK);
    }
    Ok(())
}

fn refused_state(guest: &Guest) -> Error {
    let said = guest.complaints();
    let line = said.lines().last().unwrap_or("QEMU ended").to_string();
    Error::new(Kind::Corrupt, "restore", "the device state").because(line)
}

/// A guest in QEMU.
pub struct QemuGuest {
    guest: Guest,
    config: GuestConfig,
}

impl QemuGuest {
    /// Takes over a guest that was started with a configuration.
    pub fn new(guest: Guest, config: GuestConfig) -> Self {
        QemuGuest { guest, config }
    }

    /// Refuses a guest that has devices which were added while it ran: who resumes it would not know
    /// of them.
    fn check_not_grown(&self) -> Result<()> {
        let path = json!({ "path": "/machine/peripheral" });
        let list = self.guest.qmp().execute("qom-list", Some(path))?;
        let devices = list.as_array().into_iter().flatten();
        let mut names = devices
            .filter(|item| item["type"].as_str().is_some_and(|kind| kind.starts_with("child<")))
            .filter_map(|item| item["name"].as_str());
        let is_ours = |name: &str| {
            name.starts_with("port") || name == "generation" || name == "guest-agent-ports"
        };
        match names.find(|name| !is_ours(name)) {
            None => Ok(()),
            Some(added) => Err(Error::new(Kind::Refused, "save", "the guest")
                .because(format!("it was grown while it ran: it has {added}"))
                .hint("bake or run one that has what it needs from the start")),
        }
    }
}

impl LiveGuest for QemuGuest {
    fn pid(&self) -> u32 {
        self.guest.pid()
    }

    fn take_console(&mut self) -> Option<UnixStream> {
        self.guest.take_console_stream()
    }

    fn take_helper(&mut self) -> Option<UnixStream> {
        self.guest.take_helper()
    }

    fn take_guest_agent(&mut self) -> Option<UnixStream> {
        self.guest.take_guest_agent()
    }

    fn give_back_free_memory(&self) -> Result<u64> {
        match self.config.has_balloon {
            true => balloon::empty(self.guest.qmp(), self.config.memory_mib << 20),
            false => Ok(0),
        }
    }

    fn stop(&self) -> Result<()> {
        self.guest.qmp().stop()
    }

    fn go_on(&self) -> Result<()> {
        self.guest.qmp().cont()
    }

    fn grow(&self, helper: &mut Helper, wanted: Wanted, limit: Duration) -> Result<Grown> {
        growth::grow(self.guest.qmp(), helper, wanted, limit)
    }

    fn add_network(&self) -> Result<MacAddress> {
        let address = MacAddress::random(&SystemEntropy);
        growth::add_network(self.guest.qmp(), address).map(|_| address)
    }

    fn save(&self, state: OwnedFd) -> Result<MonitorFacts> {
        self.check_not_grown()?;
        let qmp = self.guest.qmp();
        let facts = facts::of_guest(qmp, self.guest.accelerator())?;
        ignore_memory(qmp)?;
        qmp.give_descriptor("state", state.as_fd())?;
        qmp.execute("migrate", Some(json!({ "uri": "fd:state" })))?;
        wait_for_migration(qmp, "save")?;
        wait_until_saved(qmp)?;
        Ok(MonitorFacts { devices: guest::arguments::devices(&self.config)?, ..facts })
    }

    fn wait(&self, limit: Option<Duration>) -> Option<ExitStatus> {
        self.guest.wait(limit)
    }

    fn kill(&self) {
        self.guest.kill();
    }
}
