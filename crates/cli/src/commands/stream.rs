//! A file or stdin as a stream of bytes.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use model::{Error, Kind, Result};
use rustix::event::{PollFd, PollFlags};

use crate::interrupt::cancel_signal;

const READ: &str = "read";

/// Bytes from a file, as many as it had when it was opened, or from stdin until it ends.
pub struct Input {
    source: Box<dyn Read + Send>,
    /// What a wait for more is ended by, where there may be one.
    interrupt: Option<(OwnedFd, BorrowedFd<'static>)>,
    subject: String,
    /// Bytes that must still come.
    rest: Option<u64>,
}

impl Input {
    /// Opens a file; `-` for stdin.
    pub fn open(path: &Path) -> Result<Self> {
        if path.as_os_str() == "-" {
            let failed = |error| Error::io(READ, "stdin", error);
            let waits = std::io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
            // Without a buffer of its own, in which bytes would lie that no wait sees.
            let source = File::from(waits.try_clone().map_err(failed)?);
            return Ok(Input {
                source: Box::new(source),
                interrupt: Some((waits, cancel_signal()?)),
                subject: "stdin".to_string(),
                rest: None,
            });
        }
        let subject = path.display().to_string();
        let failed = |error| Error::io(READ, &subject, error);
        // Before it is opened: a folder can be opened, and fails later with less to say.
        let facts = std::fs::metadata(path).map_err(failed)?;
        if facts.is_dir() {
            return Err(Error::new(Kind::Invalid, READ, subject).because("it is a folder"));
        }
        let file = File::open(path).map_err(failed)?;
        // Pipes and devices tell no length.
        let rest = facts.is_file().then_some(facts.len());
        Ok(Input { source: Box::new(file), interrupt: None, subject, rest })
    }

    /// How many bytes there are, where that is known before the end.
    pub fn len(&self) -> Option<u64> {
        self.rest
    }
}

/// Waits until there is something to read, or fails where Ctrl-C came.
fn wait(input: &OwnedFd, interrupt: BorrowedFd<'_>) -> std::io::Result<()> {
    loop {
        let mut waits = [PollFd::new(input, PollFlags::IN), PollFd::new(&interrupt, PollFlags::IN)];
        match rustix::event::poll(&mut waits, None) {
            Ok(_) if !waits[1].revents().is_empty() => {
                let error = Error::new(Kind::Cancelled, READ, "stdin");
                return Err(std::io::Error::other(error.because("it was interrupted")));
            }
            Ok(_) if !waits[0].revents().is_empty() => return Ok(()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = self.rest.map_or(buffer.len(), |rest| rest.min(buffer.len() as u64) as usize);
        if most == 0 {
            return Ok(0);
        }
        if let Some((input, interrupt)) = &self.interrupt {
            wait(input, *interrupt)?;
        }
        let failed = |error| std::io::Error::other(Error::io(READ, &self.subject, error));
        let read = match self.source.read(&mut buffer[..most]) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return Err(error),
            other => other.map_err(failed)?,
        };
        match &mut self.rest {
            Some(rest) if read == 0 => Err(std::io::Error::other(
                Error::new(Kind::Corrupt, READ, &self.subject)
                    .because(format!(
                        "it became shorter while it was read; {rest} bytes are missing"
                    ))
                    .hint("write again when nobody else changes the file"),
            )),
            Some(rest) => {
                *rest -= read as u64;
                Ok(read)
            }
            None => Ok(read),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_shrinks_or_grows_while_it_is_read_is_noticed_or_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, [1; 1000]).unwrap();
        let mut bytes = Vec::new();
        let mut input = Input::open(&path).unwrap();
        std::fs::write(&path, [2; 2000]).unwrap();
        assert_eq!((input.len(), input.read_to_end(&mut bytes).unwrap()), (Some(1000), 1000));
        let mut input = Input::open(&path).unwrap();
        std::fs::write(&path, [3; 500]).unwrap();
        let error = input.read_to_end(&mut bytes).unwrap_err().downcast::<Error>().unwrap();
        assert!(error.chain().ends_with("1500 bytes are missing"), "{}", error.chain());
        assert!(Input::open(folder.path()).is_err());
    }
}
