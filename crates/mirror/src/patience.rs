//! What a mirror does while the repository cannot be reached: wait, for ever or for a time.
//!
//! ```text
//! read -> store says Unavailable -> wait 20 ms, 40 ms ... 1 s -> again -> bytes
//!                                   |  until somebody got an answer
//!                                   `- limit over, or given up: the error
//! ```
//!
//! **Invariants**: nothing is held while a read waits: the flight of its chunk has ended, so each
//! waits by the policy of its own mirror. Reads of what is here, and writes, do not come this way.
//!
//! **Failure**: errors other than `Unavailable`, and those of this host's own disk, are not waited
//! out: trying again would not help.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use env::{Clock, SystemClock};
use model::{Error, Kind, Result};

/// The first pause before a store is asked again; each further one is twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// How long reads wait for a store that cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Until it can be reached again.
    Unlimited,
    /// This long from the start of the read; zero tries once.
    Limited(Duration),
}

/// Why blocks could not be fetched.
#[derive(Debug)]
pub(crate) enum FetchError {
    /// The store failed.
    Store(Error),
    /// This host's own disk failed.
    Disk(Error),
}

impl FetchError {
    pub(crate) fn kind(&self) -> Kind {
        let (FetchError::Store(error) | FetchError::Disk(error)) = self;
        error.kind()
    }
}

impl From<FetchError> for Error {
    fn from(error: FetchError) -> Error {
        let (FetchError::Store(error) | FetchError::Disk(error)) = error;
        error
    }
}

/// Whether the store behind a state folder answers. All mirrors of the folder share it.
#[derive(Debug, Default)]
pub struct Reachability {
    /// True while the last answer was that it cannot be reached; to be looked at without the lock.
    is_lost: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lost_since: Option<Duration>,
    outages: Outages,
}

/// Numbers about outages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outages {
    /// How often the store went away.
    pub count: u64,
    /// Time without it, up to now.
    pub lost: Duration,
    /// True while it is away.
    pub is_lost: bool,
    /// Reads that wait for it now.
    pub waiting_count: usize,
}

impl Reachability {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Numbers up to now.
    pub fn outages(&self) -> Outages {
        let state = self.lock();
        let current = state.lost_since.map(|since| SystemClock.monotonic() - since);
        let lost = state.outages.lost + current.unwrap_or_default();
        Outages { lost, is_lost: current.is_some(), ..state.outages }
    }

    /// Notes what came of a call to the store.
    pub(crate) fn note<T>(&self, outcome: &Result<T>) {
        match outcome {
            Err(error) if error.kind() == Kind::Unavailable => self.lose(error),
            // Another error is an answer too.
            _ if self.is_lost.load(Ordering::Relaxed) => self.find(),
            _ => {}
        }
    }

    fn lose(&self, error: &Error) {
        let mut state = self.lock();
        if state.lost_since.is_none() {
            tracing::warn!(error = %error.chain(), "the repository cannot be reached");
            state.lost_since = Some(SystemClock.monotonic());
            state.outages.count += 1;
            self.is_lost.store(true, Ordering::Relaxed);
        }
    }

    fn find(&self) {
        let mut state = self.lock();
        if let Some(since) = state.lost_since.take() {
            let lost = SystemClock.monotonic() - since;
            let seconds = lost.as_secs_f64();
            let waiting = state.outages.waiting_count;
            tracing::warn!(seconds, waiting, "the repository can be reached again");
            state.outages.lost += lost;
            self.is_lost.store(false, Ordering::Relaxed);
            self.changed.notify_all();
        }
    }

    /// Waits until the store was heard of, `pause` has passed, or `is_over` says so; then false.
    fn wait(&self, pause: Duration, is_over: &AtomicBool) -> bool {
        let mut state = self.lock();
        state.outages.waiting_count += 1;
        let goes_on =
            |state: &mut State| state.lost_since.is_some() && !is_over.load(Ordering::SeqCst);
        let waited = self.changed.wait_timeout_while(state, pause, goes_on);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.outages.waiting_count -= 1;
        !is_over.load(Ordering::SeqCst)
    }

