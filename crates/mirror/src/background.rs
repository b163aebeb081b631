//! A few threads per state folder for what nobody waits for: fetching ahead and checkpoints.
//!
//! **Failure**: a job that does not fit into the queue, or fails, is forgotten: whoever needs the
//! block fetches it, and the next checkpoint holds what this one did not.

use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use crate::base::Base;
use crate::fetch::BaseView;
use crate::pace::Permits;

const QUEUE_MAX: usize = 8;

/// Jobs that are done at once: mostly they wait for the store.
const WORKERS: usize = 4;

/// Units of boot working sets that are under way at once, whatever the number of mirrors: each takes
/// some 1.5 MiB of memory.
const PREFETCHES_MAX: usize = 16;

/// Threads that bring chunks beside those who wait for them, whatever the number of readers: each holds
/// one, plain and as it is stored.
const SPARE_THREADS: usize = 16;

enum Job {
    Prefetch(Weak<BaseView>, Range<u64>),
    Maps(Weak<BaseView>, Range<u32>),
    Checkpoint(Weak<Base>),
}

/// The threads, started with the first job; they end after the last owner is gone.
#[derive(Debug)]
pub(crate) struct Background {
    queue: OnceLock<Option<SyncSender<Job>>>,
    prefetches: Arc<Permits>,
    spare_threads: Arc<Permits>,
}

impl Default for Background {
    fn default() -> Self {
        Background {
            queue: OnceLock::new(),
            prefetches: Arc::new(Permits::new(PREFETCHES_MAX)),
            spare_threads: Arc::new(Permits::new(SPARE_THREADS)),
        }
    }
}

impl Background {
    /// None at all: jobs are forgotten. For tests that count what happens.
    pub(crate) fn none() -> Self {
        Background { queue: OnceLock::from(None), ..Background::default() }
    }

    pub(crate) fn prefetch(&self, view: &Arc<BaseView>, blocks: Range<u64>) {
        self.send(Job::Prefetch(Arc::downgrade(view), blocks));
    }

    /// Brings the maps of segments.
    pub(crate) fn maps(&self, view: &Arc<BaseView>, segments: Range<u32>) {
        self.send(Job::Maps(Arc::downgrade(view), segments));
    }

    /// The right to bring a unit of a boot working set.
    pub(crate) fn prefetches(&self) -> Arc<Permits> {
        self.prefetches.clone()
    }

    /// The right to one thread more for what somebody waits for.
    pub(crate) fn spare_threads(&self) -> &Arc<Permits> {
        &self.spare_threads
    }

    pub(crate) fn checkpoint(&self, base: &Arc<Base>) {
        self.send(Job::Checkpoint(Arc::downgrade(base)));
    }

    fn send(&self, job: Job) {
        let queue = self.queue.get_or_init(|| {
            let (sender, receiver) = sync_channel(QUEUE_MAX);
            let receiver = Arc::new(Mutex::new(receiver));
            let started = (0..WORKERS).filter(|_| {
                let receiver = receiver.clone();
                let thread = std::thread::Builder::new().name("mirror-background".into());
                thread.spawn(move || work(&receiver)).is_ok()
            });
            (started.count() > 0).then_some(sender)
        });
        if let Some(queue) = queue {
            let _ = queue.try_send(job);
        }
    }
}

fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else { return };
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| match job {
            Job::Prefetch(view, blocks) => {
                view.upgrade().map_or(Ok(()), |view| view.bring_ahead(blocks))
            }
            Job::Maps(view, segments) => {
                view.upgrade().map_or(Ok(()), |view| view.bring_maps(segments))
            }
            Job::Checkpoint(base) => base.upgrade().map_or(Ok(()), |base| base.checkpoint()),
        }));
        match done {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(error = %error.chain(), "background work failed"),
            Err(_) => tracing::warn!("background work panicked"),
        }
    }
}
