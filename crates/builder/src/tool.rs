//! Running other programs: with a log, a time limit, and an end that leaves nobody behind.
//!
//! **Invariants**
//! - A program that is started here is dead when [`run`] returns, with its group; one that is to
//!   leave nobody behind, whatever it starts, runs in namespaces of its own (see `contained`).
//! - It is killed when we are killed.
//! - A log takes at most [`LOG_LEN_MAX`] bytes of disk, whatever a program says.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use env::{Clock, SystemClock};
use model::progress::Cancel;
use model::{Error, Kind, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

/// The most that a log takes on disk.
pub(crate) const LOG_LEN_MAX: u64 = 64 << 20;

/// How many last lines an error shows, and how long each may be.
const LAST_LINES: usize = 8;
const LINE_LEN_MAX: usize = 400;

/// The most that a program may answer on its standard output.
const ANSWER_LEN_MAX: usize = 256 << 20;

/// How often a wait looks whether it was cancelled.
const LOOK: Duration = Duration::from_millis(100);

/// Where system programs are.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program of the system, with an environment that says nothing of ours.
pub(crate) fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env_clear().env("PATH", PATH).env("LC_ALL", "C.UTF-8").env("HOME", "/root");
    command
}

/// Fails where one of these programs is not installed.
///
/// # Errors
/// `NotFound`, with the Debian packages to install.
pub(crate) fn need(programs: &[(&str, &str)]) -> Result<()> {
    let is_there = |name: &str| PATH.split(':').any(|folder| Path::new(folder).join(name).exists());
    let missing: Vec<_> = programs.iter().filter(|(name, _)| !is_there(name)).collect();
    let Some((name, _)) = missing.first() else { return Ok(()) };
    let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    Err(Error::new(Kind::NotFound, "find the program", *name)
        .because("it is not installed")
        .hint(format!("apt-get install --no-install-recommends {}", packages.join(" "))))
}

/// What was said while a stage was built: whole in a file, its last lines at hand.
#[derive(Clone)]
pub(crate) struct Log(Arc<Mutex<Lines>>);

struct Lines {
    file: File,
    path: PathBuf,
    len: u64,
    last: VecDeque<String>,
    /// The line that has not ended.
    open: Vec<u8>,
}

impl Log {
    /// A new log in this file; what was in it is gone.
    pub(crate) fn create(path: &Path) -> Result<Log> {
        let failed = |error| Error::io("write the log", path.display().to_string(), error);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        let file = File::create(path).map_err(failed)?;
        let path = path.to_path_buf();
        let lines = Lines { file, path, len: 0, last: VecDeque::new(), open: Vec::new() };
        Ok(Log(Arc::new(Mutex::new(lines))))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> PathBuf {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).path.clone()
    }

    /// Adds what a program said.
    pub(crate) fn add(&self, bytes: &[u8]) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len + bytes.len() as u64 <= LOG_LEN_MAX {
            // A log that cannot be written must not end what it tells of.
            let _ = lines.file.write_all(bytes);
        }
        lines.len += bytes.len() as u64;
        for byte in bytes {
            if *byte == b'\n' {
                lines.end_line();
            } else if lines.open.len() < LINE_LEN_MAX {
                lines.open.push(*byte);
            }
        }
    }

    /// Adds a line of ours.
    pub(crate) fn say(&self, line: &str) {
        self.add(format!("== {line}\n").as_bytes());
        // Errors show what programs said, not what was said of them.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).last.clear();
    }

    /// The last lines since the last of ours, in one.
    pub(crate) fn last_lines(&self) -> String {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !lines.open.is_empty() {
            lines.end_line();
        }
        lines.last.iter().cloned().collect::<Vec<_>>().join(" | ")
    }
}

impl Lines {
    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.open)).into_owned();
        let clean: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        if clean.trim().is_empty() {
            return;
        }
        self.last.push_back(clean.trim().to_owned());
        if self.last.len() > LAST_LINES {
            self.last.pop_front();
        }
    }
}

/// How a program is run.
pub(crate) struct Run<'a> {
    /// Where it says things.
    pub log: &'a Log,
    /// The longest that it may take.
    pub limit: Duration,
    /// Ends it before.
    pub cancel: &'a Cancel,
}

/// How a program ended.
#[derive(Debug)]
pub(crate) enum End {
    /// By itself.
    Exited(ExitStatus),
    /// It took too long, and was killed.
    TimedOut,
    /// It was killed since it might not go on.
    Stopped,
}

