//! The words that every other crate speaks, and the traits at which siblings meet.
//!
//! | Module | Holds |
//! |---|---|
//! | [`block`] | blocks, block ranges, segments: how a disk's address space is cut |
//! | [`digest`] | the digests that name blocks, chunks, maps, layouts and contents |
//! | [`name`] | names of images, tags, mirrors, realms, labels |
//! | [`names`] | all names of a repository as one value; what a publication tells of itself |
//! | [`mod@reference`] | `image`, `image@version`, `image:tag` |
//! | [`machine`] | what must be known of a booted guest to resume it |
//! | [`map`] | segment maps: which chunk each block of a segment lies in |
//! | [`manifest`] | the root of a version's layout |
//! | [`boot_set`] | the blocks that a guest reads from power-on to ready |
//! | [`description`] | what a version is, told once: what signatures sign |
//! | [`device`] | what a door serves: a disk that is read, written, trimmed and flushed |
//! | [`source`] | what an import reads and what an export writes |
//! | [`changes`] | a sealed overlay, on its way to become a version |
//! | [`progress`] | what long work reports while it runs |
//! | [`error`] | one error type, its kinds sorted by what the caller should do |
//!
//! **Not here**: any I/O, any byte layout.

pub mod block;
mod block_hashing;
pub mod boot_set;
pub mod changes;
pub mod description;
pub mod device;
pub mod digest;
pub mod error;
pub mod machine;
pub mod manifest;
pub mod map;
pub mod name;
pub mod names;
pub mod progress;
pub mod reference;
pub mod source;

pub use block::{BLOCK_LEN, BLOCKS_PER_SEGMENT, BlockRange, SEGMENT_LEN};
pub use digest::{BlockDigest, ChunkDigest, ContentDigest, LayoutDigest, MapDigest, SegmentDigest};
pub use error::{Error, Kind, Result};
pub use manifest::{Manifest, SegmentEntry, VersionKind};
pub use map::{Run, SegmentMap};
pub use name::{ImageName, MirrorName, Realm, TagName};
pub use names::{NamedDocument, NamedHold, NamedImage, NamedVersion, Names, PublicationRecord};
pub use reference::{Reference, Selector, VersionId, VersionNumber};
