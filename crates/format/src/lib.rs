//! Bytes on disk: Larder's own layouts and foreign disk formats.
//!
//! | Module | Holds | Page |
//! |---|---|---|
//! | [`entry`] | how one entry is stored in a pack: kind, encoding, limits | `docs/formats/pack.md` |
//! | [`pack`] | packs: entries, their table, the list of block digests | `docs/formats/pack.md` |
//! | [`segment_map`] | where each block of a segment lies | `docs/formats/segment-map.md` |
//! | [`manifest`] | the root of a version's layout and its leaves | `docs/formats/manifest.md` |
//! | [`record`] | what a publication tells of itself, in its pack | `docs/formats/record.md` |
//! | [`names`] | all names of a repository as one object | `docs/formats/names.md` |
//! | [`boot_set`](mod@boot_set) | the blocks that a guest reads from power-on to ready | `docs/formats/boot-set.md` |
//! | [`stock`] | a boot working set as a host stocks it | `docs/formats/stock.md` |
//! | [`description`] | what a version is, as one text | `docs/formats/description.md` |
//! | [`machine`] | the record of a machine | `docs/formats/machine.md` |
//! | [`mirror_log`] | the log of a mirror's state | `docs/formats/mirror-log.md` |
//! | [`presence`] | which blocks of a base are local | `docs/formats/presence.md` |
//! | [`kept_chunk`] | chunks that a host keeps | `docs/formats/chunk-cache.md` |
//! | [`foreign`] | disk formats of others: raw, qcow2, and what qemu-img knows | `docs/formats/foreign.md` |
//! | [`error`] | what was wrong with the bytes, and where | |
//!
//! Numbers are little endian everywhere. Every decoder is total: whatever the bytes, it returns a
//! value or a [`FormatError`], and allocates no more than its input's length or a named limit
//! allows.

pub mod boot_set;
mod checked;
mod cursor;
pub mod description;
pub mod entry;
pub mod error;
pub mod foreign;
pub mod kept_chunk;
pub mod machine;
pub mod manifest;
pub mod mirror_log;
pub mod names;
pub mod pack;
pub mod partitions;
pub mod presence;
pub mod record;
pub mod segment_map;
pub mod stock;

pub use description::{decode_description, encode_description};
pub use entry::{Encoder, Encoding, EntryKind, PLAIN_LEN_MAX, decode};
pub use error::FormatError;
pub use machine::{decode_machine, encode_machine};
pub use manifest::{
    EncodedLeaf, EncodedManifest, ManifestRoot, decode_manifest, decode_manifest_root,
    encode_manifest,
};
pub use names::{decode_names, decode_names_header, encode_names};
pub use pack::{FinishedPack, PACK_LEN_MAX, PackBuilder, PackEntry, PackIndex};
pub use record::{decode_record, encode_record, record_digest};
pub use segment_map::{decode_segment_map, encode_segment_map, map_digest};
