//! Manifests: the root of a version's layout in one repository.
//!
//! In memory a manifest lists only the segments that hold data, so a hole of any length costs
//! nothing. On disk it is a tree (see the `format` crate).

use std::sync::LazyLock;

use crate::block::{BLOCKS_PER_SEGMENT, blocks_in_segment, segment_count};
use crate::digest::{BlockDigest, ContentDigest, MapDigest, SegmentDigest};

/// What a version holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum VersionKind {
    /// A disk.
    #[default]
    Disk,
    /// A guest's memory.
    Memory,
    /// A machine: disk, memory, device state and record.
    Machine,
    /// Several versions as one.
    Group,
}

impl VersionKind {
    const ALL: [VersionKind; 4] =
        [VersionKind::Disk, VersionKind::Memory, VersionKind::Machine, VersionKind::Group];

    /// The word that people and programs read.
    pub fn word(self) -> &'static str {
        match self {
            VersionKind::Disk => "disk",
            VersionKind::Memory => "memory",
            VersionKind::Machine => "machine",
            VersionKind::Group => "group",
        }
    }

    /// The kind that a word means.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.word() == word)
    }
}

/// One segment that holds data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentEntry {
    /// Which segment, counted from the start of the disk.
    pub segment: u32,
    /// The digest of its block digests: part of the version's identity.
    pub content: SegmentDigest,
    /// The digest of its map: part of the layout.
    pub map: MapDigest,
}

/// The root of a version's layout.
///
/// **Invariant**, kept by [`Manifest::new`]: segments are in ascending order, each once, all inside
/// the length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    kind: VersionKind,
    length: u64,
    segments: Vec<SegmentEntry>,
}

impl Manifest {
    /// The manifest, if its segments are sound for its length.
    pub fn new(kind: VersionKind, length: u64, segments: Vec<SegmentEntry>) -> Option<Self> {
        let ascending = segments.windows(2).all(|pair| pair[0].segment < pair[1].segment);
        let inside = segments.last().is_none_or(|last| last.segment < segment_count(length));
        (ascending && inside && length <= crate::block::LENGTH_MAX).then_some(Manifest {
            kind,
            length,
            segments,
        })
    }

    /// What the version holds.
    pub fn kind(&self) -> VersionKind {
        self.kind
    }

    /// Bytes that a guest sees.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The segments that hold data, in order.
    pub fn segments(&self) -> &[SegmentEntry] {
        &self.segments
    }

    /// The entry of one segment; `None` where the whole segment is a hole.
    pub fn segment(&self, segment: u32) -> Option<&SegmentEntry> {
        let position = self.segments.binary_search_by_key(&segment, |entry| entry.segment).ok()?;
        Some(&self.segments[position])
    }

    /// The version's identity, hashed from its length and its segments. Cost: one hash of 32 bytes
    /// per 64 MiB of address space.
    pub fn content(&self) -> ContentDigest {
        let mut entries = self.segments.iter().peekable();
        let digests = (0..segment_count(self.length)).map(|segment| {
            match entries.next_if(|entry| entry.segment == segment) {
                Some(entry) => entry.content,
                None => hole_digest(blocks_in_segment(self.length, segment)),
            }
        });
        ContentDigest::of(self.length, digests)
    }
}

/// The digest of a segment of `block_count` blocks that is one hole.
pub fn hole_digest(block_count: u32) -> SegmentDigest {
    static WHOLE: LazyLock<SegmentDigest> =
        LazyLock::new(|| SegmentDigest::of(&vec![BlockDigest::HOLE; BLOCKS_PER_SEGMENT as usize]));
    match block_count {
        BLOCKS_PER_SEGMENT => *WHOLE,
        _ => SegmentDigest::of(&vec![BlockDigest::HOLE; block_count as usize]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(segment: u32) -> SegmentEntry {
        SegmentEntry { segment, content: SegmentDigest([2; 32]), map: MapDigest([3; 32]) }
    }

    #[test]
    fn segments_out_of_order_or_beyond_the_end_are_refused() {
        let length = 3 * crate::SEGMENT_LEN;
        let new = |segments| Manifest::new(VersionKind::Disk, length, segments);
        assert!(new(vec![entry(0), entry(2)]).is_some());
        assert!(new(vec![entry(2), entry(0)]).is_none());
        assert!(new(vec![entry(1), entry(1)]).is_none());
        assert!(new(vec![entry(3)]).is_none());
    }

    #[test]
    fn the_content_digest_ignores_the_layout_but_not_the_length() {
        let a = Manifest::new(VersionKind::Disk, 4096, vec![entry(0)]).unwrap();
        let other = SegmentEntry { map: MapDigest([9; 32]), ..entry(0) };
        let b = Manifest::new(VersionKind::Disk, 4096, vec![other]).unwrap();
        let c = Manifest::new(VersionKind::Disk, 4095, vec![entry(0)]).unwrap();
        assert_eq!(a.content(), b.content());
        assert_ne!(a.content(), c.content());
    }
}
