//! Copies of what is broken, anywhere in this repository's packs, named by a row or not.

use std::collections::{HashMap, HashSet};

use catalog::EntryDigest;
use format::EntryKind;
use format::entry::{Encoding, decode};
use format::pack::{PackEntry, PackIndex};
use model::{BLOCK_LEN, BlockDigest, ContentDigest, LayoutDigest, Result};
use store::{ChunkStore, PackName};

use super::verify::{Verified, verify};
use crate::chunks::RepositoryChunks;
use crate::packer::row_of;
use crate::repository::Repository;

/// How many places are kept of one block.
const PLACES_PER_BLOCK_MAX: usize = 3;

/// An entry somewhere in a pack.
pub type Copy = (PackName, PackEntry);

/// What all packs list of what is wanted.
#[derive(Default)]
pub struct Copies {
    /// Where each entry lies, perhaps broken.
    pub of: HashMap<EntryDigest, Vec<Copy>>,
    /// The blocks of chunks.
    pub lists: HashMap<EntryDigest, Vec<BlockDigest>>,
    /// All manifests.
    manifests: Vec<LayoutDigest>,
    by_content: Option<HashMap<ContentDigest, Vec<LayoutDigest>>>,
}

/// Where a block lies: the chunk that holds it, and which of its blocks it is.
#[derive(Clone, Debug)]
pub struct BlockCopy {
    pub pack: PackName,
    pub chunk: PackEntry,
    pub index: u32,
}

/// Calls `visit` for each entry of each pack in the store that can be read.
fn for_each_entry(
    repository: &Repository,
    mut visit: impl FnMut(&PackName, &PackEntry, &[BlockDigest]),
) -> Result<()> {
    let store = &repository.packs;
    let mut names = store.list()?;
    names.sort_unstable();
    for name in &names {
        let Ok(len) = store.len(name) else { continue };
        let Ok(index) = PackIndex::read(len, |offset, len| store.read(name, offset, len)) else {
            continue;
        };
        for (position, entry) in index.entries().iter().enumerate() {
            visit(name, entry, index.block_digests(position));
        }
    }
    Ok(())
}

impl Copies {
    /// Looks for entries. Cost: the index of every pack.
    pub fn find(repository: &Repository, wanted: &HashSet<EntryDigest>) -> Result<Copies> {
        let mut copies = Copies::default();
        copies.find_more(repository, wanted)?;
        Ok(copies)
    }

    /// Looks for more entries. Cost: the index of every pack.
    pub fn find_more(
        &mut self,
        repository: &Repository,
        wanted: &HashSet<EntryDigest>,
    ) -> Result<()> {
        self.manifests.clear();
        self.by_content = None;
        for_each_entry(repository, |name, entry, blocks| {
            if entry.kind == EntryKind::Manifest {
                self.manifests.push(LayoutDigest(entry.digest));
            }
            if wanted.contains(&entry.digest) {
                self.of.entry(entry.digest).or_default().push((name.clone(), *entry));
                if entry.kind == EntryKind::Chunk {
                    self.lists.insert(entry.digest, blocks.to_vec());
                }
            }
        })
    }

    /// The first copy of an entry that is sound, and the pack that it lies in.
    pub fn sound(
        &self,
        repository: &Repository,
        digest: &EntryDigest,
    ) -> Option<(PackName, Verified)> {
        let copies = self.of.get(digest)?;
        copies.iter().find_map(|(name, entry)| {
            let stored = stored(repository, name, entry)?;
            Some((name.clone(), verify(&row_of(entry), &stored).ok()?))
        })
    }

    /// The blocks of a chunk that its damaged copies still hold.
    pub fn salvage(
        &self,
        repository: &Repository,
        digest: &EntryDigest,
        blocks: &mut [Option<Vec<u8>>],
    ) {
        let (Some(copies), Some(list)) = (self.of.get(digest), self.lists.get(digest)) else {
            return;
        };
        for (name, entry) in copies {
            let Some(stored) = stored(repository, name, entry) else { continue };
            let plain = match entry.encoding {
                Encoding::Plain => stored,
                encoding => match decode(encoding, &stored, entry.plain_len) {
                    Ok(plain) => plain,
                    Err(_) => continue,
                },
            };
            for ((found, wanted), slot) in plain.chunks(BLOCK_LEN).zip(list).zip(&mut *blocks) {
                if slot.is_none() && BlockDigest::of(found) == *wanted {
                    *slot = Some(found.to_vec());
                }
            }
        }
    }

    /// The layouts of a content whose manifests can be read.
    pub fn layouts_of(
        &mut self,
        chunks: &RepositoryChunks,
        content: ContentDigest,
    ) -> Vec<LayoutDigest> {
        let Copies { manifests, by_content, .. } = self;
        let by_content = by_content.get_or_insert_with(|| {
            let mut by_content: HashMap<_, Vec<_>> = HashMap::new();
            for layout in manifests {
                if let Ok(manifest) = chunks.manifest(*layout) {
                    by_content.entry(manifest.content()).or_default().push(*layout);
                }
            }
            by_content
        });
        by_content.get(&content).cloned().unwrap_or_default()
    }
}

fn stored(repository: &Repository, name: &PackName, entry: &PackEntry) -> Option<Vec<u8>> {
    repository.packs.read(name, entry.offset, entry.stored_len as usize).ok()
}

/// Where blocks lie, a few places of each. Cost: the index of every pack.
pub fn find_blocks(
    repository: &Repository,
    wanted: &HashSet<BlockDigest>,
) -> Result<HashMap<BlockDigest, Vec<BlockCopy>>> {
    let mut found: HashMap<BlockDigest, Vec<BlockCopy>> = HashMap::new();
    if wanted.is_empty() {
        return Ok(found);
    }
    for_each_entry(repository, |name, entry, blocks| {
        for (index, block) in (0..).zip(blocks) {
            if wanted.contains(block) {
                let places = found.entry(*block).or_default();
                if places.len() < PLACES_PER_BLOCK_MAX {
                    places.push(BlockCopy { pack: name.clone(), chunk: *entry, index });
                }
            }
        }
    })?;
    Ok(found)
}

/// Reads blocks from where they lie. Remembers the chunk that it read last.
pub struct BlockReader<'a> {
    repository: &'a Repository,
    last: Option<(PackName, EntryDigest, Option<Verified>)>,
}

impl<'a> BlockReader<'a> {
    /// Nothing read yet.
    pub fn new(repository: &'a Repository) -> Self {
        BlockReader { repository, last: None }
    }

    /// A block from the first of its places that is sound.
    pub fn read(&mut self, places: &[BlockCopy]) -> Option<Vec<u8>> {
        places.iter().find_map(|place| {
            let is_last = self.last.as_ref().is_some_and(|(pack, chunk, _)| {
                *pack == place.pack && *chunk == place.chunk.digest
            });
            if !is_last {
                let verified = stored(self.repository, &place.pack, &place.chunk)
                    .and_then(|stored| verify(&row_of(&place.chunk), &stored).ok());
                self.last = Some((place.pack.clone(), place.chunk.digest, verified));
            }
            let (.., chunk) = self.last.as_ref()?;
            let start = place.index as usize * BLOCK_LEN;
            Some(chunk.as_ref()?.plain.get(start..start + BLOCK_LEN)?.to_vec())
        })
    }
}
