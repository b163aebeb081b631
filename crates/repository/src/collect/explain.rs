//! Why an entry lives: which versions and holds refer to it, and where.

use std::collections::HashMap;

use catalog::{EntryDigest, Location, Revision, Root};
use format::entry::EntryKind;
use model::progress::Cancel;
use model::{
    BLOCK_LEN, ChunkDigest, Error, Kind, LayoutDigest, Manifest, MapDigest, Result, SEGMENT_LEN,
    VersionId,
};

use super::survey::is_alive;
use crate::repository::Repository;

/// How many uses are listed; more are counted.
pub const USES_MAX: usize = 100;

/// How many ranges of addresses are listed for each use.
pub const RANGES_MAX: usize = 16;

const ROOTS_PER_PAGE: usize = 1000;

/// Why an entry is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// The entry, if the repository has one of that digest.
    pub entry: Option<ExplainedEntry>,
    /// Who refers to it, at most [`USES_MAX`].
    pub uses: Vec<UsedBy>,
    /// How many do.
    pub use_count: u64,
}

/// An entry, and the pack that it lies in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplainedEntry {
    /// What it is, in words.
    pub kind: &'static str,
    /// The pack's name.
    pub pack: String,
    /// Bytes that it takes there.
    pub stored_len: u64,
    /// Bytes when it is unpacked.
    pub plain_len: u64,
    /// True where a collect has marked the pack.
    pub is_condemned: bool,
    /// True where a writer who is at work has put the pack.
    pub is_young: bool,
}

/// A version or a hold that refers to an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsedBy {
    /// The version.
    pub version: VersionId,
    /// Who holds it; `None` for the version itself.
    pub holder: Option<String>,
    /// Where on the disk: offset and length in bytes, at most [`RANGES_MAX`]. None for what belongs to
    /// the whole version.
    pub ranges: Vec<(u64, u64)>,
}

impl Explained {
    /// What the next collect does with it, in words.
    pub fn verdict(&self) -> &'static str {
        match (&self.entry, self.use_count) {
            (None, _) => "it is not in the repository",
            (Some(_), 1..) => "it stays: versions or holds refer to it",
            (Some(entry), 0) if entry.is_young => "it stays: its writer is at work",
            (Some(_), 0) => "nothing refers to it: collect gives its bytes back",
        }
    }
}

impl Repository {
    /// Says why an entry is there. Cost: all manifests are read, and for a chunk all maps.
    ///
    /// # Errors
    /// `Corrupt` where a manifest or map cannot be read.
    pub fn explain(&self, digest: &EntryDigest, cancel: &Cancel) -> Result<Explained> {
        let _lease = self.begin_lease()?;
        let place = self.catalog.locate(&self.realm, &[*digest])?.into_iter().next().flatten();
        let entry = place.as_ref().map(|place| self.explained_entry(place)).transpose()?;
        let mut search = Search {
            repository: self,
            digest: *digest,
            // Only chunks are looked for in maps, only pieces in working sets.
            in_maps: place.as_ref().is_none_or(|place| place.entry.kind == EntryKind::Chunk as u8),
            in_boot_sets: place.is_none_or(|place| place.entry.kind == EntryKind::BootPiece as u8),
            layouts: HashMap::new(),
            maps: HashMap::new(),
        };
        let mut explained = Explained { entry, uses: Vec::new(), use_count: 0 };
        let mut last = Revision::default();
        loop {
            let roots = self.catalog.roots(last, ROOTS_PER_PAGE)?;
            let Some(newest) = roots.last() else { return Ok(explained) };
            last = newest.revision;
            for root in roots {
                cancel.check("explain", "the digest")?;
                if let Some(ranges) = search.in_root(&root)? {
                    explained.use_count += 1;
                    if explained.uses.len() < USES_MAX {
                        let Root { version, holder, .. } = root;
                        explained.uses.push(UsedBy { version, holder, ranges });
                    }
                }
            }
        }
    }

