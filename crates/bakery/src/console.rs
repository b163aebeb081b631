//! The console of a resumed guest: first asked whether it answers, then handed on.
//!
//! ```text
//!   guest ──► reader thread ──► the last 64 KiB, kept ──► whoever is connected, one at a time
//!   guest ◄── door thread ◄──────────────────────────────┘
//! ```
//!
//! **Invariants**: the guest never waits for whoever reads its console: one who is slow is let go.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use model::{Error, Kind, Result};

/// How much of what was said is kept, in bytes.
const KEPT_MAX: usize = 64 << 10;

/// How long whoever is connected may take for what the guest said.
const SLOW: Duration = Duration::from_secs(1);

/// A guest's console.
pub struct ConsoleDoor {
    guest: UnixStream,
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
    door: Option<(UnixListener, PathBuf, JoinHandle<()>)>,
}

#[derive(Default)]
struct Shared {
    said: Mutex<Said>,
    changed: Condvar,
}

#[derive(Default)]
struct Said {
    kept: Vec<u8>,
    count: u64,
    is_over: bool,
    client: Option<UnixStream>,
}

impl Shared {
    fn guard(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConsoleDoor {
    /// Takes over a console and begins to read it.
    ///
    /// # Errors
    /// `Unavailable`: no thread or descriptor is to be had.
    pub fn new(guest: UnixStream) -> Result<Self> {
        let failed = |error| Error::io("read", "the guest's console", error);
        let shared = Arc::new(Shared::default());
        let (from, to) = (guest.try_clone().map_err(failed)?, shared.clone());
        let reader = std::thread::Builder::new()
            .name("console".into())
            .spawn(move || listen(from, &to))
            .map_err(failed)?;
        Ok(ConsoleDoor { guest, shared, reader: Some(reader), door: None })
    }

    /// Presses the return key and waits until the guest says something to that.
    ///
    /// # Errors
    /// `Unavailable`: it did not within `limit`, or ended.
    pub fn ask(&self, limit: Duration) -> Result<()> {
        let silent = |reason: &str| {
            Error::new(Kind::Unavailable, "wait for an answer on", "the guest's console")
                .because(reason.to_string())
        };
        let before = self.shared.guard().count;
        (&self.guest).write_all(b"\n").map_err(|_| silent("the guest has ended"))?;
        let deadline = Instant::now() + limit;
        let mut said = self.shared.guard();
        while said.count == before {
            let left = deadline.saturating_duration_since(Instant::now());
            if said.is_over || left.is_zero() {
                return Err(silent(match said.is_over {
                    true => "the guest has ended",
                    false => "it said nothing",
                }));
            }
            let changed = self.shared.changed.wait_timeout(said, left);
            said = changed.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Lets others in at a Unix socket, one at a time, from now on. Each is shown first what was said
    /// last.
    ///
    /// # Errors
    /// Those of making a socket.
    pub fn open(&mut self, path: &Path) -> Result<()> {
        let failed = |error| Error::io("listen on", path.display().to_string(), error);
        let listener = UnixListener::bind(path).map_err(failed)?;
        let accepting = listener.try_clone().map_err(failed)?;
        let guest = self.guest.try_clone().map_err(failed)?;
        let shared = self.shared.clone();
        let door = std::thread::Builder::new()
            .name("console-door".into())
            .spawn(move || serve(&accepting, &guest, &shared))
            .map_err(failed)?;
        self.door = Some((listener, path.to_path_buf(), door));
        Ok(())
    }

    /// Gives what the guest says to a writer too, from what was said last on, and the guest what the
    /// reader reads, until the guest ends or the reader does. For a terminal.
    pub fn join(&self, client: UnixStream) -> Result<()> {
        let failed = |error| Error::io("read", "the guest's console", error);
        converse(&client, &self.guest, &self.shared).map_err(failed)
    }
}

impl Drop for ConsoleDoor {
    fn drop(&mut self) {
        let _ = self.guest.shutdown(Shutdown::Both);
        if let Some(client) = self.shared.guard().client.take() {
            let _ = client.shutdown(Shutdown::Both);
        }
        if let Some((listener, path, door)) = self.door.take() {
            // Ends the accept that waits.
            let _ = rustix::net::shutdown(&listener, rustix::net::Shutdown::Both);
            let _ = std::fs::remove_file(path);
            let _ = door.join();
        }
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

fn listen(mut from: UnixStream, to: &Shared) {
    let mut bytes = [0; 4096];
    loop {
        let len = match from.read(&mut bytes) {
            Ok(0) => break,
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        let mut said = to.guard();
        said.count += len as u64;
        said.kept.extend_from_slice(&bytes[..len]);
        let excess = said.kept.len().saturating_sub(KEPT_MAX);
        said.kept.drain(..excess);
        if let Some(client) = &said.client
            && (&*client).write_all(&bytes[..len]).is_err()
        {
            said.client = None;
        }
        to.changed.notify_all();
    }
    let mut said = to.guard();
    said.is_over = true;
    if let Some(client) = said.client.take() {
        let _ = client.shutdown(Shutdown::Both);
    }
    to.changed.notify_all();
}

fn serve(listener: &UnixListener, guest: &UnixStream, shared: &Shared) {
    while let Ok((client, _)) = listener.accept() {
        if let Err(error) = converse(&client, guest, shared) {
            tracing::debug!(%error, "a console's client is gone");
        }
    }
}

/// Serves one client until it goes.
fn converse(client: &UnixStream, mut guest: &UnixStream, shared: &Shared) -> io::Result<()> {
    client.set_write_timeout(Some(SLOW))?;
    {
        let mut said = shared.guard();
        if said.is_over {
            return Ok(());
        }
        (&*client).write_all(&said.kept)?;
        said.client = Some(client.try_clone()?);
    }
    let mut bytes = [0; 4096];
    loop {
        match (&*client).read(&mut bytes) {
            Ok(0) => break,
            Ok(len) => guest.write_all(&bytes[..len])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    shared.guard().client = None;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn a_guest_is_asked_and_then_talked_to_at_the_socket() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let mut door = ConsoleDoor::new(ours).unwrap();
        assert!(door.ask(Duration::from_millis(1)).is_err());
        let mut asked = [0; 2];
        std::thread::scope(|scope| {
            // It answers what it was asked, not before.
            let answer = scope.spawn(|| {
                (&guest).read_exact(&mut asked).unwrap();
                (&guest).write_all(b"login: ").unwrap();
            });
            door.ask(SOON).unwrap();
            answer.join().unwrap();
        });
        assert_eq!(&asked, b"\n\n");
        let path = folder.path().join("console");
        door.open(&path).unwrap();
        let mut client = UnixStream::connect(&path).unwrap();
        let mut seen = [0; 7];
        client.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"login: ");
        client.write_all(b"root").unwrap();
        let mut typed = [0; 4];
        guest.read_exact(&mut typed).unwrap();
        assert_eq!(&typed, b"root");
        guest.write_all(b"#").unwrap();
        client.read_exact(&mut seen[..1]).unwrap();
        assert_eq!(seen[0], b'#');
        drop(guest);
        assert_eq!(client.read(&mut seen).unwrap(), 0, "the guest has ended");
        drop(door);
        assert!(!path.exists());
    }
}
