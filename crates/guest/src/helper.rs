//! The helper in the guest, as the host speaks with it: a line there, a line back.
//!
//! ```text
//!   Helper::send "7 machine-id 0123..." --> virtio-serial port --> helper.sh in the guest
//!   Helper::answer  <-- "7 ok 0123..." <--------------------------'
//! ```
//!
//! What is said is in `docs/guest-helper.md`. How the script gets into the guest is in [`install`].
//!
//! **Invariants**
//! - Every wait has a limit, for writing too: a guest that does not read stops us no longer.
//! - A line is at most [`LINE_MAX`] bytes; an answer belongs to the command whose number it carries,
//!   and numbers begin at random, so that what an earlier life of the guest left says nothing.
//! - What goes into a command is checked here: a value never becomes a second command.
//!
//! **Failure**: the guest is not trusted. It can lie about itself, be silent or talk without end;
//! the first is its own affair, the others are `Unavailable` at the limit.

pub mod install;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use env::{Clock, Entropy, SystemEntropy};
use model::{Error, Kind, Result};

use crate::lines::{Lines, NoLine, is_passing, time_left};

/// The longest line taken from the guest, in bytes.
pub const LINE_MAX: usize = 4096;

/// The longest file given to the guest, in bytes.
pub const FILE_LEN_MAX: usize = 16 << 20;

/// What the helper in a guest answers a ping with.
const GREETING: &str = "larder-helper 1";

/// A connection to the helper in a guest.
#[derive(Debug)]
pub struct Helper {
    stream: UnixStream,
    lines: Lines,
    next_number: u64,
}

/// A command that was sent and whose answer is still to come.
#[derive(Clone, Copy, Debug)]
#[must_use = "its answer comes before that of the next command"]
pub struct Sent {
    number: u64,
    verb: &'static str,
}

/// What a guest says of itself. Nobody else vouches for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Processors that run.
    pub cpu_count: u32,
    /// Memory of which the kernel makes use, in KiB; less than there is by what the kernel needs.
    pub memory_kib: u64,
    /// Memory that is online, in bytes, by whole blocks of the kernel's hot-plug.
    pub memory_online: u64,
    /// Memory that is there and not online, in bytes.
    pub memory_offline: u64,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// The host name.
    pub host_name: String,
    /// Changes with each boot, and does not with a resume.
    pub boot_id: String,
    /// Time since the boot, in hundredths of a second.
    pub uptime_centiseconds: u64,
}

/// How a guest's clock was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockSet {
    /// What the guest's clock may differ from the host's at most, as far as that was measured: the
    /// time between the word that set it and the answer.
    pub error_max: Duration,
}

impl Helper {
    /// Takes over a connected socket: the host's end of the port.
    pub fn new(stream: UnixStream) -> Self {
        let mut random = [0; 4];
        SystemEntropy.fill(&mut random);
        // Below 2^40: a shell counts in 64 bits with a sign, and so does everything else.
        let next_number = random.iter().fold(1, |number, byte| (number << 8) | u64::from(*byte));
        Helper { stream, lines: Lines::new(LINE_MAX), next_number }
    }

    /// Asks whether the helper is there, and returns how long the answer took. What was sent before
    /// the guest opened its port waits for it.
    ///
    /// # Errors
    /// `Unavailable`: no answer within `limit`, or QEMU ended. `Invalid`: another helper answered.
    pub fn ping(&mut self, limit: Duration) -> Result<Duration> {
        let began = Instant::now();
        let answer = self.ask("ping", &[], limit)?;
        if answer != GREETING {
            return Err(unavailable("ping").because(format!("it says {answer:?}")));
        }
        Ok(began.elapsed())
    }

    /// Asks the guest about itself.
    ///
    /// # Errors
    /// As [`Helper::ask`].
    pub fn report(&mut self, limit: Duration) -> Result<Report> {
        Ok(parse_report(&self.ask("report", &[], limit)?))
    }

    /// Takes processors and memory online that the guest has found and not taken, and asks about it.
    ///
    /// # Errors
    /// As [`Helper::ask`].
    pub fn bring_online(&mut self, limit: Duration) -> Result<Report> {
        Ok(parse_report(&self.ask("online", &[], limit)?))
    }

