use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::sync::Arc;

use attach::nbd::Address;
use bakery::machine_file::{MachineFile, path_of};
use bakery::monitor::LiveGuest;
use bakery::{QemuGuest, RunFolder};
use env::{Entropy, SystemEntropy};
use guest::{Accelerator, Console, Drive, Guest, GuestConfig, MemoryFile, Network};
use host::control::ControlServer;
use host::{AttachRequest, Client, DoorOptions};
use mirror::Patience;
use model::{Error, Kind, MirrorName, Reference, Result};

use crate::commands::attach::limited_state_folder;
use crate::commands::guests::{Served, parse_accelerator};
use crate::commands::length::Length;
use crate::commands::seed::{SeedArguments, Seeded};
use crate::commands::suspend::{self, RunGuest};
use crate::context::Context;
use crate::interrupt::Waiter;

/// Boot a guest in QEMU from a mirror, its console on the terminal.
///
/// The mirror is thrown away when the guest ends, unless it is named. `larder commit NAME` works
/// while the guest runs. KVM is used where it really works, TCG where not. Ctrl-a x ends the guest,
/// Ctrl-a h lists the console's keys. A disk that is one file system without a loader is started by
/// the newest kernel in its /boot, as it is in the version.
///
/// A name, keys, user-data and meta-data reach the guest as `--seed` says, made for this guest alone.
#[derive(Debug, clap::Args)]
pub struct Run {
    /// The version to boot.
    reference: Reference,
    /// Keep the mirror under this name.
    #[arg(long, value_name = "NAME")]
    mirror: Option<MirrorName>,
    /// Make the disk longer than the version, or than the mirror was: 40GiB. It never gets shorter.
    #[arg(long)]
    length: Option<Length>,
    /// The guest's memory.
    #[arg(long, default_value = "1GiB")]
    memory: Length,
    /// How many CPUs the guest has.
    #[arg(long, default_value = "1", value_parser = clap::value_parser!(u32).range(1..=256))]
    cpus: u32,
    /// kvm or tcg; found out when not given.
    #[arg(long, value_name = "ACCELERATOR", value_parser = parse_accelerator)]
    accel: Option<Accelerator>,
    #[command(flatten)]
    seed: SeedArguments,
    /// Serve the disk from this process even where this host has a daemon, so that `larder suspend`
    /// can keep disk and memory together.
    #[arg(long)]
    suspendable: bool,
    /// More arguments for QEMU.
    #[arg(last = true, value_name = "QEMU ARGS")]
    qemu: Vec<OsString>,
}

impl Run {
    pub fn run(self, context: &Context) -> Result<()> {
        let is_kept = self.mirror.is_some();
        let mirror = match self.mirror {
            Some(name) => name,
            None => MirrorName::new(&format!("run-{}", &SystemEntropy.name()[..8]))?,
        };
        let memory_mib = self.memory.0 >> 20;
        if memory_mib == 0 {
            return Err(Error::new(Kind::Invalid, "run", self.reference.to_string())
                .because("a guest needs at least 1 MiB of memory"));
        }
        // From here on a signal ends the guest, and the mirror goes as it should.
        let mut waiter = Waiter::new()?;
        let socket = RunFolder::make()?;
        let kernel = match names_kernel(&self.qemu) {
            true => None,
            false => {
                let version = Arc::new(context.repository()?.open_version(&self.reference)?);
                builder::direct::arguments(&version, socket.path())?
            }
        };
        let seeded = match self.seed.is_wanted() {
            true => {
                let version = context.repository()?.catalog().version(&self.reference)?;
                self.seed.make(&version, &mirror, socket.path())?
            }
            false => Seeded::default(),
        };
        let mut drives = seeded.drives;
        let mut extra_arguments = seeded.arguments;
        extra_arguments.extend(kernel.into_iter().flatten());
        extra_arguments.extend(self.qemu);
        let state = limited_state_folder(context)?;
        let request = AttachRequest {
            reference: Some(self.reference),
            mirror: mirror.clone(),
            doors: DoorOptions {
                nbd: Some(Address::Unix(socket.socket())),
                ..DoorOptions::default()
            },
            patience: Patience::Unlimited,
            record: None,
            length: self.length.map(|length| length.0),
            // Killed, it cannot detach; a daemon then does so itself.
            client: Some(Client::this_process(!is_kept)?),
        };
        let repository = || context.repository();
        let served = match self.suspendable {
            true => Served::here(repository()?, &state, &request)?,
            false => Served::start(&context.repo.path, repository, &state, &request)?,
        };
        // A file that larder can read: so that the guest can be suspended.
        let memory = MachineFile::new(memory_mib << 20)?.memory();
        let ended = host::quiesce::listen_for_agent(&state, &mirror).and_then(|agent| {
            let export = mirror.to_string();
            let drive = Drive::NbdUnix { socket: socket.socket(), export, read_only: false };
            // The firmware boots the first.
            drives.insert(0, drive);
            let config = GuestConfig {
                memory_mib,
                cpus: self.cpus,
                accelerator: self.accel,
                network: Network::User,
                guest_agent: Some(Arc::new(agent)),
                memory_file: Some(MemoryFile { path: path_of(&memory), is_shared: true }),
                inherited: vec![memory.clone()],
                extra_arguments,
                ..GuestConfig::new(drives, Console::Terminal)
            };
            run_guest(&config, &mut waiter, memory, &served, &|guest| {
                suspend::listen(&state, &mirror, repository()?, guest)
            })
        });
        // A mirror that is kept has no guest now.
        let _ = std::fs::remove_file(host::quiesce::agent_socket(&state, &mirror));
        let stopped = served.stop(|| context.repository(), &state, &mirror, !is_kept);
        let status = ended?;
        stopped?;
        match status.success() {
            true => Ok(()),
            false => Err(Error::new(Kind::Unavailable, "run", mirror.as_str())
                .because(format!("QEMU ended with {status}"))),
        }
    }
}

/// True where QEMU is told what to boot, and need not be told again.
fn names_kernel(arguments: &[OsString]) -> bool {
    arguments.iter().any(|word| word == "-kernel" || word == "--kernel")
}

/// Runs a guest until it ends; a signal to this process ends it.
fn run_guest(
    config: &GuestConfig,
    waiter: &mut Waiter,
    memory: Arc<OwnedFd>,
    served: &Served,
    listen: &dyn Fn(Arc<RunGuest>) -> Result<ControlServer>,
) -> Result<ExitStatus> {
    let wake = waiter.waker();
    let guest = QemuGuest::new(Guest::start(config)?, config.clone());
    let shape = bakery::qemu::shape_of(config).map_err(|error| error.chain());
    let guest = Arc::new(RunGuest { guest, memory, shape, mirror: served.mirror().cloned() });
    let _door = listen(guest.clone())?;
    let status = std::thread::scope(|scope| {
        scope.spawn(|| {
            if waiter.wait() {
                guest.guest.kill();
            }
        });
        let status = guest.guest.wait(None);
        wake();
        status
    });
    status.ok_or_else(|| Error::new(Kind::Bug, "run", "the guest").because("QEMU never ended"))
}
