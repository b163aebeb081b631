//! The blob interface: versions as byte ranges that are written, appended and read.
//!
//! ```text
//!  writer A ── gather ──► patch ─┐                       ┌─► version 7 = 6 + patch of A
//!  writer B ── gather ──► patch ─┼─► turn ─► lay ─► publish
//!  writer C ── gather ──► patch ─┘   (one at a time)     └─► version 8 = 7 + patch of B
//!              side by side: data is                          number given by the transaction
//!              stored before its turn                         that publishes
//! ```
//!
//! | Module | Holds |
//! |---|---|
//! | [`mod@write`], [`append`], [`read`] | one verb each |
//! | `patch` | a writer's bytes: in memory where they are few, in the store where not |
//! | `place` | a patch laid upon a version |
//! | `publish` | the loop that lays and publishes until it is upon the latest |
//! | `turns` | who publishes next in an image |
//!
//! **Invariants**
//! 1. Each version is its parent with its writer's patch upon it, and nothing else; its parent is the
//!    version that was the latest when it was published.
//! 2. Readers wait for no writer: a version is whole when its number exists.
//!
//! **Failure**: a writer that dies holds nothing that another waits for: its turn ends with its
//! process, or with its thread, and its lease expires. After an error nothing of its patch is left,
//! after `kill -9` what was put stays, without a name, until collect.
//!
//! **Source**: BlobSeer (Nicolae et al., JPDC 2011): CREATE, WRITE, APPEND, READ, GET_RECENT, CLONE.

pub mod append;
mod patch;
mod place;
mod publish;
pub mod read;
mod turns;
pub mod write;

pub(crate) use turns::Turns;
