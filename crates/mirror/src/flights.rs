//! Fetches that are under way: one of those who want the same thing fetches, the others wait.
//!
//! **Failure**: when the one who fetches fails or panics, the others wake and try themselves.
//!
//! **Not here**: what was fetched; whoever waited looks for it where it belongs.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The things that are being fetched.
#[derive(Debug)]
pub(crate) struct Flights<K> {
    flying: Mutex<HashSet<K>>,
    landed: Condvar,
}

/// Held by the one who fetches.
#[derive(Debug)]
pub(crate) struct Flight<'a, K: Eq + Hash> {
    flights: &'a Flights<K>,
    key: K,
}

impl<K: Eq + Hash + Clone> Flights<K> {
    pub(crate) fn new() -> Self {
        Flights { flying: Mutex::new(HashSet::new()), landed: Condvar::new() }
    }

    /// Becomes the one who fetches `key`; `None` after having waited for another who did.
    pub(crate) fn board(&self, key: K) -> Option<Flight<'_, K>> {
        let mut flying = self.guard();
        if flying.insert(key.clone()) {
            return Some(Flight { flights: self, key });
        }
        while flying.contains(&key) {
            flying = self.landed.wait(flying).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }
}

impl<K> Flights<K> {
    fn guard(&self) -> MutexGuard<'_, HashSet<K>> {
        self.flying.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash> Drop for Flight<'_, K> {
    fn drop(&mut self) {
        self.flights.guard().remove(&self.key);
        self.flights.landed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_wakes_those_who_wait() {
        let flights = Flights::new();
        std::thread::scope(|scope| {
            let flight = flights.board(1).unwrap();
            let waiting = scope.spawn(|| flights.board(1).is_none());
            assert!(flights.board(2).is_some());
            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
                let _flight = flight;
                panic!("the store did");
            }));
            assert!(panicked.is_err());
            // It waited, or came when the flight had landed already.
            let _ = waiting.join().unwrap();
        });
        assert!(flights.board(1).is_some());
    }
}
