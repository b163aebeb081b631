//! A writer's claim on what it has put but not yet published, kept alive while the writer lives.

use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use catalog::{Catalog, LeaseId};
use env::{Clock, SystemClock};
use model::Result;
use store::{PackName, PackStore};

/// How long a lease lives without being renewed, unless a repository was opened otherwise. A writer
/// that was stopped for longer publishes nothing any more.
pub const TIME_TO_LIVE: Duration = Duration::from_secs(600);

/// The same of a collect. The next one must not wait long for one that was killed; and one that was
/// stopped for longer has lost nothing but its work.
pub const COLLECT_TIME_TO_LIVE: Duration = Duration::from_secs(60);

/// A lease and the thread that renews it. Dropped without [`Lease::ended`], it is abandoned: what
/// was put under it is removed, as far as nobody else can have used it.
pub struct Lease {
    id: LeaseId,
    catalog: Arc<dyn Catalog>,
    packs: Arc<dyn PackStore>,
    stop: Arc<(Mutex<bool>, Condvar)>,
    renewer: Option<JoinHandle<()>>,
    is_ended: bool,
}

/// How long readers that come may join a lease after it has begun. Collect waits for leases, so one
/// must not live for ever because somebody always reads.
const SHARED_FOR: Duration = Duration::from_secs(10);

/// The lease of a process's readers: those that come close together share one, because each costs
/// two transactions.
#[derive(Default)]
pub struct ReadersLease(Mutex<Option<(Weak<Lease>, Duration)>>);

impl ReadersLease {
    /// A lease that lives as long as somebody has it.
    pub fn share(&self, begin: impl FnOnce() -> Result<Lease>) -> Result<Arc<Lease>> {
        let now = SystemClock.monotonic();
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((lease, begun)) = &*shared
            && now - *begun < SHARED_FOR
            && let Some(lease) = lease.upgrade()
        {
            return Ok(lease);
        }
        let lease = Arc::new(begin()?);
        *shared = Some((Arc::downgrade(&lease), now));
        Ok(lease)
    }
}

/// What a lease is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Writing or reading versions.
    Work,
    /// Removing what nothing refers to: one at a time.
    Collect,
}

impl Lease {
    /// Begins a lease that dies `time_to_live` after the process that renews it.
    pub fn begin(
        purpose: Purpose,
        catalog: Arc<dyn Catalog>,
        packs: Arc<dyn PackStore>,
        time_to_live: Duration,
    ) -> Result<Self> {
        let id = match purpose {
            Purpose::Work => catalog.begin_lease(time_to_live)?,
            Purpose::Collect => catalog.begin_collect(time_to_live)?,
        };
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let renewer = std::thread::spawn({
            let (catalog, stop) = (catalog.clone(), stop.clone());
            move || renew_until_stopped(&*catalog, id, time_to_live, &stop)
        });
        Ok(Lease { id, catalog, packs, stop, renewer: Some(renewer), is_ended: false })
    }

    /// Its number in the catalog.
    pub fn id(&self) -> LeaseId {
        self.id
    }

    /// Says that a publication has ended the lease.
    pub fn ended(mut self) {
        self.is_ended = true;
    }

    fn abandon(&self) -> Result<()> {
        for name in self.catalog.abandon_lease(self.id)? {
            self.packs.remove(&PackName::new(&name)?)?;
        }
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_all();
        if let Some(renewer) = self.renewer.take() {
            let _ = renewer.join();
        }
        if !self.is_ended
            && let Err(error) = self.abandon()
        {
            tracing::warn!(error = error.chain(), "cannot remove what was put; collect will");
        }
    }
}

fn renew_until_stopped(
    catalog: &dyn Catalog,
    id: LeaseId,
    time_to_live: Duration,
    stop: &(Mutex<bool>, Condvar),
) {
    let mut stopped = stop.0.lock().unwrap_or_else(PoisonError::into_inner);
    while !*stopped {
        let (guard, wait) = stop
            .1
            .wait_timeout_while(stopped, time_to_live / 4, |stopped| !*stopped)
            .unwrap_or_else(PoisonError::into_inner);
        stopped = guard;
        if wait.timed_out()
            && let Err(error) = catalog.renew_lease(id, time_to_live)
        {
            // Publishing will say so to the user; here it is only known earlier.
            tracing::warn!(error = error.chain(), "cannot renew the lease");
        }
    }
}
