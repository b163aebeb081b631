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
//! once take no more memory than two on a machine of two processors. Long work has a line of its own, so
//! that short work never waits for it.
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

/// Which line work waits in for its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// That of work on at most [`SHORT_LEN_MAX`] bytes.
    Short,
    /// That of work on more.
    Long,
}

/// Bytes that count as few: they are compressed within seconds.
pub const SHORT_LEN_MAX: u64 = 256 << 20;

impl Line {
    /// The line of work on so many bytes.
    pub fn of(len: u64) -> Self {
        if len > SHORT_LEN_MAX { Line::Long } else { Line::Short }
    }
}

/// Does work whose heavy part steps back behind everything else on this machine. Waits for its turn: of
/// each line as many are under way as half the processors, two at least, since each takes some 70 MiB of
/// memory.
pub fn in_background<T>(line: Line, work: impl FnOnce() -> T) -> T {
    struct Restore(Line);
    impl Drop for Restore {
        fn drop(&mut self) {
            IS_BACKGROUND.set(false);
            let _ = turns(self.0).1.try_recv();
        }
    }
    // Who has a turn needs no other.
    if IS_BACKGROUND.get() {
        return work();
    }
    let _ = turns(line).0.send(());
    let _restore = Restore(line);
    IS_BACKGROUND.set(true);
    work()
}

/// A channel that holds as many as are under way.
fn turns(line: Line) -> &'static (Sender<()>, Receiver<()>) {
    static SHORT: OnceLock<(Sender<()>, Receiver<()>)> = OnceLock::new();
    static LONG: OnceLock<(Sender<()>, Receiver<()>)> = OnceLock::new();
    let turns = match line {
        Line::Short => &SHORT,
        Line::Long => &LONG,
    };
    turns.get_or_init(|| {
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
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn work_that_steps_back_waits_for_its_turn_and_one_inside_another_does_not() {
        let line = Line::of(1);
        let max = turns(line).0.capacity().unwrap();
        let (at_once, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 * max {
                scope.spawn(|| {
                    in_background(line, || {
                        most.fetch_max(
                            at_once.fetch_add(1, Ordering::SeqCst) + 1,
                            Ordering::SeqCst,
                        );
                        in_background(line, std::thread::yield_now);
                        at_once.fetch_sub(1, Ordering::SeqCst);
                    });
                });
            }
        });
        assert!((1..=max).contains(&most.load(Ordering::SeqCst)));
        // When all turns of a line are taken, the other line goes on.
        let all = Barrier::new(max);
        let meet = || {
            all.wait();
            let other = || in_background(Line::of(SHORT_LEN_MAX + 1), std::thread::yield_now);
            std::thread::scope(|scope| scope.spawn(other).join().unwrap());
            all.wait();
        };
        std::thread::scope(|scope| {
            (0..max).for_each(|_| drop(scope.spawn(|| in_background(line, meet))));
        });
        // A turn that a panic kept would be missed here.
        for _ in 0..=max {
            let panicked =
                std::panic::catch_unwind(|| in_background(line, || panic!("the work did")));
            assert!(panicked.is_err() && !IS_BACKGROUND.get());
        }
    }

    #[test]
    fn work_of_a_commit_is_done_by_threads_that_step_back_and_other_work_is_not() {
        let name = || std::thread::current().name().map(str::to_string);
        let here = name();
        assert_eq!(Crew::of_this_thread().run(name), here);
        let inside = in_background(Line::Short, || Crew::of_this_thread().run(name));
        assert!(inside.unwrap().starts_with("commit-"));
        assert!(in_background(Line::Long, || Crew::of_this_thread().steps_back()));
        assert!(!Crew::of_this_thread().steps_back());
        assert_eq!(Crew::of_this_thread().run(name), here);
    }
}
