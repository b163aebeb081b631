//! Ctrl-C and its kin: long work stops at its next step, leaving nothing half done.

use std::sync::Once;

use model::progress::Cancel;
use model::{Error, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

static CANCEL: Cancel = Cancel::new();

/// The flag that Ctrl-C sets. From the first call on, SIGINT, SIGTERM and SIGHUP set it; a second
/// SIGINT ends the process at once, as without this.
pub fn cancel_flag() -> Result<&'static Cancel> {
    static START: Once = Once::new();
    let mut started = Ok(());
    START.call_once(|| {
        started = Signals::new([SIGINT, SIGTERM, SIGHUP]).map(|mut signals| {
            std::thread::spawn(move || {
                let mut received = signals.forever();
                received.next();
                CANCEL.cancel();
                received.next();
                std::process::exit(130);
            });
        });
    });
    started.map_err(|error| Error::io("listen to", "signals", error))?;
    Ok(&CANCEL)
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