    /// Writes back and gives up everything that the guest keeps of its disks.
    ///
    /// # Errors
    /// As [`Helper::ask`].
    pub fn drop_caches(&mut self, limit: Duration) -> Result<()> {
        self.ask("drop-caches", &[], limit).map(drop)
    }

    /// Sets the guest's clock to the host's.
    ///
    /// # Errors
    /// As [`Helper::ask`].
    pub fn set_clock(&mut self, clock: &dyn Clock, limit: Duration) -> Result<ClockSet> {
        let deadline = Instant::now() + limit;
        let sent = self.send("clock", &[], deadline)?;
        self.answer_as(sent, "ready", deadline)?;
        let now = clock.now().0;
        let began = clock.monotonic();
        let line = format!("{}.{:06}000\n", now.div_euclid(1_000_000), now.rem_euclid(1_000_000));
        self.write(line.as_bytes(), "clock", deadline)?;
        let answer = self.answer(sent, deadline)?;
        let took = clock.monotonic().saturating_sub(began);
        let micros = parse_time(&answer)
            .ok_or_else(|| unavailable("clock").because(format!("it says {answer:?}")))?;
        // The guest read its clock between those two moments.
        let late = micros.abs_diff(now);
        Ok(ClockSet { error_max: took.max(Duration::from_micros(late)) })
    }

    /// Writes a file in the guest, whole or not at all; folders above it are made.
    ///
    /// # Errors
    /// As [`Helper::ask`]. `Invalid`: a path with white space, or a file longer than
    /// [`FILE_LEN_MAX`].
    pub fn put(&mut self, path: &str, mode: u32, bytes: &[u8], limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let sent = self.send_put(path, mode, bytes, deadline)?;
        self.answer(sent, deadline).map(drop)
    }

    /// As [`Helper::put`], and the answer is for later.
    pub(crate) fn send_put(
        &mut self,
        path: &str,
        mode: u32,
        bytes: &[u8],
        deadline: Instant,
    ) -> Result<Sent> {
        if !path.starts_with('/') {
            return Err(refused_value(path));
        }
        let mode = format!("{mode:o}");
        self.send_bytes("put", &[path, &mode], bytes, deadline)
    }

    /// Lets those log in as `user` who have these public keys, beside those who could already.
    pub(crate) fn send_authorize(
        &mut self,
        user: &str,
        keys: &str,
        deadline: Instant,
    ) -> Result<Sent> {
        self.send_bytes("authorize", &[user], keys.as_bytes(), deadline)
    }

    /// Sends a command whose last argument is the length of the bytes that follow its line.
    fn send_bytes(
        &mut self,
        verb: &'static str,
        words: &[&str],
        bytes: &[u8],
        deadline: Instant,
    ) -> Result<Sent> {
        if bytes.len() > FILE_LEN_MAX {
            return Err(Error::new(Kind::Invalid, "give the guest", words[0])
                .because(format!("it is longer than {FILE_LEN_MAX} bytes")));
        }
        let len = bytes.len().to_string();
        let words: Vec<&str> = words.iter().copied().chain([len.as_str()]).collect();
        let sent = self.send(verb, &words, deadline)?;
        self.write(bytes, verb, deadline)?;
        Ok(sent)
    }

    /// Sends a command and returns what came after `ok`.
    ///
    /// # Errors
    /// `Unavailable`: no answer within `limit`, or QEMU ended. `Invalid`: the guest refused it, with
    /// its words, or a word has white space.
    pub fn ask(&mut self, verb: &'static str, words: &[&str], limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        let sent = self.send(verb, words, deadline)?;
        self.answer(sent, deadline)
    }

    /// Sends a command. Its answer is to be taken before those of later ones.
    pub(crate) fn send(
        &mut self,
        verb: &'static str,
        words: &[&str],
        deadline: Instant,
    ) -> Result<Sent> {
        let number = self.next_number;
        self.next_number += 1;
        let mut line = format!("{number} {verb}");
        for word in words {
            let is_plain = |byte: u8| byte.is_ascii_graphic() && byte != b'\\';
            if word.is_empty() || !word.bytes().all(is_plain) {
                return Err(refused_value(word));
            }
            line.push(' ');
            line.push_str(word);
        }
        line.push('\n');
        self.write(line.as_bytes(), verb, deadline)?;
        Ok(Sent { number, verb })
    }

    /// Takes the answer to a command; what came before it is skipped.
    pub(crate) fn answer(&mut self, sent: Sent, deadline: Instant) -> Result<String> {
        self.answer_as(sent, "ok", deadline)
    }

