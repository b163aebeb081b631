use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bakery::monitor::LiveGuest;
use bakery::{Disks, Machine, Qemu, ResumeRequest, Resumed, RunFolder};
use env::SystemEntropy;
use env::entropy::Entropy;
use guest::Identity;
use guest::growth::Wanted;
use guest::identity::AuthorizedKeys;
use host::control::ControlServer;
use model::machine::MachineOrigin;
use model::{Error, Kind, MirrorName, Reference, Result};
use serde_json::{Value, json};

use crate::arguments::Format;
use crate::commands::guests::HostDisks;
use crate::commands::length::Length;
use crate::commands::{background, suspend, terminal};
use crate::context::Context;
use crate::interrupt::Waiter;
use crate::output::{print_json, print_line};

/// What the mirrors of copies without a name begin with.
const MIRROR_PREFIX: &str = "resume-";

/// Bring copies of a machine to life, in milliseconds.
///
/// Each copy goes on where the machine was stopped, with a disk of its own. What it says is printed
/// once it has answered; then this runs until all copies have ended, or Ctrl-C ends them. Their disks
/// are thrown away then, unless they are named. A copy's console is at the Unix socket that is
/// printed; that of a single copy is on the terminal, where there is one: Ctrl-a x ends the guest.
#[derive(Debug, clap::Args)]
pub struct Resume {
    /// The machine.
    reference: Reference,
    /// How many copies.
    #[arg(long, default_value = "1", value_parser = clap::value_parser!(u32).range(1..=1000))]
    count: u32,
    /// Keep the mirror of the disk under this name; with several copies, NAME-1, NAME-2...
    #[arg(long, value_name = "NAME")]
    mirror: Option<MirrorName>,
    /// Give each copy memory of its own at once, so that it can be suspended again. Slower.
    #[arg(long)]
    suspendable: bool,
    /// The memory that each copy is grown to.
    #[arg(long)]
    memory: Option<Length>,
    /// How many CPUs each copy is grown to.
    #[arg(long)]
    cpus: Option<u32>,
    /// The host name; with several copies, NAME-1, NAME-2... Without this, the mirror's name.
    #[arg(long, value_name = "NAME", conflicts_with = "no_identity")]
    host_name: Option<String>,
    /// A file of public SSH keys that may log in as root, or as USER with USER:FILE.
    #[arg(long, value_name = "FILE", conflicts_with = "no_identity")]
    ssh_keys: Vec<String>,
    /// A file of user-data for cloud-init; a script where it begins with `#!`.
    #[arg(long, value_name = "FILE", conflicts_with = "no_identity")]
    user_data: Option<PathBuf>,
    /// Leave each copy as it is: machine id, host name, SSH host keys and clock are the original's.
    /// A machine of `larder suspend` is the original, so this is what it gets.
    #[arg(long)]
    no_identity: bool,
    /// Add no network card.
    #[arg(long)]
    no_network: bool,
    /// Do not wait until the copies answer on their consoles.
    #[arg(long)]
    no_wait: bool,
    /// Run in the background; return once the copies have answered.
    #[arg(long)]
    detach: bool,
}

/// One copy.
struct Copy {
    resumed: Arc<Resumed>,
    name: MirrorName,
    total: Duration,
    _door: ControlServer,
    _folder: RunFolder,
}

