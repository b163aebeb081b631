//! Chunks that were used a moment ago: segments and bases share them.
//!
//! **Failure**: a fetch that fails is not remembered; of those who wait for it the next one tries.

use model::ChunkDigest;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use store::Chunk;

/// Plain bytes of chunks that are kept.
const CACHE_BYTES: u64 = 16 << 20;
const TYPICAL_CHUNK_BYTES: u64 = 128 << 10;

#[derive(Clone, Debug)]
struct Bytes;

impl Weighter<ChunkDigest, Chunk> for Bytes {
    fn weight(&self, _digest: &ChunkDigest, chunk: &Chunk) -> u64 {
        chunk.bytes().len() as u64
    }
}

/// At most 16 MiB of chunks. All mirrors of a state folder share it.
#[derive(Debug)]
pub(crate) struct ChunkCache(Cache<ChunkDigest, Chunk, Bytes>);

impl ChunkCache {
    pub(crate) fn new() -> Self {
        // One shard: with more, a chunk of 1 MiB would be a large part of its shard.
        let options = OptionsBuilder::new()
            .shards(1)
            .estimated_items_capacity((CACHE_BYTES / TYPICAL_CHUNK_BYTES) as usize)
            .weight_capacity(CACHE_BYTES)
            .build()
            .expect("both capacities are set");
        let lifecycle = DefaultLifecycle::default();
        ChunkCache(Cache::with_options(options, Bytes, DefaultHashBuilder::default(), lifecycle))
    }

    /// The chunk, from here or by `fetch`, which runs once at a time for each digest.
    pub(crate) fn get_or_fetch<E>(
        &self,
        digest: ChunkDigest,
        fetch: impl FnOnce() -> Result<Chunk, E>,
    ) -> Result<Chunk, E> {
        self.0.get_or_insert_with(&digest, fetch)
    }
}
