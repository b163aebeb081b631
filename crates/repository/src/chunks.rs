//! The chunk store of a repository: looks an entry up, reads it, unpacks it, verifies it.
//!
//! Where entries lie is kept in memory for as many as [`LOCATIONS_MAX`]; when a map is read, the
//! places of all its chunks are looked up at once. A pack that is missing or too short may have
//! been replaced by another since: the digest is looked up once more before that is an error.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use catalog::{Catalog, EntryDigest, Location};
use format::boot_set::decode_boot_set;
use format::entry::{Encoding, EntryKind, decode};
use format::manifest::{ManifestRoot, decode_manifest, decode_manifest_root};
use format::segment_map::decode_segment_map;
use model::boot_set::{BootPiece, BootSet};
use model::{
    ChunkDigest, ContentDigest, Error, Kind, LayoutDigest, Manifest, MapDigest, Realm, Result,
    SegmentMap,
};
use quick_cache::sync::Cache;
use rayon::prelude::*;
use store::{Chunk, ChunkStore, PackName, PackStore, StoredChunk};

use crate::touched;

/// How many places are kept in memory: at most some 30 MB, enough for 32 GiB of chunks.
pub const LOCATIONS_MAX: usize = 1 << 17;

/// Reads a repository's entries.
pub struct RepositoryChunks {
    catalog: Arc<dyn Catalog>,
    packs: Arc<dyn PackStore>,
    realm: Realm,
    places: Arc<Cache<EntryDigest, Arc<Location>>>,
    read_len: AtomicU64,
    /// Whether an error about what is damaged says which versions it touches.
    names_versions: bool,
}

impl RepositoryChunks {
    /// Joins a catalog and a store.
    pub fn new(catalog: Arc<dyn Catalog>, packs: Arc<dyn PackStore>, realm: Realm) -> Self {
        RepositoryChunks {
            catalog,
            packs,
            realm,
            places: Arc::new(Cache::new(LOCATIONS_MAX)),
            read_len: AtomicU64::new(0),
            names_versions: true,
        }
    }

    /// Another reader of the same repository, which shares all but the count of what it reads.
    pub fn another(&self) -> Self {
        RepositoryChunks {
            catalog: self.catalog.clone(),
            packs: self.packs.clone(),
            realm: self.realm.clone(),
            places: self.places.clone(),
            read_len: AtomicU64::new(0),
            names_versions: self.names_versions,
        }
    }

    /// The same, but errors do not say which versions they touch: for whoever asks that himself.
    #[must_use]
    pub(crate) fn without_versions(self) -> Self {
        RepositoryChunks { names_versions: false, ..self }
    }

    /// Stored bytes that were read from packs so far.
    pub fn read_len(&self) -> u64 {
        self.read_len.load(Ordering::Relaxed)
    }

    /// An entry, as `take` accepts its bytes: it compares their digest. Where the place that is known
    /// does not hold it, or no longer, it is looked up once more.
    fn entry<T>(
        &self,
        what: &'static str,
        kind: EntryKind,
        digest: EntryDigest,
        take: impl Fn(Vec<u8>) -> Result<T>,
    ) -> Result<T> {
        self.at_its_place(what, digest, |place| self.read_at(what, kind, place).and_then(&take))
    }

    /// Does what reads an entry at its place; at its place of now where it is not there any more.
    fn at_its_place<T>(
        &self,
        what: &'static str,
        digest: EntryDigest,
        read: impl Fn(&Location) -> Result<T>,
    ) -> Result<T> {
        let place = match self.places.get(&digest) {
            Some(place) => place,
            None => self.look_up(what, digest)?,
        };
        let is_damage = |error: &Error| matches!(error.kind(), Kind::NotFound | Kind::Corrupt);
        match read(&place) {
            Err(error) if is_damage(&error) => {
                self.places.remove(&digest);
                let again = self.look_up(what, digest)?;
                let error = match again == place {
                    true => error,
                    false => match read(&again) {
                        Err(error) if is_damage(&error) => error,
                        other => return other,
                    },
                };
                Err(self.with_versions(digest, error))
            }
            other => other,
        }
    }

    /// An entry that is named by the BLAKE3 of its bytes.
    fn hashed(&self, what: &'static str, kind: EntryKind, digest: EntryDigest) -> Result<Vec<u8>> {
        self.entry(what, kind, digest, |bytes| match *blake3::hash(&bytes).as_bytes() == digest {
            true => Ok(bytes),
            false => Err(Error::new(Kind::Corrupt, what, hex(&digest))
                .because("its bytes have another digest")),
        })
    }

