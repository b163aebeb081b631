//! Chunks by digest: the engines that keep packs, and the trait that readers are handed.
//!
//! | Module | Holds |
//! |---|---|
//! | [`pack_store`] | the trait of engines that keep packs; its contract suite |
//! | [`directory`] | packs as files in a folder, durable before they are visible |
//! | [`decorate`] | a link before an engine: delay, rate, faults; for tests and benches |
//! | [`memory`] | packs in memory, for tests |
//! | [`memory_chunks`] | versions in memory, for tests |
//! | [`chunk_store`] | the trait that mirrors and exports read from: verified chunks, maps, manifests |
//! | [`chunk_cache`] | chunks that a host keeps near, before a store |
//! | [`chunk`] | a chunk that was digested on the way in |
//! | [`recent`] | chunks and maps that were used a moment ago, in memory |
//!
//! **Not here**: where a chunk lies (that is `catalog`'s), and how packs are laid out (`format`'s).

pub mod chunk;
pub mod chunk_cache;
pub mod chunk_store;
pub mod decorate;
pub mod directory;
pub mod memory;
pub mod memory_chunks;
pub mod pack_store;
pub mod recent;

pub use chunk::Chunk;
pub use chunk_cache::{CachedChunks, ChunkCache, ChunkCacheNumbers};
pub use chunk_store::{ChunkStore, StoredChunk};
pub use decorate::{DecoratedPackStore, Fault, Lasting, LinkSpeed};
pub use directory::DirectoryPackStore;
pub use memory::MemoryPackStore;
pub use memory_chunks::MemoryChunkStore;
pub use pack_store::{PackName, PackStore};
pub use recent::Recent;
