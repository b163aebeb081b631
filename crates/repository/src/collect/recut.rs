//! Cuts chunks again: their live blocks go to new chunks, in the order of addresses, and every layout
//! that needs them is laid out anew.
//!
//! ```text
//! victim chunks   [a.......m..]  [.b......n.]  [..c.....]        blocks far apart, or half dead
//! new chunks      [a b c ...]  [m n ...]                         newest versions first, each block once
//! maps            written anew, each distinct one once ─► manifests ─► swap_layout
//! ```
//!
//! The newest version of each image is read most, so its blocks come first, one segment after the
//! other. What only older versions have follows, segment by segment, whatever version it is of: laying
//! those out one after the other would scatter the oldest as the commits had scattered the newest.
//!
//! **Invariants**
//! 1. A block is moved once, whatever layouts need it: the index by its old place is exact.
//! 2. Before a layout is swapped, the block digests behind each new map were read back from the packs
//!    and hash to the segment's content.
//!
//! **Failure**: until a swap nothing has changed; each swap is one transaction. A layout whose versions
//! are gone, or that was published meanwhile upon the old chunks, is left to the next collect. A
//! victim that cannot be read stays where it is.

use std::collections::{HashMap, HashSet};

use catalog::{EntryDigest, Revision};
use chunking::{OpenChunk, SealedChunk};
use format::entry::EntryKind;
use format::manifest::encode_manifest;
use format::segment_map::{encode_segment_map, map_digest};
use model::progress::Cancel;
use model::{
    BLOCK_LEN, BlockDigest, ChunkDigest, ContentDigest, Error, Kind, LayoutDigest, Manifest,
    MapDigest, Result, Run, SegmentEntry, SegmentMap,
};
use quick_cache::unsync::Cache;
use rayon::prelude::*;
use store::{Chunk, ChunkStore};

use super::check::Check;
use super::survey::Candidate;
use super::walk::Seen;
use crate::lease::Purpose;
use crate::packer::{Entry, PACK_DATA_LEN, Packer};
use crate::repository::Repository;

const ROOTS_PER_PAGE: usize = 1000;

/// Victims that are kept unpacked: 64 MiB of chunks of 256 KiB.
const CHUNKS_KEPT: usize = 256;

/// Victims that are read at a time.
const CHUNKS_AT_ONCE: usize = 64;

/// Maps that may wait for the open chunk's name before it is sealed for their sake.
const PENDING_MAX: usize = 32;

/// What was cut again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) written_len: u64,
    pub(super) moved_blocks: u64,
    pub(super) layouts: u64,
}

/// Cuts victims again.
pub(super) fn recut(
    repository: &Repository,
    victims: &[Candidate],
    cancel: &Cancel,
) -> Result<Done> {
    // A lease of work: what is put and what is found again stays until the layouts are swapped.
    let lease = repository.begin_lease_for(Purpose::Work)?;
    let targets = targets(repository)?;
    let mut cut = Cut::new(repository, &lease, victims);
    let affected = cut.affected(&targets, cancel)?;
    let (newest, older) = affected.split_at(affected.partition_point(|map| map.is_newest));
    for map in newest {
        cancel.check("collect", "the repository")?;
        cut.segment(std::slice::from_ref(map))?;
    }
    for group in older.chunk_by(|a, b| a.segment == b.segment) {
        cancel.check("collect", "the repository")?;
        cut.segment(group)?;
    }
    cut.seal_chunk()?;
    let swaps = cut.manifests(&targets)?;
    let Cut { packer, moved_blocks, maps, .. } = cut;
    let mut done = Done { moved_blocks, ..Done::default() };
    done.written_len = packer.finish()?.stored_len;
    let mut check = Check::new(repository);
    for Swap { content, old, new } in swaps {
        cancel.check("collect", "the repository")?;
        check.layout(new, &maps)?;
        if repository.catalog.swap_layout(lease.id(), content, old, new)? > 0 {
            done.layouts += 1;
            // A help that follows: without it the set is of no use, and nothing else is lost.
            if let Err(error) = repository.follow_layout(content, new) {
                tracing::warn!(%content, "a working set is stale: {}", error.chain());
            }
        }
    }
    Ok(done)
}

/// A layout that versions or holds have.
struct Target {
    content: ContentDigest,
    layout: LayoutDigest,
    is_newest: bool,
}

struct Swap {
    content: ContentDigest,
    old: LayoutDigest,
    new: LayoutDigest,
}

