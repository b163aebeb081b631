//! QEMU's agent in a guest: its file systems stand still for a moment.
//!
//! ```text
//! sync ─► freeze ─────────────► (the disk is sealed) ─► thaw ─► how long that was
//!            └ guard: a process that thaws when this one is gone
//!            └ watch: a thread that thaws after 10 s
//! ```
//!
//! One JSON object on each line, both ways, as with QMP, but without a greeting and without numbers on
//! the answers: so a number goes to and fro first, after which what comes is ours.
//!
//! **Invariants**
//! - No freeze is asked for before the agent has answered something.
//! - What was frozen, or may have been, is thawed: by the caller, when the value is dropped, after
//!   [`HOLD_MAX`], or when this process ends, however it ends.
//! - A line is at most [`LINE_LEN_MAX`] bytes.
//!
//! **Failure**: a guest without an agent does not answer; nothing has happened to it then. What it was
//! sent waits in its port, and an agent that starts later answers a number to nobody.
//!
//! **Not here**: commands other than these; who listens on the socket (`arguments`).
//!
//! **Source**: QEMU, docs/interop/qemu-ga-ref, `guest-sync-delimited`, `guest-fsfreeze-*`.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use model::{Error, Kind, Result};
use serde_json::{Value, json};

/// The longest line taken, in bytes.
pub const LINE_LEN_MAX: usize = 64 << 10;

/// The longest that file systems are kept still.
pub const HOLD_MAX: Duration = Duration::from_secs(10);

/// For how long an agent may take to answer at all.
const SYNC_MAX: Duration = Duration::from_secs(10);

/// For how long a guest may take to write out and to stop writing.
const FREEZE_MAX: Duration = Duration::from_secs(60);

/// For how long it may take to go on.
const THAW_MAX: Duration = Duration::from_secs(30);

/// Stands before a message that begins anew, whatever came before it.
const DELIMITER: u8 = 0xff;

/// Waits for a word or for its giver's end; then thaws, and stays a while so that the message is read.
const GUARD: &str = "trap '' HUP INT TERM; read -r word || { \
    printf '\\377%s\\n' '{\"execute\":\"guest-fsfreeze-thaw\"}'; \
    exec timeout 30 cat <&1 >/dev/null; }";

/// A connection to an agent that has answered.
#[derive(Debug)]
pub struct GuestAgent {
    stream: UnixStream,
    /// Bytes that came after the last whole line.
    pending: Vec<u8>,
    /// An answer did not come in time, and may come yet.
    is_behind: bool,
}

/// File systems that stand still. Dropped, they are thawed.
pub struct Frozen {
    shared: Arc<Mutex<Hold>>,
    file_system_count: u64,
    /// Ends the watch when it is dropped.
    end: Option<Sender<()>>,
    watch: Option<JoinHandle<()>>,
}

/// What is thawed once, by whoever comes first.
struct Hold {
    agent: GuestAgent,
    guard: Option<Guard>,
    began: Instant,
    /// How long it was held, once it is thawed.
    held: Option<Duration>,
    is_late: bool,
}

/// A process that thaws when this one is gone.
struct Guard {
    process: Child,
}

fn lock(hold: &Mutex<Hold>) -> MutexGuard<'_, Hold> {
    hold.lock().unwrap_or_else(PoisonError::into_inner)
}

fn silent(what: &'static str) -> Error {
    Error::new(Kind::Unavailable, what, "the guest agent")
}

impl GuestAgent {
    /// Speaks with the agent behind a connected socket.
    ///
    /// # Errors
    /// `Unavailable`: nobody answers, since the guest has no agent, is not that far yet, or somebody
    /// else is speaking with it. Nothing has happened to the guest.
    pub fn greet(stream: UnixStream) -> Result<GuestAgent> {
        Self::greet_within(stream, SYNC_MAX)
    }

    fn greet_within(stream: UnixStream, limit: Duration) -> Result<GuestAgent> {
        let mut agent = GuestAgent { stream, pending: Vec::new(), is_behind: false };
        match agent.sync(Instant::now() + limit) {
            Ok(()) => Ok(agent),
            Err(error) => Err(silent("greet").because("it does not answer").caused_by(error).hint(
                "install `qemu-guest-agent` in the guest and wait until it runs, or commit without \
                 `--quiesce`",
            )),
        }
    }

