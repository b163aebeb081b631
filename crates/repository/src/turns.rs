//! Turns: few heavy works of a process that serves guests are under way at once, and take less memory.
//!
//! ```text
//! Line::Short  commits of few bytes  ─► turn ─► threads that step back ┐
//! Line::Long   commits of many bytes ─► turn ─► threads that step back ├─ fewer buffers
//! Line::Sets   working sets          ─► turn ─► threads like any other ┘
//! ```
//!
//! **Bounds**: of each line a few are at work, the others wait: a thousand mirrors that are committed at
//! once take no more memory than two on a machine of two processors. A line waits for itself alone: a
//! short commit never for a long one, and a working set, which a detach may be waiting for, for no commit.
//!
//! Of a commit, only what is heavy and waits for nobody goes to the threads that step back:
//!
//! ```text
//! this thread plans, asks the catalog       as ever
//! digests, compression, packs' bytes ─────► threads that step back
//! ```
//!
//! What holds the catalog's one writing connection, or opens a connection that others will use, does not:
//! a thread that gets no processor would make those wait who must not.
//!
//! **Failure**: on a host whose processors are all busy, what steps back takes as long as that lasts. Where
//! no threads can be made it is done like any other.

use std::cell::Cell;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::sync::OnceLock;

use crossbeam_channel::{Receiver, Sender, bounded};
use rayon::{ThreadPool, ThreadPoolBuilder};

thread_local! {
    /// Which line this thread has a turn of.
    static LINE: Cell<Option<Line>> = const { Cell::new(None) };
}

/// Which line work waits in for its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// Commits of at most [`SHORT_LEN_MAX`] bytes. They step back.
    Short,
    /// Commits of more. They step back.
    Long,
    /// Working sets. They do not step back: small as they are, what waits for one waits for it alone.
    Sets,
}

/// Bytes that count as few: they are compressed within seconds.
pub const SHORT_LEN_MAX: u64 = 256 << 20;

/// What this thread does until it is dropped takes little memory, and steps back where its line says so.
#[derive(Debug)]
pub struct Turn {
    /// None inside another turn.
    line: Option<Line>,
    /// A turn is its thread's.
    _stays: PhantomData<*const ()>,
}

impl Line {
    /// The line of a commit of so many bytes.
    pub fn of_commit(len: u64) -> Self {
        if len > SHORT_LEN_MAX { Line::Long } else { Line::Short }
    }

    /// Waits for a turn. Whose thread has one already goes on with that.
    pub fn turn(self) -> Turn {
        if LINE.get().is_some() {
            return Turn { line: None, _stays: PhantomData };
        }
        let _ = self.places().0.send(());
        self.begin()
    }

    /// A turn, where none has to be waited for.
    pub fn try_turn(self) -> Option<Turn> {
        match LINE.get() {
            Some(_) => Some(self.turn()),
            None => self.places().0.try_send(()).is_ok().then(|| self.begin()),
        }
    }

    fn begin(self) -> Turn {
        LINE.set(Some(self));
        Turn { line: Some(self), _stays: PhantomData }
    }

    /// A channel that holds as many as are under way: half the processors, two at least.
    fn places(self) -> &'static (Sender<()>, Receiver<()>) {
        static PLACES: [OnceLock<(Sender<()>, Receiver<()>)>; 3] = [const { OnceLock::new() }; 3];
        PLACES[self as usize].get_or_init(|| {
            let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
            bounded((processors / 2).max(2))
        })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(line) = self.line {
            LINE.set(None);
            let _ = line.places().1.try_recv();
        }
    }
}

/// Where heavy work of this thread is done: that of the line which it has a turn of.
#[derive(Clone, Copy)]
pub(crate) struct Crew(Option<Line>);

impl Crew {
    /// The crew of the calling thread.
    pub(crate) fn of_this_thread() -> Self {
        Crew(LINE.get())
    }

    /// True inside a turn: fewer buffers then, since guests' pages need the memory more.
    pub(crate) fn is_sparing(self) -> bool {
        self.0.is_some()
    }

    /// Does work on it and waits.
    pub(crate) fn run<T: Send>(self, work: impl FnOnce() -> T + Send) -> T {
        match self.idle_pool() {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }

    /// Has it do work some time.
    pub(crate) fn spawn(self, work: impl FnOnce() + Send + 'static) {
        match self.idle_pool() {
            Some(pool) => pool.spawn(work),
            None => rayon::spawn(work),
        }
    }

    fn idle_pool(self) -> Option<&'static ThreadPool> {
        match self.0 {
            Some(Line::Short | Line::Long) => idle_pool(),
            Some(Line::Sets) | None => None,
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
    fn a_line_has_few_at_work_and_a_turn_inside_another_waits_for_none() {
        let line = Line::of_commit(1);
        let max = line.places().0.capacity().unwrap();
        let (at_once, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 * max {
                scope.spawn(|| {
                    let _turn = line.turn();
                    most.fetch_max(at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    drop((line.turn(), line.try_turn().unwrap()));
                    assert!(LINE.get().is_some());
                    std::thread::yield_now();
                    at_once.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        assert!((1..=max).contains(&most.load(Ordering::SeqCst)));
        // A turn that a panic kept would be missed here.
        for _ in 0..=max {
            let panicked = std::panic::catch_unwind(|| {
                let _turn = line.turn();
                panic!("the work did")
            });
            assert!(panicked.is_err() && LINE.get().is_none());
        }
    }

    #[test]
    fn when_all_turns_of_a_line_are_taken_the_other_lines_go_on() {
        let max = Line::Long.places().0.capacity().unwrap();
        let all = Barrier::new(max);
        let meet = || {
            let _turn = Line::Long.turn();
            all.wait();
            let others = || {
                assert!(Line::Long.try_turn().is_none());
                assert!(Line::of_commit(1).try_turn().is_some());
                assert!(Line::Sets.try_turn().is_some());
            };
            std::thread::scope(|scope| scope.spawn(others).join().unwrap());
            all.wait();
        };
        std::thread::scope(|scope| (0..max).for_each(|_| drop(scope.spawn(meet))));
    }

    #[test]
    fn commits_step_back_and_working_sets_do_not_and_both_are_sparing() {
        let name = || std::thread::current().name().map(str::to_string);
        let here = name();
        for line in [Line::of_commit(SHORT_LEN_MAX), Line::of_commit(SHORT_LEN_MAX + 1)] {
            let _turn = line.turn();
            assert!(Crew::of_this_thread().run(name).unwrap().starts_with("commit-"));
            assert!(Crew::of_this_thread().is_sparing());
        }
        let turn = Line::Sets.turn();
        assert_eq!(Crew::of_this_thread().run(name), here);
        assert!(Crew::of_this_thread().is_sparing());
        drop(turn);
        assert_eq!(Crew::of_this_thread().run(name), here);
        assert!(!Crew::of_this_thread().is_sparing());
    }
}