/// The layouts there are: those of images' latest versions and of holds first, newest first.
fn targets(repository: &Repository) -> Result<Vec<Target>> {
    let mut roots = Vec::new();
    let mut last = Revision::default();
    loop {
        let page = repository.catalog.roots(last, ROOTS_PER_PAGE)?;
        let Some(newest) = page.last() else { break };
        last = newest.revision;
        roots.extend(page.into_iter().map(|root| {
            (root.revision, root.version, root.holder.is_some(), root.content, root.layout)
        }));
    }
    let mut latest = HashMap::new();
    for (_, version, ..) in &roots {
        let number = latest.entry(version.image.clone()).or_insert(version.version);
        *number = (*number).max(version.version);
    }
    let is_newest = |version: &model::VersionId, held: bool| {
        held || latest.get(&version.image) == Some(&version.version)
    };
    roots.sort_unstable_by_key(|(revision, version, held, ..)| {
        (!is_newest(version, *held), std::cmp::Reverse(*revision))
    });
    let mut seen = HashSet::new();
    let distinct = roots.into_iter().filter(|root| seen.insert((root.3, root.4)));
    Ok(distinct
        .map(|(_, version, held, content, layout)| Target {
            content,
            layout,
            is_newest: is_newest(&version, held),
        })
        .collect())
}

/// A map that refers to victims.
struct Affected {
    is_newest: bool,
    segment: u32,
    map: MapDigest,
}

/// Where a block of a victim lies now: the number of the new chunk, and which of its blocks.
#[derive(Clone, Copy)]
struct Moved {
    chunk: u32,
    index: u16,
}

/// A block of a victim that a map refers to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Wanted {
    block: u32,
    victim: u32,
    index: u16,
}

/// A run of a map that is being written anew.
#[derive(Clone, Copy)]
struct NewRun {
    first_block: u32,
    block_count: u32,
    place: Place,
    first_in_chunk: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A chunk that stays.
    Old(ChunkDigest),
    /// A new chunk, by number.
    New(u32),
}

struct Cut<'a> {
    repository: &'a Repository,
    lease: &'a crate::lease::Lease,
    packer: Packer,
    victims: HashMap<ChunkDigest, u32>,
    names: Vec<ChunkDigest>,
    /// The moved blocks of each victim.
    moved: Vec<Vec<Option<Moved>>>,
    /// Victims that cannot be read.
    unreadable: HashSet<u32>,
    open: OpenChunk,
    /// The new chunks, by number. The open one's number is how many there are.
    sealed: Vec<ChunkDigest>,
    pack_data_len: u64,
    pending: Vec<(MapDigest, Vec<NewRun>)>,
    maps: HashMap<MapDigest, MapDigest>,
    put: HashSet<EntryDigest>,
    cache: Cache<u32, Chunk>,
    moved_blocks: u64,
}

impl<'a> Cut<'a> {
    fn new(
        repository: &'a Repository,
        lease: &'a crate::lease::Lease,
        victims: &[Candidate],
    ) -> Self {
        let names: Vec<ChunkDigest> = victims.iter().map(|v| ChunkDigest(v.digest)).collect();
        let chunk_len = repository.settings.chunk_blocks as usize * BLOCK_LEN;
        let kept = (CHUNKS_KEPT * (256 << 10) / chunk_len).max(CHUNKS_AT_ONCE);
        Cut {
            repository,
            lease,
            packer: Packer::start(repository.destination(lease)),
            victims: names.iter().zip(0..).map(|(name, number)| (*name, number)).collect(),
            names,
            moved: victims.iter().map(|v| vec![None; v.block_count as usize]).collect(),
            unreadable: HashSet::new(),
            open: OpenChunk::new(repository.settings.chunk_size()),
            sealed: Vec::new(),
            pack_data_len: 0,
            pending: Vec::new(),
            maps: HashMap::new(),
            put: HashSet::new(),
            cache: Cache::new(kept),
            moved_blocks: 0,
        }
    }

    /// The distinct maps that refer to victims, in the order in which they are laid out anew.
    fn affected(&self, targets: &[Target], cancel: &Cancel) -> Result<Vec<Affected>> {
        let mut seen = Seen::default();
        let mut affected = Vec::new();
        let chunks = self.repository.chunks();
        for target in targets {
            cancel.check("collect", "the repository")?;
            let Some(manifest) = self.manifest(target)? else { continue };
            for entry in manifest.segments() {
                if !seen.is_new(&entry.map.0) {
                    continue;
                }
                let map = chunks.map_alone(entry.map)?;
                if map.runs().iter().any(|run| self.victims.contains_key(&run.chunk)) {
                    let (is_newest, segment) = (target.is_newest, entry.segment);
                    affected.push(Affected { is_newest, segment, map: entry.map });
                }
            }
        }
        // Stable: newer ones stay before older ones. Those of the newest come target by target.
        affected.sort_by_key(|map| (!map.is_newest, if map.is_newest { 0 } else { map.segment }));
        Ok(affected)
    }

