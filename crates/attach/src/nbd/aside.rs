//! Threads for requests that may wait, so that those behind them do not.
//!
//! The connection's thread submits; up to four threads, made when they are first needed, execute
//! and reply.
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
use super::wire::Request;

const THREAD_COUNT_MAX: usize = 4;
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
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Aside {
    pub(super) fn new(executor: Arc<Executor>) -> Self {
        let shared = Shared {
            executor,
            queue: Mutex::default(),
            filled: Condvar::new(),
            taken: Condvar::new(),
        };
        Aside { shared: Arc::new(shared), threads: Vec::new() }
    }

    /// Has a request executed and answered aside.
    ///
    /// # Errors
    /// No thread could be made: the connection cannot go on.
    pub(super) fn submit(&mut self, job: Job) -> std::io::Result<()> {
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
        if more_than_idle && self.threads.len() < THREAD_COUNT_MAX {
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

    /// Waits until everything submitted is answered.
    pub(super) fn finish(mut self) {
        self.join();
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

impl Drop for Aside {
    fn drop(&mut self) {
        self.shared.lock().jobs.clear();
        self.join();
    }
}
