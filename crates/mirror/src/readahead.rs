//! Notices reads that ascend and miss, so that what follows is fetched before it is asked for.
//!
//! ```text
//! miss at a   miss a little above a   again ...
//!             -> next 1 MiB           -> next 2 MiB, 4 MiB at most
//! miss elsewhere, and chunks come from afar
//!             -> a few chunks beside it
//! miss in another segment, and chunks come from afar
//!             -> the maps of the next segments
//! ```
//!
//! **Source**: of the chunks that a Debian reads when it boots, one behind brings a third before they
//! are missed, four behind and two before two thirds, for three quarters more bytes
//! (`bench/runs`, the trace of `replay`).

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use model::SegmentMap;

const WINDOW_MIN: u64 = 1 << 20;
const WINDOW_MAX: u64 = 4 << 20;

/// What is known of the misses so far.
#[derive(Debug, Default)]
pub(crate) struct Readahead(Mutex<Misses>);

#[derive(Debug, Default)]
struct Misses {
    /// End of what was fetched or asked for last.
    end: u64,
    /// How much is brought next; 0 while reads are not in order.
    window: u64,
    /// The segment of the last miss.
    segment: Option<u32>,
}

impl Readahead {
    /// Notes the segment of a miss. Returns those whose maps are to be brought, where it is another
    /// than before.
    pub(crate) fn after_segment(&self, segment: u32) -> Option<Range<u32>> {
        let mut misses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_another = misses.segment.replace(segment) != Some(segment);
        is_another.then_some(segment.saturating_add(1)..segment.saturating_add(MAPS_AHEAD + 1))
    }

    /// Notes a miss. Returns the bytes to bring in the background, if reads ascend.
    pub(crate) fn after_miss(&self, offset: u64, len: u64, length: u64) -> Option<Range<u64>> {
        let mut misses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let end = offset + len;
        // A chunk brings more than was asked for, so the next miss lies a little further up; and
        // one below the end is a reader that caught up with the background.
        let near = misses.end.saturating_sub(misses.window)..=misses.end + WINDOW_MIN / 2;
        let ascending = misses.end > 0 && near.contains(&offset);
        misses.window = match misses.window {
            _ if !ascending => 0,
            0 => WINDOW_MIN,
            window => (window * 2).min(WINDOW_MAX),
        };
        let start = if ascending { end.max(misses.end) } else { end };
        misses.end = (start + misses.window).min(length).max(end);
        (misses.window > 0 && start < misses.end).then_some(start..misses.end)
    }
}

/// How many maps come before they are needed: each is a wait of its own, and takes some 20 KB.
const MAPS_AHEAD: u32 = 8;

/// How far away chunks are: the time of the fastest fetches of late.
#[derive(Debug)]
pub(crate) struct Distance(AtomicU64);

/// From here on chunks come by a network, and it pays to bring one more than was missed. Nearer, a miss
/// waits longer for what goes before it than it spares.
const AWAY_MICROS: u64 = 1_000;
/// From here on it pays to bring several.
const FAR_MICROS: u64 = 8_000;

impl Default for Distance {
    fn default() -> Self {
        Distance(AtomicU64::new(0))
    }
}

impl Distance {
    /// Learns from a fetch. Slow ones count little: they may have waited for others.
    pub(crate) fn learn(&self, took: Duration) {
        let took = took.as_micros() as u64;
        let known = self.0.load(Ordering::Relaxed);
        let learnt = if known == 0 { took } else { took.min(known + known / 16) };
        self.0.store(learnt.max(1), Ordering::Relaxed);
    }

    /// True where a fetch takes longer than from a disk of this host.
    pub(crate) fn is_far(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= AWAY_MICROS
    }

    /// How many chunks before and behind a miss are worth bringing.
    fn neighbours(&self) -> (usize, usize) {
        match self.0.load(Ordering::Relaxed) {
            0..AWAY_MICROS => (0, 0),
            AWAY_MICROS..FAR_MICROS => (0, 1),
            _ => (2, 4),
        }
    }

    /// Blocks of a segment to bring beside a block that was missed.
    pub(crate) fn around(&self, map: &SegmentMap, block: u32) -> Option<Range<u32>> {
        let (before, behind) = self.neighbours();
        if before + behind == 0 {
            return None;
        }
        let runs = map.runs();
        let at = runs.partition_point(|run| run.end_block() <= block);
        let missed = runs.get(at)?.chunk;
        let reach = |runs: &mut dyn Iterator<Item = &model::Run>, count: usize| {
            let (mut last, mut chunk, mut found) = (None, missed, 0);
            for run in runs {
                if run.chunk != chunk {
                    (chunk, found) = (run.chunk, found + 1);
                }
                if found > count {
                    break;
                }
                last = Some(*run);
            }
            last
        };
        let first = reach(&mut runs[..=at].iter().rev(), before)?.first_block;
        let end = reach(&mut runs[at..].iter(), behind)?.end_block();
        Some(first..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_in_order_are_run_ahead_of_and_others_are_not() {
        let length = 1 << 30;
        let readahead = Readahead::default();
        assert_eq!(readahead.after_miss(500 << 20, 4096, length), None);
        assert_eq!(readahead.after_miss(0, 4096, length), None);
        let first = readahead.after_miss(256 << 10, 4096, length).unwrap();
        assert_eq!(first, (256 << 10) + 4096..(1280 << 10) + 4096);
        let second = readahead.after_miss(first.end, 4096, length).unwrap();
        assert_eq!(second.end - second.start, 2 << 20);
        assert_eq!(readahead.after_miss(9 << 20, 4096, length), None);
    }

    #[test]
    fn the_farther_away_chunks_are_the_more_of_them_come() {
        let chunk = |byte| model::ChunkDigest([byte; 32]);
        let run = |first_block, byte| model::Run {
            first_block,
            block_count: 10,
            chunk: chunk(byte),
            first_in_chunk: first_block % 20,
        };
        let runs = (0..20).map(|n: u32| run(n * 10, (n / 2) as u8)).collect();
        let map = SegmentMap::new(runs).unwrap();
        let distance = Distance::default();
        assert_eq!(distance.around(&map, 85), None);
        let after = |micros| {
            distance.learn(Duration::from_micros(micros));
            distance.around(&map, 85)
        };
        assert_eq!(after(5000), Some(80..120));
        assert_eq!(after(500), None);
        (0..200).for_each(|_| distance.learn(Duration::from_millis(20)));
        assert_eq!(after(20_000), Some(40..180));
        assert_eq!(distance.around(&map, 195), Some(140..200));
        assert_eq!(distance.around(&map, 205), None);
    }

    #[test]
    fn a_miss_in_another_segment_asks_for_the_maps_behind_it() {
        let readahead = Readahead::default();
        assert_eq!(readahead.after_segment(3), Some(4..12));
        assert_eq!(readahead.after_segment(3), None);
        assert_eq!(readahead.after_segment(0), Some(1..9));
        assert_eq!(readahead.after_segment(u32::MAX), Some(u32::MAX..u32::MAX));
    }

    #[test]
    fn it_ends_with_the_disk() {
        let readahead = Readahead::default();
        readahead.after_miss(0, 4096, 10000);
        assert_eq!(readahead.after_miss(4096, 4096, 10000), Some(8192..10000));
        assert_eq!(readahead.after_miss(8192, 1808, 10000), None);
    }
}
