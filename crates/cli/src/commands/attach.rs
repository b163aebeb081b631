use std::path::PathBuf;
use std::time::Duration;

use attach::nbd::Address;
use env::RealFileSystem;
use host::{Asked, AttachRequest, DoorOptions, Owner, Ready};
use mirror::{Patience, StateFolder};
use model::{Error, Kind, MirrorName, Reference, Result};

use crate::arguments::Format;
use crate::commands::background;
use crate::commands::length::Length;
use crate::context::Context;
use crate::interrupt::Waiter;
use crate::output::{human_len, print_json, print_line};

/// Make or reopen a mirror of a version and serve it.
///
/// A mirror is a writable view of a version: what is read is fetched once and kept on this host,
/// what is written stays with the mirror until it is committed. It is served in the foreground until
/// Ctrl-C or `larder detach`; one line `ready` is printed once it serves. One door takes writes: of
/// those that are named, the first in the order vhost-user, NBD, FUSE. Further doors read only.
///
/// Where `larder host run` runs for this state folder, it is that daemon which serves the mirror,
/// until Ctrl-C or `larder detach`, also if this command is killed.
#[derive(Debug, clap::Args)]
pub struct Attach {
    /// The version.
    reference: Reference,
    /// The mirror's name: made if there is none, opened again if there is.
    #[arg(long, value_name = "NAME")]
    mirror: MirrorName,
    /// Serve NBD on a Unix socket (a path) or on a loopback address (127.0.0.1:10809).
    #[arg(long, value_name = "SOCKET_OR_ADDR", value_parser = parse_address)]
    nbd: Option<Address>,
    /// Mount a folder in which versions and the mirror are raw files.
    #[arg(long, value_name = "DIR")]
    fuse: Option<PathBuf>,
    /// Serve a virtio disk to QEMU or Cloud Hypervisor (vhost-user-blk) on a Unix socket.
    #[arg(long, value_name = "SOCKET")]
    vhost_user: Option<PathBuf>,
    /// Make the disk longer than the version, or than the mirror was: 40GiB. What is added reads as
    /// zeros; commits keep the length. It never gets shorter.
    #[arg(long)]
    length: Option<Length>,
    /// Take no writes at any door.
    #[arg(long)]
    read_only: bool,
    /// How long a read waits while the repository cannot be reached, before it fails; without this,
    /// until it can be reached again. What is on this host is read and written all the while.
    #[arg(long, value_name = "SECONDS")]
    fetch_timeout: Option<u64>,
    /// Record what is read, until the mirror is detached, as a working set of this name.
    #[arg(long, value_name = "NAME")]
    record: Option<String>,
    /// Serve in the background; return once it serves.
    #[arg(long)]
    detach: bool,
}

impl Attach {
    pub fn run(self, context: &Context) -> Result<()> {
        if self.nbd.is_none() && self.fuse.is_none() && self.vhost_user.is_none() {
            return Err(Error::new(Kind::Invalid, "attach", self.mirror.as_str())
                .because("no door is named")
                .hint("add `--vhost-user SOCKET`, `--nbd SOCKET` or `--fuse DIR`"));
        }
        let patience = match self.fetch_timeout {
            None => Patience::Unlimited,
            Some(seconds) => Patience::Limited(Duration::from_secs(seconds)),
        };
        let request = AttachRequest {
            reference: Some(self.reference),
            mirror: self.mirror,
            doors: DoorOptions {
                vhost_user: self.vhost_user,
                nbd: self.nbd,
                fuse: self.fuse,
                read_only: self.read_only,
            },
            patience,
            record: self.record,
            length: self.length.map(|length| length.0),
            client: None,
        };
        // From here on a signal detaches.
        let waiter = Waiter::new()?;
        if let Some(ready) =
            host::client::attach(&state_folder(context), &context.repo.path, &request)?
        {
            print_ready(&ready, context.format)?;
            return match self.detach {
                true => Ok(()),
                false => wait_for_daemon(context, &request.mirror, waiter),
            };
        }
        match self.detach {
            true => background::start("attach"),
            false => serve(context, &request, waiter),
        }
    }
}

/// Serves a mirror in this process until it is detached.
fn serve(context: &Context, request: &AttachRequest, mut waiter: Waiter) -> Result<()> {
    background::leave_terminal();
    let owner = Owner::start(context.repository()?, limited_state_folder(context)?, request)?;
    print_ready(&owner.ready(), context.format)?;
    let handle = owner.handle();
    let wake = waiter.waker();
    let signals = std::thread::spawn(move || {
        waiter.wait();
        handle.ask_to_stop(Asked::Detach { discard: false });
        // Ctrl-C after that ends it at once, as `kill -9` does: nothing that was answered is lost.
        if waiter.wait_for_interrupt() {
            std::process::exit(130);
        }
    });
    let asked = owner.wait();
    let stopped = owner.end(asked);
    wake();
    let _ = signals.join();
    stopped
}

/// Waits until a mirror that the daemon serves is detached, here by a signal or elsewhere.
fn wait_for_daemon(context: &Context, name: &MirrorName, mut waiter: Waiter) -> Result<()> {
    let wake = waiter.waker();
    let state = state_folder(context);
    std::thread::scope(|scope| {
        let signals = scope.spawn(|| {
            if !waiter.wait() {
                return Ok(());
            }
            // Ctrl-C once more ends the wait; the daemon goes on detaching.
            let impatient = waiter.waker();
            std::thread::spawn(move || {
                if waiter.wait_for_interrupt() {
                    std::process::exit(130);
                }
            });
            let detached = host::mirrors::detach(&state, name, false, || context.repository());
            impatient();
            detached.map(drop)
        });
        let waited = host::client::wait_for_detach(&state, name);
        wake();
        let detached = signals.join().unwrap_or(Ok(()));
        waited.and(detached)
    })
}

/// Reads an address. What is wrong with it stands in the error's cause and hint, of which clap
/// prints neither.
pub fn parse_address(text: &str) -> Result<Address, String> {
    text.parse::<Address>().map_err(|error| match error.hint_text() {
        Some(hint) => format!("{}; {hint}", error.chain()),
        None => error.chain(),
    })
}

/// This host's state folder.
pub fn state_folder(context: &Context) -> StateFolder {
    StateFolder::new(std::sync::Arc::new(RealFileSystem), &context.state.path)
}

/// This host's state folder, its caches within their limits: for whoever reads versions.
pub fn limited_state_folder(context: &Context) -> Result<StateFolder> {
    let state = state_folder(context);
    let limits = context.cache_limits(&state)?;
    state.limit_bases(limits.bases);
    if limits.chunks > 0 {
        state.keep_chunks(limits.chunks);
    }
    Ok(state)
}

fn print_ready(ready: &Ready, format: Format) -> Result<()> {
    if format == Format::Json {
        let document = serde_json::to_value(ready)
            .map_err(|error| Error::new(Kind::Bug, "print", "the result").caused_by(error))?;
        return print_json(&document);
    }
    let doors: Vec<String> = ready
        .exports
        .iter()
        .map(|door| format!("{}{}", door.address, if door.writable { "" } else { " (read-only)" }))
        .collect();
    print_line(&format!(
        "ready: {} of {}@{}, {}, at {}",
        ready.mirror,
        ready.image,
        ready.version,
        human_len(ready.length_bytes),
        doors.join(" and ")
    ))
}