    /// The manifest of a layout; `None` where it has gone with its versions.
    fn manifest(&self, target: &Target) -> Result<Option<Manifest>> {
        match self.repository.chunks().manifest_with_leaves(target.layout) {
            Ok((manifest, _)) => Ok(Some(manifest)),
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Moves what maps of one segment refer to, in the order of addresses, then writes the maps.
    fn segment(&mut self, maps: &[Affected]) -> Result<()> {
        let chunks = self.repository.chunks();
        let mut wanted = Vec::new();
        for affected in maps {
            let map = chunks.map_alone(affected.map)?;
            self.wanted(&map, &mut wanted);
        }
        wanted.sort_unstable();
        self.move_blocks(&wanted)?;
        for affected in maps {
            let map = chunks.map_alone(affected.map)?;
            let runs = self.rewritten(&map);
            self.pending.push((affected.map, runs));
            if self.pending.len() > PENDING_MAX {
                self.seal_chunk()?;
            }
            self.write_maps()?;
        }
        Ok(())
    }

    fn wanted(&self, map: &SegmentMap, wanted: &mut Vec<Wanted>) {
        for run in map.runs() {
            let Some(&victim) = self.victims.get(&run.chunk) else { continue };
            for step in 0..run.block_count {
                let index = (run.first_in_chunk + step) as u16;
                if matches!(self.moved[victim as usize].get(usize::from(index)), Some(None)) {
                    wanted.push(Wanted { block: run.first_block + step, victim, index });
                }
            }
        }
    }

    /// Moves blocks, reading victims on all cores, some at a time.
    fn move_blocks(&mut self, wanted: &[Wanted]) -> Result<()> {
        let mut rest = wanted;
        while !rest.is_empty() {
            let mut needed = HashSet::new();
            let count = rest
                .iter()
                .take_while(|wanted| {
                    needed.insert(wanted.victim);
                    needed.len() <= CHUNKS_AT_ONCE
                })
                .count();
            let (now, later) = rest.split_at(count);
            let chunks = self.read(now)?;
            for wanted in now {
                self.move_block(*wanted, &chunks)?;
            }
            rest = later;
        }
        Ok(())
    }

    fn read(&mut self, wanted: &[Wanted]) -> Result<HashMap<u32, Chunk>> {
        let mut chunks = HashMap::new();
        let mut missing = Vec::new();
        for Wanted { victim, .. } in wanted {
            if chunks.contains_key(victim) || missing.contains(victim) {
                continue;
            }
            match self.cache.get(victim) {
                Some(chunk) => {
                    chunks.insert(*victim, chunk.clone());
                }
                None if self.unreadable.contains(victim) => {}
                None => missing.push(*victim),
            }
        }
        let (store, names) = (self.repository.chunks(), &self.names);
        let read: Vec<_> =
            missing.par_iter().map(|victim| store.chunk(names[*victim as usize])).collect();
        for (victim, chunk) in missing.into_iter().zip(read) {
            match chunk {
                Ok(chunk) => {
                    self.cache.insert(victim, chunk.clone());
                    chunks.insert(victim, chunk);
                }
                Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::NotFound) => {
                    tracing::warn!(error = error.chain(), "a chunk stays where it is");
                    self.unreadable.insert(victim);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(chunks)
    }

    fn move_block(&mut self, wanted: Wanted, chunks: &HashMap<u32, Chunk>) -> Result<()> {
        let Wanted { victim, index, .. } = wanted;
        let Some(chunk) = chunks.get(&victim) else { return Ok(()) };
        if self.moved[victim as usize][usize::from(index)].is_some() {
            return Ok(());
        }
        let bytes = chunk.blocks(index.into(), 1)?;
        let digest = BlockDigest::of(bytes);
        let position = match self.open.find(&digest) {
            Some(position) => position,
            None => {
                if self.open.is_full() {
                    self.seal_chunk()?;
                }
                self.moved_blocks += 1;
                self.open.push(digest, bytes)
            }
        };
        let place = Moved { chunk: self.sealed.len() as u32, index: position };
        self.moved[victim as usize][usize::from(index)] = Some(place);
        Ok(())
    }

    fn seal_chunk(&mut self) -> Result<()> {
        if let Some(SealedChunk { digest, blocks, bytes }) = self.open.seal() {
            self.sealed.push(digest);
            self.pack_data_len += bytes.len() as u64;
            self.put(Entry { kind: EntryKind::Chunk, digest: digest.0, plain: bytes, blocks })?;
            if self.pack_data_len >= PACK_DATA_LEN {
                self.pack_data_len = 0;
                self.packer.end_pack()?;
            }
        }
        self.write_maps()
    }

    /// The runs of a map, with those blocks that moved at their new places.
    fn rewritten(&self, map: &SegmentMap) -> Vec<NewRun> {
        let mut runs: Vec<NewRun> = Vec::with_capacity(map.runs().len());
        for run in map.runs() {
            let victim = self.victims.get(&run.chunk).map(|victim| &self.moved[*victim as usize]);
            for step in 0..run.block_count {
                let index = run.first_in_chunk + step;
                let moved = victim.and_then(|moved| moved.get(index as usize).copied().flatten());
                let (place, first_in_chunk) = match moved {
                    Some(Moved { chunk, index }) => (Place::New(chunk), u32::from(index)),
                    None => (Place::Old(run.chunk), index),
                };
                let block = run.first_block + step;
                match runs.last_mut() {
                    Some(last)
                        if last.place == place
                            && last.first_block + last.block_count == block
                            && last.first_in_chunk + last.block_count == first_in_chunk =>
                    {
                        last.block_count += 1;
                    }
                    _ => runs.push(NewRun {
                        first_block: block,
                        block_count: 1,
                        place,
                        first_in_chunk,
                    }),
                }
            }
        }
        runs
    }

    /// Writes the maps that wait for no chunk's name.
    fn write_maps(&mut self) -> Result<()> {
        let open = self.sealed.len() as u32;
        let waits = |runs: &[NewRun]| runs.iter().any(|run| run.place == Place::New(open));
        let ready: Vec<_> = self.pending.extract_if(.., |(_, runs)| !waits(runs)).collect();
        for (old, runs) in ready {
            let named = runs.into_iter().map(|run| Run {
                first_block: run.first_block,
                block_count: run.block_count,
                chunk: match run.place {
                    Place::Old(chunk) => chunk,
                    Place::New(number) => self.sealed[number as usize],
                },
                first_in_chunk: run.first_in_chunk,
            });
            let map = SegmentMap::new(named.collect())
                .map_err(|_| Error::new(Kind::Bug, "lay out anew", old.to_string()))?;
            let bytes = encode_segment_map(&map);
            let new = map_digest(&bytes);
            self.maps.insert(old, new);
            self.put(Entry::whole(EntryKind::SegmentMap, new.0, bytes))?;
        }
        Ok(())
    }

    /// Packs an entry unless the repository, or this collect, has it already.
    fn put(&mut self, entry: Entry) -> Result<()> {
        if !self.put.insert(entry.digest) {
            return Ok(());
        }
        let Repository { catalog, realm, .. } = self.repository;
        match catalog.claim(self.lease.id(), realm, &[entry.digest])?.first() {
            Some(Some(_)) => Ok(()),
            _ => self.packer.push(entry),
        }
    }

    /// Writes the manifests of the layouts that have changed.
    fn manifests(&mut self, targets: &[Target]) -> Result<Vec<Swap>> {
        let mut swaps = Vec::new();
        for target in targets {
            let Some(manifest) = self.manifest(target)? else { continue };
            let renewed = |entry: &SegmentEntry| SegmentEntry {
                map: self.maps.get(&entry.map).copied().unwrap_or(entry.map),
                ..*entry
            };
            let segments: Vec<SegmentEntry> = manifest.segments().iter().map(renewed).collect();
            if segments == manifest.segments() {
                continue;
            }
            let bug = || Error::new(Kind::Bug, "lay out anew", target.content.to_string());
            let new =
                Manifest::new(manifest.kind(), manifest.length(), segments).ok_or_else(bug)?;
            if new.content() != target.content {
                return Err(bug().because("the content would be another"));
            }
            let encoded = encode_manifest(&new);
            for leaf in encoded.leaves {
                self.put(Entry::whole(EntryKind::ManifestLeaf, leaf.digest, leaf.bytes))?;
            }
            self.put(Entry::whole(EntryKind::Manifest, encoded.layout.0, encoded.root))?;
            let (content, old) = (target.content, target.layout);
            swaps.push(Swap { content, old, new: encoded.layout });
        }
        Ok(swaps)
    }
}