impl Resume {
    pub fn run(self, context: &Context) -> Result<()> {
        if self.detach {
            return background::start("resume");
        }
        let began = Instant::now();
        // From here on a signal ends the guests, and their mirrors go as they should.
        let waiter = Waiter::new()?;
        background::leave_terminal();
        let repository = context.repository()?;
        let disks = HostDisks::new(context, repository.clone(), self.suspendable)?;
        let monitor = Qemu::new(disks.state().path());
        let machine = Machine::find(&repository, disks.state(), &monitor, &self.reference)?;
        let names = self.names()?;
        disks.sweep(MIRROR_PREFIX)?;
        let is_copy = machine.record.origin == MachineOrigin::Baked;
        let is_named = self.host_name.is_some() || !self.ssh_keys.is_empty();
        if !is_copy && (is_named || self.user_data.is_some()) {
            return Err(Error::new(Kind::Refused, "resume", machine.version.id.to_string())
                .because(
                    "a suspended guest stays who it was: it takes no name, keys or user-data",
                ));
        }
        let start = |(index, name): (usize, &MirrorName)| -> Result<Copy> {
            let folder = RunFolder::make()?;
            let request = ResumeRequest {
                reference: self.reference.clone(),
                mirror: name.clone(),
                folder: folder.path().to_path_buf(),
                waits_for_answer: !self.no_wait,
                is_recorded: false,
                is_suspendable: self.suspendable,
                identity: match is_copy && !self.no_identity {
                    true => Some(self.identity(name, index)?),
                    false => None,
                },
                wanted: Wanted {
                    cpus: self.cpus,
                    memory_mib: self.memory.map(|memory| memory.0 >> 20),
                },
                // What is added later could not be suspended; a suspended guest has its own.
                has_network: is_copy && !self.no_network && !self.suspendable,
            };
            let resumed = bakery::resume(&repository, &machine, &monitor, &disks, &request)?;
            let total = began.elapsed();
            let resumed = Arc::new(resumed);
            let door = suspend::listen(disks.state(), name, repository.clone(), resumed.clone());
            let door = door.inspect_err(|_| {
                let _ = resumed.end(true);
            })?;
            Ok(Copy { resumed, name: name.clone(), total, _door: door, _folder: folder })
        };
        let copies = at_once(&names, &start);
        // Later copies find all of it here.
        let _completion = machine.complete();
        let discard = self.mirror.is_none();
        let failure = copies.iter().position(Result::is_err);
        let outcome = match failure {
            Some(_) => Ok(()),
            None => {
                let on_terminal = self.count == 1
                    && context.format == Format::Text
                    && !background::is_here()
                    && terminal::is_there();
                print(&copies, context.format).map(|()| wait(&copies, waiter, on_terminal))
            }
        };
        let mut ended = outcome;
        let mut failed = None;
        for copy in copies {
            match copy {
                Ok(copy) => ended = ended.and(copy.resumed.end(discard)),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(ended, Err)
    }

    /// Who one of the copies is to be.
    fn identity(&self, mirror: &MirrorName, index: usize) -> Result<Identity> {
        let host_name = match (&self.host_name, self.count) {
            (Some(name), 1) => name.clone(),
            (Some(name), _) => format!("{name}-{}", index + 1),
            (None, _) => {
                let label = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
                let label: String = mirror.as_str().chars().map(label).take(60).collect();
                label.trim_matches('-').to_string()
            }
        };
        let read = |path: &Path| {
            std::fs::read(path)
                .map_err(|error| Error::io("read", path.display().to_string(), error))
        };
        let mut identity = Identity::new(&host_name, &SystemEntropy)?;
        for keys in &self.ssh_keys {
            let (user, path) = keys.split_once(':').unwrap_or(("root", keys));
            let keys = String::from_utf8_lossy(&read(Path::new(path))?).into_owned();
            identity.authorized_keys.push(AuthorizedKeys { user: user.to_string(), keys });
        }
        identity.user_data = self.user_data.as_deref().map(read).transpose()?;
        Ok(identity)
    }

    fn names(&self) -> Result<Vec<MirrorName>> {
        let name = |number: u32| match (&self.mirror, self.count) {
            (Some(name), 1) => Ok(name.clone()),
            (Some(name), _) => MirrorName::new(&format!("{name}-{number}")),
            (None, _) => MirrorName::new(&format!("{MIRROR_PREFIX}{}", &SystemEntropy.name()[..8])),
        };
        (1..=self.count).map(name).collect()
    }
}

/// Starts all copies side by side.
fn at_once(
    names: &[MirrorName],
    start: &(impl Fn((usize, &MirrorName)) -> Result<Copy> + Sync),
) -> Vec<Result<Copy>> {
    std::thread::scope(|scope| {
        let starts: Vec<_> =
            names.iter().enumerate().map(|name| scope.spawn(move || start(name))).collect();
        let bug = || Err(Error::new(Kind::Bug, "resume", "a copy"));
        starts.into_iter().map(|start| start.join().unwrap_or_else(|_| bug())).collect()
    })
}

/// Waits until all guests have ended, or a signal ends them. Meanwhile the first may be talked to.
fn wait(copies: &[Result<Copy>], mut waiter: Waiter, on_terminal: bool) {
    let wake = waiter.waker();
    let guests: Vec<&dyn LiveGuest> =
        copies.iter().flatten().map(|copy| &*copy.resumed.guest).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            if waiter.wait() {
                guests.iter().for_each(|guest| guest.kill());
            }
        });
        if on_terminal
            && let Some(Ok(copy)) = copies.first()
            && let Err(error) = terminal::talk(&copy.resumed.console, &|| copy.resumed.guest.kill())
        {
            tracing::warn!(%error, "the guest is not on the terminal any more");
        }
        for guest in &guests {
            guest.wait(None);
        }
        wake();
    });
}