    fn answer_as(&mut self, sent: Sent, wanted: &str, deadline: Instant) -> Result<String> {
        loop {
            let line = self.line(sent.verb, deadline)?;
            let line = String::from_utf8_lossy(&line);
            let mut parts = line.trim_end().splitn(3, ' ');
            if parts.next().and_then(|number| number.parse().ok()) != Some(sent.number) {
                continue;
            }
            let (word, rest) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            if word == wanted {
                return Ok(printable(rest));
            }
            if word == "error" {
                return Err(Error::new(Kind::Invalid, "ask the guest's helper for", sent.verb)
                    .because(printable(rest)));
            }
        }
    }

    /// Takes the next line.
    fn line(&mut self, verb: &str, deadline: Instant) -> Result<Vec<u8>> {
        self.lines.next(&self.stream, deadline).map_err(|error| match error {
            NoLine::TooLong => {
                unavailable(verb).because(format!("it said a line of more than {LINE_MAX} bytes"))
            }
            NoLine::Late => late(verb),
            NoLine::Ended => unavailable(verb).because("QEMU ended"),
            NoLine::Failed(source) => unavailable(verb).caused_by(source),
        })
    }

    fn write(&mut self, mut bytes: &[u8], verb: &str, deadline: Instant) -> Result<()> {
        while !bytes.is_empty() {
            let left = time_left(deadline).ok_or_else(|| late(verb))?;
            let written =
                self.stream.set_write_timeout(Some(left)).and_then(|()| self.stream.write(bytes));
            match written {
                Ok(len) => bytes = &bytes[len..],
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(unavailable(verb).caused_by(error)),
            }
        }
        Ok(())
    }
}

fn late(verb: &str) -> Error {
    unavailable(verb).because("it did not answer in time")
}

fn unavailable(verb: &str) -> Error {
    Error::new(Kind::Unavailable, "ask the guest's helper for", verb)
}

fn refused_value(word: &str) -> Error {
    Error::new(Kind::Invalid, "give the guest", format!("{word:?}"))
        .because("it is empty, or has white space or signs that are not ASCII")
}

/// The guest's words without what a terminal would obey.
fn printable(text: &str) -> String {
    text.chars().filter(|sign| !sign.is_control()).collect()
}

/// Reads `name=value` words; what is not understood is left out.
fn parse_report(text: &str) -> Report {
    let mut report = Report::default();
    let (mut blocks, mut blocks_offline, mut block_bytes) = (0_u64, 0_u64, 0_u64);
    for (name, value) in text.split(' ').filter_map(|word| word.split_once('=')) {
        let number = || value.parse::<u64>().unwrap_or_default();
        match name {
            "cpus" => report.cpu_count = count_cpus(value),
            "memory_kib" => report.memory_kib = number(),
            "memory_blocks" => blocks = number(),
            "memory_blocks_offline" => blocks_offline = number(),
            "block_bytes_hex" => block_bytes = u64::from_str_radix(value, 16).unwrap_or_default(),
            "machine_id" => report.machine_id = value.to_owned(),
            "host_name" => report.host_name = value.to_owned(),
            "boot_id" => report.boot_id = value.to_owned(),
            "uptime_s" => {
                report.uptime_centiseconds = value.replace('.', "").parse().unwrap_or_default();
            }
            _ => {}
        }
    }
    report.memory_online = blocks.saturating_mul(block_bytes);
    report.memory_offline = blocks_offline.saturating_mul(block_bytes);
    report
}

