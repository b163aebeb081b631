//! Segment maps that were used a moment ago: all views of a state folder share them.
//!
//! A map is needed where blocks of its segment are missing, and is read again where it has gone.

use std::sync::Arc;

use model::{MapDigest, SegmentMap};
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

/// Bytes of maps that are kept: some 200 of a fresh import, 12 GiB of address space.
const CACHE_BYTES: u64 = 8 << 20;
const TYPICAL_MAP_BYTES: u64 = 36 << 10;

#[derive(Clone, Debug)]
struct Bytes;

impl Weighter<MapDigest, Arc<SegmentMap>> for Bytes {
    fn weight(&self, _digest: &MapDigest, map: &Arc<SegmentMap>) -> u64 {
        (size_of_val(map.runs()) + size_of::<SegmentMap>()) as u64
    }
}

/// At most 8 MiB of maps.
#[derive(Debug)]
pub(crate) struct MapCache(Cache<MapDigest, Arc<SegmentMap>, Bytes>);

impl MapCache {
    pub(crate) fn new() -> Self {
        // One shard: with more, a map of 16,384 runs would be a large part of its shard.
        let options = OptionsBuilder::new()
            .shards(1)
            .estimated_items_capacity((CACHE_BYTES / TYPICAL_MAP_BYTES) as usize)
            .weight_capacity(CACHE_BYTES)
            .build()
            .expect("both capacities are set");
        let lifecycle = DefaultLifecycle::default();
        MapCache(Cache::with_options(options, Bytes, DefaultHashBuilder::default(), lifecycle))
    }

    pub(crate) fn get(&self, digest: MapDigest) -> Option<Arc<SegmentMap>> {
        self.0.get(&digest)
    }

    pub(crate) fn put(&self, digest: MapDigest, map: Arc<SegmentMap>) {
        self.0.insert(digest, map);
    }
}
