//! A guest's serial console that a program reads and types on.
//!
//! ```text
//!   guest --> socket --> reader thread --> unread text (bounded) --> wait_for
//!   guest <-- socket <------------------------------------------- send
//! ```
//!
//! **Invariants**
//! - The guest never waits for us: a thread takes what it says at once, and of what nobody has read
//!   only the last [`UNREAD_MAX`] bytes are kept.
//!
//! **Failure**: a guest that ends, or says nothing until the limit, gives an error that shows the
//! console's last lines; it never blocks for longer than the limit.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use model::{Error, Kind, Result};

use crate::screen::Screen;

/// How much unread text is kept, in bytes.
pub const UNREAD_MAX: usize = 256 * 1024;

/// How much of what was said last an error may show, in bytes.
const RECENT_MAX: usize = 8 * 1024;

/// How many of the console's last lines an error shows.
const ERROR_LINES: usize = 12;

/// What was waited for and came.
#[derive(Clone, Debug)]
pub struct Seen {
    /// What the guest said since the last wait, up to and with the pattern.
    pub text: String,
    /// For how long this wait lasted.
    pub waited: Duration,
}

/// A console that a program reads and types on.
pub struct ScriptedConsole {
    stream: UnixStream,
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
    /// How many commands were run: makes each one's marks its own.
    command_count: u64,
}

#[derive(Default)]
struct Shared {
    said: Mutex<Said>,
    changed: Condvar,
}

/// What the guest said.
#[derive(Default)]
struct Said {
    unread: String,
    recent: String,
    closed: bool,
}

impl ScriptedConsole {
    /// Takes over a connected console socket and begins to read it.
    ///
    /// # Errors
    /// `Unavailable`: no thread or descriptor is to be had; try again.
    pub fn new(stream: UnixStream) -> Result<Self> {
        let failed = |source: io::Error| Error::io("read", "the guest's console", source);
        let shared = Arc::new(Shared::default());
        let from = stream.try_clone().map_err(failed)?;
        let to = Arc::clone(&shared);
        let reader = thread::Builder::new()
            .name("guest-console".into())
            .spawn(move || take_all(from, &to))
            .map_err(failed)?;
        Ok(ScriptedConsole { stream, shared, reader: Some(reader), command_count: 0 })
    }

