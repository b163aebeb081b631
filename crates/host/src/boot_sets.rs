//! When a boot working set is brought, when one is recorded, and when a boot is over; the report of it.
//!
//! ```text
//! attach ─► a set is known? ──► prefetch
//!        └► own set of fewer than 3 boots, or one that fits no longer? ──► record
//!          ready, nothing new read for 10 s, or 5 minutes gone ──► the set goes to the repository
//! ```
//!
//! **Failure**: a set is a help, no promise: what goes wrong with one is logged and nothing else.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use mirror::{Mirror, Recording, StateFolder};
use model::boot_set::{BOOT, FirstRead};
use model::{BLOCK_LEN, Kind, Result, VersionId};
use repository::turns::{Line, Turn};
use repository::{Repository, RepositoryChunks};

use crate::owner::AttachRequest;
use crate::report::Report;
use crate::stock::StockedChunks;

/// A boot is over when the guest has read nothing new for this long.
const QUIET: Duration = Duration::from_secs(10);

/// A boot is over after this long in any case.
const LIMIT: Duration = Duration::from_secs(300);

/// How many boots of a version are merged.
const BOOTS_MERGED: u32 = 3;

/// Who reads less than this has not booted from it.
const BLOCKS_MIN: u64 = (2 << 20) / BLOCK_LEN as u64;

/// How often it is looked whether a boot is over.
const LOOK: Duration = Duration::from_secs(1);

/// Brings and records the working set of one mirror. Ends when dropped.
pub(crate) struct BootWatch {
    signal: Arc<(Mutex<Signal>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

/// What a watch is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signal {
    None,
    /// The guest says that its boot is over.
    Ready,
    /// The mirror is let go.
    Ended,
}

/// What is recorded, for whom.
struct Watched {
    repository: Repository,
    /// What the mirror reads by: it counts that.
    chunks: Arc<RepositoryChunks>,
    state: StateFolder,
    mirror: Arc<Mirror>,
    version: VersionId,
    name: String,
    /// True where somebody asked for the record: then all that is read until the mirror is let go.
    is_asked_for: bool,
    /// False where the version's set is good enough: then only the report is written.
    is_wanted: bool,
}

impl BootWatch {
    /// Starts bringing the set that there is, and recording where one is wanted: under the name
    /// given until the mirror is let go, otherwise the boot.
    pub(crate) fn start(
        repository: &Repository,
        chunks: &Arc<RepositoryChunks>,
        stocked: &StockedChunks,
        state: &StateFolder,
        mirror: &Arc<Mirror>,
        request: &AttachRequest,
    ) -> Result<Option<Self>> {
        let record = request.record.as_deref();
        let version = match repository.catalog().version(&mirror.base().into()) {
            Ok(version) if version.facts.content == mirror.binding().content => version,
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == Kind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let known = repository.boot_set_record(&version, BOOT)?;
        let own = known.as_ref().filter(|set| set.content == version.facts.content);
        let is_settled = own.is_some_and(|set| set.boots >= BOOTS_MERGED);
        if let Some(known) = &known {
            match stocked.boot_set(known) {
                Ok(set) => mirror.prefetch_boot_set(Arc::new(set)),
                Err(error) => tracing::warn!("no prefetch: {}", error.chain()),
            }
        }
        // What is not kept as a set is told in the report all the same.
        mirror.start_recording();
        let watched = Watched {
            repository: repository.clone(),
            chunks: chunks.clone(),
            state: state.clone(),
            mirror: mirror.clone(),
            version: version.id,
            name: record.unwrap_or(BOOT).to_string(),
            is_asked_for: record.is_some(),
            is_wanted: !is_settled,
        };
        let signal = Arc::new((Mutex::new(Signal::None), Condvar::new()));
        let thread = std::thread::spawn({
            let signal = signal.clone();
            move || watched.watch(&signal)
        });
        Ok(Some(BootWatch { signal, thread: Some(thread) }))
    }

    /// Ends the recording: the guest says that it is ready.
    pub(crate) fn is_ready(&self) {
        self.tell(Signal::Ready);
    }

    fn tell(&self, told: Signal) {
        let mut signal = self.signal.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *signal != Signal::Ended {
            *signal = told;
        }
        self.signal.1.notify_all();
    }
}

impl Drop for BootWatch {
    fn drop(&mut self) {
        self.tell(Signal::Ended);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Watched {
    fn watch(&self, (signal, changed): &(Mutex<Signal>, Condvar)) {
        let told = signal.lock().unwrap_or_else(PoisonError::into_inner);
        let told = self.watch_until_over(told, changed);
        self.report();
        let blocks = self.mirror.recording().map_or(0, |recording| recording.block_count);
        let reads = self.mirror.stop_recording();
        // One that was cut off is none.
        let is_boot = *told != Signal::Ended && blocks >= BLOCKS_MIN;
        if self.is_asked_for || self.is_wanted && is_boot {
            let _turn = turn(told, changed);
            self.store(&reads, blocks);
        }
    }

    fn watch_until_over<'a>(
        &self,
        mut told: MutexGuard<'a, Signal>,
        changed: &Condvar,
    ) -> MutexGuard<'a, Signal> {
        // A mirror that nobody reads costs no writes.
        let mut reported = None;
        loop {
            let is_over = !self.is_asked_for && self.mirror.recording().is_some_and(is_over);
            if *told != Signal::None || is_over {
                return told;
            }
            let blocks = self.mirror.recording().map(|recording| recording.block_count);
            let now = Some((blocks, self.chunks.read_len()));
            if now != reported {
                reported = now;
                self.report();
            }
            told = wait(told, changed);
        }
    }

    fn report(&self) {
        let fetched_bytes = self.chunks.read_len();
        let report = Report::of(&self.mirror, fetched_bytes, &self.mirror.recorded());
        report.write(&self.state, self.mirror.name());
    }

    fn store(&self, reads: &[FirstRead], blocks: u64) {
        match self.repository.record_boot_set(&self.version, &self.name, reads) {
            Ok(record) => tracing::info!(
                version = %self.version, name = self.name, boots = record.boots, blocks,
                "recorded a working set"
            ),
            Err(error) => tracing::warn!("no working set: {}", error.chain()),
        }
    }
}

/// A turn to make a set. Who is waited for stands in line; the others look now and then, and so let it
/// go first.
fn turn(mut told: MutexGuard<'_, Signal>, changed: &Condvar) -> Turn {
    let mut turn = Line::Sets.try_turn();
    while turn.is_none() && *told != Signal::Ended {
        told = wait(told, changed);
        turn = Line::Sets.try_turn();
    }
    drop(told);
    turn.unwrap_or_else(|| Line::Sets.turn())
}

/// Waits until it is time to look again, or something else is told.
fn wait<'a>(told: MutexGuard<'a, Signal>, changed: &Condvar) -> MutexGuard<'a, Signal> {
    let before = *told;
    let woken = changed.wait_timeout_while(told, LOOK, |told| *told == before);
    woken.unwrap_or_else(PoisonError::into_inner).0
}

fn is_over(recording: Recording) -> bool {
    recording.quiet_for >= QUIET || recording.running_for >= LIMIT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_over_when_it_is_quiet_or_takes_too_long() {
        let recording = |running, quiet| Recording {
            block_count: 1,
            running_for: Duration::from_secs(running),
            quiet_for: Duration::from_secs(quiet),
        };
        assert!(!is_over(recording(60, 9)));
        assert!(is_over(recording(60, 10)));
        assert!(is_over(recording(300, 0)));
    }
}
