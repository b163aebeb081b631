//! How many fetches are under way at once: as many as pay, and never more than a limit.
//!
//! ```text
//! under way      4 ─► 5 ─► 6 ...           while fetches take hardly longer than the fastest did:
//!                                          what they wait for is the way, not their turn
//!                9 ─► 8                    when one takes twice as long: they wait for each other
//! ```
//!
//! So a link with a long way gets what fills it, and a short one is not filled with what a guest's
//! read would have to wait behind.
//!
//! **Source**: the idea of TCP Vegas (Brakmo, Peterson 1995), counted in requests.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Fetches under way at the beginning.
const START: usize = 4;
/// The fewest, whatever the time they take: one waits for the store while another unpacks.
const MIN: usize = 2;
/// The most of one set.
const MAX: usize = 16;

/// How many fetches of one set are under way.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    under_way: usize,
    limit: usize,
    fastest: Duration,
}

impl Default for State {
    fn default() -> Self {
        State { under_way: 0, limit: START, fastest: Duration::MAX }
    }
}

impl State {
    /// Learns from a fetch how many shall be under way.
    fn learn(&mut self, took: Duration) {
        self.fastest = self.fastest.min(took);
        self.limit = match took < self.fastest.saturating_mul(2) {
            true => (self.limit + 1).min(MAX),
            false => (self.limit - 1).max(MIN),
        };
    }
}

/// The right to fetch, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a>(&'a Pace);

impl Pace {
    pub(crate) fn new() -> Self {
        Pace::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until another fetch may be under way.
    pub(crate) fn turn(&self) -> Turn<'_> {
        let is_full = |state: &mut State| state.under_way >= state.limit;
        let mut state =
            self.changed.wait_while(self.lock(), is_full).unwrap_or_else(PoisonError::into_inner);
        state.under_way += 1;
        Turn(self)
    }

    /// Told how long a fetch took.
    pub(crate) fn landed(&self, took: Duration) {
        self.lock().learn(took);
        self.changed.notify_all();
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.lock().under_way -= 1;
        self.0.changed.notify_all();
    }
}

/// A number of permits that all of a state folder share.
#[derive(Debug)]
pub(crate) struct Permits {
    free: Mutex<usize>,
    given: Condvar,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit(Arc<Permits>);

impl Permits {
    pub(crate) fn new(count: usize) -> Self {
        Permits { free: Mutex::new(count), given: Condvar::new() }
    }

    /// Waits for one.
    pub(crate) fn take(self: &Arc<Self>) -> Permit {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free =
            self.given.wait_while(free, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        Permit(self.clone())
    }

    /// One, if one is free now.
    pub(crate) fn try_take(self: &Arc<Self>) -> Option<Permit> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        *free = free.checked_sub(1)?;
        Some(Permit(self.clone()))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.given.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the limit is after fetches over a link: `way_ms` there and back, `each_ms` for the bytes
    /// of one, those that are under way one behind the other.
    fn settled(way_ms: u64, each_ms: u64) -> usize {
        let mut state = State::default();
        state.learn(Duration::from_millis(way_ms + each_ms));
        for _ in 0..100 {
            let queued = (state.limit as u64 * each_ms).max(way_ms + each_ms);
            state.learn(Duration::from_millis(queued));
        }
        state.limit
    }

    #[test]
    fn a_long_way_is_filled_and_a_short_one_is_not_queued_up() {
        assert_eq!(settled(100, 3), MAX);
        assert!((12..=MAX).contains(&settled(20, 3)));
        assert!((2..=4).contains(&settled(1, 3)));
    }

    #[test]
    fn no_more_than_the_limit_are_under_way() {
        let pace = Pace::new();
        let turns: Vec<Turn<'_>> = (0..START).map(|_| pace.turn()).collect();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| drop(pace.turn()));
            assert_eq!(pace.lock().under_way, START);
            drop(turns);
            waiting.join().unwrap();
        });
        assert_eq!(pace.lock().under_way, 0);
        let permits = Arc::new(Permits::new(1));
        let permit = permits.take();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| drop(permits.take()));
            drop(permit);
            waiting.join().unwrap();
        });
    }
}
