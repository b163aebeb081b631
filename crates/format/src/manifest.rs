//! Manifests as bytes: a root, and leaves of 512 segments each.
//!
//! ```text
//! root  | LMRT | format | kind 0 0 0 | leaf count | length | (leaf number, leaf digest) ... |
//!                                                               |
//! leaf  | LMLF | format | bitmap of 512 segments | (content digest, map digest) ... |  <-+
//! ```
//!
//! **Invariants**: one manifest has one encoding; leaves and segments that are all hole are absent,
//! so a hole of any length costs nothing. A 4 KiB write to a full disk of 16 TiB changes one map, one
//! leaf of 32,840 bytes and the root of 18,456.
//!
//! **Failure**: every leaf is compared with the digest that the root has for it, and the root with
//! the layout digest by whoever fetched it, so a peer can withhold a layout but not forge one.

use model::block::{LENGTH_MAX, segment_count};
use model::{LayoutDigest, Manifest, MapDigest, SegmentDigest, SegmentEntry, VersionKind};

use crate::FormatError;
use crate::cursor::Cursor;

/// How many segments one leaf covers: 32 GiB of a disk.
pub const SEGMENTS_PER_LEAF: u32 = 512;

/// The format number of root and leaves that [`encode_manifest`] writes.
pub const MANIFEST_FORMAT: u32 = 1;

const ROOT: &str = "manifest";
const LEAF: &str = "manifest leaf";
const ROOT_MAGIC: [u8; 4] = *b"LMRT";
const LEAF_MAGIC: [u8; 4] = *b"LMLF";
const ROOT_HEADER_LEN: usize = 24;
const ROOT_ENTRY_LEN: usize = 36;
const LEAF_HEADER_LEN: usize = 72;
const LEAF_ENTRY_LEN: usize = 64;
const BITMAP_LEN: usize = SEGMENTS_PER_LEAF as usize / 8;

/// A manifest as the entries that go into a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedManifest {
    /// The root's bytes.
    pub root: Vec<u8>,
    /// The root's digest, by which the layout is named.
    pub layout: LayoutDigest,
    /// The leaves, in ascending order.
    pub leaves: Vec<EncodedLeaf>,
}

/// One leaf of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedLeaf {
    /// BLAKE3 over its bytes.
    pub digest: [u8; 32],
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// The root of a manifest, before its leaves were fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestRoot {
    /// What the version holds.
    pub kind: VersionKind,
    /// Bytes that a guest sees.
    pub length: u64,
    /// Number and digest of each leaf, in ascending order. Leaf `n` covers the 512 segments from
    /// `512 * n`.
    pub leaves: Vec<(u32, [u8; 32])>,
}

/// Encodes a manifest. Cost: one BLAKE3 pass over all of it.
pub fn encode_manifest(manifest: &Manifest) -> EncodedManifest {
    let leaf_number = |entry: &SegmentEntry| entry.segment / SEGMENTS_PER_LEAF;
    let mut leaves = Vec::new();
    let mut numbers = Vec::new();
    for segments in manifest.segments().chunk_by(|a, b| leaf_number(a) == leaf_number(b)) {
        let bytes = encode_leaf(segments);
        leaves.push(EncodedLeaf { digest: *blake3::hash(&bytes).as_bytes(), bytes });
        numbers.push(leaf_number(&segments[0]));
    }
    let mut root = Vec::with_capacity(ROOT_HEADER_LEN + leaves.len() * ROOT_ENTRY_LEN);
    root.extend_from_slice(&ROOT_MAGIC);
    root.extend_from_slice(&MANIFEST_FORMAT.to_le_bytes());
    root.extend_from_slice(&[kind_code(manifest.kind()), 0, 0, 0]);
    root.extend_from_slice(&(leaves.len() as u32).to_le_bytes());
    root.extend_from_slice(&manifest.length().to_le_bytes());
    for (number, leaf) in numbers.iter().zip(&leaves) {
        root.extend_from_slice(&number.to_le_bytes());
        root.extend_from_slice(&leaf.digest);
    }
    let layout = LayoutDigest(*blake3::hash(&root).as_bytes());
    EncodedManifest { root, layout, leaves }
}

/// Decodes a root. Whoever fetched it compares its layout digest (BLAKE3 over `bytes`) first.
///
/// # Errors
/// Where the bytes are no root, a newer Larder wrote them, or leaves are out of order or beyond the
/// length: fetch another copy.
pub fn decode_manifest_root(bytes: &[u8]) -> Result<ManifestRoot, FormatError> {
    let mut cursor = Cursor::new(ROOT, bytes);
    cursor.preamble(ROOT_MAGIC, MANIFEST_FORMAT)?;
    let kind = decode_kind(&mut cursor)?;
    let leaf_count = cursor.u32()? as usize;
    let length = cursor.u64()?;
    if length > LENGTH_MAX {
        return Err(cursor.unsound_before(8, "length", length));
    }
    if cursor.remaining() / ROOT_ENTRY_LEN < leaf_count {
        return Err(FormatError::Truncated { what: ROOT, offset: bytes.len() as u64 });
    }
    let number_end = segment_count(length).div_ceil(SEGMENTS_PER_LEAF);
    let mut leaves: Vec<(u32, [u8; 32])> = Vec::with_capacity(leaf_count);
    for _ in 0..leaf_count {
        let number = cursor.u32()?;
        let ascending = leaves.last().is_none_or(|(last, _)| *last < number);
        if !ascending || number >= number_end {
            return Err(cursor.unsound_before(4, "leaf number", number.into()));
        }
        leaves.push((number, cursor.array()?));
    }
    cursor.end()?;
    Ok(ManifestRoot { kind, length, leaves })
}

