use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitStatus;

use attach::nbd::Address;
use env::{Entropy, SystemEntropy};
use guest::{Accelerator, Console, Drive, Guest, GuestConfig, Network};
use host::{AttachRequest, DoorOptions, Owner};
use mirror::Patience;
use model::{Error, Kind, MirrorName, Reference, Result};

use crate::commands::attach::{limited_state_folder, state_folder};
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
        let request = AttachRequest {
            reference: Some(self.reference),
            mirror: mirror.clone(),
            doors: DoorOptions {
                nbd: Some(Address::Unix(socket.path())),
                ..DoorOptions::default()
            },
            patience: Patience::Unlimited,
            record: None,
        };
        let served = Served::start(context, &request)?;
        let drive =
            Drive::NbdUnix { socket: socket.path(), export: mirror.to_string(), read_only: false };
        let config = GuestConfig {
            memory_mib,
            cpus: self.cpus,
            accelerator: self.accel,
            network: Network::User,
            extra_arguments: self.qemu,
            ..GuestConfig::new(vec![drive], Console::Terminal)
        };
        let ended = run_guest(&config, &mut waiter);
        let stopped = served.stop(context, &mirror, !is_kept);
        let status = ended?;
        stopped?;
        match status.success() {
            true => Ok(()),
            false => Err(Error::new(Kind::Unavailable, "run", mirror.as_str())
                .because(format!("QEMU ended with {status}"))),
        }
    }
}

/// The mirror of a guest: served here, or by this host's daemon.
enum Served {
    Here(Owner),
    ByDaemon,
}

impl Served {
    fn start(context: &Context, request: &AttachRequest) -> Result<Self> {
        let state = state_folder(context);
        if host::client::attach(&state, &context.repo.path, request)?.is_some() {
            return Ok(Served::ByDaemon);
        }
        let state = limited_state_folder(context)?;
        Owner::start(context.repository()?, state, request).map(Served::Here)
    }

    fn stop(self, context: &Context, mirror: &MirrorName, discard: bool) -> Result<()> {
        match self {
            Served::Here(owner) => owner.stop(discard),
            Served::ByDaemon => {
                let state = state_folder(context);
                host::mirrors::detach(&state, mirror, discard, || context.repository()).map(drop)
            }
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

fn parse_accelerator(word: &str) -> Result<Accelerator> {
    Accelerator::parse(word).ok_or_else(|| {
        Error::new(Kind::Invalid, "use the accelerator", format!("`{word}`"))
            .because("it is neither `kvm` nor `tcg`")
    })
}

/// A private folder for the socket between larder and QEMU; gone when dropped.
struct SocketFolder(PathBuf);

impl SocketFolder {
    fn make() -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("larder-{}", &SystemEntropy.name()[..16]));
        let failed = |error| Error::io("make the folder", folder.display().to_string(), error);
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&folder).map_err(failed)?;
        Ok(SocketFolder(folder))
    }

    fn path(&self) -> PathBuf {
        self.0.join("nbd")
    }
}

impl Drop for SocketFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
