//! Running programs, and ending them when we are told to end.
//!
//! **Invariants**
//! - Every program that is started here, and every guest that is [registered](register), is told to
//!   end when this process gets SIGINT, SIGTERM or SIGHUP; then the work fails with `Cancelled`, and
//!   what it made is removed on the way out.
//! - A signal goes to a process handle, never to a number.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use model::{Error, Kind, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static NEXT: AtomicU64 = AtomicU64::new(0);
static RUNNING: Mutex<BTreeMap<u64, OwnedFd>> = Mutex::new(BTreeMap::new());

/// A process that is told to end when we are; dropped, it is forgotten.
pub struct Registered(u64);

impl Drop for Registered {
    fn drop(&mut self) {
        RUNNING.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// From now on a signal to end ends the registered processes first.
pub fn end_children_on_signals() -> Result<()> {
    ctrlc::set_handler(|| {
        INTERRUPTED.store(true, Ordering::SeqCst);
        for handle in RUNNING.lock().unwrap_or_else(PoisonError::into_inner).values() {
            let _ended = rustix::process::pidfd_send_signal(handle, Signal::TERM);
        }
    })
    .map_err(|source| Error::new(Kind::Bug, "listen for", "signals").caused_by(source))
}

/// Fails once we were told to end.
pub fn go_on() -> Result<()> {
    if INTERRUPTED.load(Ordering::SeqCst) {
        return Err(Error::new(Kind::Cancelled, "go on", "").because("told to stop"));
    }
    Ok(())
}

/// Has a child of ours told to end when we are. Call before it is waited for.
pub fn register(pid: u32) -> Result<Registered> {
    let handle = handle_of(pid)?;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner).insert(number, handle);
    let registered = Registered(number);
    go_on()?;
    Ok(registered)
}

/// Starts a program that runs beside us.
pub fn start(command: &mut Command) -> Result<(Child, Registered)> {
    go_on()?;
    let mut child = command.spawn().map_err(|source| not_started(command, source))?;
    match register(child.id()) {
        Ok(registered) => Ok((child, registered)),
        Err(error) => {
            let _ended = child.kill();
            let _reaped = child.wait();
            Err(error)
        }
    }
}

/// Runs a program to its end, its output shown.
pub fn run(command: &mut Command) -> Result<()> {
    let (mut child, _registered) = start(command)?;
    let status = child.wait().map_err(|source| not_started(command, source))?;
    succeeded(command, status, "")
}

/// Runs a program to its end with this on its standard input, and returns what it printed.
pub fn output(command: &mut Command, input: &str) -> Result<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (mut child, _registered) = start(command)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input says so by its status.
        let _written = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|source| not_started(command, source))?;
    succeeded(command, output.status, &String::from_utf8_lossy(&output.stderr))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program to its end with its output in a log, whose last lines a failure shows.
pub fn run_logged(command: &mut Command, log: &Path) -> Result<()> {
    let failed = |source| Error::io("write the log", log.display().to_string(), source);
    let to = File::options().append(true).create(true).open(log).map_err(failed)?;
    let begin = to.metadata().map_err(failed)?.len();
    command
        .stdin(Stdio::null())
        .stdout(to.try_clone().map_err(failed)?)
        .stderr(to.try_clone().map_err(failed)?);
    let (mut child, _registered) = start(command)?;
    let status = child.wait().map_err(|source| not_started(command, source))?;
    succeeded(command, status, &log_from(log, begin).unwrap_or_default())
}

fn log_from(log: &Path, begin: u64) -> io::Result<String> {
    let mut file = File::open(log)?;
    file.seek(SeekFrom::Start(begin))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Makes an unsuccessful end an error with the last lines of what the program said.
fn succeeded(command: &Command, status: ExitStatus, said: &str) -> Result<()> {
    go_on()?;
    if status.success() {
        return Ok(());
    }
    let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines[lines.len().saturating_sub(8)..].join("\n");
    let reason = if last.is_empty() { status.to_string() } else { format!("{status}\n{last}") };
    Err(Error::new(Kind::Invalid, "run", shown(command)).because(reason))
}

fn not_started(command: &Command, source: io::Error) -> Error {
    Error::io("run", shown(command), source)
}

/// Waits for a child at most this long; none when it still runs.
pub fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let failed = |source| Error::io("wait for", "a process", source);
    if let Some(status) = child.try_wait().map_err(failed)? {
        return Ok(Some(status));
    }
    let handle = handle_of(child.id())?;
    let limit = Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    };
    // A process handle is readable once the process has ended.
    let mut ended = [PollFd::new(&handle, PollFlags::IN)];
    match rustix::event::poll(&mut ended, Some(&limit)) {
        Ok(_) | Err(Errno::INTR) => child.try_wait().map_err(failed),
        Err(errno) => Err(failed(errno.into())),
    }
}

/// Tells a child to end, and after ten seconds ends it.
pub fn end(child: &mut Child) {
    if let Ok(None) = child.try_wait() {
        let told = handle_of(child.id())
            .map(|handle| rustix::process::pidfd_send_signal(handle, Signal::TERM));
        let ended = told.and_then(|_| wait(child, Duration::from_secs(10)));
        if !matches!(ended, Ok(Some(_))) {
            let _ended = child.kill();
        }
        let _reaped = child.wait();
    }
}

/// A handle of a process that has not been waited for.
fn handle_of(pid: u32) -> Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| Error::new(Kind::Bug, "look at", "a process without an id"))?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty())
        .map_err(|errno| Error::io("look at", "a process", errno.into()))
}

/// A command as one would type it.
pub fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| {
        let word = word.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:@,+%".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            word.into_owned()
        } else {
            format!("'{}'", word.replace('\'', "'\\''"))
        }
    }));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_one_would_type_it() {
        let mut command = Command::new("echo");
        command.args(["a-b", "", "it's"]);
        assert_eq!(shown(&command), "echo a-b '' 'it'\\''s'");
    }

    #[test]
    fn a_failure_shows_the_last_words_of_the_program() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two >&2; exit 3"]);
        let error = output(&mut command, "").unwrap_err();
        assert!(error.to_string().ends_with("exit status: 3\ntwo"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        std::fs::write(&log, "older\n").unwrap();
        let error = run_logged(&mut command, &log).unwrap_err();
        assert!(error.to_string().ends_with("one\ntwo"), "{error}");
    }

    #[test]
    fn input_arrives_and_output_returns() {
        assert_eq!(output(&mut Command::new("cat"), "x\n").unwrap(), "x\n");
    }
}
