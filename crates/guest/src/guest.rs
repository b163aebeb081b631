//! A running guest: QEMU as a child process.
//!
//! ```text
//!   start ---> keeper thread: spawn, tell, wait ------------------> exit status
//!     |                         |
//!     |<-- process, handle -----'      (the thread lives exactly as long as QEMU)
//!     `--> QMP greeting --> Guest
//! ```
//!
//! **Invariants**
//! - Unless it may outlive its parent, QEMU ends with this process, however this process ends: the
//!   kernel kills it when the thread that made it dies, and that thread waits for QEMU.
//! - A signal goes to a process handle, never to a number that may be someone else's by now.
//! - QEMU is given its ends of the control and console sockets as open descriptors: nothing in the
//!   file system has to be named, waited for or removed.
//!
//! **Failure**: a QEMU that ends while it starts gives an error with its own words.

use std::io::{self, IsTerminal, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use model::{Error, Kind, Result};
use rustix::io::FdFlags;
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::termios::Termios;

use crate::accelerator::{Accelerator, pick_accelerator};
use crate::arguments::{self, InheritedSockets};
use crate::config::{Console, GuestConfig};
use crate::console::ScriptedConsole;
use crate::qmp::Qmp;
use crate::small_pages::SmallPages;

/// For how long QEMU may take to greet.
const GREETING_MAX: Duration = Duration::from_secs(60);

/// For how long a QEMU that closed its control channel may take to end.
const END_MAX: Duration = Duration::from_secs(10);

/// How much of what QEMU writes to standard error is kept, in bytes.
const COMPLAINTS_MAX: usize = 4096;

/// A running QEMU. Dropped, it is killed, unless its configuration lets it outlive its parent.
pub struct Guest {
    pid: u32,
    handle: OwnedFd,
    accelerator: Accelerator,
    qmp: Qmp,
    console: Option<ScriptedConsole>,
    console_stream: Option<UnixStream>,
    helper: Option<UnixStream>,
    guest_agent: Option<UnixStream>,
    fate: Arc<Fate>,
    keeper: Option<JoinHandle<()>>,
    outlives_parent: bool,
    /// How the terminal was before QEMU took it.
    terminal: Option<Termios>,
}

/// What became of QEMU.
#[derive(Default)]
struct Fate {
    exit: Mutex<Option<ExitStatus>>,
    ended: Condvar,
    complaints: Mutex<Vec<u8>>,
}

impl Guest {
    /// Starts a guest and returns as soon as QEMU can be talked to; the guest is booting by then.
    ///
    /// # Errors
    /// `NotFound`: QEMU is not installed. `Invalid`: the configuration cannot be said to QEMU, or
    /// QEMU refused it (with its words). `Unavailable`: QEMU was silent.
    pub fn start(config: &GuestConfig) -> Result<Guest> {
        let accelerator = config.accelerator.unwrap_or_else(pick_accelerator);
        let failed = |source| Error::io("start", "the guest", source);
        let (qmp, qemus_qmp) = UnixStream::pair().map_err(failed)?;
        let (console, qemus_console) = match config.console {
            Console::Scripted | Console::Stream => {
                let (ours, qemus) = UnixStream::pair().map_err(failed)?;
                (Some(ours), Some(qemus))
            }
            _ => (None, None),
        };
        let port = || -> Result<_> {
            match config.growth {
                Some(_) => {
                    let (ours, qemus) = UnixStream::pair().map_err(failed)?;
                    Ok((Some(ours), Some(qemus)))
                }
                None => Ok((None, None)),
            }
        };
        let ((helper, qemus_helper), (guest_agent, qemus_guest_agent)) = (port()?, port()?);
        let listener = config.guest_agent.as_ref().map(|listener| listener.try_clone());
        let listener = listener.transpose().map_err(failed)?;
        let sockets = InheritedSockets {
            qmp: qemus_qmp.as_raw_fd(),
            console: qemus_console.as_ref().map(AsRawFd::as_raw_fd),
            helper: qemus_helper.as_ref().map(AsRawFd::as_raw_fd),
            guest_agent: qemus_guest_agent.as_ref().map(AsRawFd::as_raw_fd),
            agent_listener: listener.as_ref().map(AsRawFd::as_raw_fd),
        };
        let mut command = Command::new(&config.program);
        command.args(arguments::plan(config, accelerator, sockets)?);
        give_streams(&mut command, config);
        let sockets =
            [Some(qemus_qmp), qemus_console, qemus_helper, qemus_guest_agent].into_iter().flatten();
        let mut inherited: Vec<Arc<OwnedFd>> =
            sockets.map(|s| Arc::new(OwnedFd::from(s))).collect();
        inherited.extend(listener.map(|listener| Arc::new(OwnedFd::from(listener))));
        inherited.extend(config.inherited.iter().cloned());
        let small_pages = config.maps_file_privately().then_some(config.memory_mib << 20);
        let small_pages = small_pages.and_then(SmallPages::of);
        prepare_child(&mut command, inherited, small_pages, config.outlives_parent);
        tracing::debug!(?command, "starting QEMU");

        let terminal = saved_terminal(config);
        let fate = Arc::new(Fate::default());
        let (keeper, pid, handle) =
            spawn_kept(command, &fate).map_err(|source| not_started(config, source))?;
        let mut keeper = Some(keeper);
        let qmp = match Qmp::connect(qmp, GREETING_MAX) {
            Ok(qmp) => qmp,
            Err(error) => {
                let exit = fate.wait(Some(END_MAX));
                let _ended = rustix::process::pidfd_send_signal(&handle, Signal::KILL);
                let _joined = keeper.take().map(JoinHandle::join);
                restore_terminal(terminal.as_ref());
                return Err(match exit {
                    Some(exit) => fate.refusal(exit),
                    None => Error::new(Kind::Unavailable, "start", "QEMU").caused_by(error),
                });
            }
        };
        let mut guest = Guest {
            pid,
            handle,
            accelerator,
            qmp,
            console: None,
            console_stream: None,
            helper,
            guest_agent,
            fate,
            keeper,
            outlives_parent: config.outlives_parent,
            terminal,
        };
        // After this point a failure drops the guest, which ends it.
        match config.console {
            Console::Stream => guest.console_stream = console,
            _ => guest.console = console.map(ScriptedConsole::new).transpose()?,
        }
        Ok(guest)
    }

    /// The process id of QEMU.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What runs the guest's processors.
    pub fn accelerator(&self) -> Accelerator {
        self.accelerator
    }

    /// The control channel.
    pub fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// The console, where the configuration asked for a scripted one.
    ///
    /// # Errors
    /// `Invalid`: the console goes elsewhere.
    pub fn console(&mut self) -> Result<&mut ScriptedConsole> {
        self.console.as_mut().ok_or_else(|| {
            Error::new(Kind::Invalid, "read", "the guest's console")
                .because("it does not go to this program")
        })
    }

    /// The console's bytes, where the configuration asked for a stream; none the second time.
    pub fn take_console_stream(&mut self) -> Option<UnixStream> {
        self.console_stream.take()
    }

    /// The host's end of the helper's port, where the guest may grow; none the second time.
    pub fn take_helper(&mut self) -> Option<UnixStream> {
        self.helper.take()
    }

    /// The host's end of the port of QEMU's guest agent, where the guest may grow; none the second time.
    pub fn take_guest_agent(&mut self) -> Option<UnixStream> {
        self.guest_agent.take()
    }

    /// Waits until QEMU has ended, or until the limit; none when it still runs.
    pub fn wait(&self, limit: Option<Duration>) -> Option<ExitStatus> {
        let exit = self.fate.wait(limit);
        if exit.is_some() {
            restore_terminal(self.terminal.as_ref());
        }
        exit
    }

    /// Whether QEMU runs.
    pub fn is_running(&self) -> bool {
        self.fate.wait(Some(Duration::ZERO)).is_none()
    }

    /// What QEMU last wrote to standard error, where that is not the terminal.
    pub fn complaints(&self) -> String {
        self.fate.complaints()
    }

    /// Presses the power button and waits until the guest has shut down.
    ///
    /// # Errors
    /// `Unavailable`: it had not within `limit`, and runs on; press again, or [`Guest::kill`] it.
    pub fn power_down(&self, limit: Duration) -> Result<ExitStatus> {
        if let Err(error) = self.qmp.system_powerdown()
            && self.is_running()
        {
            return Err(error);
        }
        self.wait(Some(limit)).ok_or_else(|| {
            let said = self.console.as_ref().map(|console| console.last_lines(5));
            Error::new(Kind::Unavailable, "power down", "the guest").because(format!(
                "it still runs after {:.0} s; it last said: {}",
                limit.as_secs_f64(),
                said.unwrap_or_default()
            ))
        })
    }

    /// Ends QEMU at once and waits for that. What the guest had not flushed is lost to the guest, as
    /// by a power cut. Idempotent.
    pub fn kill(&self) {
        let _ended = rustix::process::pidfd_send_signal(&self.handle, Signal::KILL);
        let _exit = self.wait(None);
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if self.outlives_parent {
            return;
        }
        self.kill();
        if let Some(keeper) = self.keeper.take() {
            let _joined = keeper.join();
        }
    }
}

impl Fate {
    fn wait(&self, limit: Option<Duration>) -> Option<ExitStatus> {
        let began = Instant::now();
        let mut exit = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if exit.is_some() {
                return *exit;
            }
            exit = match limit {
                None => self.ended.wait(exit).unwrap_or_else(PoisonError::into_inner),
                Some(limit) => {
                    let left = limit.saturating_sub(began.elapsed());
                    if left.is_zero() {
                        return None;
                    }
                    let waited = self.ended.wait_timeout(exit, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn complaints(&self) -> String {
        let bytes = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }

    /// QEMU ended before it could be talked to.
    fn refusal(&self, exit: ExitStatus) -> Error {
        let said = self.complaints();
        let reason = if said.is_empty() { format!("it ended with {exit}") } else { said };
        Error::new(Kind::Invalid, "start", "QEMU").because(reason)
    }
}

/// Gives QEMU its standard streams.
fn give_streams(command: &mut Command, config: &GuestConfig) {
    if config.console == Console::Terminal {
        return;
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    // A pipe whose reader has ended would stop a QEMU that lives on.
    command.stderr(if config.outlives_parent { Stdio::null() } else { Stdio::piped() });
}

/// Sets what happens in the child between fork and exec: it keeps the sockets, and it ends with its
/// parent or, if it may outlive it, leaves the parent's session.
fn prepare_child(
    command: &mut Command,
    inherited: Vec<Arc<OwnedFd>>,
    small_pages: Option<SmallPages>,
    outlives_parent: bool,
) {
    let parent = rustix::process::getpid();
    let in_child = move || {
        for socket in &inherited {
            rustix::io::fcntl_setfd(socket, FdFlags::empty())?;
        }
        if let Some(small_pages) = &small_pages {
            small_pages.begin();
        }
        if outlives_parent {
            rustix::process::setsid()?;
            return Ok(());
        }
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before the line above: then no signal is coming.
        if rustix::process::getppid() != Some(parent) {
            return Err(rustix::io::Errno::SRCH.into());
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure only makes system calls, through rustix and
    // seccompiler, which is safe after a fork of a process with threads: it takes no lock and
    // allocates nothing (an `io::Error` from a number holds just the number).
    unsafe { command.pre_exec(in_child) };
}

/// Spawns the command in a thread that waits for it. That thread and no other may make the child:
/// the kernel's death signal follows the thread, not the process.
fn spawn_kept(
    mut command: Command,
    fate: &Arc<Fate>,
) -> io::Result<(JoinHandle<()>, u32, OwnedFd)> {
    let (sender, receiver) = mpsc::channel();
    let fate = Arc::clone(fate);
    let keeper = thread::Builder::new().name("guest-keeper".into()).spawn(move || {
        let spawned = command.spawn();
        // Closes our copies of QEMU's ends, so that its end is seen.
        drop(command);
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => {
                let _gone = sender.send(Err(error));
                return;
            }
        };
        let handle = match handle_of(child.id()) {
            Ok(handle) => handle,
            Err(error) => {
                let _ended = child.kill();
                let _reaped = child.wait();
                let _gone = sender.send(Err(error));
                return;
            }
        };
        let complaints = child.stderr.take();
        let _gone = sender.send(Ok((child.id(), handle)));
        if let Some(complaints) = complaints {
            listen(complaints, &fate.complaints);
        }
        let exit = child.wait().unwrap_or_default();
        *fate.exit.lock().unwrap_or_else(PoisonError::into_inner) = Some(exit);
        fate.ended.notify_all();
    })?;
    match receiver.recv() {
        Ok(Ok((pid, handle))) => Ok((keeper, pid, handle)),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::Error::other("the thread that keeps QEMU ended")),
    }
}

fn handle_of(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("the process has no id"))?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// Keeps the last of what QEMU writes to standard error, until QEMU closes it.
fn listen(mut from: ChildStderr, to: &Mutex<Vec<u8>>) {
    let mut bytes = [0; 1024];
    loop {
        match from.read(&mut bytes) {
            Ok(0) => return,
            Ok(len) => {
                let mut kept = to.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend_from_slice(&bytes[..len]);
                let excess = kept.len().saturating_sub(COMPLAINTS_MAX);
                kept.drain(..excess);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

fn not_started(config: &GuestConfig, source: io::Error) -> Error {
    let missing = source.kind() == io::ErrorKind::NotFound;
    let error = Error::io("start", config.program.display().to_string(), source);
    if missing {
        return error.hint("install QEMU: apt-get install qemu-system-x86 qemu-utils");
    }
    error
}

fn saved_terminal(config: &GuestConfig) -> Option<Termios> {
    let stdin = io::stdin();
    if config.console == Console::Terminal && stdin.is_terminal() {
        return rustix::termios::tcgetattr(&stdin).ok();
    }
    None
}

/// Puts the terminal back: a QEMU that was killed could not.
fn restore_terminal(terminal: Option<&Termios>) {
    if let Some(terminal) = terminal {
        let now = rustix::termios::OptionalActions::Now;
        let _restored = rustix::termios::tcsetattr(io::stdin(), now, terminal);
    }
}
