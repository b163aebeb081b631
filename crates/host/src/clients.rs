//! Processes that a daemon serves mirrors for: where one ends, however it ends, so does the serving.
//!
//! A process is known by its number and the time when it started, so that another one which got the
//! number later is not taken for it, also by a daemon that comes after the one that was asked.
//!
//! **Source**: proc(5), `/proc/pid/stat`, field 22.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use model::{Error, Kind, Result};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};

/// A process that a mirror is served for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Client {
    /// Its number.
    pub process: u32,
    /// When it started, in ticks after the system did.
    pub started: u64,
    /// The mirror is thrown away when it ends.
    pub discard: bool,
}

impl Client {
    /// The process that calls this.
    ///
    /// # Errors
    /// `Unavailable` where the system does not tell when it started.
    pub fn this_process(discard: bool) -> Result<Self> {
        let process = std::process::id();
        match started(process) {
            Some(started) => Ok(Client { process, started, discard }),
            None => Err(Error::new(Kind::Unavailable, "look up", "this process")
                .because("/proc does not tell when it started")),
        }
    }

    /// A handle of the process; none where it has ended.
    fn open(&self) -> io::Result<Option<OwnedFd>> {
        let pid = i32::try_from(self.process).ok().and_then(Pid::from_raw);
        let Some(pid) = pid else { return Ok(None) };
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            // Whoever has the number now keeps it as long as the handle is not readable.
            Ok(handle) => Ok((started(self.process) == Some(self.started)).then_some(handle)),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until the process has ended (true) or the other end of `until` is closed (false).
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn outlived(&self, until: impl AsFd) -> io::Result<bool> {
        let Some(handle) = self.open()? else { return Ok(true) };
        loop {
            let mut waits =
                [PollFd::new(&handle, PollFlags::IN), PollFd::new(&until, PollFlags::IN)];
            match rustix::event::poll(&mut waits, None) {
                Ok(_) if !waits[1].revents().is_empty() => return Ok(false),
                Ok(_) if !waits[0].revents().is_empty() => return Ok(true),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// When a process started; none where there is no such process.
fn started(process: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in parentheses may hold anything, parentheses too.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_end_of_a_process_is_noticed_and_another_of_its_number_is_not_taken_for_it() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let process = child.id();
        let client = Client { process, started: started(process).unwrap(), discard: true };
        let (reader, writer) = io::pipe().unwrap();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| client.outlived(&reader).unwrap());
            assert!(!waits.is_finished());
            drop(child.stdin.take());
            assert!(waits.join().unwrap());
        });
        child.wait().unwrap();
        assert!(client.outlived(&reader).unwrap(), "it has ended before");
        let own = Client::this_process(false).unwrap();
        let other = Client { started: own.started + 1, ..own.clone() };
        assert!(other.outlived(&reader).unwrap());
        drop(writer);
        assert!(!own.outlived(&reader).unwrap());
    }
}