    /// Has the guest write out what its file systems hold, and stop writing.
    ///
    /// # Errors
    /// `Refused`: the agent refused, in its words. `Unavailable`: it did not answer in time, or no
    /// process could be started that would thaw if this one ended. The guest goes on in any case.
    pub fn freeze(self) -> Result<Frozen> {
        let guard = Guard::start(&self.stream).map_err(|error| {
            Error::io("start", "the process that thaws the guest if this one ends", error)
        })?;
        let hold = Hold {
            agent: self,
            guard: Some(guard),
            began: Instant::now(),
            held: None,
            is_late: false,
        };
        // From here on, whatever happens, it is thawed when this is dropped.
        let mut frozen = Frozen {
            shared: Arc::new(Mutex::new(hold)),
            file_system_count: 0,
            end: None,
            watch: None,
        };
        let answer = lock(&frozen.shared).agent.execute("guest-fsfreeze-freeze", FREEZE_MAX)?;
        frozen.file_system_count = answer.as_u64().unwrap_or_default();
        lock(&frozen.shared).began = Instant::now();
        frozen.start_watch(HOLD_MAX)?;
        Ok(frozen)
    }

    /// Has the agent say a number, so that what comes after that is an answer to what comes after this.
    fn sync(&mut self, deadline: Instant) -> Result<()> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed) | u64::from(std::process::id()) << 20;
        let request = json!({ "execute": "guest-sync-delimited", "arguments": { "id": number } });
        self.send(&[DELIMITER], &request)?;
        // Answers to others, and what another said before, are passed over.
        while self.answer("greet", deadline)? != Ok(Value::from(number)) {}
        self.is_behind = false;
        Ok(())
    }

    fn send(&mut self, prefix: &[u8], request: &Value) -> Result<()> {
        let mut bytes = prefix.to_vec();
        bytes.extend(format!("{request}\n").as_bytes());
        // A guest that does not read must not hold us up.
        self.stream
            .set_write_timeout(Some(SYNC_MAX))
            .and_then(|()| self.stream.write_all(&bytes))
            .map_err(|error| silent("ask").caused_by(error))
    }

    fn execute(&mut self, command: &'static str, limit: Duration) -> Result<Value> {
        let deadline = Instant::now() + limit;
        if self.is_behind {
            self.sync(deadline)?;
        }
        self.send(&[], &json!({ "execute": command }))?;
        let answer = self.answer(command, deadline).inspect_err(|_| self.is_behind = true)?;
        answer.map_err(|reason| {
            Error::new(Kind::Refused, "ask the guest agent for", command)
                .because(reason)
                .hint("the agent's settings may forbid it; commit without `--quiesce`")
        })
    }

    /// The next answer: a value, or the agent's words for why not. What is neither is passed over.
    fn answer(
        &mut self,
        what: &'static str,
        deadline: Instant,
    ) -> Result<std::result::Result<Value, String>> {
        loop {
            let line = self.line(what, deadline)?;
            let start = line.iter().rposition(|byte| *byte == DELIMITER).map_or(0, |at| at + 1);
            if let Some(answer) = understand(&line[start..]) {
                return Ok(answer);
            }
        }
    }

    fn line(&mut self, what: &'static str, deadline: Instant) -> Result<Vec<u8>> {
        let failed = |reason: &str| silent(what).because(reason);
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let rest = self.pending.split_off(end + 1);
                return Ok(std::mem::replace(&mut self.pending, rest));
            }
            if self.pending.len() > LINE_LEN_MAX {
                return Err(failed("it sent a line that is too long"));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(failed("no answer in time"));
            }
            let mut bytes = [0; 4096];
            let read = self
                .stream
                .set_read_timeout(Some(left))
                .and_then(|()| self.stream.read(&mut bytes));
            match read {
                Ok(0) => return Err(failed("the connection ended")),
                Ok(len) => self.pending.extend_from_slice(&bytes[..len]),
                Err(error) if is_no_answer(&error) => {}
                Err(error) => return Err(silent(what).caused_by(error)),
            }
        }
    }
}

fn is_no_answer(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}

