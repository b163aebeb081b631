//! What was used a moment ago, within a number of bytes of memory.

use std::hash::Hash;
use std::sync::Arc;

use model::SegmentMap;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

use crate::Chunk;

/// How many bytes of memory a value takes.
pub trait Weigh {
    /// Bytes, by and large.
    fn weight(&self) -> u64;
}

impl Weigh for Chunk {
    fn weight(&self) -> u64 {
        self.bytes().len() as u64
    }
}

impl Weigh for Arc<SegmentMap> {
    fn weight(&self) -> u64 {
        (size_of_val(self.runs()) + size_of::<SegmentMap>()) as u64
    }
}

#[derive(Clone, Debug)]
struct ByWeight;

impl<K, V: Weigh> Weighter<K, V> for ByWeight {
    fn weight(&self, _key: &K, value: &V) -> u64 {
        value.weight()
    }
}

/// Values that many threads share. What was not used of late goes first.
#[derive(Debug)]
pub struct Recent<K, V>(Cache<K, V, ByWeight>);

impl<K: Eq + Hash + Clone, V: Weigh + Clone> Recent<K, V> {
    /// Keeps at most so many bytes of values that typically take so many each.
    pub fn new(len_max: u64, typical_len: u64) -> Self {
        // One shard: with more, a large value would be a large part of its shard.
        let options = OptionsBuilder::new()
            .shards(1)
            .estimated_items_capacity((len_max / typical_len) as usize)
            .weight_capacity(len_max)
            .build()
            .expect("both capacities are set");
        let lifecycle = DefaultLifecycle::default();
        Recent(Cache::with_options(options, ByWeight, DefaultHashBuilder::default(), lifecycle))
    }

    /// The value, if it is kept.
    pub fn get(&self, key: &K) -> Option<V> {
        self.0.get(key)
    }

    /// Keeps a value.
    pub fn put(&self, key: K, value: V) {
        self.0.insert(key, value);
    }

    /// The value, from here or by `fetch`, which runs once at a time for each key. A fetch that fails is
    /// not remembered; of those who wait for it the next one tries.
    pub fn get_or_fetch<E>(&self, key: &K, fetch: impl FnOnce() -> Result<V, E>) -> Result<V, E> {
        self.0.get_or_insert_with(key, fetch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Weigh for Vec<u8> {
        fn weight(&self) -> u64 {
            self.len() as u64
        }
    }

    #[test]
    fn the_bytes_are_bounded_whatever_the_values_take() {
        let recent = Recent::new(10_000, 100);
        for key in 0..1000_u32 {
            recent.put(key, vec![0; 1 + key as usize * 7 % 3000]);
            let kept: usize = (0..=key).filter_map(|key| recent.get(&key)).map(|v| v.len()).sum();
            assert!(kept <= 10_000, "{kept} after {key}");
        }
        recent.put(7, vec![0; 20_000]);
        assert_eq!(recent.get(&7), None, "larger than all of it");
    }

    #[test]
    fn a_value_is_fetched_once_and_a_failure_is_not_remembered() {
        let recent = Recent::new(10_000, 100);
        assert_eq!(recent.get_or_fetch(&1, || Err("away")), Err("away"));
        assert_eq!(recent.get_or_fetch(&1, || Ok::<_, &str>(vec![1])), Ok(vec![1]));
        assert_eq!(recent.get_or_fetch(&1, || Err("asked again")), Ok(vec![1]));
    }
}
