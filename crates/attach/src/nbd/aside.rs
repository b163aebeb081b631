//! Threads for requests that may wait, so that those behind them do not.
//!
//! The connection's thread submits; threads that are made when they are first needed execute and
//! reply: up to four for requests that may wait for a fetch, one for flushes. So a flush passes reads
//! that wait for a repository that cannot be reached, however many they are.
//!
//! **Invariants**: a submitted request is answered unless the connection ends. Submitting blocks
//! while 64 requests wait.
//!
//! **Failure**: a panic ends the connection: its socket is closed, and its thread sees the end.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::execute::{Executor, REPLY_BUFFER_LEN};
use super::reply::ReplyBuffer;
use super::wire::{CMD_FLUSH, Request};

const FETCH_THREAD_COUNT_MAX: usize = 4;
const FLUSH_THREAD_COUNT_MAX: usize = 1;
const WAITING_COUNT_MAX: usize = 64;
/// The longest write whose payload is copied to be executed aside.
pub(super) const PAYLOAD_LEN_MAX: usize = 64 * 1024;

/// A request that passed `Executor::check`, with the payload of a write.
pub(super) struct Job {
    pub(super) request: Request,
    pub(super) payload: Vec<u8>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    idle_count: usize,
    closed: bool,
}

struct Shared {
    executor: Arc<Executor>,
    queue: Mutex<Queue>,
    /// A job came, or the queue was closed.
    filled: Condvar,
    /// A job was taken.
    taken: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job; `None` when there will be none.
    fn next(&self) -> Option<Job> {
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
        let mut out = ReplyBuffer::new(REPLY_BUFFER_LEN);
        while let Some(job) = self.next() {
            let result = catch_unwind(AssertUnwindSafe(|| {
                self.executor.execute(&job.request, &job.payload, &mut out)?;
                out.send(&self.executor.outlet)
            }));
            match result {
                Ok(Ok(())) => (),
                Ok(Err(error)) => {
                    tracing::debug!("an NBD reply could not be sent: {error}");
                    return self.abandon();
                }
                Err(_) => {
                    tracing::error!("a panic while an NBD request was executed; closing");
                    return self.abandon();
                }
            }
        }
    }

    /// Ends the connection and forgets what waits.
    fn abandon(&self) {
        self.executor.outlet.close();
        let mut queue = self.lock();
        queue.jobs.clear();
        queue.closed = true;
        self.filled.notify_all();
        self.taken.notify_all();
    }
}

/// The side threads of one connection. Dropping it forgets what waits, and joins them.
pub(super) struct Aside {
    fetches: Lane,
    flushes: Lane,
}

impl Aside {
    pub(super) fn new(executor: Arc<Executor>) -> Self {
        Aside {
            fetches: Lane::new(executor.clone(), FETCH_THREAD_COUNT_MAX),
            flushes: Lane::new(executor, FLUSH_THREAD_COUNT_MAX),
        }
    }

    /// Has a request executed and answered aside.
    ///
    /// # Errors
    /// No thread could be made: the connection cannot go on.
    pub(super) fn submit(&mut self, job: Job) -> std::io::Result<()> {
        match job.request.command {
            CMD_FLUSH => self.flushes.submit(job),
            _ => self.fetches.submit(job),
        }
    }

    /// Waits until everything submitted is answered.
    pub(super) fn finish(mut self) {
        self.fetches.join();
        self.flushes.join();
    }
}

/// Threads that take their jobs from one queue.
struct Lane {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    thread_count_max: usize,
}

impl Lane {
    fn new(executor: Arc<Executor>, thread_count_max: usize) -> Self {
        let shared = Shared {
            executor,
            queue: Mutex::default(),
            filled: Condvar::new(),
            taken: Condvar::new(),
        };
        Lane { shared: Arc::new(shared), threads: Vec::new(), thread_count_max }
    }

    fn submit(&mut self, job: Job) -> std::io::Result<()> {
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
            let thread = std::thread::Builder::new().name("nbd-aside".into());
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

impl Drop for Lane {
    fn drop(&mut self) {
        self.shared.lock().jobs.clear();
        self.join();
    }
}