/// What a line says, where it is an answer.
fn understand(line: &[u8]) -> Option<std::result::Result<Value, String>> {
    let mut value: Value = serde_json::from_slice(line).ok()?;
    if let Some(error) = value.get("error") {
        return Some(Err(error["desc"].as_str().unwrap_or("no reason given").to_owned()));
    }
    value.get_mut("return").map(|answer| Ok(answer.take()))
}

impl Frozen {
    /// How many file systems stand still.
    pub fn file_system_count(&self) -> u64 {
        self.file_system_count
    }

    /// Lets them go on. Returns how long they stood still.
    ///
    /// # Errors
    /// `Unavailable`: they went on before this was called, after [`HOLD_MAX`], so that what was read
    /// meanwhile may be no state that they had; or the agent did not answer, and they stand still as
    /// long as that lasts.
    pub fn thaw(mut self) -> Result<Duration> {
        let thawed = self.end_hold();
        self.end_watch();
        thawed
    }

    fn end_hold(&self) -> Result<Duration> {
        let mut hold = lock(&self.shared);
        match hold.thaw()? {
            _ if hold.is_late => Err(Error::new(Kind::Unavailable, "hold still", "the guest")
                .because(format!("it was let go after {} s", HOLD_MAX.as_secs()))
                .hint("try again when the host has less to do")),
            held => Ok(held),
        }
    }

    fn start_watch(&mut self, limit: Duration) -> Result<()> {
        let (end, ended) = channel();
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new().name("thaw".into());
        let watch = thread.spawn(move || {
            if ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                let mut hold = lock(&shared);
                hold.is_late = hold.held.is_none();
                if let Err(error) = hold.thaw() {
                    tracing::error!("{}", error.chain());
                }
            }
        });
        self.watch = Some(watch.map_err(|e| Error::io("start", "a thread that thaws", e))?);
        self.end = Some(end);
        Ok(())
    }

    fn end_watch(&mut self) {
        drop(self.end.take());
        if let Some(watch) = self.watch.take() {
            let _ = watch.join();
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(error) = lock(&self.shared).thaw() {
            tracing::error!("{}", error.chain());
        }
        self.end_watch();
    }
}

impl Hold {
    /// Thaws, unless that was done. Where the agent does not answer, the guard goes on trying.
    fn thaw(&mut self) -> Result<Duration> {
        if let Some(held) = self.held {
            return Ok(held);
        }
        let thawed = self.agent.execute("guest-fsfreeze-thaw", THAW_MAX);
        let held = self.began.elapsed();
        self.held = Some(held);
        if let Some(guard) = self.guard.take() {
            guard.end(thawed.is_ok());
        }
        thawed.map(|_| held)
    }
}

impl Guard {
    fn start(stream: &UnixStream) -> io::Result<Guard> {
        let socket = OwnedFd::from(stream.try_clone()?);
        let mut command = Command::new("/bin/sh");
        command.args(["-c", GUARD]).stdin(Stdio::piped()).stdout(socket).stderr(Stdio::null());
        // What ends our process group must not end it.
        let process = command.process_group(0).spawn()?;
        Ok(Guard { process })
    }

    /// Lets it go: with a word where it has nothing to do.
    fn end(mut self, is_thawed: bool) {
        let Some(mut word) = self.process.stdin.take() else { return };
        if is_thawed {
            let _ = word.write_all(b"done\n");
        }
        drop(word);
        // It ends at once, or when it has done what we could not.
        let mut wait = move || drop(self.process.wait());
        match is_thawed {
            true => wait(),
            false => drop(std::thread::spawn(wait)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SOON: Duration = Duration::from_millis(20);

    #[test]
    fn an_agent_that_is_silent_ends_or_never_ends_its_line_is_unavailable() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let error = GuestAgent::greet_within(ours, SOON).unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.hint_text().unwrap().contains("qemu-guest-agent"));
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert_eq!(GuestAgent::greet(ours).unwrap_err().kind(), Kind::Unavailable);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let talker = std::thread::spawn(move || while theirs.write_all(&[b'x'; 4096]).is_ok() {});
        let error = GuestAgent::greet(ours).unwrap_err();
        assert!(error.chain().contains("too long"), "{}", error.chain());
        talker.join().unwrap();
    }

    proptest! {
        #[test]
        fn any_line_is_understood_or_passed_over(line in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = understand(&line);
        }
    }
}
