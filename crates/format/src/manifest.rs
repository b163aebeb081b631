//! Manifests as bytes: a root and its leaves.
//!
//! ```text
//! root: | format u32 | kind u8 | length u64 | leaf count u32 | (number u32, digest 32) ... |
//! leaf: | format u32 | entry count u32 | (segment in leaf u16, content 32, map 32) ... |
//! ```
//!
//! A leaf covers 512 segments (32 GiB). Leaves and segments that are one hole are absent.
//!
//! **Invariant**: one manifest has one encoding; no other decodes.

use model::block::LENGTH_MAX;
use model::digest::DIGEST_LEN;
use model::{LayoutDigest, Manifest, MapDigest, SegmentDigest, SegmentEntry, VersionKind};

use crate::error::FormatError;
use crate::reader::Reader;

/// The format number of manifests.
pub const FORMAT: u32 = 1;
/// Segments of a leaf: 32 GiB of address space.
pub const SEGMENTS_PER_LEAF: u32 = 512;

const ROOT: &str = "manifest";
const LEAF: &str = "manifest leaf";
const ROOT_ROW_LEN: usize = 4 + DIGEST_LEN;
const LEAF_ROW_LEN: usize = 2 + 2 * DIGEST_LEN;

/// A manifest as entries of a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedManifest {
    /// The bytes of the root.
    pub root: Vec<u8>,
    /// BLAKE3 over them.
    pub layout: LayoutDigest,
    /// The leaves, ascending.
    pub leaves: Vec<EncodedLeaf>,
}

/// A leaf as an entry of a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedLeaf {
    /// BLAKE3 over its bytes.
    pub digest: [u8; DIGEST_LEN],
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// The root of a manifest, its leaves still to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestRoot {
    /// What the version holds.
    pub kind: VersionKind,
    /// Bytes that a guest sees.
    pub length: u64,
    /// The leaves: number and digest, ascending.
    pub leaves: Vec<(u32, [u8; DIGEST_LEN])>,
}

fn kind_code(kind: VersionKind) -> u8 {
    match kind {
        VersionKind::Disk => 1,
        VersionKind::Memory => 2,
        VersionKind::Machine => 3,
        VersionKind::Group => 4,
    }
}

/// The bytes of a manifest.
pub fn encode_manifest(manifest: &Manifest) -> EncodedManifest {
    let leaf_of = |entry: &SegmentEntry| entry.segment / SEGMENTS_PER_LEAF;
    let mut root = FORMAT.to_le_bytes().to_vec();
    root.push(kind_code(manifest.kind()));
    root.extend_from_slice(&manifest.length().to_le_bytes());
    let groups = || manifest.segments().chunk_by(|a, b| leaf_of(a) == leaf_of(b));
    root.extend_from_slice(&(groups().count() as u32).to_le_bytes());
    let mut leaves = Vec::new();
    for group in groups() {
        let bytes = encode_leaf(group);
        let digest = *blake3::hash(&bytes).as_bytes();
        root.extend_from_slice(&leaf_of(&group[0]).to_le_bytes());
        root.extend_from_slice(&digest);
        leaves.push(EncodedLeaf { digest, bytes });
    }
    let layout = LayoutDigest(*blake3::hash(&root).as_bytes());
    EncodedManifest { root, layout, leaves }
}

fn encode_leaf(entries: &[SegmentEntry]) -> Vec<u8> {
    let mut bytes = FORMAT.to_le_bytes().to_vec();
    bytes.extend_from_slice(&(entries.len() as u32).to_le_bytes());
    for entry in entries {
        bytes.extend_from_slice(&((entry.segment % SEGMENTS_PER_LEAF) as u16).to_le_bytes());
        bytes.extend_from_slice(entry.content.as_bytes());
        bytes.extend_from_slice(entry.map.as_bytes());
    }
    bytes
}

/// The root that bytes encode.
pub fn decode_manifest_root(bytes: &[u8]) -> Result<ManifestRoot, FormatError> {
    let mut reader = Reader::new(ROOT, bytes);
    reader.format(FORMAT)?;
    let kind = match reader.u8()? {
        1 => VersionKind::Disk,
        2 => VersionKind::Memory,
        3 => VersionKind::Machine,
        4 => VersionKind::Group,
        other => return Err(reader.unsound("kind", other.into())),
    };
    let length = reader.u64()?;
    let count = reader.u32()?;
    if length > LENGTH_MAX {
        return Err(reader.unsound("length", length));
    }
    if count as usize != reader.remaining() / ROOT_ROW_LEN {
        return Err(reader.unsound("leaf count", count.into()));
    }
    let mut leaves: Vec<(u32, [u8; DIGEST_LEN])> = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let (number, digest) = (reader.u32()?, reader.array()?);
        if leaves.last().is_some_and(|(last, _)| *last >= number) {
            return Err(reader.unsound("leaf number", number.into()));
        }
        leaves.push((number, digest));
    }
    reader.end()?;
    Ok(ManifestRoot { kind, length, leaves })
}

/// Joins a root and its leaves, which come in the order of `root.leaves`; each is checked against
/// its digest.
pub fn decode_manifest(root: &ManifestRoot, leaves: &[Vec<u8>]) -> Result<Manifest, FormatError> {
    if root.leaves.len() != leaves.len() {
        let value = leaves.len() as u64;
        return Err(FormatError::Unsound { what: ROOT, field: "leaf count", value });
    }
    let mut segments = Vec::new();
    for ((number, digest), bytes) in root.leaves.iter().zip(leaves) {
        if blake3::hash(bytes).as_bytes() != digest {
            return Err(FormatError::Checksum { what: LEAF });
        }
        decode_leaf(*number, bytes, &mut segments)?;
    }
    Manifest::new(root.kind, root.length, segments).ok_or(FormatError::Unsound {
        what: ROOT,
        field: "segments",
        value: root.length,
    })
}

fn decode_leaf(
    number: u32,
    bytes: &[u8],
    segments: &mut Vec<SegmentEntry>,
) -> Result<(), FormatError> {
    let mut reader = Reader::new(LEAF, bytes);
    reader.format(FORMAT)?;
    let count = reader.u32()?;
    let is_sound = (1..=SEGMENTS_PER_LEAF).contains(&count);
    if !is_sound || count as usize != reader.remaining() / LEAF_ROW_LEN {
        return Err(reader.unsound("entry count", count.into()));
    }
    for _ in 0..count {
        let in_leaf = u32::from(u16::from_le_bytes(reader.array()?));
        let segment = number
            .checked_mul(SEGMENTS_PER_LEAF)
            .and_then(|first| first.checked_add(in_leaf))
            .filter(|_| in_leaf < SEGMENTS_PER_LEAF)
            .ok_or_else(|| reader.unsound("segment", in_leaf.into()))?;
        let content = SegmentDigest(reader.array()?);
        let map = MapDigest(reader.array()?);
        segments.push(SegmentEntry { segment, content, map });
    }
    reader.end()
}
