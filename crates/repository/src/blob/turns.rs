//! Who publishes next in an image: the writers of one process, in the order in which they came.
//!
//! **Failure**: a turn ends when it is dropped, so also where its thread panics.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::ImageName;

/// The lines in which writers wait, one for each image that is written to.
#[derive(Default)]
pub struct Turns {
    lines: Mutex<HashMap<ImageName, Line>>,
    moved: Condvar,
}

/// Tickets are given out in order and served in order.
#[derive(Default)]
struct Line {
    next: u64,
    serving: u64,
}

/// The right to publish in an image until it is dropped.
pub struct Turn<'a> {
    turns: &'a Turns,
    image: ImageName,
}

impl Turns {
    /// Waits until everybody who came before has had a turn.
    pub fn take(&self, image: &ImageName) -> Turn<'_> {
        let mut lines = self.lock();
        let line = lines.entry(image.clone()).or_default();
        let ticket = line.next;
        line.next += 1;
        let waits = |lines: &mut HashMap<ImageName, Line>| {
            lines.get(image).is_some_and(|line| line.serving != ticket)
        };
        drop(self.moved.wait_while(lines, waits).unwrap_or_else(PoisonError::into_inner));
        Turn { turns: self, image: image.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ImageName, Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    /// Rests before the next try, because another process was faster. The turn is kept.
    pub fn rest(&self, duration: Duration) {
        let lines = self.turns.lock();
        // Nobody ends the rest early: turns that move meanwhile are those of other images.
        let _rested = self
            .turns
            .moved
            .wait_timeout_while(lines, duration, |_| true)
            .unwrap_or_else(PoisonError::into_inner);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut lines = self.turns.lock();
        if let Some(line) = lines.get_mut(&self.image) {
            line.serving += 1;
            if line.serving == line.next {
                lines.remove(&self.image);
            }
        }
        drop(lines);
        self.turns.moved.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn turns_come_in_order_one_at_a_time_and_leave_nothing_behind() {
        let turns = Turns::default();
        let image = ImageName::new("web").unwrap();
        let first = turns.take(&image);
        let order = Mutex::new(Vec::new());
        let busy = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for number in 0..8 {
                let (turns, image, order, busy) = (&turns, &image, &order, &busy);
                scope.spawn(move || {
                    let _turn = turns.take(image);
                    assert_eq!(busy.fetch_add(1, Ordering::SeqCst), 0);
                    order.lock().unwrap().push(number);
                    busy.fetch_sub(1, Ordering::SeqCst);
                });
                // The next comes when this one stands in line.
                while turns.lock().get(image).is_none_or(|line| line.next < number + 2) {
                    std::thread::yield_now();
                }
            }
            drop(first);
        });
        assert_eq!(*order.lock().unwrap(), (0..8).collect::<Vec<_>>());
        assert!(turns.lock().is_empty());
    }

    #[test]
    fn a_writer_that_panics_gives_its_turn_up() {
        let turns = Turns::default();
        let image = ImageName::new("web").unwrap();
        std::thread::scope(|scope| {
            let died = scope.spawn(|| {
                let _turn = turns.take(&image);
                panic!("on purpose");
            });
            assert!(died.join().is_err());
        });
        drop(turns.take(&image));
    }
}
