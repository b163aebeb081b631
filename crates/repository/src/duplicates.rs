//! Finds blocks that the repository has already.
//!
//! A block is looked for, in this order, in the open chunk, in the packs that this writer has on
//! the way, and in the block lists of the packs that the window's hooks name, of the packs put right
//! after those, and of those still in memory. The list that answered last is asked first, since duplicates come in runs.
//!
//! **Invariant**: what is found is claimed. A list tells what a pack once held; before its first
//! answer counts, all its chunks are claimed in the catalog, and those that are gone are struck off.
//!
//! **Source**: sparse indexing (Lillibridge et al., FAST'09); figures in architecture, section 3.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use catalog::{Catalog, EntryDigest, LeaseId, PackId};
use chunking::{BlockList, ChunkRef, OpenChunk, Sampling, SealedChunk};
use model::digest::Hook;
use model::{BlockDigest, Kind, Realm, Result};

use crate::lists::{LISTS_MAX, PackList, PackLists};

/// How many packs one hook may name: the newest.
const PACKS_PER_HOOK_MAX: usize = 2;

/// The blocks that are known, as far as memory is spent on them.
pub struct Duplicates {
    catalog: Arc<dyn Catalog>,
    lists: Arc<PackLists>,
    realm: Realm,
    /// The chunk that takes new blocks.
    pub open: OpenChunk,
    /// Sealed chunks of the pack that is being filled.
    filling: BlockList,
    /// Packs that are full but not yet visible, oldest first.
    in_flight: VecDeque<Arc<BlockList>>,
    /// Lists of packs that others may read, in the order in which they are asked.
    candidates: Vec<PackList>,
    /// Packs whose chunks the lease has claimed, each with what is left of its list where that is
    /// not all of it.
    claimed: HashMap<PackId, Option<Arc<BlockList>>>,
    /// Packs whose followers were looked at.
    followed: HashSet<PackId>,
    lease: LeaseId,
    sampling: Sampling,
}

impl Duplicates {
    /// Nothing known yet but what is in the repository.
    pub fn new(
        catalog: Arc<dyn Catalog>,
        lists: Arc<PackLists>,
        realm: Realm,
        lease: LeaseId,
        open: OpenChunk,
    ) -> Self {
        Duplicates {
            catalog,
            lists,
            realm,
            open,
            filling: BlockList::default(),
            in_flight: VecDeque::new(),
            candidates: Vec::new(),
            claimed: HashMap::new(),
            followed: HashSet::new(),
            lease,
            sampling: Sampling::DEFAULT,
        }
    }

    /// Looks by other hooks than those of a repository: for measuring.
    pub fn with_sampling(self, sampling: Sampling) -> Self {
        Duplicates { sampling, ..self }
    }

    /// Makes ready for a window: loads the lists that its hooks name.
    pub fn prepare(&mut self, digests: &[BlockDigest]) -> Result<()> {
        let mut hooks: Vec<Hook> = digests
            .iter()
            .filter(|digest| self.sampling.keeps(digest))
            .map(BlockDigest::hook)
            .collect();
        hooks.sort_unstable();
        hooks.dedup();
        let named = match hooks.is_empty() {
            true => Vec::new(),
            false => self.catalog.packs_with_hooks(&self.realm, &hooks, PACKS_PER_HOOK_MAX)?,
        };
        let named = &named[..named.len().min(LISTS_MAX)];
        // Followers first: they are the first to go again when lists are many.
        for id in named {
            self.load_follower(*id)?;
        }
        for id in named {
            match self.lists.get(*id) {
                // What it holds is stored anew: that is better than no import at all.
                Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::NotFound) => {
                    tracing::warn!(error = error.chain(), "cannot read the list of a pack");
                }
                other => drop(other?),
            }
        }
        self.candidates = self.lists.all_cached();
        for (id, list) in &mut self.candidates {
            if let Some(Some(left)) = self.claimed.get(id) {
                *list = left.clone();
            }
        }
        Ok(())
    }

    /// Loads the list of the pack that was put after this one, once for each pack. What was written
    /// in one piece goes on there, and where it ends, the pack may be too short to have a hook.
    fn load_follower(&mut self, id: PackId) -> Result<()> {
        if !self.followed.insert(id) {
            return Ok(());
        }
        let follower = PackId(id.0 + 1);
        match self.catalog.pack(follower) {
            Ok(record) if record.condemned.is_none() => {}
            Err(error) if error.kind() != Kind::NotFound => return Err(error),
            _ => return Ok(()),
        }
        match self.lists.get(follower) {
            // Given up by its writer in the meantime, or damaged: no hook has asked for it.
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Corrupt) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Where a block lies, if it is known.
    pub fn find(&mut self, digest: &BlockDigest) -> Result<Option<(ChunkRef, u16)>> {
        if let Some(index) = self.open.find(digest) {
            return Ok(Some((ChunkRef::Open, index)));
        }
        let own = std::iter::once(&self.filling).chain(self.in_flight.iter().map(|list| &**list));
        if let Some(place) = own.into_iter().find_map(|list| list.find(digest)) {
            return Ok(Some((ChunkRef::Sealed(place.chunk), place.index)));
        }
        let mut position = 0;
        while position < self.candidates.len() {
            let Some(place) = self.candidates[position].1.find(digest) else {
                position += 1;
                continue;
            };
            if !self.claimed.contains_key(&self.candidates[position].0) {
                // Asked again: the chunk may turn out to be gone.
                self.claim(position)?;
                continue;
            }
            self.candidates[..=position].rotate_right(1);
            return Ok(Some((ChunkRef::Sealed(place.chunk), place.index)));
        }
        Ok(None)
    }

    /// Claims the chunks of a list, and strikes off those that the repository no longer has.
    fn claim(&mut self, position: usize) -> Result<()> {
        let (id, list) = &mut self.candidates[position];
        let digests: Vec<EntryDigest> = list.chunks().map(|chunk| chunk.0).collect();
        let places = self.catalog.claim(self.lease, &self.realm, &digests)?;
        let mut left = None;
        if places.iter().any(Option::is_none) {
            let mut there = places.iter().map(Option::is_some);
            let retained = Arc::new(list.retained(|_| there.next().unwrap_or(false)));
            *list = retained.clone();
            left = Some(retained);
        }
        self.claimed.insert(*id, left);
        Ok(())
    }

    /// Lists the blocks of a chunk that has just been sealed.
    pub fn add(&mut self, chunk: &SealedChunk) {
        self.filling.push(chunk.digest, &chunk.blocks);
    }

    /// The pack that was being filled is full and on its way.
    pub fn end_pack(&mut self) {
        self.in_flight.push_back(Arc::new(std::mem::take(&mut self.filling)));
    }

    /// The oldest pack on its way has become visible under this number.
    pub fn made_visible(&mut self, id: PackId) {
        if let Some(list) = self.in_flight.pop_front() {
            self.claimed.insert(id, None);
            self.candidates.push((id, list.clone()));
            self.lists.insert(id, list);
        }
    }
}