    fn look_up(&self, what: &'static str, digest: EntryDigest) -> Result<Arc<Location>> {
        let found = self.catalog.locate(&self.realm, &[digest])?.into_iter().next().flatten();
        let place = Arc::new(found.ok_or_else(|| {
            Error::new(Kind::NotFound, what, hex(&digest))
                .because("the repository does not have it")
                .hint("`larder scrub` says what is missing and which versions that touches")
        })?);
        self.places.insert(digest, place.clone());
        Ok(place)
    }

    /// Reads and unpacks an entry. What comes back has the right length; its digest is checked by
    /// the caller, who knows how it is made.
    fn read_at(&self, what: &'static str, kind: EntryKind, place: &Location) -> Result<Vec<u8>> {
        let (encoding, stored) = self.read_stored(what, kind, place)?;
        match encoding {
            // As it is: no copy of what is long already.
            Encoding::Plain if stored.len() == place.entry.plain_len as usize => Ok(stored),
            _ => decode(encoding, &stored, place.entry.plain_len)
                .map_err(|error| damaged(what, place, &error.to_string())),
        }
    }

    /// Reads the stored bytes of an entry, which may be any.
    fn read_stored(
        &self,
        what: &'static str,
        kind: EntryKind,
        place: &Location,
    ) -> Result<(Encoding, Vec<u8>)> {
        let entry = &place.entry;
        let damaged = |reason: &str| damaged(what, place, reason);
        if entry.kind != kind as u8 {
            return Err(damaged("the catalog says that it is something else"));
        }
        let encoding =
            Encoding::try_from(entry.encoding).map_err(|_| damaged("unknown encoding"))?;
        let name = PackName::new(&place.pack_name)?;
        let stored = self.packs.read(&name, entry.offset, entry.stored_len as usize)?;
        self.read_len.fetch_add(u64::from(entry.stored_len), Ordering::Relaxed);
        Ok((encoding, stored))
    }

    /// An error about an entry, with the versions that refer to it, as far as they are found quickly.
    fn with_versions(&self, digest: EntryDigest, error: Error) -> Error {
        match self.names_versions {
            true => touched::with_versions(&*self.catalog, self, digest, error),
            false => error,
        }
    }

    /// Reads an entry and checks its digest, without asking whom damage touches: for whoever asks
    /// that himself.
    pub(crate) fn entry_alone(&self, kind: EntryKind, digest: EntryDigest) -> Result<Vec<u8>> {
        let what = "read";
        let place = self.look_up(what, digest)?;
        let bytes = self.read_at(what, kind, &place)?;
        match *blake3::hash(&bytes).as_bytes() == digest {
            true => Ok(bytes),
            false => Err(Error::new(Kind::Corrupt, what, hex(&digest))),
        }
    }

    /// The manifest of a layout, and the digests of its leaves.
    pub(crate) fn manifest_with_leaves(
        &self,
        layout: LayoutDigest,
    ) -> Result<(Manifest, Vec<EntryDigest>)> {
        let root = self.manifest_root(layout)?;
        let digests: Vec<EntryDigest> = root.leaves.iter().map(|(_, digest)| *digest).collect();
        let leaves = digests.iter().map(|digest| self.leaf(*digest)).collect::<Result<Vec<_>>>()?;
        Ok((decode_manifest(&root, &leaves)?, digests))
    }

    /// The map of a segment, without a look at where its chunks lie.
    pub(crate) fn map_alone(&self, map: MapDigest) -> Result<SegmentMap> {
        let bytes = self.hashed("read the segment map", EntryKind::SegmentMap, map.0)?;
        Ok(decode_segment_map(&bytes)?)
    }

    /// The boot working set of a digest.
    pub fn boot_set(&self, digest: EntryDigest) -> Result<BootSet> {
        let bytes = self.hashed("read the boot working set", EntryKind::BootSet, digest)?;
        Ok(decode_boot_set(&bytes)?)
    }

    /// The document of a digest.
    pub fn document(&self, digest: EntryDigest) -> Result<Vec<u8>> {
        self.hashed("read the document", EntryKind::Document, digest)
    }

