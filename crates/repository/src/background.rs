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
//! **Failure**: on a host whose processors are all busy such work takes as long as that lasts. Where no
//! threads can be made it is done like any other.

use std::cell::Cell;
use std::sync::OnceLock;

use rayon::{ThreadPool, ThreadPoolBuilder};

thread_local! {
    static IS_BACKGROUND: Cell<bool> = const { Cell::new(false) };
}

/// Does work whose heavy part steps back behind everything else on this machine.
pub fn in_background<T>(work: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            IS_BACKGROUND.set(self.0);
        }
    }
    let _restore = Restore(IS_BACKGROUND.replace(true));
    work()
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
    use super::*;

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