impl Run<'_> {
    /// Runs a program to its end, or as long as it may go on; all that it says in the log.
    ///
    /// # Errors
    /// `Cancelled`, after it was killed.
    pub(crate) fn to_end_while(
        &self,
        command: &mut Command,
        may_go_on: &dyn Fn() -> bool,
    ) -> Result<End> {
        self.collect(command, false, may_go_on).map(|(end, _)| end)
    }

    /// Runs a program that must succeed.
    ///
    /// # Errors
    /// `Unavailable` with its last lines where it did not.
    pub(crate) fn succeed(&self, command: &mut Command) -> Result<()> {
        self.answer_or_nothing(command, false).map(drop)
    }

    /// Runs a program that must succeed; what it said on its standard output, which is not logged.
    pub(crate) fn answer(&self, command: &mut Command) -> Result<Vec<u8>> {
        self.answer_or_nothing(command, true)
    }

    fn answer_or_nothing(&self, command: &mut Command, answers: bool) -> Result<Vec<u8>> {
        let name = command.get_program().to_string_lossy().into_owned();
        let (end, answer) = self.collect(command, answers, &|| true)?;
        let why = match end {
            End::Exited(status) if status.success() => return Ok(answer),
            End::Exited(status) => status.to_string(),
            End::TimedOut => format!("it took longer than {} s", self.limit.as_secs()),
            End::Stopped => "it was ended".to_owned(),
        };
        let last = self.log.last_lines();
        let colon = if last.is_empty() { "" } else { ": " };
        Err(Error::new(Kind::Unavailable, "run", name)
            .because(format!("{why}{colon}{last}"))
            .hint(format!("all that was said is in {}", self.log.path().display())))
    }

    fn collect(
        &self,
        command: &Command,
        answers: bool,
        may_go_on: &dyn Fn() -> bool,
    ) -> Result<(End, Vec<u8>)> {
        let name = command.get_program().to_string_lossy().into_owned();
        self.cancel.check("run", &name)?;
        let failed = |error| Error::io("run", &name, error);
        let (reader, writer) = std::io::pipe().map_err(failed)?;
        let mut command = ending_with_us(command);
        command.stdin(Stdio::null()).stderr(writer.try_clone().map_err(failed)?);
        if answers {
            command.stdout(Stdio::piped());
            drop(writer);
        } else {
            command.stdout(writer);
        }
        let mut child = command.process_group(0).spawn().map_err(failed)?;
        // The command holds our ends of the pipe: readers would wait for ever.
        drop(command);
        let output = child.stdout.take();
        let log = self.log.clone();
        let logger = std::thread::spawn(move || follow(reader, &mut |bytes| log.add(bytes)));
        let answer = output.map(|output| {
            std::thread::spawn(move || {
                let mut answer = Vec::new();
                follow(output, &mut |bytes| {
                    let room = ANSWER_LEN_MAX - answer.len();
                    answer.extend_from_slice(&bytes[..bytes.len().min(room)]);
                });
                answer
            })
        });
        let end = self.wait(&mut child, &name, may_go_on);
        kill_group(&mut child);
        let _ = logger.join();
        let answer = answer.and_then(|answer| answer.join().ok()).unwrap_or_default();
        Ok((end?, answer))
    }

    fn wait(&self, child: &mut Child, name: &str, may_go_on: &dyn Fn() -> bool) -> Result<End> {
        let failed = |error| Error::io("wait for", name, error);
        let deadline = SystemClock.monotonic() + self.limit;
        loop {
            if let Some(status) = wait_for(child, LOOK).map_err(failed)? {
                return Ok(End::Exited(status));
            }
            self.cancel.check("run", name)?;
            if !may_go_on() {
                return Ok(End::Stopped);
            }
            if SystemClock.monotonic() >= deadline {
                return Ok(End::TimedOut);
            }
        }
    }
}

fn follow(mut from: impl Read, take: &mut dyn FnMut(&[u8])) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(len) => take(&buffer[..len]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// The same program, killed when the thread that starts it ends, and so when we are killed.
fn ending_with_us(command: &Command) -> Command {
    let mut wrapped = program("setpriv");
    wrapped.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        wrapped.current_dir(folder);
    }
    wrapped
}

/// Waits for a child at most this long.
pub(crate) fn wait_for(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    if let Some(status) = child.try_wait()? {
        return Ok(Some(status));
    }
    let Some(pid) = pid_of(child) else { return Ok(None) };
    let handle = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let limit = Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    };
    // A process handle is readable once the process has ended.
    match rustix::event::poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&limit)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => child.try_wait(),
        Err(errno) => Err(errno.into()),
    }
}

fn pid_of(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

/// Kills a child that leads a group, with the group, and waits for it.
pub(crate) fn kill_group(child: &mut Child) {
    if let Some(pid) = pid_of(child) {
        // There may be nobody left.
        let _ = rustix::process::kill_process_group(pid, Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_log(check: impl FnOnce(Run)) {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::create(&folder.path().join("log")).unwrap();
        check(Run { log: &log, limit: Duration::from_secs(60), cancel: &Cancel::new() });
    }

    fn shell(script: &str) -> Command {
        let mut command = program("sh");
        command.arg("-c").arg(script);
        command
    }

    #[test]
    fn a_failure_shows_the_last_lines_of_what_was_said() {
        with_log(|run| {
            let error =
                run.succeed(&mut shell("seq 1 99; printf 'end\\033' >&2; exit 3")).unwrap_err();
            let text = error.to_string();
            assert!(
                text.ends_with("exit status: 3: 93 | 94 | 95 | 96 | 97 | 98 | 99 | end"),
                "{text}"
            );
            let whole = std::fs::read_to_string(run.log.path()).unwrap();
            assert!(whole.starts_with("1\n2\n"));
        });
    }

    #[test]
    fn an_answer_is_what_was_said_on_standard_output() {
        with_log(|run| {
            assert_eq!(run.answer(&mut shell("echo said >&2; echo yes")).unwrap(), b"yes\n");
            assert_eq!(run.log.last_lines(), "said");
        });
    }

    #[test]
    fn a_program_that_takes_too_long_is_killed_with_its_children() {
        with_log(|run| {
            let run = Run { limit: Duration::from_millis(300), ..run };
            // The child of the shell has the log open too: unless it dies, this waits for ever.
            let end = run.to_end_while(&mut shell("sleep 1000 & wait"), &|| true).unwrap();
            assert!(matches!(end, End::TimedOut));
        });
    }
}