    fn explained_entry(&self, place: &Location) -> Result<ExplainedEntry> {
        let pack = self.catalog.pack(place.pack)?;
        Ok(ExplainedEntry {
            kind: match EntryKind::try_from(place.entry.kind) {
                Ok(EntryKind::Chunk) => "a chunk",
                Ok(EntryKind::SegmentMap) => "a segment map",
                Ok(EntryKind::ManifestLeaf) => "a leaf of a manifest",
                Ok(EntryKind::Manifest) => "a manifest",
                Ok(EntryKind::Record) => "a record of a publication",
                Ok(EntryKind::BootSet) => "a working set",
                Ok(EntryKind::Document) => "a document",
                Ok(EntryKind::BootPiece) => "blocks of a working set",
                Err(_) => "of an unknown kind",
            },
            pack: pack.name,
            stored_len: place.entry.stored_len.into(),
            plain_len: place.entry.plain_len.into(),
            is_condemned: pack.condemned.is_some(),
            is_young: match pack.lease {
                Some(lease) => is_alive(self, lease)?,
                None => false,
            },
        })
    }
}

/// Ranges of a disk, or of a segment.
type Ranges = Vec<(u64, u64)>;

struct Search<'a> {
    repository: &'a Repository,
    digest: EntryDigest,
    in_maps: bool,
    in_boot_sets: bool,
    /// Layouts that refer to the entry and such that do not.
    layouts: HashMap<LayoutDigest, Option<Ranges>>,
    /// Likewise maps, with ranges of the segment.
    maps: HashMap<MapDigest, Option<Ranges>>,
}

impl Search<'_> {
    fn in_root(&mut self, root: &Root) -> Result<Option<Ranges>> {
        if root.record == Some(self.digest)
            || root.documents.contains(&self.digest)
            || self.in_boot_sets(root)?
        {
            return Ok(Some(Vec::new()));
        }
        if let Some(known) = self.layouts.get(&root.layout) {
            return Ok(known.clone());
        }
        let chunks = self.repository.chunks();
        let (manifest, leaves) =
            chunks.manifest_with_leaves(root.layout).map_err(|error| of_version(root, error))?;
        let found = match root.layout.0 == self.digest || leaves.contains(&self.digest) {
            true => Some(Vec::new()),
            false => self.in_manifest(&manifest).map_err(|error| of_version(root, error))?,
        };
        self.layouts.insert(root.layout, found.clone());
        Ok(found)
    }

    fn in_boot_sets(&self, root: &Root) -> Result<bool> {
        if root.boot_sets.contains(&self.digest) {
            return Ok(true);
        }
        if !self.in_boot_sets {
            return Ok(false);
        }
        for set in &root.boot_sets {
            let set = self.repository.chunks().boot_set(*set);
            let set = set.map_err(|error| of_version(root, error))?;
            if set.pieces().iter().any(|piece| piece.digest == self.digest) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn in_manifest(&mut self, manifest: &Manifest) -> Result<Option<Ranges>> {
        let mut found: Option<Ranges> = None;
        for entry in manifest.segments() {
            let start = u64::from(entry.segment) * SEGMENT_LEN;
            let ranges = match entry.map.0 == self.digest {
                true => Some(vec![(0, SEGMENT_LEN)]),
                false if self.in_maps => self.in_map(entry.map)?,
                false => None,
            };
            for (offset, len) in ranges.into_iter().flatten() {
                let ranges = found.get_or_insert_default();
                if ranges.len() < RANGES_MAX {
                    ranges.push((start + offset, len));
                }
            }
        }
        Ok(found)
    }

    fn in_map(&mut self, map: MapDigest) -> Result<Option<Ranges>> {
        if let Some(known) = self.maps.get(&map) {
            return Ok(known.clone());
        }
        let read = self.repository.chunks().map_alone(map)?;
        let runs = read.runs().iter().filter(|run| run.chunk == ChunkDigest(self.digest));
        let in_bytes = |blocks: u32| u64::from(blocks) * BLOCK_LEN as u64;
        let ranges: Ranges = runs
            .map(|run| (in_bytes(run.first_block), in_bytes(run.block_count)))
            .take(RANGES_MAX)
            .collect();
        let found = (!ranges.is_empty()).then_some(ranges);
        self.maps.insert(map, found.clone());
        Ok(found)
    }
}

fn of_version(root: &Root, error: Error) -> Error {
    match error.kind() {
        Kind::NotFound | Kind::Corrupt => {
            Error::new(Kind::Corrupt, "read the layout of", root.version.to_string())
                .hint("`larder scrub` names what is damaged")
                .caused_by(error)
        }
        _ => error,
    }
}
