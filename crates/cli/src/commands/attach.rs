use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use attach::nbd::Address;
use env::RealFileSystem;
use host::{AttachRequest, DoorOptions, Owner, Ready};
use mirror::StateFolder;
use model::{Error, Kind, MirrorName, Reference, Result};

use crate::arguments::Format;
use crate::context::Context;
use crate::interrupt::Waiter;
use crate::output::{human_len, print_json, print_line};

/// Make or reopen a mirror of a version and serve it.
///
/// A mirror is a writable view of a version: what is read is fetched once and kept on this host,
/// what is written stays with the mirror until it is committed. It is served in the foreground until
/// Ctrl-C or `larder detach`; one line `ready` is printed once it serves. One door takes writes: of
/// those that are named, the first in the order vhost-user, NBD, FUSE. Further doors read only.
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
    /// Take no writes at any door.
    #[arg(long)]
    read_only: bool,
    /// Serve in the background; return once it serves.
    #[arg(long)]
    detach: bool,
}

/// Set in the environment of a larder that serves in the background.
const IN_BACKGROUND: &str = "LARDER_IN_BACKGROUND";

impl Attach {
    pub fn run(self, context: &Context) -> Result<()> {
        if self.nbd.is_none() && self.fuse.is_none() && self.vhost_user.is_none() {
            return Err(Error::new(Kind::Invalid, "attach", self.mirror.as_str())
                .because("no door is named")
                .hint("add `--vhost-user SOCKET`, `--nbd SOCKET` or `--fuse DIR`"));
        }
        match self.detach {
            true => serve_in_background(),
            false => self.serve(context),
        }
    }

    fn serve(self, context: &Context) -> Result<()> {
        if std::env::var_os(IN_BACKGROUND).is_some() {
            // Away from the terminal, whose end would end this. It fails where that is done already.
            let _ = rustix::process::setsid();
        }
        let mut waiter = Waiter::new()?;
        let state = state_folder(context);
        let owner = Owner::start(
            context.repository()?,
            state,
            &AttachRequest {
                reference: self.reference,
                mirror: self.mirror,
                doors: DoorOptions {
                    vhost_user: self.vhost_user,
                    nbd: self.nbd,
                    fuse: self.fuse,
                    read_only: self.read_only,
                },
            },
        )?;
        print_ready(&owner.ready(), context.format)?;
        let stop = owner.stopper();
        let wake = waiter.waker();
        let signals = std::thread::spawn(move || {
            waiter.wait();
            stop();
            // Ctrl-C after that ends it at once, as `kill -9` does: nothing that was answered is lost.
            if waiter.wait_for_interrupt() {
                std::process::exit(130);
            }
        });
        owner.wait();
        let stopped = owner.stop(false);
        wake();
        let _ = signals.join();
        stopped
    }
}

/// Reads an address. What is wrong with it stands in the error's cause and hint, of which clap
/// prints neither.
fn parse_address(text: &str) -> Result<Address, String> {
    text.parse::<Address>().map_err(|error| match error.hint_text() {
        Some(hint) => format!("{}; {hint}", error.chain()),
        None => error.chain(),
    })
}

/// This host's state folder.
pub fn state_folder(context: &Context) -> StateFolder {
    StateFolder::new(std::sync::Arc::new(RealFileSystem), &context.state.path)
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

/// Starts the same command without `--detach` in a session of its own, and passes its line on.
fn serve_in_background() -> Result<()> {
    let failed = |error| Error::io("start", "larder in the background", error);
    let program = std::env::current_exe().map_err(failed)?;
    let arguments = std::env::args_os().skip(1).filter(|argument| argument != "--detach");
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env(IN_BACKGROUND, "1")
        .spawn()
        .map_err(failed)?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line).map_err(failed)?;
    }
    if !line.is_empty() {
        return print_line(line.trim_end());
    }
    // It ended without a line: what it said on stderr is what there is to say.
    let output = child.wait_with_output().map_err(failed)?;
    let text = String::from_utf8_lossy(&output.stderr);
    // Warnings may stand before it.
    let mut lines = text.lines().skip_while(|line| !line.starts_with("larder: "));
    let reason =
        lines.next().unwrap_or("it ended early").trim_start_matches("larder: ").to_string();
    let error = Error::new(Kind::Unavailable, "attach", "in the background").because(reason);
    Err(match lines.next().and_then(|line| line.strip_prefix("hint: ")) {
        Some(hint) => error.hint(hint),
        None => error,
    })
}
