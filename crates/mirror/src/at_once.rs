//! Work on several things at once, by threads whose number all readers of a state folder share.
//!
//! Who finds no thread free does the work alone: nobody waits for one.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::pace::Permits;

/// Does the work for all items, `max` at once where as many threads are spare; the first failure is
/// the outcome. What a thread that panics had taken is left undone.
pub(crate) fn at_once<T: Sync, E: Send>(
    spare: &Arc<Permits>,
    max: NonZeroUsize,
    items: &[T],
    work: impl Fn(&T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let next = AtomicUsize::new(0);
    let run = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(item)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let start = |permit| {
            let helped = move || {
                let _held = permit;
                run()
            };
            std::thread::Builder::new().spawn_scoped(scope, helped).ok()
        };
        let permits = (1..max.get().min(items.len())).map_while(|_| spare.try_take());
        let others: Vec<_> = permits.filter_map(start).collect();
        let own = run();
        others.into_iter().filter_map(|other| other.join().ok()).fold(own, Result::and)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    const MAX: NonZeroUsize = NonZeroUsize::new(3).unwrap();

    #[test]
    fn as_many_work_as_threads_are_spare() {
        let spare = Arc::new(Permits::new(1));
        // Two meet, or nobody leaves.
        let both = Barrier::new(2);
        let meet = |_: &u8| {
            both.wait();
            Ok::<_, ()>(())
        };
        at_once(&spare, MAX, &[1, 2, 3, 4], meet).unwrap();
        let held = spare.try_take().unwrap();
        let alone = std::thread::current().id();
        let is_alone = |_: &u8| match std::thread::current().id() == alone {
            true => Ok(()),
            false => Err("by another thread"),
        };
        at_once(&spare, MAX, &[1, 2, 3], is_alone).unwrap();
        drop(held);
    }

    #[test]
    fn a_failure_of_one_is_the_outcome() {
        let spare = Arc::new(Permits::new(4));
        let work = |item: &u32| if *item == 7 { Err(*item) } else { Ok(()) };
        assert_eq!(at_once(&spare, MAX, &(0..20).collect::<Vec<_>>(), work), Err(7));
        assert_eq!(at_once(&spare, MAX, &[], work), Ok(()));
    }
}
