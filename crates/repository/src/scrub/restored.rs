//! Entries that were restored, on their way into new packs.
//!
//! **Invariant**: bytes first, then rows; and a row moves only to bytes that were verified.

use std::collections::HashSet;

use catalog::{EntryDigest, LeaseId};
use format::pack::PackBuilder;
use model::{BLOCK_LEN, Kind, Result};
use store::PackName;

use super::verify::Verified;
use crate::packer::{PACK_DATA_LEN, encode, new_pack};
use crate::repository::Repository;

/// Gathers entries in packs, and moves their rows there.
pub struct Restored<'a> {
    repository: &'a Repository,
    lease: LeaseId,
    builder: PackBuilder,
    data_len: u64,
    done: HashSet<EntryDigest>,
}

impl<'a> Restored<'a> {
    /// Nothing restored yet. The lease is one of work, and outlives this.
    pub fn new(repository: &'a Repository, lease: LeaseId) -> Self {
        let builder = PackBuilder::new();
        Restored { repository, lease, builder, data_len: 0, done: HashSet::new() }
    }

    /// True where an entry was pushed before.
    pub fn contains(&self, digest: &EntryDigest) -> bool {
        self.done.contains(digest)
    }

    /// Takes an entry. It is durable, and its row leads to it, when [`Restored::flush`] returns.
    pub fn push(&mut self, entry: &Verified) -> Result<()> {
        if !self.done.insert(entry.digest) {
            return Ok(());
        }
        let (encoding, stored) = encode(self.repository.settings.compression_level, &entry.plain);
        if !self.builder.has_room(stored.len(), entry.blocks.len()) {
            self.flush()?;
        }
        let plain_len = entry.plain.len() as u32;
        let Verified { kind, digest, blocks, .. } = entry;
        self.builder.push(*kind, encoding, *digest, plain_len, &stored, blocks);
        self.data_len += (blocks.len() * BLOCK_LEN) as u64;
        match self.data_len >= PACK_DATA_LEN {
            true => self.flush(),
            false => Ok(()),
        }
    }

    /// Makes what was pushed durable, then visible.
    pub fn flush(&mut self) -> Result<()> {
        if self.builder.is_empty() {
            return Ok(());
        }
        let finished = std::mem::take(&mut self.builder).finish();
        self.data_len = 0;
        let Repository { catalog, packs, entropy, realm, .. } = self.repository;
        let name = PackName::new(&entropy.name())?;
        packs.put(&name, &finished.bytes)?;
        let digests = finished.block_digests.iter();
        let pack = new_pack(&name, realm, finished.bytes.len() as u64, &finished.entries, digests);
        catalog.move_entries(self.lease, &pack).inspect_err(|error| {
            // Only where the catalog has surely not taken it, as a writer does.
            if matches!(error.kind(), Kind::Stale | Kind::Full) {
                let _ = packs.remove(&name);
            }
        })?;
        Ok(())
    }
}