fn print(copies: &[Result<Copy>], format: Format) -> Result<()> {
    let copies: Vec<&Copy> = copies.iter().flatten().collect();
    let slowest =
        |of: &dyn Fn(&Copy) -> f64| copies.iter().map(|copy| of(copy)).fold(0.0, f64::max);
    if format == Format::Json {
        let guests: Vec<Value> = copies.iter().map(|copy| told(copy)).collect();
        let mut document = guests.first().cloned().unwrap_or_default();
        document["running_ms"] = json!(slowest(&|c| ms(c.resumed.times.running)));
        document["answered_ms"] = match copies.iter().all(|copy| copy.resumed.answered.is_some()) {
            true => json!(slowest(&|c| c.resumed.answered.map_or(0.0, ms))),
            false => Value::Null,
        };
        if copies.iter().all(|copy| copy.resumed.identity.is_some()) {
            let at = |copy: &Copy| copy.resumed.identity.as_ref().map_or(0.0, |(_, at)| ms(*at));
            document["identity_ms"] = json!(slowest(&at));
        }
        document["larder_pid"] = json!(std::process::id());
        document["guests"] = json!(guests);
        return print_json(&document);
    }
    for copy in copies {
        let Resumed { machine, times, answered, console_path, .. } = &*copy.resumed;
        let answer = answered.map(|answered| format!(", answered after {:.0} ms", ms(answered)));
        let named =
            copy.resumed.identity.as_ref().map(|(confirmed, at)| {
                format!(", is {} after {:.0} ms", confirmed.host_name, ms(*at))
            });
        print_line(&format!(
            "{}: {machine} ran after {:.0} ms{}{}; console at {}",
            copy.name,
            ms(times.running),
            answer.unwrap_or_default(),
            named.unwrap_or_default(),
            console_path.display()
        ))?;
    }
    Ok(())
}

fn told(copy: &Copy) -> Value {
    let resumed = &copy.resumed;
    let identity = resumed.identity.as_ref();
    json!({
        "machine": resumed.machine.to_string(),
        "disk": resumed.disk.to_string(),
        "mirror": copy.name,
        "pid": resumed.guest.pid(),
        "console": resumed.console_path,
        "memory_was_here": resumed.memory_was_here,
        "greeted_ms": ms(resumed.times.greeted),
        "restored_ms": ms(resumed.times.restored),
        "running_ms": ms(resumed.times.running),
        "answered_ms": resumed.answered.map(ms),
        "identity_ms": identity.map(|(_, at)| ms(*at)),
        "identity_took_ms": identity.map(|(confirmed, _)| ms(confirmed.took)),
        "machine_id": identity.map(|(confirmed, _)| confirmed.machine_id.clone()),
        "host_name": identity.map(|(confirmed, _)| confirmed.host_name.clone()),
        "ssh_host_key": identity.and_then(|(confirmed, _)| confirmed.ssh_host_key.clone()),
        "mac_address": resumed.network.map(|address| address.to_string()),
        "grown_ms": resumed.grown.as_ref().map(|grown| ms(grown.took)),
        "cpus": resumed.grown.as_ref().map(|grown| grown.report.cpu_count),
        "total_ms": ms(copy.total),
    })
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
