//! The threads that wait so that the event threads need not.
//!
//! ```text
//! event thread --run--> is another event thread free to receive?
//!                         yes: does the job itself, no hand-over
//!                         no:  queue --> worker; the event thread goes on receiving
//! ```
//!
//! **Invariants**
//! - At most [`WORKER_COUNT_MAX`] workers; at most [`QUEUE_LEN_MAX`] jobs wait for one. Where the
//!   queue is full the event thread waits, and further requests wait in the kernel.
//! - A panic in a job ends that job only; what it had not answered is answered with `EIO` by the
//!   reply's own drop.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Threads that receive requests from the kernel, and serve them where nothing is in the way.
pub(crate) const EVENT_THREAD_COUNT: usize = 4;
/// The most workers at one time.
pub(crate) const WORKER_COUNT_MAX: usize = 64;
/// The most jobs that wait for a worker.
pub(crate) const QUEUE_LEN_MAX: usize = 256;
/// How long a worker without work stays.
const IDLE_MAX: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    worker_count: usize,
    idle_count: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
    space: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leave to work on the event thread; gives it back when dropped.
pub(crate) struct Permit<'a>(&'a AtomicUsize);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The workers of one mount.
#[derive(Default)]
pub(crate) struct Workers {
    shared: Arc<Shared>,
    busy_count: AtomicUsize,
}

impl Workers {
    /// Leave to work on this event thread, unless it is the last one that could receive.
    pub(crate) fn try_here(&self) -> Option<Permit<'_>> {
        let before = self.busy_count.fetch_add(1, Ordering::AcqRel);
        let permit = Permit(&self.busy_count);
        (before + 1 < EVENT_THREAD_COUNT).then_some(permit)
    }

    /// Does a job, here or on a worker.
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) {
        match self.try_here() {
            Some(_permit) => guard(job),
            None => self.hand_over(Box::new(job)),
        }
    }

    /// Gives a job to a worker.
    pub(crate) fn hand_over(&self, job: Job) {
        let mut state = self.shared.state();
        while state.queue.len() >= QUEUE_LEN_MAX {
            state = self.shared.space.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.queue.push_back(job);
        if state.idle_count < state.queue.len() && state.worker_count < WORKER_COUNT_MAX {
            let shared = Arc::clone(&self.shared);
            let spawned = std::thread::Builder::new()
                .name("larder-fuse-worker".into())
                .spawn(move || work(&shared));
            match spawned {
                Ok(_) => state.worker_count += 1,
                Err(error) if state.worker_count == 0 => {
                    tracing::warn!(%error, "no worker thread; an event thread does the work");
                    let job = state.queue.pop_back();
                    drop(state);
                    if let Some(job) = job {
                        guard(job);
                    }
                    return;
                }
                Err(error) => tracing::warn!(%error, "no further worker thread"),
            }
        }
        drop(state);
        self.shared.work.notify_one();
    }
}

/// Does a job and survives its panic.
pub(crate) fn guard(job: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(job)).is_err() {
        tracing::error!("a FUSE request panicked and was answered with EIO");
    }
}

fn work(shared: &Shared) {
    let mut state = shared.state();
    loop {
        if let Some(job) = state.queue.pop_front() {
            drop(state);
            shared.space.notify_one();
            guard(job);
            state = shared.state();
            continue;
        }
        state.idle_count += 1;
        let (woken, timeout) =
            shared.work.wait_timeout(state, IDLE_MAX).unwrap_or_else(PoisonError::into_inner);
        state = woken;
        state.idle_count -= 1;
        if timeout.timed_out() && state.queue.is_empty() {
            state.worker_count -= 1;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{channel, sync_channel};

    use super::*;

    #[test]
    fn jobs_that_wait_leave_one_event_thread_free() {
        let workers = Workers::default();
        let here: Vec<_> = (1..EVENT_THREAD_COUNT).map(|_| workers.try_here().unwrap()).collect();
        assert!(workers.try_here().is_none());
        let (release, held) = sync_channel::<()>(0);
        let held = Arc::new(Mutex::new(held));
        let (done, finished) = channel();
        let count = WORKER_COUNT_MAX + 5;
        for _ in 0..count {
            let (held, done) = (Arc::clone(&held), done.clone());
            workers.run(move || {
                held.lock().unwrap().recv().unwrap();
                done.send(()).unwrap();
            });
        }
        assert_eq!(workers.shared.state().worker_count, WORKER_COUNT_MAX);
        for _ in 0..count {
            release.send(()).unwrap();
            finished.recv().unwrap();
        }
        drop(here);
        assert!(workers.try_here().is_some());
    }

    #[test]
    fn a_panic_ends_its_job_only() {
        let workers = Workers::default();
        workers.run(|| panic!("on purpose"));
        workers.hand_over(Box::new(|| panic!("on purpose")));
        let (done, finished) = channel();
        workers.hand_over(Box::new(move || done.send(7).unwrap()));
        assert_eq!(finished.recv().unwrap(), 7);
        assert!(workers.try_here().is_some());
    }
}
