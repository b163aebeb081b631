//! What long work reports while it runs, and how it is stopped.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Error, Kind, Result};

/// Told of the progress of long work. Calls may come from several threads.
pub trait Progress: Send + Sync {
    /// How many bytes there are to do, as far as known.
    fn expect(&self, total_bytes: Option<u64>);

    /// That many bytes more are done.
    fn advance(&self, bytes: u64);
}

/// Reports to nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn expect(&self, _total_bytes: Option<u64>) {}
    fn advance(&self, _bytes: u64) {}
}

/// A flag that stops long work at its next step. Work that was stopped leaves nothing behind.
#[derive(Debug, Default)]
pub struct Cancel(AtomicBool);

impl Cancel {
    /// A flag that is not yet set.
    pub const fn new() -> Self {
        Cancel(AtomicBool::new(false))
    }

    /// Asks the work to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Fails with `Cancelled` once the flag is set.
    pub fn check(&self, operation: &'static str, subject: &str) -> Result<()> {
        if self.0.load(Ordering::Relaxed) {
            return Err(
                Error::new(Kind::Cancelled, operation, subject).because("it was interrupted")
            );
        }
        Ok(())
    }
}
