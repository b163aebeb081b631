//! Reading what is stocked for one version.
//!
//! **Failure**: everything has a digest by which it was asked for, and is compared with that. No lease
//! is held: a sync that evicts the set meanwhile makes what follows a miss.

use std::collections::HashMap;
use std::sync::Arc;

use catalog::{EntryDigest, VersionRecord};
use format::boot_set::decode_boot_set;
use format::manifest::{decode_manifest, decode_manifest_root};
use format::segment_map::decode_segment_map;
use format::stock::{PartKind, StockIndex, StockPart, TRAILER_LEN, decode_trailer, join_boot_set};
use model::boot_set::{BootPiece, BootSet};
use model::{
    BLOCK_LEN, ChunkDigest, Error, Kind, LayoutDigest, Manifest, MapDigest, Result, SegmentMap,
};
use store::ChunkStore;

use crate::chunks::RepositoryChunks;
use crate::ranges;
use crate::repository::Repository;

/// A boot working set in the stock, with what belongs to it. Memory: its index and its pieces' names,
/// some 100 KB for a set of 10,000 blocks.
pub struct StockedSet {
    chunks: Arc<RepositoryChunks>,
    blob: Arc<Manifest>,
    index: StockIndex,
    /// Where the blocks of each piece start; known once the set was read.
    pieces: std::sync::OnceLock<HashMap<[u8; 32], (u64, u32)>>,
}

impl StockedSet {
    pub(super) fn open(stock: &Repository, version: &VersionRecord) -> Result<StockedSet> {
        let chunks = Arc::new(stock.plain_chunks());
        let blob = chunks.manifest(version.facts.layout)?;
        let read = |offset, len| read(&chunks, &blob, offset, len);
        let length = blob.length();
        let trailer_offset = length.checked_sub(TRAILER_LEN as u64).ok_or_else(not_stocked)?;
        let trailer = read(trailer_offset, TRAILER_LEN)?;
        let (offset, len) = decode_trailer(&trailer, length)?;
        let index = StockIndex::decode(&read(offset, len)?, offset)?;
        Ok(StockedSet { chunks, blob, index, pieces: std::sync::OnceLock::new() })
    }

    /// The digest of the set that is stocked.
    pub fn set_digest(&self) -> Option<EntryDigest> {
        self.of_kind(PartKind::Frame).next().map(|part| part.digest)
    }

    /// The layout whose manifest and maps are stocked.
    pub fn layout(&self) -> Option<LayoutDigest> {
        self.of_kind(PartKind::Manifest).next().map(|part| LayoutDigest(part.digest))
    }

    fn of_kind(&self, kind: PartKind) -> impl Iterator<Item = &StockPart> {
        self.index.parts.iter().filter(move |part| part.kind == kind)
    }

    /// The bytes of a part, which hash to its name.
    fn part(&self, kind: PartKind, digest: [u8; 32]) -> Result<Vec<u8>> {
        let part = self.of_kind(kind).find(|part| part.digest == digest).ok_or_else(not_stocked)?;
        let bytes = self.read(part.offset, part.len as usize)?;
        match *blake3::hash(&bytes).as_bytes() == digest {
            true => Ok(bytes),
            false => Err(Error::new(Kind::Corrupt, "read from the stock", "a part of a set")
                .because("its bytes have another digest")),
        }
    }

    fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        read(&self.chunks, &self.blob, offset, len)
    }

    /// The stocked set, if it has this digest.
    ///
    /// # Errors
    /// `NotFound` where it is another; `Corrupt`: ask the repository.
    pub fn boot_set(&self, digest: EntryDigest) -> Result<BootSet> {
        let frame = self
            .of_kind(PartKind::Frame)
            .find(|part| part.digest == digest)
            .ok_or_else(not_stocked)?;
        let sources: Vec<&StockPart> = self.of_kind(PartKind::Source).collect();
        // They lie together: one read for all.
        let start = sources.first().map_or(frame.offset, |first| first.offset);
        let bytes = self.read(start, (frame.offset - start) as usize + frame.len as usize)?;
        let of = |part: &StockPart| {
            let from = (part.offset - start) as usize;
            bytes.get(from..from + part.len as usize).ok_or_else(not_stocked)
        };
        let mut joined = Vec::with_capacity(sources.len());
        for source in sources {
            joined.push((ChunkDigest(source.digest), of(source)?));
        }
        let bytes = join_boot_set(of(frame)?, joined.into_iter());
        if *blake3::hash(&bytes).as_bytes() != digest {
            return Err(Error::new(Kind::Corrupt, "read from the stock", "a set")
                .because("its bytes have another digest"));
        }
        let set = decode_boot_set(&bytes)?;
        let mut at = 0;
        let mut places = HashMap::new();
        for piece in set.pieces() {
            places.insert(piece.digest, (at, piece.block_count));
            at += u64::from(piece.block_count);
        }
        if at > self.index.block_count.into() {
            return Err(not_stocked());
        }
        let _ = self.pieces.set(places);
        Ok(set)
    }

    /// The manifest of a layout.
    ///
    /// # Errors
    /// `NotFound` where another layout is stocked; `Corrupt`: ask the repository.
    pub fn manifest(&self, layout: LayoutDigest) -> Result<Manifest> {
        let root = decode_manifest_root(&self.part(PartKind::Manifest, layout.0)?)?;
        let leaf = |(_, digest): &(u32, EntryDigest)| self.part(PartKind::ManifestLeaf, *digest);
        let leaves = root.leaves.iter().map(leaf).collect::<Result<Vec<_>>>()?;
        Ok(decode_manifest(&root, &leaves)?)
    }

    /// A map of a segment that the set touches.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`: ask the repository.
    pub fn segment_map(&self, map: MapDigest) -> Result<SegmentMap> {
        Ok(decode_segment_map(&self.part(PartKind::SegmentMap, map.0)?)?)
    }

    /// Pieces of the set. Their chunks are verified, and what blocks they are supposed to hold is not:
    /// the caller compares each block, as with pieces from the repository.
    ///
    /// # Errors
    /// `NotFound` where one of them is not of this set, or the set was not read yet; `Corrupt`: ask the
    /// repository.
    pub fn boot_pieces(&self, pieces: &[BootPiece]) -> Result<Vec<Vec<u8>>> {
        let places = self.pieces.get().ok_or_else(not_stocked)?;
        let mut found = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let (first, count) = *places.get(&piece.digest).ok_or_else(not_stocked)?;
            if count != piece.block_count {
                return Err(not_stocked());
            }
            found.push((first * BLOCK_LEN as u64, count as usize * BLOCK_LEN));
        }
        let mut bytes = Vec::with_capacity(found.len());
        // Pieces that follow each other are read together, so that a chunk is unpacked once.
        for together in found.chunk_by(|a, b| a.0 + a.1 as u64 == b.0) {
            let len = together.iter().map(|(_, len)| len).sum();
            let mut all = &self.read(together[0].0, len)?[..];
            for (_, len) in together {
                let (piece, rest) = all.split_at(*len);
                bytes.push(piece.to_vec());
                all = rest;
            }
        }
        Ok(bytes)
    }
}

fn read(chunks: &RepositoryChunks, blob: &Manifest, offset: u64, len: usize) -> Result<Vec<u8>> {
    if offset.checked_add(len as u64).is_none_or(|end| end > blob.length()) {
        return Err(not_stocked());
    }
    let mut bytes = vec![0; len];
    ranges::read_at(chunks, blob, offset, &mut bytes)?;
    Ok(bytes)
}

fn not_stocked() -> Error {
    Error::new(Kind::NotFound, "read from the stock", "a part of a set").because("it has none")
}