    /// Reads and unpacks boot pieces that lie one behind the other in one pack.
    fn read_together(&self, places: &[Location]) -> Result<Vec<Vec<u8>>> {
        let what = "read the boot piece";
        let (Some(first), Some(last)) = (places.first(), places.last()) else {
            return Ok(Vec::new());
        };
        let end = last.entry.offset + u64::from(last.entry.stored_len);
        let len = (end - first.entry.offset) as usize;
        let stored = self.packs.read(&PackName::new(&first.pack_name)?, first.entry.offset, len)?;
        self.read_len.fetch_add(len as u64, Ordering::Relaxed);
        let unpack = |place: &Location| {
            let entry = &place.entry;
            let from = (entry.offset - first.entry.offset) as usize;
            let stored = &stored[from..from + entry.stored_len as usize];
            if entry.kind != EntryKind::BootPiece as u8 {
                return Err(damaged(what, place, "the catalog says that it is something else"));
            }
            let encoding = Encoding::try_from(entry.encoding)
                .map_err(|_| damaged(what, place, "unknown encoding"))?;
            decode(encoding, stored, entry.plain_len)
                .map_err(|error| damaged(what, place, &error.to_string()))
        };
        places.par_iter().map(unpack).collect()
    }

    fn look_up_chunks_of(&self, map: &SegmentMap) -> Result<()> {
        let mut unknown = map.chunks();
        unknown.retain(|chunk| self.places.peek(&chunk.0).is_none());
        let digests: Vec<EntryDigest> = unknown.iter().map(|chunk| chunk.0).collect();
        for place in self.catalog.locate(&self.realm, &digests)?.into_iter().flatten() {
            self.places.insert(place.entry.digest, Arc::new(place));
        }
        Ok(())
    }
}

impl RepositoryChunks {
    /// The root of a manifest: which leaves it has.
    pub(crate) fn manifest_root(&self, layout: LayoutDigest) -> Result<ManifestRoot> {
        let what = "read the manifest";
        Ok(decode_manifest_root(&self.hashed(what, EntryKind::Manifest, layout.0)?)?)
    }

    /// The bytes of a manifest's leaf, verified.
    pub(crate) fn leaf(&self, digest: EntryDigest) -> Result<Vec<u8>> {
        self.hashed("read the manifest leaf", EntryKind::ManifestLeaf, digest)
    }
}

impl ChunkStore for RepositoryChunks {
    fn current_layout(&self, content: ContentDigest) -> Result<Option<LayoutDigest>> {
        self.catalog.layout_of(content)
    }

    fn manifest(&self, layout: LayoutDigest) -> Result<Arc<Manifest>> {
        Ok(Arc::new(self.manifest_with_leaves(layout)?.0))
    }

    fn segment_map(&self, map: MapDigest) -> Result<Arc<SegmentMap>> {
        let map = Arc::new(self.map_alone(map)?);
        self.look_up_chunks_of(&map)?;
        Ok(map)
    }

    fn chunk_as_stored(&self, chunk: ChunkDigest) -> Result<(Chunk, Option<StoredChunk>)> {
        let what = "read the chunk";
        self.at_its_place(what, chunk.0, |place| {
            let (encoding, bytes) = self.read_stored(what, EntryKind::Chunk, place)?;
            let plain = decode(encoding, &bytes, place.entry.plain_len)
                .map_err(|error| damaged(what, place, &error.to_string()))?;
            Ok((Chunk::verify(chunk, plain)?, Some(StoredChunk { encoding, bytes })))
        })
    }

    fn boot_pieces(&self, pieces: &[BootPiece]) -> Result<Vec<Vec<u8>>> {
        let what = "read the boot piece";
        let digests: Vec<EntryDigest> = pieces.iter().map(|piece| piece.digest).collect();
        let places = self.catalog.locate(&self.realm, &digests)?;
        let places: Vec<Location> = places
            .into_iter()
            .zip(pieces)
            .map(|(place, piece)| {
                place.ok_or_else(|| {
                    Error::new(Kind::NotFound, what, hex(&piece.digest))
                        .because("the repository does not have it")
                })
            })
            .collect::<Result<_>>()?;
        let mut bytes = Vec::with_capacity(pieces.len());
        for together in places.chunk_by(lies_behind) {
            for stored in self.read_together(together)? {
                bytes.push(stored);
            }
        }
        Ok(bytes)
    }
}

/// True where an entry starts where the one before it ends.
fn lies_behind(first: &Location, second: &Location) -> bool {
    let end = first.entry.offset + u64::from(first.entry.stored_len);
    first.pack == second.pack && end == second.entry.offset
}

fn damaged(what: &'static str, place: &Location, reason: &str) -> Error {
    Error::new(Kind::Corrupt, what, hex(&place.entry.digest))
        .because(format!("{reason} (pack {})", place.pack_name))
}

fn hex(digest: &EntryDigest) -> String {
    ChunkDigest(*digest).to_string()
}
