//! Copies the live entries of packs into new packs, as they are stored, so that the old can go.
//!
//! ```text
//! old packs   [ live | dead | live ]  [ dead | live ] ...
//! new pack    [ live | live | live ...               ]   then: rows say that the entries are there
//! ```
//!
//! **Invariants**: an entry is copied only after its bytes were verified against its digest; the new
//! pack is durable before rows name it.
//!
//! **Failure**: a pack of which anything that is live cannot be read or verified is left as it is.

use std::collections::HashSet;
use std::ops::ControlFlow;

use catalog::{EntryDigest, LeaseId, Location, PackId, PackRecord, Revision};
use format::entry::{EntryKind, decode};
use format::pack::{PackBuilder, PackEntry, PackIndex};
use format::segment_map::map_digest;
use model::progress::Cancel;
use model::{BLOCK_LEN, BlockDigest, ChunkDigest, Error, Kind, MapDigest, Result, SegmentMap};
use store::{Chunk, PackName};

use super::CollectLimits;
use super::live::key;
use super::walk::{Visitor, walk};
use crate::packer::{PACK_DATA_LEN, describe};
use crate::repository::Repository;

/// What was copied.
#[derive(Debug, Default)]
pub(super) struct Repacked {
    /// Packs of which nothing is referred to any more.
    pub(super) emptied: Vec<PackId>,
    /// Packs that were left as they are, each with the reason.
    pub(super) left: Vec<(String, Error)>,
    /// Bytes of the new packs.
    pub(super) written_len: u64,
}

/// Copies what is live of these packs. Cost: a walk over all roots for each group of packs whose
/// entries fit into the memory that is allowed, and the packs read once.
pub(super) fn repack(
    repository: &Repository,
    lease: LeaseId,
    packs: &[PackId],
    limits: &CollectLimits,
    cancel: &Cancel,
) -> Result<Repacked> {
    let mut copy = Copy {
        repository,
        lease,
        open: PackBuilder::new(),
        data_len: 0,
        sources: Vec::new(),
        done: Repacked::default(),
    };
    let mut rest = packs.iter().copied().peekable();
    while rest.peek().is_some() {
        let mut among = Among::default();
        let mut group = Vec::new();
        while among.wanted.len() * KEY_LEN < limits.memory_len
            && let Some(id) = rest.next()
        {
            let record = repository.catalog.pack(id)?;
            match read_index(repository, &record) {
                Ok(index) => {
                    among.wanted.extend(index.entries().iter().map(|entry| key(&entry.digest)));
                    group.push(record);
                }
                Err(error) => copy.leave(record.name, error)?,
            }
        }
        walk(repository, Revision::default(), cancel, &mut among)?;
        for record in group {
            cancel.check("collect", "the repository")?;
            if let Err(error) = copy.pack(&record, &among.live) {
                copy.leave(record.name, error)?;
            }
        }
    }
    copy.flush()?;
    Ok(copy.done)
}

/// Memory that a key takes in a table half of which may be free.
const KEY_LEN: usize = 40;

/// Which of some entries are referred to.
#[derive(Default)]
struct Among {
    wanted: HashSet<u64>,
    live: HashSet<u64>,
}

impl Among {
    fn add(&mut self, digest: &EntryDigest) {
        let key = key(digest);
        if self.wanted.contains(&key) {
            self.live.insert(key);
        }
    }
}

impl Visitor for Among {
    fn entry(&mut self, digest: &EntryDigest) -> ControlFlow<()> {
        self.add(digest);
        ControlFlow::Continue(())
    }

    fn map(&mut self, _segment: u32, _digest: &MapDigest, map: &SegmentMap) -> ControlFlow<()> {
        map.runs().iter().for_each(|run| self.add(&run.chunk.0));
        ControlFlow::Continue(())
    }
}

fn read_index(repository: &Repository, record: &PackRecord) -> Result<PackIndex> {
    let name = PackName::new(&record.name)?;
    PackIndex::read(record.stored_len, |offset, len| repository.packs.read(&name, offset, len))
}

