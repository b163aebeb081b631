//! Compresses entries on all cores, gathers them in packs, makes the packs durable and visible.
//!
//! ```text
//! layout ──push──► [ordered queue, its length bounded] ──► pack thread: put, sync, add to catalog
//!             └──► thread pool: compress ──┘ (each entry's result comes through its own channel)
//! ```
//!
//! **Invariant**: entries lie in packs in the order in which they were pushed.
//!
//! **Failure**: the first error stops the pack thread; the next push, or `finish`, returns it.

use std::cell::RefCell;
use std::sync::Arc;
use std::thread::JoinHandle;

use catalog::{Catalog, EntryRecord, LeaseId, NewPack, PackId};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use env::Entropy;
use format::entry::{Encoder, Encoding, EntryKind};
use format::pack::{FinishedPack, PackBuilder, PackEntry};
use model::digest::DIGEST_LEN;
use model::{BlockDigest, Error, Kind, Realm, Result};
use store::{PackName, PackStore};

use crate::turns::Crew;

/// Plain bytes of the data chunks of one pack.
pub const PACK_DATA_LEN: u64 = 16 << 20;

/// Bytes that a pack has in general: its data, one chunk more, and what tells of them.
const PACK_ROOM_LEN: usize = PACK_DATA_LEN as usize + (2 << 20);

/// How many entries may be on their way to a pack. Bounds memory: 64 chunks of at most 1 MiB, twice.
const IN_FLIGHT_MAX: usize = 64;
/// The same inside a turn.
const SPARING_IN_FLIGHT_MAX: usize = 4;

/// One entry to be packed.
pub struct Entry {
    pub kind: EntryKind,
    pub digest: [u8; DIGEST_LEN],
    pub plain: Vec<u8>,
    /// The digests of a chunk's blocks; empty for other kinds.
    pub blocks: Vec<BlockDigest>,
}

impl Entry {
    /// An entry that is no chunk.
    pub fn whole(kind: EntryKind, digest: [u8; DIGEST_LEN], plain: Vec<u8>) -> Self {
        Entry { kind, digest, plain, blocks: Vec::new() }
    }
}

struct Packed {
    kind: EntryKind,
    digest: [u8; DIGEST_LEN],
    plain_len: u32,
    blocks: Vec<BlockDigest>,
    stored: Receiver<(Encoding, Vec<u8>)>,
}

enum Job {
    Entry(Packed),
    EndOfPack,
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Bytes of all packs.
    pub stored_len: u64,
    /// Packs.
    pub pack_count: u64,
    /// The last of them.
    pub last_pack: Option<PackId>,
}

/// Where packs go.
#[derive(Clone)]
pub struct Destination {
    pub catalog: Arc<dyn Catalog>,
    pub packs: Arc<dyn PackStore>,
    pub entropy: Arc<dyn Entropy>,
    pub realm: Realm,
    pub lease: LeaseId,
    pub compression_level: i32,
}

/// Takes entries, makes packs.
pub struct Packer {
    level: i32,
    crew: Crew,
    jobs: Option<Sender<Job>>,
    visible: Receiver<PackId>,
    thread: Option<JoinHandle<Result<Written>>>,
}

impl Packer {
    /// Starts the pack thread.
    pub fn start(destination: Destination) -> Self {
        let level = destination.compression_level;
        let crew = Crew::of_this_thread();
        let in_flight = if crew.is_sparing() { SPARING_IN_FLIGHT_MAX } else { IN_FLIGHT_MAX };
        let (jobs, queue) = bounded(in_flight);
        let (announce, visible) = unbounded();
        let thread = std::thread::spawn(move || pack_all(&destination, crew, &queue, &announce));
        Packer { level, crew, jobs: Some(jobs), visible, thread: Some(thread) }
    }

    /// Takes one entry. Waits while too many are on their way.
    pub fn push(&mut self, entry: Entry) -> Result<()> {
        let (sender, stored) = bounded(1);
        let packed = Packed {
            kind: entry.kind,
            digest: entry.digest,
            plain_len: entry.plain.len() as u32,
            blocks: entry.blocks,
            stored,
        };
        let (plain, level) = (entry.plain, self.level);
        self.crew.spawn(move || {
            // Nobody waits for it any more when the pack thread has failed.
            let _ = sender.send(encode(level, &plain));
        });
        self.send(Job::Entry(packed))
    }

    /// Ends the pack: what was pushed becomes durable and visible soon.
    pub fn end_pack(&mut self) -> Result<()> {
        self.send(Job::EndOfPack)
    }

    /// The packs that have become visible since the last call, in the order of `end_pack`.
    pub fn take_visible(&mut self) -> Vec<PackId> {
        self.visible.try_iter().collect()
    }

    /// Waits until everything is durable and visible.
    pub fn finish(mut self) -> Result<Written> {
        self.jobs.take();
        self.join()
    }

