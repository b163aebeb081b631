//! Blocks to chunks: what is new, what is a duplicate, and where it goes.
//!
//! Everything here is pure: no I/O, no threads of its own.
//!
//! | Module | Holds |
//! |---|---|
//! | [`window`] | a stretch of data and the digest of each of its blocks |
//! | [`block_list`] | the blocks of one pack, found by digest |
//! | [`open_chunk`] | new blocks on their way to become a chunk |
//! | [`sampling`] | which blocks an index keeps as hooks |
//! | [`draft`] | one segment while it is laid out: where each block lies |

pub mod block_list;
pub mod draft;
pub mod open_chunk;
pub mod sampling;
pub mod window;

pub use block_list::{BlockList, Place};
pub use draft::{ChunkRef, PendingSegment, SegmentDraft};
pub use open_chunk::{ChunkSize, OpenChunk, SealedChunk};
pub use sampling::Sampling;
pub use window::{WINDOW_LEN, digest_blocks};