    /// Has everybody who waits look whether to go on.
    pub(crate) fn wake_all(&self) {
        let _state = self.lock();
        self.changed.notify_all();
    }
}

/// Does `work` until the store answers, the patience is over, or `is_over`. The error is then the
/// last one.
pub(crate) fn persist<T>(
    patience: Patience,
    reachability: &Reachability,
    is_over: &AtomicBool,
    mut work: impl FnMut() -> Result<T, FetchError>,
) -> Result<T> {
    let mut start = None;
    let mut pause = PAUSE_MIN;
    loop {
        let error = match work() {
            Ok(done) => return Ok(done),
            Err(FetchError::Store(error)) if error.kind() == Kind::Unavailable => error,
            Err(other) => return Err(other.into()),
        };
        let now = SystemClock.monotonic();
        let left = match patience {
            Patience::Unlimited => pause,
            Patience::Limited(limit) => {
                let waited = now - *start.get_or_insert(now);
                limit.saturating_sub(waited).min(pause)
            }
        };
        if left.is_zero() || !reachability.wait(left, is_over) {
            return Err(error);
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unavailable() -> Error {
        Error::new(Kind::Unavailable, "read", "the pack")
    }

    /// Fails that often, and tells the reachability of it, as a view does.
    fn store(
        reachability: &Reachability,
        failures: usize,
    ) -> impl FnMut() -> Result<(), FetchError> {
        let mut calls = 0;
        move || {
            calls += 1;
            let outcome = if calls <= failures { Err(unavailable()) } else { Ok(()) };
            reachability.note(&outcome);
            outcome.map_err(FetchError::Store)
        }
    }

    #[test]
    fn an_outage_is_waited_out_and_counted() {
        let reachability = Reachability::default();
        let over = AtomicBool::new(false);
        let work = store(&reachability, 3);
        persist(Patience::Unlimited, &reachability, &over, work).unwrap();
        let outages = reachability.outages();
        assert_eq!((outages.count, outages.is_lost, outages.waiting_count), (1, false, 0));
        assert!(outages.lost >= PAUSE_MIN);
    }

    #[test]
    fn a_limit_ends_the_wait_and_zero_tries_once() {
        let reachability = Reachability::default();
        let over = AtomicBool::new(false);
        for limit in [Duration::ZERO, Duration::from_millis(50)] {
            let start = SystemClock.monotonic();
            let work = store(&reachability, usize::MAX);
            let error = persist(Patience::Limited(limit), &reachability, &over, work).unwrap_err();
            assert_eq!(error.kind(), Kind::Unavailable);
            assert!(SystemClock.monotonic() - start >= limit);
        }
        assert_eq!(reachability.outages().count, 1, "both met the same outage");
    }

    #[test]
    fn what_waiting_does_not_mend_is_an_error_at_once() {
        let reachability = Reachability::default();
        let over = AtomicBool::new(false);
        for error in
            [FetchError::Disk(unavailable()), FetchError::Store(Error::new(Kind::Corrupt, "", ""))]
        {
            let mut error = Some(error);
            let work = || Err::<(), _>(error.take().unwrap());
            persist(Patience::Unlimited, &reachability, &over, work).unwrap_err();
        }
    }

    #[test]
    fn whoever_waits_is_woken_to_give_up() {
        let reachability = Reachability::default();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let work = store(&reachability, usize::MAX);
            let (reachability, over) = (&reachability, &over);
            let reader =
                scope.spawn(move || persist(Patience::Unlimited, reachability, over, work));
            while reachability.outages().waiting_count == 0 {
                std::thread::yield_now();
            }
            over.store(true, Ordering::SeqCst);
            reachability.wake_all();
            assert_eq!(reader.join().unwrap().unwrap_err().kind(), Kind::Unavailable);
        });
    }
}
