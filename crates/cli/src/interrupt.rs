//! Ctrl-C and its kin: long work stops at its next step, leaving nothing half done.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Once, OnceLock};

use model::progress::Cancel;
use model::{Error, Kind, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

static CANCEL: Cancel = Cancel::new();
/// Its other end is closed when the flag is set.
static SIGNAL: OnceLock<io::PipeReader> = OnceLock::new();

/// The flag that Ctrl-C sets. From the first call on, SIGINT, SIGTERM and SIGHUP set it; a second
/// SIGINT ends the process at once, as without this.
pub fn cancel_flag() -> Result<&'static Cancel> {
    static START: Once = Once::new();
    let mut started = Ok(());
    START.call_once(|| {
        let prepared = Signals::new([SIGINT, SIGTERM, SIGHUP]).and_then(|s| Ok((s, io::pipe()?)));
        started = prepared.map(|(mut signals, (reader, writer))| {
            let _ = SIGNAL.set(reader);
            std::thread::spawn(move || {
                let mut received = signals.forever();
                received.next();
                CANCEL.cancel();
                drop(writer);
                received.next();
                std::process::exit(130);
            });
        });
    });
    started.map_err(|error| Error::io("listen to", "signals", error))?;
    Ok(&CANCEL)
}

/// What becomes readable when [`cancel_flag`] is set: for those who wait for something else, too.
pub fn cancel_signal() -> Result<BorrowedFd<'static>> {
    cancel_flag()?;
    let signal = SIGNAL.get().map(AsFd::as_fd);
    signal.ok_or_else(|| Error::new(Kind::Unavailable, "listen to", "signals"))
}

/// Waits until SIGINT, SIGTERM or SIGHUP comes, or `wake` is called from another thread.
pub struct Waiter(Signals);

impl Waiter {
    /// Starts to listen.
    pub fn new() -> Result<Self> {
        Signals::new([SIGINT, SIGTERM, SIGHUP])
            .map(Waiter)
            .map_err(|error| Error::io("listen to", "signals", error))
    }

    /// A call that ends the wait.
    pub fn waker(&self) -> impl Fn() + Send + Sync + 'static {
        let handle = self.0.handle();
        move || handle.close()
    }

    /// Waits. True where a signal came.
    pub fn wait(&mut self) -> bool {
        self.0.forever().next().is_some()
    }

    /// Waits for SIGINT alone: somebody who is out of patience. True where it came.
    pub fn wait_for_interrupt(&mut self) -> bool {
        self.0.forever().any(|signal| signal == SIGINT)
    }
}