    fn send(&mut self, job: Job) -> Result<()> {
        let sent = self.jobs.as_ref().map(|jobs| jobs.send(job));
        match sent {
            Some(Ok(())) => Ok(()),
            // The thread hung up, so it has failed: its error is the one that matters.
            _ => Err(self.join().err().unwrap_or_else(gone)),
        }
    }

    fn join(&mut self) -> Result<Written> {
        self.jobs.take();
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            _ => Err(gone()),
        }
    }
}

impl Drop for Packer {
    fn drop(&mut self) {
        // A writer that gives up waits for its thread, so that nothing is put after it has cleaned.
        let _ = self.join();
    }
}

fn gone() -> Error {
    Error::new(Kind::Bug, "write", "a pack").because("the thread that writes packs ended early")
}

pub(crate) fn encode(level: i32, plain: &[u8]) -> (Encoding, Vec<u8>) {
    thread_local! {
        static ENCODER: RefCell<Option<(i32, Encoder)>> = const { RefCell::new(None) };
    }
    ENCODER.with_borrow_mut(|slot| match slot {
        Some((known, encoder)) if *known == level => encoder.encode(plain),
        _ => slot.insert((level, Encoder::new(level))).1.encode(plain),
    })
}

fn pack_all(
    to: &Destination,
    crew: Crew,
    queue: &Receiver<Job>,
    announce: &Sender<PackId>,
) -> Result<Written> {
    let mut written = Written::default();
    let mut builder = PackBuilder::with_room_for(PACK_ROOM_LEN);
    for job in queue {
        match job {
            Job::Entry(entry) => {
                let (encoding, stored) = entry.stored.recv().map_err(|_| gone())?;
                builder.push(
                    entry.kind,
                    encoding,
                    entry.digest,
                    entry.plain_len,
                    &stored,
                    &entry.blocks,
                );
            }
            Job::EndOfPack if builder.is_empty() => {}
            Job::EndOfPack => {
                let full =
                    std::mem::replace(&mut builder, PackBuilder::with_room_for(PACK_ROOM_LEN));
                let _ = announce.send(put(to, crew, full, &mut written)?);
            }
        }
    }
    if !builder.is_empty() {
        put(to, crew, builder, &mut written)?;
    }
    Ok(written)
}

/// Makes a pack durable, then visible. In that order: nothing refers to bytes that are not durable.
fn put(
    to: &Destination,
    crew: Crew,
    builder: PackBuilder,
    written: &mut Written,
) -> Result<PackId> {
    let finished = builder.finish();
    let name = PackName::new(&to.entropy.name())?;
    crew.run(|| to.packs.put(&name, &finished.bytes))?;
    let pack = describe(&name, &to.realm, &finished);
    let id = to.catalog.add_pack(to.lease, &pack).inspect_err(|error| {
        // Only where the catalog has surely not taken it: after another error the row may be there
        // all the same, and a row must not name bytes that are gone. If it cannot be removed,
        // collect will find it.
        if matches!(error.kind(), Kind::Stale | Kind::Full) {
            let _ = to.packs.remove(&name);
        }
    })?;
    written.stored_len += pack.stored_len;
    written.pack_count += 1;
    written.last_pack = Some(id);
    Ok(id)
}

/// What the catalog is told of a finished pack.
pub fn describe(name: &PackName, realm: &Realm, finished: &FinishedPack) -> NewPack {
    let digests = finished.block_digests.iter();
    new_pack(name, realm, finished.bytes.len() as u64, &finished.entries, digests)
}

/// What the catalog is told of a pack.
pub fn new_pack<'a>(
    name: &PackName,
    realm: &Realm,
    stored_len: u64,
    entries: &[PackEntry],
    block_digests: impl Iterator<Item = &'a BlockDigest>,
) -> NewPack {
    let chunks = || entries.iter().filter(|entry| entry.kind == EntryKind::Chunk);
    let mut hooks: Vec<_> =
        block_digests.filter(|digest| digest.is_hook()).map(BlockDigest::hook).collect();
    hooks.sort_unstable();
    hooks.dedup();
    NewPack {
        name: name.as_str().to_string(),
        realm: realm.clone(),
        stored_len,
        data_len: chunks().map(|entry| u64::from(entry.plain_len)).sum(),
        data_stored_len: chunks().map(|entry| u64::from(entry.stored_len)).sum(),
        entries: entries.iter().map(row_of).collect(),
        hooks,
    }
}

/// An entry of a pack's table, as the catalog keeps it.
pub fn row_of(entry: &PackEntry) -> EntryRecord {
    EntryRecord {
        digest: entry.digest,
        offset: entry.offset,
        stored_len: entry.stored_len,
        plain_len: entry.plain_len,
        encoding: entry.encoding as u8,
        kind: entry.kind as u8,
    }
}