/// Puts a manifest together from its root and all its leaves, given in the order of
/// [`ManifestRoot::leaves`].
///
/// # Errors
/// Where a leaf is missing, has another digest than the root says, is no leaf, or names segments
/// beyond the length: fetch another copy of it.
pub fn decode_manifest(root: &ManifestRoot, leaves: &[Vec<u8>]) -> Result<Manifest, FormatError> {
    if leaves.len() != root.leaves.len() {
        let (field, value) = ("leaf count", leaves.len() as u64);
        return Err(FormatError::Unsound { what: ROOT, field, offset: 12, value });
    }
    let mut segments = Vec::new();
    for ((number, digest), bytes) in root.leaves.iter().zip(leaves) {
        if blake3::hash(bytes).as_bytes() != digest {
            return Err(FormatError::Checksum { what: LEAF });
        }
        decode_leaf(*number, bytes, &mut segments)?;
    }
    let last = segments.last().map_or(0, |entry| u64::from(entry.segment));
    Manifest::new(root.kind, root.length, segments).ok_or(FormatError::Unsound {
        what: LEAF,
        field: "segment",
        offset: 8,
        value: last,
    })
}

fn encode_leaf(segments: &[SegmentEntry]) -> Vec<u8> {
    let mut bitmap = [0u8; BITMAP_LEN];
    for entry in segments {
        let bit = entry.segment % SEGMENTS_PER_LEAF;
        bitmap[bit as usize / 8] |= 1 << (bit % 8);
    }
    let mut bytes = Vec::with_capacity(LEAF_HEADER_LEN + segments.len() * LEAF_ENTRY_LEN);
    bytes.extend_from_slice(&LEAF_MAGIC);
    bytes.extend_from_slice(&MANIFEST_FORMAT.to_le_bytes());
    bytes.extend_from_slice(&bitmap);
    for entry in segments {
        bytes.extend_from_slice(&entry.content.0);
        bytes.extend_from_slice(&entry.map.0);
    }
    bytes
}

fn decode_leaf(
    number: u32,
    bytes: &[u8],
    segments: &mut Vec<SegmentEntry>,
) -> Result<(), FormatError> {
    let mut cursor = Cursor::new(LEAF, bytes);
    cursor.preamble(LEAF_MAGIC, MANIFEST_FORMAT)?;
    let bitmap: [u8; BITMAP_LEN] = cursor.array()?;
    if bitmap == [0; BITMAP_LEN] {
        return Err(cursor.unsound_before(BITMAP_LEN, "bitmap", 0));
    }
    let overflow = FormatError::Unsound {
        what: ROOT,
        field: "leaf number",
        offset: ROOT_HEADER_LEN as u64,
        value: number.into(),
    };
    let first = number.checked_mul(SEGMENTS_PER_LEAF).ok_or(overflow)?;
    for bit in 0..SEGMENTS_PER_LEAF {
        if bitmap[bit as usize / 8] & 1 << (bit % 8) != 0 {
            let content = SegmentDigest(cursor.array()?);
            let map = MapDigest(cursor.array()?);
            segments.push(SegmentEntry { segment: first + bit, content, map });
        }
    }
    cursor.end()
}

pub(crate) fn kind_code(kind: VersionKind) -> u8 {
    match kind {
        VersionKind::Disk => 0,
        VersionKind::Memory => 1,
        VersionKind::Machine => 2,
        VersionKind::Group => 3,
    }
}

fn decode_kind(cursor: &mut Cursor<'_>) -> Result<VersionKind, FormatError> {
    let [code, rest @ ..] = cursor.array::<4>()?;
    if rest != [0; 3] {
        return Err(cursor.unsound_before(3, "reserved", rest.iter().map(|b| u64::from(*b)).sum()));
    }
    kind_from_code(code).ok_or_else(|| cursor.unsound_before(4, "kind", code.into()))
}

pub(crate) fn kind_from_code(code: u8) -> Option<VersionKind> {
    match code {
        0 => Some(VersionKind::Disk),
        1 => Some(VersionKind::Memory),
        2 => Some(VersionKind::Machine),
        3 => Some(VersionKind::Group),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(segment: u32) -> SegmentEntry {
        let digest = *blake3::hash(&segment.to_le_bytes()).as_bytes();
        SegmentEntry { segment, content: SegmentDigest(digest), map: MapDigest(digest) }
    }

    fn manifest(length: u64, segments: impl IntoIterator<Item = u32>) -> Manifest {
        let segments = segments.into_iter().map(entry).collect();
        Manifest::new(VersionKind::Disk, length, segments).unwrap()
    }

    fn decode(encoded: &EncodedManifest) -> Result<Manifest, FormatError> {
        let leaves: Vec<_> = encoded.leaves.iter().map(|leaf| leaf.bytes.clone()).collect();
        decode_manifest(&decode_manifest_root(&encoded.root)?, &leaves)
    }

    #[test]
    fn a_manifest_reads_back_and_holes_cost_nothing() {
        let empty = encode_manifest(&manifest(LENGTH_MAX, []));
        assert_eq!((empty.root.len(), empty.leaves.len()), (ROOT_HEADER_LEN, 0));
        for segments in [vec![], vec![0], vec![511, 512], vec![3, 600, 16_777_215]] {
            let manifest = manifest(LENGTH_MAX, segments);
            assert_eq!(decode(&encode_manifest(&manifest)).unwrap(), manifest);
        }
    }
}