struct Copy<'a> {
    repository: &'a Repository,
    lease: LeaseId,
    open: PackBuilder,
    data_len: u64,
    /// Packs all of whose live entries are in the open pack or before it.
    sources: Vec<PackId>,
    done: Repacked,
}

/// A live entry, read and verified.
struct Verified<'a> {
    entry: PackEntry,
    stored: Vec<u8>,
    blocks: &'a [BlockDigest],
}

impl Copy<'_> {
    /// Goes on without a pack that is damaged.
    fn leave(&mut self, name: String, error: Error) -> Result<()> {
        match error.kind() {
            Kind::Corrupt | Kind::NotFound => {
                self.done.left.push((name, error));
                Ok(())
            }
            _ => Err(error),
        }
    }

    fn pack(&mut self, record: &PackRecord, live: &HashSet<u64>) -> Result<()> {
        let store = &self.repository.packs;
        let (id, name) = (record.id, PackName::new(&record.name)?);
        let index = read_index(self.repository, record)?;
        let places = self.places(&index)?;
        let mut verified = Vec::new();
        for (position, entry) in index.entries().iter().enumerate() {
            // The entry may have its place in another pack, which brought it first.
            let here = places[position].as_ref().is_some_and(|place| place.pack == id);
            if here && live.contains(&key(&entry.digest)) {
                let stored = store.read(&name, entry.offset, entry.stored_len as usize)?;
                verify(entry, &stored)?;
                verified.push(Verified {
                    entry: *entry,
                    stored,
                    blocks: index.block_digests(position),
                });
            }
        }
        // Nothing is pushed before all was verified: a pack is copied whole or not at all.
        for entry in verified {
            self.push(&entry)?;
        }
        self.sources.push(id);
        Ok(())
    }

    fn places(&self, index: &PackIndex) -> Result<Vec<Option<Location>>> {
        let digests: Vec<EntryDigest> = index.entries().iter().map(|entry| entry.digest).collect();
        self.repository.catalog.locate(&self.repository.realm, &digests)
    }

    fn push(&mut self, verified: &Verified) -> Result<()> {
        let Verified { entry, stored, blocks } = verified;
        let data_len = (blocks.len() * BLOCK_LEN) as u64;
        if self.data_len + data_len > PACK_DATA_LEN
            || !self.open.has_room(stored.len(), blocks.len())
        {
            self.flush()?;
        }
        self.data_len += data_len;
        self.open.push(entry.kind, entry.encoding, entry.digest, entry.plain_len, stored, blocks);
        Ok(())
    }

    /// Makes the open pack durable, then says that the entries are there.
    fn flush(&mut self) -> Result<()> {
        let open = std::mem::replace(&mut self.open, PackBuilder::new());
        self.data_len = 0;
        if !open.is_empty() {
            let finished = open.finish();
            let name = PackName::new(&self.repository.entropy.name())?;
            self.repository.packs.put(&name, &finished.bytes)?;
            self.done.written_len += finished.bytes.len() as u64;
            let pack = describe(&name, &self.repository.realm, &finished);
            self.repository.catalog.move_entries(self.lease, &pack)?;
        }
        self.done.emptied.append(&mut self.sources);
        Ok(())
    }
}

/// Checks that stored bytes are those that the entry's digest names.
fn verify(entry: &PackEntry, stored: &[u8]) -> Result<()> {
    let plain = decode(entry.encoding, stored, entry.plain_len)?;
    let digest = match entry.kind {
        EntryKind::Chunk => Chunk::verify(ChunkDigest(entry.digest), plain)?.digest().0,
        EntryKind::SegmentMap => map_digest(&plain).0,
        EntryKind::ManifestLeaf
        | EntryKind::Manifest
        | EntryKind::Record
        | EntryKind::BootSet
        | EntryKind::BootPiece
        | EntryKind::Document => *blake3::hash(&plain).as_bytes(),
    };
    match digest == entry.digest {
        true => Ok(()),
        false => Err(Error::new(Kind::Corrupt, "copy", ChunkDigest(entry.digest).to_string())
            .because("its bytes have another digest")),
    }
}
