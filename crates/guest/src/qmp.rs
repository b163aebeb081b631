//! QEMU's control channel (QMP): one JSON object on each line, both ways.
//!
//! Lenient: what is not understood is skipped, so that other versions of QEMU can be talked to.
//!
//! **Invariants**
//! - A reply is matched by the number that its command carried.
//! - A line is at most [`LINE_MAX`] bytes; of events that nobody asked for the last [`EVENTS_MAX`]
//!   are kept.
//!
//! **Failure**: a QEMU that is silent gives `Unavailable` after the limit; one that ends, at once.
//!
//! **Source**: QEMU, docs/interop/qmp-spec.rst.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use model::{Error, Kind, Result};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::{Value, json};

use crate::lines::{Lines, NoLine};

/// The longest line taken, in bytes.
pub const LINE_MAX: usize = 4 * 1024 * 1024;

/// How many events are kept for a later wait.
pub const EVENTS_MAX: usize = 256;

/// For how long a command waits for its reply.
const REPLY_MAX: Duration = Duration::from_secs(30);

/// Something that QEMU said by itself, such as `SHUTDOWN`.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// QEMU's word for it.
    pub name: String,
    /// What goes with it; null where nothing does.
    pub data: Value,
}

/// A connection to QEMU's control channel. May be shared between threads: commands take turns.
#[derive(Debug)]
pub struct Qmp {
    channel: Mutex<Channel>,
}

#[derive(Debug)]
struct Channel {
    stream: UnixStream,
    lines: Lines,
    events: VecDeque<Event>,
    next_id: u64,
}

/// A line from QEMU, as far as it matters here.
enum Message {
    Greeting,
    Event(Event),
    Reply { id: Option<u64>, result: std::result::Result<Value, String> },
    Other,
}

impl Qmp {
    /// Greets QEMU on a connected socket.
    ///
    /// # Errors
    /// `Unavailable`: QEMU ended, or did not greet within `limit`.
    pub fn connect(stream: UnixStream, limit: Duration) -> Result<Qmp> {
        let lines = Lines::new(LINE_MAX);
        let mut channel = Channel { stream, lines, events: VecDeque::new(), next_id: 1 };
        let deadline = Instant::now() + limit;
        while !matches!(channel.message("greet", deadline)?, Message::Greeting) {}
        channel.execute("qmp_capabilities", None, None, deadline)?;
        Ok(Qmp { channel: Mutex::new(channel) })
    }

    /// Runs a command and returns its answer.
    ///
    /// # Errors
    /// `Invalid`: QEMU refused the command, with its words. `Unavailable`: QEMU ended or was silent
    /// for 30 s.
    pub fn execute(&self, command: &str, arguments: Option<Value>) -> Result<Value> {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        channel.execute(command, arguments, None, Instant::now() + REPLY_MAX)
    }

    /// Gives QEMU a descriptor under a name, by which later commands mean it.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub fn give_descriptor(&self, name: &str, descriptor: BorrowedFd<'_>) -> Result<()> {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        let arguments = Some(json!({ "fdname": name }));
        channel.execute("getfd", arguments, Some(descriptor), Instant::now() + REPLY_MAX)?;
        Ok(())
    }

    /// Waits for an event by its name; one that came since the last wait for it counts. Commands of
    /// other threads wait meanwhile.
    ///
    /// # Errors
    /// `Unavailable`: QEMU ended, or the event did not come within `limit`.
    pub fn wait_event(&self, name: &str, limit: Duration) -> Result<Event> {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = channel.events.iter().position(|event| event.name == name)
            && let Some(event) = channel.events.remove(at)
        {
            return Ok(event);
        }
        let deadline = Instant::now() + limit;
        loop {
            match channel.message(name, deadline)? {
                Message::Event(event) if event.name == name => return Ok(event),
                Message::Event(event) => channel.keep(event),
                _ => {}
            }
        }
    }

    /// The guest's run state, in QEMU's words: `running`, `paused`, `shutdown`...
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub fn status(&self) -> Result<String> {
        let answer = self.execute("query-status", None)?;
        Ok(answer["status"].as_str().unwrap_or("unknown").to_owned())
    }

    /// Presses the guest's power button. The guest may take its time or ignore it.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub fn system_powerdown(&self) -> Result<()> {
        self.execute("system_powerdown", None).map(drop)
    }

    /// Stops the guest's processors.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub fn stop(&self) -> Result<()> {
        self.execute("stop", None).map(drop)
    }

    /// Lets the guest's processors go on.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub fn cont(&self) -> Result<()> {
        self.execute("cont", None).map(drop)
    }

    /// Ends QEMU as if the power were cut, its own buffers flushed.
    ///
    /// # Errors
    /// `Invalid`: QEMU refused. That QEMU ended before it answered is no error.
    pub fn quit(&self) -> Result<()> {
        match self.execute("quit", None) {
            Err(error) if error.kind() != Kind::Unavailable => Err(error),
            _ => Ok(()),
        }
    }
}

