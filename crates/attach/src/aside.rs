//! Threads for requests that may wait, so that those behind them do not.
//!
//! The thread that receives submits; threads that are made when they are first needed execute and
//! answer: up to four for requests that may wait for a fetch, one for flushes. So a flush passes reads
//! that wait for a repository that cannot be reached, however many they are. How a request is
//! executed, the door says with a [`Worker`].
//!
//! **Invariants**: a submitted request is answered unless the connection ends. Submitting blocks
//! while 64 requests wait.
//!
//! **Failure**: a panic ends the connection: the worker is told to abandon it.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

const FETCH_THREAD_COUNT_MAX: usize = 4;
const FLUSH_THREAD_COUNT_MAX: usize = 1;
const WAITING_COUNT_MAX: usize = 64;

/// What a door does with requests that may wait.
pub(crate) trait Worker: Send + Sync + 'static {
    /// A request, with all that is needed to execute it.
    type Job: Send;
    /// What a thread keeps from one request to the next.
    type Scratch;

    /// True for a flush: it is executed apart from what may wait for a fetch.
    fn is_flush(&self, job: &Self::Job) -> bool;

    /// Made once for each thread.
    fn scratch(&self) -> Self::Scratch;

    /// Executes a request and answers it.
    ///
    /// # Errors
    /// The connection is of no use any more.
    fn execute(&self, job: Self::Job, scratch: &mut Self::Scratch) -> std::io::Result<()>;

    /// Ends the connection.
    fn abandon(&self);
}

struct Queue<J> {
    jobs: VecDeque<J>,
    idle_count: usize,
    closed: bool,
}

struct Shared<W: Worker> {
    worker: Arc<W>,
    queue: Mutex<Queue<W::Job>>,
    /// A job came, or the queue was closed.
    filled: Condvar,
    /// A job was taken.
    taken: Condvar,
}

impl<W: Worker> Shared<W> {
    fn lock(&self) -> MutexGuard<'_, Queue<W::Job>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job; `None` when there will be none.
    fn next(&self) -> Option<W::Job> {
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                self.taken.notify_one();
                return Some(job);
            }
            if queue.closed {
                return None;
            }
            queue.idle_count += 1;
            queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle_count -= 1;
        }
    }

    fn work(&self) {
        let mut scratch = self.worker.scratch();
        while let Some(job) = self.next() {
            let executed = || self.worker.execute(job, &mut scratch);
            let result = catch_unwind(AssertUnwindSafe(executed));
            match result {
                Ok(Ok(())) => (),
                Ok(Err(error)) => {
                    tracing::debug!("a reply could not be sent: {error}");
                    return self.abandon();
                }
                Err(_) => {
                    tracing::error!("a panic while a request was executed; closing");
                    return self.abandon();
                }
            }
        }
    }

    /// Ends the connection and forgets what waits.
    fn abandon(&self) {
        self.worker.abandon();
        let mut queue = self.lock();
        queue.jobs.clear();
        queue.closed = true;
        self.filled.notify_all();
        self.taken.notify_all();
    }
}

/// The side threads of one connection. Dropping it forgets what waits, and joins them.
pub(crate) struct Aside<W: Worker> {
    fetches: Lane<W>,
    flushes: Lane<W>,
}

impl<W: Worker> Aside<W> {
    pub(crate) fn new(worker: Arc<W>) -> Self {
        Aside {
            fetches: Lane::new(worker.clone(), FETCH_THREAD_COUNT_MAX),
            flushes: Lane::new(worker, FLUSH_THREAD_COUNT_MAX),
        }
    }

    /// Has a request executed and answered aside.
    ///
    /// # Errors
    /// No thread could be made: the connection cannot go on.
    pub(crate) fn submit(&mut self, job: W::Job) -> std::io::Result<()> {
        match self.fetches.shared.worker.is_flush(&job) {
            true => self.flushes.submit(job),
            false => self.fetches.submit(job),
        }
    }

    /// Waits until everything submitted is answered.
    pub(crate) fn finish(mut self) {
        self.fetches.join();
        self.flushes.join();
    }
}

/// Threads that take their jobs from one queue.
struct Lane<W: Worker> {
    shared: Arc<Shared<W>>,
    threads: Vec<JoinHandle<()>>,
    thread_count_max: usize,
}

impl<W: Worker> Lane<W> {
    fn new(worker: Arc<W>, thread_count_max: usize) -> Self {
        let shared = Shared {
            worker,
            queue: Mutex::new(Queue { jobs: VecDeque::new(), idle_count: 0, closed: false }),
            filled: Condvar::new(),
            taken: Condvar::new(),
        };
        Lane { shared: Arc::new(shared), threads: Vec::new(), thread_count_max }
    }

    fn submit(&mut self, job: W::Job) -> std::io::Result<()> {
        let mut queue = self.shared.lock();
        while queue.jobs.len() >= WAITING_COUNT_MAX && !queue.closed {
            queue = self.shared.taken.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        if queue.closed {
            return Err(std::io::ErrorKind::ConnectionAborted.into());
        }
        queue.jobs.push_back(job);
        let more_than_idle = queue.jobs.len() > queue.idle_count;
        drop(queue);
        self.shared.filled.notify_one();
        if more_than_idle && self.threads.len() < self.thread_count_max {
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new().name("aside".into());
            match thread.spawn(move || shared.work()) {
                Ok(thread) => self.threads.push(thread),
                Err(error) if self.threads.is_empty() => return Err(error),
                Err(_) => (),
            }
        }
        Ok(())
    }

    fn join(&mut self) {
        self.shared.lock().closed = true;
        self.shared.filled.notify_all();
        for thread in self.threads.drain(..) {
            // Panics are caught inside.
            let _ = thread.join();
        }
    }
}

impl<W: Worker> Drop for Lane<W> {
    fn drop(&mut self) {
        self.shared.lock().jobs.clear();
        self.join();
    }
}
