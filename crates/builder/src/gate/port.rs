//! A serial port of a guest, as text that is kept and waited for.
//!
//! **Invariants**: the guest never waits for us; of what it says, the last [`KEPT_MAX`] bytes are kept.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use guest::screen::Screen;
use model::progress::Cancel;
use model::{Error, Kind, Result};

/// How much of what a guest says is kept, in bytes.
const KEPT_MAX: usize = 1 << 20;

/// How often a wait looks whether it was cancelled.
const LOOK: Duration = Duration::from_millis(200);

/// How many of the last lines an error shows.
const LINES: usize = 8;

/// A port.
pub(crate) struct Port {
    stream: UnixStream,
    shared: Arc<Shared>,
    /// How far was read, from the beginning of all that was ever said.
    read: usize,
    command_count: u64,
}

#[derive(Default)]
struct Shared {
    said: Mutex<Said>,
    changed: Condvar,
}

#[derive(Default)]
struct Said {
    text: String,
    /// What was dropped in front of the text, in bytes.
    dropped: usize,
    is_closed: bool,
}

/// Why something that was waited for did not come.
#[derive(Debug)]
pub(crate) struct NotSeen(pub String);

impl Port {
    /// Begins to read a port.
    pub(crate) fn new(stream: UnixStream) -> Result<Port> {
        let failed = |error| Error::io("read", "a port of the guest", error);
        let mut from = stream.try_clone().map_err(failed)?;
        let shared = Arc::new(Shared::default());
        let to = shared.clone();
        std::thread::Builder::new()
            .name("guest-port".into())
            .spawn(move || {
                let (mut screen, mut bytes) = (Screen::default(), [0; 4096]);
                loop {
                    let len = match from.read(&mut bytes) {
                        Ok(0) => break,
                        Ok(len) => len,
                        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                        Err(_) => break,
                    };
                    let mut said = to.said.lock().unwrap_or_else(PoisonError::into_inner);
                    screen.feed(&bytes[..len], &mut said.text);
                    if said.text.len() > KEPT_MAX {
                        let from = said.text.ceil_char_boundary(said.text.len() - KEPT_MAX);
                        said.text.drain(..from);
                        said.dropped += from;
                    }
                    to.changed.notify_all();
                }
                to.said.lock().unwrap_or_else(PoisonError::into_inner).is_closed = true;
                to.changed.notify_all();
            })
            .map_err(failed)?;
        Ok(Port { stream, shared, read: 0, command_count: 0 })
    }

    /// Waits until the guest has said something, counted from the end of the last wait; what it said
    /// until then.
    ///
    /// # Errors
    /// Outside: `Cancelled`. Inside: the guest did not say it before the deadline, or ended.
    pub(crate) fn wait_for(
        &mut self,
        pattern: &str,
        deadline: Instant,
        cancel: &Cancel,
    ) -> Result<std::result::Result<String, NotSeen>> {
        let mut said = self.shared.said.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let from = self.read.saturating_sub(said.dropped);
            if let Some(at) = said.text[from..].find(pattern) {
                let end = from + at + pattern.len();
                self.read = said.dropped + end;
                return Ok(Ok(said.text[from..end].to_owned()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if said.is_closed || left.is_zero() {
                let why = if said.is_closed { "the guest ended" } else { "the time is over" };
                return Ok(Err(NotSeen(format!(
                    "{why}; it last said: {}",
                    last_lines(&said.text)
                ))));
            }
            let waited = self.shared.changed.wait_timeout(said, left.min(LOOK));
            said = waited.unwrap_or_else(PoisonError::into_inner).0;
            cancel.check("test", "the guest")?;
        }
    }

    /// Runs a command in the shell that is at the port; what it printed, and its exit code.
    pub(crate) fn run(
        &mut self,
        command: &str,
        deadline: Instant,
        cancel: &Cancel,
    ) -> Result<std::result::Result<(String, i32), NotSeen>> {
        self.command_count += 1;
        let count = self.command_count;
        // Quotes in the marks: the terminal's echo of the line is not mistaken for their output.
        let line = format!("echo '<'begin {count}'>'; {command}; echo '<'end {count} $?'>'\n");
        if self.stream.write_all(line.as_bytes()).is_err() {
            return Ok(Err(NotSeen("the guest ended".into())));
        }
        let end = format!("<end {count} ");
        for pattern in [format!("<begin {count}>\n"), end.clone()] {
            let seen = match self.wait_for(&pattern, deadline, cancel)? {
                Ok(seen) => seen,
                Err(not_seen) => return Ok(Err(not_seen)),
            };
            if pattern == end {
                let printed = seen.strip_suffix(&end).unwrap_or_default().to_owned();
                return Ok(match self.wait_for(">", deadline, cancel)? {
                    Ok(code) => {
                        Ok((printed, code.trim_end_matches('>').trim().parse().unwrap_or(-1)))
                    }
                    Err(not_seen) => Err(not_seen),
                });
            }
        }
        Err(Error::new(Kind::Bug, "run in the guest", command))
    }

    /// All that is kept.
    pub(crate) fn text(&self) -> String {
        self.shared.said.lock().unwrap_or_else(PoisonError::into_inner).text.clone()
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> =
        text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() {
        return "nothing".into();
    }
    lines[lines.len().saturating_sub(LINES)..].join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn a_port_is_waited_for_in_order_and_keeps_the_last_of_what_was_said() {
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let (mut port, cancel) = (Port::new(ours).unwrap(), Cancel::new());
        guest.write_all(b"\x1b[1mdebian\x1b[0m login: ").unwrap();
        let seen = port.wait_for("login: ", soon(), &cancel).unwrap().unwrap();
        assert_eq!(seen, "debian login: ");
        let passed = port.wait_for("login: ", Instant::now(), &cancel).unwrap().unwrap_err();
        assert!(passed.0.contains("time is over"), "{}", passed.0);
        let line = [b'x'; 4096];
        (0..KEPT_MAX / 4096 + 10).for_each(|_| guest.write_all(&line).unwrap());
        guest.write_all(b"\nend").unwrap();
        port.wait_for("\nend", soon(), &cancel).unwrap().unwrap();
        assert!(port.text().len() <= KEPT_MAX);
        drop(guest);
        let ended = port.wait_for("more", soon(), &cancel).unwrap().unwrap_err();
        assert!(ended.0.contains("the guest ended"), "{}", ended.0);
        cancel.cancel();
        let (ours, _guest) = UnixStream::pair().unwrap();
        assert!(Port::new(ours).unwrap().wait_for("x", soon(), &cancel).is_err());
    }

    #[test]
    fn a_command_gives_what_it_printed_and_its_code() {
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let (mut port, cancel) = (Port::new(ours).unwrap(), Cancel::new());
        guest.write_all(b"echo '<'begin 1'>'; x; echo '<'end 1 $?'>'\r\n<begin 1>\r\na\r\nb\r\n<end 1 3>\r\n# ").unwrap();
        let ran = port.run("x", soon(), &cancel).unwrap().unwrap();
        assert_eq!(ran, ("a\nb\n".to_owned(), 3));
        let mut typed = [0; 30];
        guest.read_exact(&mut typed).unwrap();
        assert!(typed.starts_with(b"echo '<'begin 1'>'; x; echo"));
    }
}
