//! Layouts made anew: the same content, by other maps and chunks, where the old ones cannot be
//! restored.
//!
//! **Invariant**: a segment's new map is written only where its blocks hash to the digest that the
//! version's content is made of.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use chunking::{ChunkRef, OpenChunk, SegmentDraft};
use format::EntryKind;
use format::manifest::encode_manifest;
use format::segment_map::{encode_segment_map, map_digest};
use model::block::blocks_in_segment;
use model::{
    BlockDigest, ChunkDigest, ContentDigest, LayoutDigest, Manifest, MapDigest, Result,
    SegmentDigest, SegmentEntry,
};
use store::ChunkStore;

use super::copies::find_blocks;
use super::donors::{Donors, SegmentBytes};
use super::repair::Repair;
use super::roots::TouchedLayout;
use super::verify::Verified;
use crate::chunks::RepositoryChunks;

impl Repair<'_> {
    /// Restores chunks, and lays layouts out anew, with the help of whoever has equal segments.
    pub fn lay_out_anew(&mut self, touched: Vec<TouchedLayout>) -> Result<()> {
        let mut segments: HashSet<SegmentDigest> = HashSet::new();
        let mut contents: HashSet<ContentDigest> = HashSet::new();
        let mut broken: Vec<TouchedLayout> = Vec::new();
        for (content, layout) in touched {
            match self.own_manifest(content, layout) {
                Some(manifest) => {
                    let wanted = manifest.segments().iter().filter(|s| !self.is_sound(&s.map));
                    let wanted: Vec<_> = wanted.map(|segment| segment.content).collect();
                    // Without its own manifest the layout is another's: that one's, from now on.
                    if !wanted.is_empty() || self.chunks().manifest(layout).is_err() {
                        broken.push((content, layout));
                    }
                    segments.extend(wanted);
                }
                None => {
                    contents.insert(content);
                    broken.push((content, layout));
                }
            }
        }
        if broken.is_empty() {
            return Ok(());
        }
        let mut repositories = vec![self.repository];
        repositories.extend(self.from);
        let donors = Donors::ask(repositories, &segments, &contents)?;
        for (content, layout) in &broken {
            self.feed_chunks(*content, *layout, &donors)?;
        }
        self.restored.flush()?;
        for (content, layout) in broken {
            self.request.cancel.check("repair", "the repository")?;
            self.layout(content, layout, &donors)?;
        }
        Ok(())
    }

    fn chunks(&self) -> Arc<RepositoryChunks> {
        self.chunks.clone()
    }

    /// The manifest of a content: by its layout, or by another layout of it.
    fn own_manifest(&mut self, content: ContentDigest, layout: LayoutDigest) -> Option<Manifest> {
        let chunks = self.chunks();
        let own = chunks.manifest(layout).ok().filter(|manifest| manifest.content() == content);
        own.map(|manifest| (*manifest).clone()).or_else(|| {
            let others = self.copies.layouts_of(&chunks, content);
            others.iter().find_map(|other| Some((*chunks.manifest(*other).ok()?).clone()))
        })
    }

    /// True where a map and all its chunks can be read.
    fn is_sound(&self, map: &MapDigest) -> bool {
        let Ok(map) = self.chunks().segment_map(*map) else { return false };
        let chunks: Vec<_> = map.chunks().iter().map(|chunk| chunk.0).collect();
        let places = self.repository.catalog.locate(&self.repository.realm, &chunks);
        chunks.iter().all(|chunk| !self.is_broken(chunk))
            && places.is_ok_and(|places| places.iter().all(Option::is_some))
    }

    /// Gives chunks that are known in part the blocks that equal segments have; restores those that
    /// become whole.
    fn feed_chunks(
        &mut self,
        content: ContentDigest,
        layout: LayoutDigest,
        donors: &Donors,
    ) -> Result<()> {
        let Some(manifest) = self.own_manifest(content, layout) else { return Ok(()) };
        for segment in manifest.segments() {
            self.request.cancel.check("repair", "the repository")?;
            let Ok(map) = self.chunks().segment_map(segment.map) else { continue };
            if map.chunks().iter().all(|chunk| !self.is_broken(&chunk.0)) {
                continue;
            }
            let bytes = donors.segment(segment.segment, manifest.length(), segment.content);
            let Some(bytes) = bytes else { continue };
            let mut fed: Vec<ChunkDigest> = Vec::new();
            for run in map.runs() {
                if !self.is_broken(&run.chunk.0) {
                    continue;
                }
                let part = self.parts.entry(run.chunk.0).or_default();
                for step in 0..run.block_count {
                    if let Some(block) = bytes.block(run.first_block + step) {
                        part.add(run.first_in_chunk + step, block);
                    }
                }
                fed.push(run.chunk);
            }
            for chunk in fed {
                let whole = self.parts.get(&chunk.0).and_then(|part| part.whole(chunk.0));
                if let Some(entry) = whole {
                    self.restore(&entry, "a version of equal bytes")?;
                }
            }
        }
        Ok(())
    }

    /// Gives a content a new layout, if all its bytes are known.
    fn layout(
        &mut self,
        content: ContentDigest,
        layout: LayoutDigest,
        donors: &Donors,
    ) -> Result<()> {
        let own = self.own_manifest(content, layout);
        let Some(known) = own.or_else(|| donors.manifest(&content).cloned()) else { return Ok(()) };
        let mut segments = Vec::with_capacity(known.segments().len());
        for entry in known.segments() {
            let map = match self.is_sound(&entry.map) {
                true => Some(entry.map),
                false => self.segment(entry, known.length(), donors)?,
            };
            let Some(map) = map else { return Ok(()) };
            segments.push(SegmentEntry { map, ..*entry });
        }
        let manifest = Manifest::new(known.kind(), known.length(), segments);
        let Some(manifest) = manifest.filter(|manifest| manifest.content() == content) else {
            return Ok(());
        };
        let encoded = encode_manifest(&manifest);
        for leaf in encoded.leaves {
            self.put(EntryKind::ManifestLeaf, leaf.digest, leaf.bytes)?;
        }
        self.put(EntryKind::Manifest, encoded.layout.0, encoded.root)?;
        self.restored.flush()?;
        if encoded.layout != layout {
            self.repository.catalog.swap_layout(self.lease, content, layout, encoded.layout)?;
        }
        Ok(())
    }

    /// Puts a part of a layout, unless it can be read where it is.
    fn put(&mut self, kind: EntryKind, digest: [u8; 32], plain: Vec<u8>) -> Result<()> {
        let place = self.repository.catalog.locate(&self.repository.realm, &[digest]);
        let is_there = place.is_ok_and(|places| places.iter().all(Option::is_some));
        if is_there && !self.is_broken(&digest) {
            return Ok(());
        }
        self.restore(&Verified { kind, digest, plain, blocks: Vec::new() }, "what it says, known")
    }

    /// A sound map for a segment: another one of this repository, or one made from its bytes.
    fn segment(
        &mut self,
        entry: &SegmentEntry,
        length: u64,
        donors: &Donors,
    ) -> Result<Option<MapDigest>> {
        if let Some(map) = donors.own_map(entry.content, |map| !self.is_sound(map)) {
            return Ok(Some(map));
        }
        let own = self.chunks().segment_map(entry.map).ok().and_then(|map| {
            let count = blocks_in_segment(length, entry.segment);
            let missing = |chunk: &ChunkDigest, index: u32| {
                self.parts.get(&chunk.0)?.blocks.get(index as usize)?.clone()
            };
            SegmentBytes::read(&*self.chunks(), &map, count, entry.content, missing)
        });
        match own.or_else(|| donors.segment(entry.segment, length, entry.content)) {
            Some(bytes) => self.map_of(entry, &bytes).map(Some),
            None => Ok(None),
        }
    }

    /// Lays a segment out: what other chunks hold stays there, the rest goes to new ones.
    fn map_of(&mut self, entry: &SegmentEntry, bytes: &SegmentBytes) -> Result<MapDigest> {
        let known = self.known_blocks(bytes)?;
        let count = bytes.digests.len() as u32;
        let mut draft = SegmentDraft::hole(entry.segment, count);
        let mut open = OpenChunk::new(self.repository.settings.chunk_size());
        for (block, digest) in (0..).zip(&bytes.digests) {
            let Some(plain) = bytes.block(block) else { continue };
            if let Some((chunk, index)) = known.get(digest) {
                draft.set(block, *digest, ChunkRef::Sealed(*chunk), *index as u16);
                continue;
            }
            let index = match open.find(digest) {
                Some(index) => index,
                None => {
                    if open.is_full() {
                        self.seal(&mut open, &mut draft)?;
                    }
                    open.push(*digest, plain)
                }
            };
            draft.set(block, *digest, ChunkRef::Open, index);
        }
        self.seal(&mut open, &mut draft)?;
        let map = draft.finish().and_then(|pending| pending.map()).unwrap_or_default();
        let plain = encode_segment_map(&map);
        let digest = map_digest(&plain);
        self.put(EntryKind::SegmentMap, digest.0, plain)?;
        Ok(digest)
    }

    fn seal(&mut self, open: &mut OpenChunk, draft: &mut SegmentDraft) -> Result<()> {
        let Some(chunk) = open.seal() else { return Ok(()) };
        draft.resolve(chunk.digest);
        let (kind, digest) = (EntryKind::Chunk, chunk.digest.0);
        self.restored.push(&Verified { kind, digest, plain: chunk.bytes, blocks: chunk.blocks })
    }

    /// Which of a segment's blocks lie in chunks that can be read, and where.
    fn known_blocks(
        &self,
        bytes: &SegmentBytes,
    ) -> Result<HashMap<BlockDigest, (ChunkDigest, u32)>> {
        let wanted: HashSet<BlockDigest> =
            bytes.digests.iter().filter(|digest| **digest != BlockDigest::HOLE).copied().collect();
        let mut known = HashMap::new();
        for (block, copies) in find_blocks(self.repository, &wanted)? {
            for copy in copies {
                let chunk = copy.chunk.digest;
                let places = self.repository.catalog.locate(&self.repository.realm, &[chunk]);
                let has_row = places.is_ok_and(|places| places.iter().all(Option::is_some));
                if has_row && !self.is_broken(&chunk) {
                    known.insert(block, (ChunkDigest(chunk), copy.index));
                    break;
                }
            }
        }
        Ok(known)
    }
}
