//! Bytes on disk: Larder's own layouts and foreign disk formats.
//!
//! | Module | Holds |
//! |---|---|
//! | [`entry`] | how one entry of a pack is stored: plain or compressed |
//! | [`pack`] | packs: entries, their table, the list of block digests |
//! | [`segment_map`] | segment maps |
//! | [`manifest`] | manifests: a root and its leaves |
//! | [`mirror_log`] | the log of a mirror's state |
//! | [`presence`] | which blocks of a base are local |
//! | [`error`] | what is wrong with bytes that do not decode |
//!
//! Every layout has a page in `docs/formats/`, a format number and a golden file.
//!
//! **Invariants**: decoders are total (any bytes give a value or an error), never allocate more than
//! a named limit, and take only what encoders make.

pub mod entry;
pub mod error;
pub mod manifest;
pub mod mirror_log;
pub mod pack;
pub mod presence;
mod reader;
pub mod segment_map;

pub use error::FormatError;
