//! A resumed guest's console on the terminal that larder was started in.
//!
//! Keys go to the guest as they are pressed, but for `Ctrl-a x`, which ends the guest, and `Ctrl-a
//! Ctrl-a`, which sends one `Ctrl-a`: the keys that `larder run` has.

use std::io::{self, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use bakery::console::ConsoleDoor;
use rustix::event::{PollFd, PollFlags};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// `Ctrl-a`.
const ESCAPE: u8 = 1;

/// True where somebody is there to talk to a guest.
pub fn is_there() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// A terminal that passes every key on. Dropped, it is what it was.
struct Raw(Option<Termios>);

impl Raw {
    fn begin() -> Self {
        let before = tcgetattr(io::stdin()).ok();
        if let Some(mut raw) = before.clone() {
            raw.make_raw();
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &raw);
        }
        Raw(before)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Lets the terminal talk to a guest until the guest ends. `end` ends it.
pub fn talk(console: &ConsoleDoor, end: &dyn Fn()) -> io::Result<()> {
    let (ours, theirs) = UnixStream::pair()?;
    let _raw = Raw::begin();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            if let Err(error) = console.join(theirs) {
                tracing::debug!("{}", error.chain());
            }
        });
        let talked = pass(&ours, end);
        let _ = ours.shutdown(Shutdown::Both);
        talked
    })
}

/// Passes bytes both ways until the guest ends.
fn pass(mut guest: &UnixStream, end: &dyn Fn()) -> io::Result<()> {
    let (mut bytes, mut keys) = ([0; 4096], Keys::default());
    // A terminal that is gone is not asked again.
    let mut has_keys = true;
    loop {
        let stdin = io::stdin();
        let mut ready = vec![PollFd::new(guest, PollFlags::IN)];
        if has_keys {
            ready.push(PollFd::new(&stdin, PollFlags::IN));
        }
        match rustix::event::poll(&mut ready, None) {
            Err(rustix::io::Errno::INTR) => continue,
            polled => polled?,
        };
        let [has_said, was_pressed] =
            [0, 1].map(|which| ready.get(which).is_some_and(|fd| !fd.revents().is_empty()));
        if has_said {
            match guest.read(&mut bytes)? {
                0 => return Ok(()),
                len => {
                    io::stdout().write_all(&bytes[..len])?;
                    io::stdout().flush()?;
                }
            }
        }
        if was_pressed {
            match rustix::io::read(&stdin, &mut bytes) {
                Ok(0) | Err(_) => has_keys = false,
                Ok(len) => {
                    let (typed, is_end) = keys.take(&bytes[..len]);
                    guest.write_all(&typed)?;
                    if is_end {
                        end();
                    }
                }
            }
        }
    }
}

/// What keys mean.
#[derive(Default)]
struct Keys {
    is_escaped: bool,
}

impl Keys {
    /// What goes to the guest, and whether it is to end.
    fn take(&mut self, pressed: &[u8]) -> (Vec<u8>, bool) {
        let (mut typed, mut is_end) = (Vec::new(), false);
        for key in pressed {
            match (std::mem::take(&mut self.is_escaped), *key) {
                (false, ESCAPE) => self.is_escaped = true,
                (true, b'x' | b'X') => is_end = true,
                (_, key) => typed.push(key),
            }
        }
        (typed, is_end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_escape_and_what_follows_it_is_not_the_guests() {
        let mut keys = Keys::default();
        assert_eq!(keys.take(b"ls x\x03"), (b"ls x\x03".to_vec(), false));
        assert_eq!(keys.take(b"a\x01"), (b"a".to_vec(), false));
        assert_eq!(keys.take(b"\x01b"), (b"\x01b".to_vec(), false));
        assert_eq!(keys.take(b"\x01x"), (Vec::new(), true));
    }
}