    /// Waits until the guest has said `pattern`, counted from the end of the last wait. Escape
    /// sequences and carriage returns are not part of what it said.
    ///
    /// # Errors
    /// `Unavailable`: the guest did not say it within `limit`, or ended; both show the console's
    /// last lines.
    pub fn wait_for(&mut self, pattern: &str, limit: Duration) -> Result<Seen> {
        let began = Instant::now();
        let mut said = self.shared.said.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(at) = said.unread.find(pattern) {
                let rest = said.unread.split_off(at + pattern.len());
                let text = std::mem::replace(&mut said.unread, rest);
                return Ok(Seen { text, waited: began.elapsed() });
            }
            let left = limit.saturating_sub(began.elapsed());
            if said.closed || left.is_zero() {
                let why = if said.closed {
                    format!("the guest ended after {:.1} s", began.elapsed().as_secs_f64())
                } else {
                    format!("it was not there within {:.1} s", limit.as_secs_f64())
                };
                return Err(not_seen(pattern, &why, &said.recent));
            }
            said = self
                .shared
                .changed
                .wait_timeout(said, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Types a line and the return key.
    ///
    /// # Errors
    /// `Unavailable`: the guest is gone.
    pub fn send(&mut self, line: &str) -> Result<()> {
        self.stream
            .write_all(format!("{line}\n").as_bytes())
            .map_err(|source| Error::io("type on", "the guest's console", source))
    }

    /// Waits for the login prompt, logs in as `user` without a password, and waits for the shell.
    /// Returns how long the prompt took to appear.
    ///
    /// # Errors
    /// As [`ScriptedConsole::wait_for`]; `limit` holds for each of the two waits.
    pub fn log_in(&mut self, user: &str, limit: Duration) -> Result<Duration> {
        let waited = self.wait_for("login: ", limit)?.waited;
        self.send(user)?;
        self.wait_for(if user == "root" { "# " } else { "$ " }, limit)?;
        Ok(waited)
    }

    /// Runs a command in the shell that is logged in and returns what it printed.
    ///
    /// # Errors
    /// As [`ScriptedConsole::wait_for`]; `Invalid` when the command fails, with what it printed.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<String> {
        self.command_count += 1;
        let count = self.command_count;
        // Quotes in the marks: the terminal's echo of the line is not mistaken for their output.
        self.send(&format!("echo '<'begin {count}'>'; {command}; echo '<'end {count} $?'>'"))?;
        self.wait_for(&format!("<begin {count}>\n"), limit)?;
        let mut printed = self.wait_for(&format!("<end {count} "), limit)?.text;
        printed.truncate(printed.len().saturating_sub(format!("<end {count} ").len()));
        let status = self.wait_for(">", limit)?.text;
        let status = status.trim_end_matches('>').trim();
        if status == "0" {
            return Ok(printed.trim_end_matches('\n').to_owned());
        }
        Err(Error::new(Kind::Invalid, "run in the guest", format!("`{command}`"))
            .because(format!("it ended with {status}: {}", last_lines(&printed, ERROR_LINES))))
    }

    /// The last lines that the guest said, read or not.
    pub fn last_lines(&self, count: usize) -> String {
        let said = self.shared.said.lock().unwrap_or_else(PoisonError::into_inner);
        last_lines(&said.recent, count)
    }
}

impl Drop for ScriptedConsole {
    fn drop(&mut self) {
        let _closed = self.stream.shutdown(std::net::Shutdown::Both);
        if let Some(reader) = self.reader.take() {
            let _joined = reader.join();
        }
    }
}

/// Reads the console until it is closed.
fn take_all(mut from: UnixStream, to: &Shared) {
    let mut screen = Screen::default();
    let mut bytes = [0; 4096];
    loop {
        let len = match from.read(&mut bytes) {
            Ok(0) => break,
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        let mut text = String::new();
        screen.feed(&bytes[..len], &mut text);
        let mut said = to.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.unread.push_str(&text);
        keep_last(&mut said.unread, UNREAD_MAX);
        said.recent.push_str(&text);
        keep_last(&mut said.recent, RECENT_MAX);
        to.changed.notify_all();
    }
    to.said.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
    to.changed.notify_all();
}

/// Drops the beginning of a text that is longer than `max` bytes, at a character's boundary.
fn keep_last(text: &mut String, max: usize) {
    if text.len() > max {
        let from = text.ceil_char_boundary(text.len() - max);
        text.drain(..from);
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> =
        text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn not_seen(pattern: &str, why: &str, recent: &str) -> Error {
    let lines = last_lines(recent, ERROR_LINES);
    let shown = if lines.is_empty() { "nothing".to_owned() } else { format!("\n{lines}") };
    Error::new(Kind::Unavailable, "wait on the guest's console for", format!("{pattern:?}"))
        .because(format!("{why}; it last said: {shown}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn pair() -> (ScriptedConsole, UnixStream) {
        let (ours, guests) = UnixStream::pair().unwrap();
        (ScriptedConsole::new(ours).unwrap(), guests)
    }

    #[test]
    fn a_pattern_is_found_across_pieces_and_each_wait_begins_where_the_last_ended() {
        let (mut console, mut guest) = pair();
        guest.write_all(b"deb\x1b[1mian log").unwrap();
        let typist = thread::spawn(move || {
            guest.write_all(b"in: x login: ").unwrap();
            guest
        });
        assert_eq!(console.wait_for("login: ", SOON).unwrap().text, "debian login: ");
        assert_eq!(console.wait_for("login: ", SOON).unwrap().text, "x login: ");
        let _guest = typist.join().unwrap();
        assert!(console.wait_for("login: ", Duration::ZERO).is_err());
    }

    #[test]
    fn a_wait_in_vain_shows_the_last_lines() {
        let (mut console, mut guest) = pair();
        guest.write_all(b"one\r\nKernel panic\r\n> ").unwrap();
        console.wait_for("> ", SOON).unwrap();
        let error = console.wait_for("login:", Duration::from_millis(1)).unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.to_string().contains("Kernel panic"), "{error}");
        drop(guest);
        let error = console.wait_for("login:", SOON).unwrap_err();
        assert!(error.to_string().contains("ended"), "{error}");
    }

    #[test]
    fn a_guest_that_talks_without_end_does_not_fill_memory() {
        let (mut console, mut guest) = pair();
        let line = [b'x'; 4096];
        for _ in 0..(UNREAD_MAX / line.len() + 20) {
            guest.write_all(&line).unwrap();
        }
        guest.write_all(b"\nlogin: ").unwrap();
        let seen = console.wait_for("login: ", SOON).unwrap();
        assert!(seen.text.len() <= UNREAD_MAX);
    }

    #[test]
    fn a_command_returns_what_it_printed_and_a_failed_one_its_status() {
        let (mut console, mut guest) = pair();
        guest
            .write_all(
                b"# echo '<'begin 1'>'; uname; echo '<'end 1 $?'>'\r\n<begin 1>\r\nLinux\r\n<end 1 0>\r\n# \
                  <begin 2>\r\nno\r\n<end 2 3>\r\n# ",
            )
            .unwrap();
        assert_eq!(console.run("uname", SOON).unwrap(), "Linux");
        let error = console.run("false", SOON).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.to_string().contains("ended with 3: no"), "{error}");
        let mut typed = [0; 60];
        let len = guest.read(&mut typed).unwrap();
        assert!(typed[..len].starts_with(b"echo '<'begin 1'>'; uname; echo "));
    }
}
