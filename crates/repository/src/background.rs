//! Work that steps back behind guests: what a commit hashes, compresses and writes.
//!
//! ```text
//! in_background ─► this thread plans, asks the catalog       as ever
//!                  digests, compression, packs' bytes ─────► threads that step back
//! ```
//!
//! Only what is heavy and waits for nobody goes to the threads that step back. What holds the
//! catalog's one writing connection, or opens a connection that others will use, does not: a thread
//! that gets no processor would make those wait who must not.
//!
//! **Bounds**: few of them are at work at once, the others wait: a thousand mirrors that are committed at
//! once take no more memory than two on a machine of two processors.
//!
//! **Failure**: on a host whose processors are all busy such work takes as long as that lasts. Where no
//! threads can be made it is done like any other.

use std::cell::Cell;
use std::num::NonZeroUsize;
use std::sync::OnceLock;

use crossbeam_channel::{Receiver, Sender, bounded};
use rayon::{ThreadPool, ThreadPoolBuilder};

thread_local! {
    static IS_BACKGROUND: Cell<bool> = const { Cell::new(false) };
}

/// Does work whose heavy part steps back behind everything else on this machine. Waits for its turn: as
/// many are under way as half the processors, two at least, since each takes some 70 MiB of memory.
pub fn in_background<T>(work: impl FnOnce() -> T) -> T {
    struct Restore;
    impl Drop for Restore {
        fn drop(&mut self) {
            IS_BACKGROUND.set(false);
            let _ = turns().1.try_recv();
        }
    }
    // Who has a turn needs no other.
    if IS_BACKGROUND.get() {
        return work();
    }
    let _ = turns().0.send(());
    let _restore = Restore;
    IS_BACKGROUND.set(true);
    work()
}

/// A channel that holds as many as are under way.
fn turns() -> &'static (Sender<()>, Receiver<()>) {
    static TURNS: OnceLock<(Sender<()>, Receiver<()>)> = OnceLock::new();
    TURNS.get_or_init(|| {
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        bounded((processors / 2).max(2))
    })
}

/// Where heavy work of this thread is done.
#[derive(Clone, Copy)]
pub(crate) struct Crew(Option<&'static ThreadPool>);

impl Crew {
    /// The crew of the calling thread.
    pub(crate) fn of_this_thread() -> Self {
        Crew(IS_BACKGROUND.get().then(idle_pool).flatten())
    }

    /// True where its work steps back. Such work takes less memory, too: it is done in a daemon that
    /// serves guests, and nobody waits for it.
    pub(crate) fn steps_back(self) -> bool {
        self.0.is_some()
    }

    /// Does work on it and waits.
    pub(crate) fn run<T: Send>(self, work: impl FnOnce() -> T + Send) -> T {
        match self.0 {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }

    /// Has it do work some time.
    pub(crate) fn spawn(self, work: impl FnOnce() + Send + 'static) {
        match self.0 {
            Some(pool) => pool.spawn(work),
            None => rayon::spawn(work),
        }
    }
}

fn idle_pool() -> Option<&'static ThreadPool> {
    static POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();
    let pool = POOL.get_or_init(|| {
        let step_back = |_| {
            if let Err(error) = env::priority::step_back() {
                tracing::debug!(%error, "a commit's threads cannot step back");
            }
        };
        let builder = ThreadPoolBuilder::new().thread_name(|number| format!("commit-{number}"));
        builder.start_handler(step_back).build().ok()
    });
    pool.as_ref()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn work_that_steps_back_waits_for_its_turn_and_one_inside_another_does_not() {
        let max = turns().0.capacity().unwrap();
        let (at_once, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 * max {
                scope.spawn(|| {
                    in_background(|| {
                        most.fetch_max(
                            at_once.fetch_add(1, Ordering::SeqCst) + 1,
                            Ordering::SeqCst,
                        );
                        in_background(std::thread::yield_now);
                        at_once.fetch_sub(1, Ordering::SeqCst);
                    });
                });
            }
        });
        assert!((1..=max).contains(&most.load(Ordering::SeqCst)));
        // A turn that a panic kept would be missed here.
        for _ in 0..=max {
            let panicked = std::panic::catch_unwind(|| in_background(|| panic!("the work did")));
            assert!(panicked.is_err() && !IS_BACKGROUND.get());
        }
    }

    #[test]
    fn work_of_a_commit_is_done_by_threads_that_step_back_and_other_work_is_not() {
        let name = || std::thread::current().name().map(str::to_string);
        let here = name();
        assert_eq!(Crew::of_this_thread().run(name), here);
        let inside = in_background(|| Crew::of_this_thread().run(name));
        assert!(inside.unwrap().starts_with("commit-"));
        assert!(in_background(|| Crew::of_this_thread().steps_back()));
        assert!(!Crew::of_this_thread().steps_back());
        assert_eq!(Crew::of_this_thread().run(name), here);
    }
}