impl Channel {
    fn execute(
        &mut self,
        command: &str,
        arguments: Option<Value>,
        descriptor: Option<BorrowedFd<'_>>,
        deadline: Instant,
    ) -> Result<Value> {
        let id = self.next_id;
        self.next_id += 1;
        let mut request = json!({ "execute": command, "id": id });
        if let Some(arguments) = arguments {
            request["arguments"] = arguments;
        }
        let line = format!("{request}\n");
        let sent = match descriptor {
            Some(descriptor) => send_with(&self.stream, line.as_bytes(), descriptor),
            None => Ok(0),
        };
        sent.and_then(|sent| self.stream.write_all(&line.as_bytes()[sent..]))
            .map_err(|source| gone(command).caused_by(source))?;
        loop {
            match self.message(command, deadline)? {
                // An error about a line that QEMU could not read carries no number.
                Message::Reply { id: of, result } if of == Some(id) || of.is_none() => {
                    return result.map_err(|reason| {
                        Error::new(Kind::Invalid, "ask QEMU for", command).because(reason)
                    });
                }
                Message::Event(event) => self.keep(event),
                _ => {}
            }
        }
    }

    fn keep(&mut self, event: Event) {
        if self.events.len() >= EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    fn message(&mut self, what: &str, deadline: Instant) -> Result<Message> {
        let line = self.line(what, deadline)?;
        Ok(understand(&line))
    }

    /// Takes the next line.
    fn line(&mut self, what: &str, deadline: Instant) -> Result<Vec<u8>> {
        self.lines.next(&self.stream, deadline).map_err(|error| match error {
            NoLine::TooLong => {
                gone(what).because(format!("a line is longer than {LINE_MAX} bytes"))
            }
            NoLine::Late => gone(what).because("QEMU did not answer in time"),
            NoLine::Ended => gone(what).because("QEMU ended"),
            NoLine::Failed(source) => gone(what).caused_by(source),
        })
    }
}

/// Sends the beginning of some bytes together with a descriptor. Returns how many those were.
fn send_with(stream: &UnixStream, bytes: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    Ok(rustix::net::sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::empty())?)
}

fn gone(what: &str) -> Error {
    Error::new(Kind::Unavailable, "ask QEMU for", what)
}

/// Reads a line; what is not understood is `Other`.
fn understand(line: &[u8]) -> Message {
    let Ok(mut value) = serde_json::from_slice::<Value>(line) else { return Message::Other };
    let id = value["id"].as_u64();
    if let Some(name) = value["event"].as_str() {
        return Message::Event(Event { name: name.to_owned(), data: value["data"].clone() });
    }
    if value.get("QMP").is_some() {
        return Message::Greeting;
    }
    if let Some(error) = value.get("error") {
        let reason = error["desc"].as_str().unwrap_or("no reason given").to_owned();
        return Message::Reply { id, result: Err(reason) };
    }
    match value.get_mut("return") {
        Some(answer) => Message::Reply { id, result: Ok(answer.take()) },
        None => Message::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read;
    use std::thread;

    const SOON: Duration = Duration::from_secs(10);

    /// A QEMU that has already said all it will ever say.
    fn connected(lines: &str) -> (Result<Qmp>, UnixStream) {
        let (ours, mut qemus) = UnixStream::pair().unwrap();
        qemus.write_all(lines.as_bytes()).unwrap();
        (Qmp::connect(ours, SOON), qemus)
    }

    #[test]
    fn replies_are_matched_by_number_and_events_are_kept() {
        let (qmp, mut qemu) = connected(
            "\n[1]\n{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n\
             {\"return\": {}, \"id\": 1}\n\
             {\"event\": \"RESUME\", \"timestamp\": {}}\n\
             {\"return\": {\"status\": \"stale\"}, \"id\": 77}\nnot json\n\
             {\"return\": {\"status\": \"running\"}, \"id\": 2}\n\
             {\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true}}\n",
        );
        let qmp = qmp.unwrap();
        assert_eq!(qmp.status().unwrap(), "running");
        assert_eq!(qmp.wait_event("SHUTDOWN", SOON).unwrap().data["guest"], true);
        assert_eq!(qmp.wait_event("RESUME", SOON).unwrap().data, Value::Null);
        let mut asked = [0; 200];
        let len = qemu.read(&mut asked).unwrap();
        let asked = String::from_utf8_lossy(&asked[..len]).into_owned();
        assert!(asked.contains("\"execute\":\"qmp_capabilities\""), "{asked}");
    }

    #[test]
    fn a_refusal_is_told_in_qemus_words() {
        let (qmp, _qemu) = connected(
            "{\"QMP\": {}}\n{\"return\": {}, \"id\": 1}\n\
             {\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"no such\"}, \"id\": 2}\n",
        );
        let error = qmp.unwrap().execute("x-unknown", None).unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string()),
            (Kind::Invalid, "ask QEMU for x-unknown: no such".to_owned())
        );
    }

    #[test]
    fn a_qemu_that_ends_or_is_silent_is_unavailable() {
        let (ours, qemus) = UnixStream::pair().unwrap();
        drop(qemus);
        assert_eq!(Qmp::connect(ours, SOON).unwrap_err().kind(), Kind::Unavailable);
        let (ours, _qemus) = UnixStream::pair().unwrap();
        let error = Qmp::connect(ours, Duration::from_millis(1)).unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let (ours, mut qemus) = UnixStream::pair().unwrap();
        let talker = thread::spawn(move || {
            let piece = vec![b'x'; 64 * 1024];
            while qemus.write_all(&piece).is_ok() {}
        });
        let error = Qmp::connect(ours, SOON).unwrap_err();
        assert!(error.to_string().contains("longer"), "{error}");
        talker.join().unwrap();
    }

    proptest! {
        #[test]
        fn any_line_is_understood_or_skipped(line in prop::collection::vec(any::<u8>(), 0..100)) {
            let _message = understand(&line);
        }
    }
}
