//! The block lists of packs, the most recently used in memory.
//!
//! Two readers: an import looks for duplicates in them, a commit looks up the digests of blocks
//! that it leaves alone.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use catalog::{Catalog, PackId};
use chunking::BlockList;
use format::entry::EntryKind;
use format::pack::{PackEntry, PackIndex};
use model::{ChunkDigest, Kind, Result};
use store::{PackName, PackStore};

/// How many lists stay in memory: about 6 MB.
pub const LISTS_MAX: usize = 32;

/// A pack's number and its blocks.
pub type PackList = (PackId, Arc<BlockList>);

/// Loads block lists and keeps the most recently used.
pub struct PackLists {
    catalog: Arc<dyn Catalog>,
    packs: Arc<dyn PackStore>,
    recent: Mutex<VecDeque<PackList>>,
}

impl PackLists {
    /// Nothing loaded yet.
    pub fn new(catalog: Arc<dyn Catalog>, packs: Arc<dyn PackStore>) -> Self {
        PackLists { catalog, packs, recent: Mutex::default() }
    }

    /// The list of a pack. Cost when it is not in memory: one look-up and two reads, some 130 KB.
    pub fn get(&self, id: PackId) -> Result<Arc<BlockList>> {
        if let Some(list) = self.cached(id) {
            return Ok(list);
        }
        let record = self.catalog.pack(id)?;
        let name = PackName::new(&record.name)?;
        let index =
            PackIndex::read(record.stored_len, |offset, len| self.packs.read(&name, offset, len))?;
        let list = Arc::new(to_list(&index));
        self.insert(id, list.clone());
        Ok(list)
    }

    /// Forgets the lists of packs that are gone or condemned, so that no new writer refers to them.
    pub fn forget_removed(&self) -> Result<()> {
        for (id, _) in self.all_cached() {
            match self.catalog.pack(id) {
                Ok(record) if record.condemned.is_none() => {}
                Err(error) if error.kind() != Kind::NotFound => return Err(error),
                _ => {
                    let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
                    recent.retain(|(known, _)| *known != id);
                }
            }
        }
        Ok(())
    }

    /// Puts a list that the caller has made itself.
    pub fn insert(&self, id: PackId, list: Arc<BlockList>) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.retain(|(known, _)| *known != id);
        recent.push_front((id, list));
        recent.truncate(LISTS_MAX);
    }

    /// All lists in memory, the most recently used first.
    pub fn all_cached(&self) -> Vec<PackList> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Bytes of memory that all lists here take.
    pub fn memory_len(&self) -> usize {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.iter().map(|(_, list)| list.memory_len()).sum()
    }

    fn cached(&self, id: PackId) -> Option<Arc<BlockList>> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let position = recent.iter().position(|(known, _)| *known == id)?;
        let found = recent.remove(position)?;
        let list = found.1.clone();
        recent.push_front(found);
        Some(list)
    }
}

fn to_list(index: &PackIndex) -> BlockList {
    let mut list = BlockList::default();
    for (position, entry) in index.entries().iter().enumerate() {
        let PackEntry { kind, digest, .. } = entry;
        if *kind == EntryKind::Chunk {
            list.push(ChunkDigest(*digest), index.block_digests(position));
        }
    }
    list
}
