//! No more bytes a second than was allowed.

use std::sync::Arc;
use std::time::Duration;

use env::Clock;
use model::Result;
use model::progress::Cancel;

/// How long one wait lasts at most before the caller's wish to stop is looked at.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// Lets that many bytes pass a second, on average from its beginning.
pub struct Rate {
    bytes_per_second: Option<u64>,
    clock: Arc<dyn Clock>,
    start: Duration,
    passed_len: u64,
}

impl Rate {
    /// Starts now; without a number, everything passes.
    pub fn new(bytes_per_second: Option<u64>, clock: Arc<dyn Clock>) -> Self {
        let start = clock.monotonic();
        Rate { bytes_per_second, clock, start, passed_len: 0 }
    }

    /// Waits until that many bytes more may pass.
    ///
    /// # Errors
    /// `Cancelled`.
    pub fn pass(&mut self, len: u64, cancel: &Cancel) -> Result<()> {
        self.passed_len += len;
        loop {
            cancel.check(super::SCRUB, "the repository")?;
            let left = self.due().saturating_sub(self.clock.monotonic() - self.start);
            if left.is_zero() {
                return Ok(());
            }
            std::thread::park_timeout(left.min(PAUSE_MAX));
        }
    }

    /// How long after the beginning what has passed may have passed.
    fn due(&self) -> Duration {
        match self.bytes_per_second {
            None => Duration::ZERO,
            Some(rate) => Duration::from_secs_f64(self.passed_len as f64 / rate.max(1) as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_due_at_the_rate_allowed_and_a_wait_can_be_stopped() {
        let clock = Arc::new(env::ManualClock::default());
        let mut rate = Rate::new(Some(1000), clock.clone());
        clock.advance(Duration::from_secs(2));
        rate.pass(2000, &Cancel::new()).unwrap();
        assert_eq!(rate.due(), Duration::from_secs(2));
        let cancel = Cancel::new();
        cancel.cancel();
        assert!(rate.pass(1, &cancel).is_err());
        let mut unbounded = Rate::new(None, clock);
        unbounded.pass(u64::MAX, &Cancel::new()).unwrap();
    }
}
