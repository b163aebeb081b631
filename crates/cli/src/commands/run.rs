use std::ffi::OsString;
use std::process::ExitStatus;
use std::sync::Arc;

use attach::nbd::Address;
use env::{Entropy, SystemEntropy};
use guest::{Accelerator, Console, Drive, Guest, GuestConfig, Network};
use host::{AttachRequest, Client, DoorOptions};
use mirror::Patience;
use model::{Error, Kind, MirrorName, Reference, Result};

use crate::commands::attach::limited_state_folder;
use crate::commands::guests::{Served, SocketFolder, parse_accelerator};
use crate::commands::length::Length;
use crate::context::Context;
use crate::interrupt::Waiter;

/// Boot a guest in QEMU from a mirror, its console on the terminal.
///
/// The mirror is thrown away when the guest ends, unless it is named. `larder commit NAME` works
/// while the guest runs. KVM is used where it really works, TCG where not. Ctrl-a x ends the guest,
/// Ctrl-a h lists the console's keys.
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
        let socket = SocketFolder::make()?;
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
        let served = Served::start(&context.repo.path, || context.repository(), &state, &request)?;
        let ended = host::quiesce::listen_for_agent(&state, &mirror).and_then(|agent| {
            let export = mirror.to_string();
            let drive = Drive::NbdUnix { socket: socket.socket(), export, read_only: false };
            let config = GuestConfig {
                memory_mib,
                cpus: self.cpus,
                accelerator: self.accel,
                network: Network::User,
                guest_agent: Some(Arc::new(agent)),
                extra_arguments: self.qemu,
                ..GuestConfig::new(vec![drive], Console::Terminal)
            };
            run_guest(&config, &mut waiter)
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

/// Runs a guest until it ends; a signal to this process ends it.
fn run_guest(config: &GuestConfig, waiter: &mut Waiter) -> Result<ExitStatus> {
    let wake = waiter.waker();
    let guest = Guest::start(config)?;
    let status = std::thread::scope(|scope| {
        scope.spawn(|| {
            if waiter.wait() {
                guest.kill();
            }
        });
        let status = guest.wait(None);
        wake();
        status
    });
    status.ok_or_else(|| Error::new(Kind::Bug, "run", "the guest").because("QEMU never ended"))
}
