//! Which blocks of a machine a resume needs: noted once, brought before they are asked for ever after.
//!
//! A working set is kept as those of boots are, under the name `resume`.
//!
//! **Failure**: a set is a help, no promise: without it pages are fetched as they are needed.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use catalog::VersionRecord;
use mirror::ReadOnlyView;
use model::boot_set::{BootSet, FirstRead};
use model::device::{Device, Extent};
use model::{BLOCK_LEN, Result};
use repository::Repository;

/// The name of the working set of a resume.
pub const RESUME: &str = "resume";

/// A machine's version whose reads are noted.
pub struct RecordedReads {
    view: Arc<ReadOnlyView>,
    began: Instant,
    noted: Mutex<Noted>,
}

#[derive(Default)]
struct Noted {
    seen: HashSet<u64>,
    reads: Vec<FirstRead>,
}

impl RecordedReads {
    /// Notes what is read of a version, from now on.
    pub fn new(view: Arc<ReadOnlyView>) -> Self {
        RecordedReads { view, began: Instant::now(), noted: Mutex::default() }
    }

    /// What was read so far, in order of first use.
    pub fn reads(&self) -> Vec<FirstRead> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner).reads.clone()
    }

    fn note(&self, offset: u64, len: u64) {
        let at_ms = u32::try_from(self.began.elapsed().as_millis()).unwrap_or(u32::MAX);
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        for block in offset / BLOCK_LEN as u64..(offset + len).div_ceil(BLOCK_LEN as u64) {
            if !noted.seen.insert(block) {
                continue;
            }
            match noted.reads.last_mut() {
                Some(read)
                    if read.at_ms == at_ms
                        && read.first_block + u64::from(read.block_count) == block =>
                {
                    read.block_count += 1;
                }
                _ => noted.reads.push(FirstRead { first_block: block, block_count: 1, at_ms }),
            }
        }
    }
}

impl Device for RecordedReads {
    fn length(&self) -> u64 {
        self.view.length()
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.note(offset, buffer.len() as u64);
        self.view.read(offset, buffer)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.view.write(offset, bytes)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.view.write_zeroes(offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.view.discard(offset, len)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn prefetch(&self, offset: u64, len: u64) -> Result<()> {
        self.view.prefetch(offset, len)
    }

    fn may_wait(&self, offset: u64, len: u64) -> bool {
        self.view.may_wait(offset, len)
    }

    fn extents(&self, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>> {
        self.view.extents(offset, len, max)
    }
}

/// Whether somebody has noted what a resume of a machine needs.
pub fn is_known(repository: &Repository, version: &VersionRecord) -> bool {
    let sets = repository.catalog().boot_sets(version.facts.content);
    sets.is_ok_and(|sets| sets.iter().any(|set| set.name == RESUME))
}

/// What a resume of a machine needs; none where nobody has noted it yet.
pub fn find(repository: &Repository, version: &VersionRecord) -> Option<Arc<BootSet>> {
    match repository.boot_set(version, RESUME) {
        // A machine's parent is its disk: of that a set of this name tells nothing.
        Ok(found) => Some(found.filter(|found| found.record.content == version.facts.content)?.set),
        Err(error) => {
            tracing::debug!("no working set: {}", error.chain());
            None
        }
    }
}

/// Keeps what a resume needed.
pub fn keep(repository: &Repository, version: &VersionRecord, reads: &[FirstRead]) {
    match repository.record_boot_set(&version.id, RESUME, reads) {
        Ok(_) => tracing::info!(machine = %version.id, "recorded a working set"),
        Err(error) => tracing::warn!("no working set: {}", error.chain()),
    }
}
