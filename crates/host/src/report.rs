//! What a mirror's boot fetched, when, from where, and what its guest waited for.
//!
//! The owner writes it into the mirror's folder while the guest boots and when it lets the mirror go,
//! so it can be read beside it and after it. It is a help for people: lost with a crash, of the last
//! attach only.

use std::path::PathBuf;
use std::time::Duration;

use mirror::journal::Origin;
use mirror::{Mirror, StateFolder};
use model::boot_set::FirstRead;
use model::device::Device;
use model::{BLOCK_LEN, Error, Kind, MirrorName, Result};
use serde::{Deserialize, Serialize};

/// A report. Times in milliseconds since the mirror was opened, sizes and addresses in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The mirror.
    pub mirror: String,
    /// The version that it reads.
    pub version: String,
    /// Bytes of the disk.
    pub length_bytes: u64,
    /// Stored bytes that were read from the repository.
    pub fetched_bytes: u64,
    /// Plain bytes of blocks that came from chunks of the version.
    pub from_chunks_bytes: u64,
    /// Plain bytes of blocks that came with its boot working set.
    pub prefetched_bytes: u64,
    /// The part of those that the guest has read.
    pub prefetch_used_bytes: u64,
    /// Plain bytes of the set that the version does not have where the set says.
    pub misfit_bytes: u64,
    /// How long reads waited, all together.
    pub waited_ms: f64,
    /// How many reads waited.
    pub waits: usize,
    /// Distinct bytes that the guest read from the version while the boot was recorded.
    pub read_bytes: u64,
    /// First reads, in order.
    pub reads: Vec<ReadEvent>,
    /// Fetches, in the order in which they ended.
    pub fetches: Vec<FetchEvent>,
    /// Reads that waited, in the order in which they ended.
    pub waited: Vec<WaitEvent>,
    /// Events that were not kept, because there were too many.
    pub left_out: u64,
}

/// Blocks that were read for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReadEvent {
    /// When, after the first of them.
    pub at_ms: f64,
    /// Where.
    pub offset: u64,
    /// How much.
    pub len: u64,
}

/// A fetch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FetchEvent {
    /// When it began.
    pub at_ms: f64,
    /// How long it took.
    pub took_ms: f64,
    /// `chunk` or `boot_set`.
    pub from: String,
    /// Where the first of its blocks is.
    pub offset: u64,
    /// Plain bytes of blocks that were kept.
    pub kept_bytes: u64,
}

/// A read that waited.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WaitEvent {
    /// When it began.
    pub at_ms: f64,
    /// How long it took.
    pub took_ms: f64,
    /// What was read.
    pub offset: u64,
    /// How much.
    pub len: u64,
}

impl Report {
    /// The report of a mirror as it is now. `reads` are the first reads of its guest.
    pub(crate) fn of(mirror: &Mirror, fetched_bytes: u64, reads: &[FirstRead]) -> Report {
        let statistics = mirror.statistics();
        let journal = mirror.journal();
        let from_chunks = |fetch: &&mirror::journal::Fetch| fetch.origin == Origin::Chunk;
        Report {
            mirror: mirror.name().to_string(),
            version: mirror.base().to_string(),
            length_bytes: mirror.length(),
            fetched_bytes,
            from_chunks_bytes: journal
                .fetches
                .iter()
                .filter(from_chunks)
                .map(|fetch| fetch.kept_bytes)
                .sum(),
            prefetched_bytes: statistics.prefetched_bytes,
            prefetch_used_bytes: mirror.brought_by_set(reads),
            misfit_bytes: statistics.misfit_bytes,
            waited_ms: milliseconds(journal.waited),
            waits: journal.waits.len(),
            read_bytes: reads.iter().map(|read| bytes(read.block_count.into())).sum(),
            reads: reads
                .iter()
                .map(|read| ReadEvent {
                    at_ms: f64::from(read.at_ms),
                    offset: bytes(read.first_block),
                    len: bytes(read.block_count.into()),
                })
                .collect(),
            fetches: journal
                .fetches
                .iter()
                .map(|fetch| FetchEvent {
                    at_ms: milliseconds(fetch.at),
                    took_ms: milliseconds(fetch.took),
                    from: match fetch.origin {
                        Origin::Chunk => "chunk".to_string(),
                        Origin::BootSet => "boot_set".to_string(),
                    },
                    offset: bytes(fetch.first_block),
                    kept_bytes: fetch.kept_bytes,
                })
                .collect(),
            waited: journal
                .waits
                .iter()
                .map(|wait| WaitEvent {
                    at_ms: milliseconds(wait.at),
                    took_ms: milliseconds(wait.took),
                    offset: wait.offset,
                    len: wait.len,
                })
                .collect(),
            left_out: journal.left_out,
        }
    }

    /// Reads the report of a mirror of this host.
    ///
    /// # Errors
    /// `NotFound` where there is no such mirror, or it has not been served since it was made.
    pub fn read(state: &StateFolder, name: &MirrorName) -> Result<Report> {
        let text = match std::fs::read(path(state, name)) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let error = Error::new(Kind::NotFound, "report", name.as_str());
                return Err(match Mirror::exists(state, name)? {
                    true => error
                        .because("nothing was recorded yet")
                        .hint("it is there a second after the mirror is attached"),
                    false => {
                        error.because("no such mirror here").hint("`larder mirrors` lists them")
                    }
                });
            }
            Err(error) => return Err(Error::io("read the report of", name.as_str(), error)),
        };
        serde_json::from_slice(&text).map_err(|error| {
            Error::new(Kind::Corrupt, "read the report of", name.as_str())
                .because("it was written by another larder, or cut short")
                .hint("attach the mirror again")
                .caused_by(error)
        })
    }

    /// Writes it into the mirror's folder. Best effort: nothing depends on it.
    pub(crate) fn write(&self, state: &StateFolder, name: &MirrorName) {
        let path = path(state, name);
        let written = serde_json::to_vec(self).map_err(std::io::Error::other).and_then(|text| {
            let new = path.with_extension("new");
            std::fs::write(&new, text)?;
            std::fs::rename(&new, &path)
        });
        if let Err(error) = written {
            tracing::debug!(%error, "no report");
        }
    }
}

fn path(state: &StateFolder, name: &MirrorName) -> PathBuf {
    state.mirror_folder(name).join("report.json")
}

fn bytes(blocks: u64) -> u64 {
    blocks * BLOCK_LEN as u64
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1000.0
}
