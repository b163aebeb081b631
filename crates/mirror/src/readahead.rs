//! Notices reads that ascend and miss, so that what follows is fetched before it is asked for.
//!
//! ```text
//! miss at a   miss a little above a   again ...
//!             -> next 1 MiB           -> next 2 MiB, 4 MiB at most
//! ```

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

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
}

impl Readahead {
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
    fn it_ends_with_the_disk() {
        let readahead = Readahead::default();
        readahead.after_miss(0, 4096, 10000);
        assert_eq!(readahead.after_miss(4096, 4096, 10000), Some(8192..10000));
        assert_eq!(readahead.after_miss(8192, 1808, 10000), None);
    }
}