/// How many processors a list such as `0-3,5` has.
fn count_cpus(list: &str) -> u32 {
    let count = |range: &str| -> Option<u32> {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    list.split(',').filter_map(count).fold(0, u32::saturating_add)
}

/// Reads `seconds.fraction` as microseconds.
fn parse_time(text: &str) -> Option<i64> {
    let (seconds, fraction) = text.split_once('.')?;
    let micros: i64 = fraction.get(..6)?.parse().ok().filter(|_| fraction.is_ascii())?;
    seconds.parse::<i64>().ok()?.checked_mul(1_000_000)?.checked_add(micros)
}

#[cfg(test)]
mod tests {
    use super::*;
    use env::SystemClock;
    use proptest::prelude::*;
    use std::io::{BufRead, BufReader, Read};
    use std::thread::{self, JoinHandle};

    const SOON: Duration = Duration::from_secs(10);

    /// A guest that answers each line with what a function says of its number and the rest.
    fn guest(answer: impl Fn(&str, &str) -> String + Send + 'static) -> (Helper, JoinHandle<()>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let thread = thread::spawn(move || {
            let mut to = theirs.try_clone().unwrap();
            for line in BufReader::new(theirs).lines() {
                let Ok(line) = line else { return };
                let (number, rest) = line.split_once(' ').unwrap_or((&line, ""));
                if to.write_all(answer(number, rest).as_bytes()).is_err() {
                    return;
                }
            }
        });
        (Helper::new(ours), thread)
    }

    #[test]
    fn an_answer_belongs_to_the_command_whose_number_it_carries() {
        let (mut helper, thread) = guest(|number, _| {
            format!("0 ok larder-helper 1\n\n9 ok x\nnonsense\n{number} ok larder-helper 1\n")
        });
        helper.ping(SOON).unwrap();
        helper.ping(SOON).unwrap();
        drop(helper);
        thread.join().unwrap();
    }

    #[test]
    fn a_refusal_is_told_in_the_guests_words_without_what_a_terminal_obeys() {
        let (mut helper, _thread) = guest(|number, _| format!("{number} error no\x1b[2J way\n"));
        let error = helper.drop_caches(SOON).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert_eq!(error.to_string(), "ask the guest's helper for drop-caches: no[2J way");
    }

    #[test]
    fn a_guest_that_is_silent_deaf_or_talks_without_end_is_unavailable() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut helper = Helper::new(ours);
        let short = Duration::from_millis(20);
        assert_eq!(helper.ping(short).unwrap_err().kind(), Kind::Unavailable);
        // Deaf: nobody takes the bytes, which are more than a socket holds.
        let file = vec![b'x'; FILE_LEN_MAX];
        let error = helper.put("/tmp/x", 0o644, &file, short).unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        let mut talker = theirs.try_clone().unwrap();
        let thread = thread::spawn(move || while talker.write_all(&[b'x'; 1024]).is_ok() {});
        let (_, mut helper) = (theirs, helper);
        helper.lines.clear();
        let deadline = Instant::now() + SOON;
        let error = helper.answer(Sent { number: 1, verb: "ping" }, deadline).unwrap_err();
        assert!(error.to_string().contains("4096"), "{error}");
        drop(helper);
        thread.join().unwrap();
    }

    #[test]
    fn a_value_never_becomes_a_second_command() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut helper = Helper::new(ours);
        for word in ["", "a b", "a\nb", "a\tb", "\\", "ä"] {
            let error = helper.ask("host-name", &[word], SOON).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{word:?}");
        }
        assert_eq!(helper.put("x", 0, b"", SOON).unwrap_err().kind(), Kind::Invalid);
        theirs.set_nonblocking(true).unwrap();
        assert!(theirs.read(&mut [0; 10]).is_err(), "nothing was sent");
    }

    #[test]
    fn a_report_is_read() {
        let report = parse_report(
            "memory_kib=155532 memory_blocks=2 memory_blocks_offline=1 block_bytes_hex=8000000 \
             cpus=0-2,5 machine_id=abab host_name=x boot_id=y uptime_s=38.96 new=thing odd",
        );
        assert_eq!((report.cpu_count, report.memory_kib), (4, 155_532));
        assert_eq!((report.memory_online, report.memory_offline), (256 << 20, 128 << 20));
        assert_eq!(report.uptime_centiseconds, 3896);
    }

    #[test]
    fn the_clock_is_off_by_no_more_than_was_measured() {
        let (mut helper, _thread) = guest(|number, rest| match rest {
            "clock" => format!("{number} ready\n"),
            _ => "1 ok too late\n".to_owned(),
        });
        let error = helper.set_clock(&SystemClock, Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert_eq!(parse_time("12.345678901"), Some(12_345_678));
        assert_eq!(parse_time("12.3"), None);
        assert_eq!(parse_time("99999999999999999.000000"), None);
    }

    proptest! {
        #[test]
        fn any_answer_is_understood_or_skipped(text in ".{0,80}") {
            let _report = parse_report(&text);
            let _time = parse_time(&text);
            let _count = count_cpus(&text);
            prop_assert!(!printable(&text).contains('\n'));
        }
    }
}
