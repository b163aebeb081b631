//! Something kept for each segment of a disk, made when the segment is first touched.
//!
//! ```text
//! groups  [ . | * | . | ... ]        a group is made with its first segment
//!               `-> [ . | . | * | ... ]   1024 segments
//! ```
//!
//! A disk may grow: groups behind those that the table was made with lie in a second list.
//!
//! **Invariants**: what was made stays until the table is dropped, so references need no lock.

use std::sync::OnceLock;

use model::block::{LENGTH_MAX, segment_count};

const GROUP_LEN: usize = 1024;

/// A slot for each segment. Cost: 32 bytes per GiB of a 1 PiB disk until something is touched.
#[derive(Debug)]
pub(crate) struct SegmentTable<T> {
    groups: Groups<T>,
    /// Groups behind the first ones, for all the segments that a disk may ever have: 400 KB, made
    /// with the first of them that is touched.
    beyond: OnceLock<Groups<T>>,
}

type Groups<T> = Box<[OnceLock<Slots<T>>]>;

/// The slots of one group.
type Slots<T> = Box<[OnceLock<T>]>;

fn empty_groups<T>(count: usize) -> Groups<T> {
    (0..count).map(|_| OnceLock::new()).collect()
}

fn group_count(length: u64) -> usize {
    (segment_count(length) as usize).div_ceil(GROUP_LEN)
}

impl<T> SegmentTable<T> {
    /// An empty table for a disk of `length` bytes.
    pub(crate) fn new(length: u64) -> Self {
        SegmentTable { groups: empty_groups(group_count(length)), beyond: OnceLock::new() }
    }

    /// What is there for a segment, if it was made.
    pub(crate) fn get(&self, segment: u32) -> Option<&T> {
        let number = segment as usize / GROUP_LEN;
        let group = match self.groups.get(number) {
            Some(group) => group,
            None => self.beyond.get()?.get(number - self.groups.len())?,
        };
        group.get()?[segment as usize % GROUP_LEN].get()
    }

    /// What is there for a segment inside the disk, made now if it was not.
    pub(crate) fn get_or_init(&self, segment: u32, make: impl FnOnce() -> T) -> &T {
        let number = segment as usize / GROUP_LEN;
        let group = match self.groups.get(number) {
            Some(group) => group,
            None => {
                let count = group_count(LENGTH_MAX) - self.groups.len();
                let beyond = self.beyond.get_or_init(|| empty_groups(count));
                &beyond[number - self.groups.len()]
            }
        };
        let slots = group.get_or_init(|| (0..GROUP_LEN).map(|_| OnceLock::new()).collect());
        slots[segment as usize % GROUP_LEN].get_or_init(make)
    }

    /// Everything that was made, by segment, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        let beyond = self.beyond.get().into_iter().flatten();
        let made = self.groups.iter().chain(beyond).enumerate().filter_map(|(number, group)| {
            let first = number * GROUP_LEN;
            group.get().map(|group| (first, group))
        });
        made.flat_map(|(first, group)| {
            group.iter().enumerate().filter_map(move |(position, slot)| {
                slot.get().map(|value| ((first + position) as u32, value))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_touched_segments_are_made() {
        let table = SegmentTable::new(5000 * model::SEGMENT_LEN);
        assert_eq!(table.get(4999), None);
        assert_eq!(*table.get_or_init(4999, || 7), 7);
        assert_eq!(*table.get_or_init(4999, || 8), 7);
        table.get_or_init(3, || 1);
        assert_eq!(table.iter().collect::<Vec<_>>(), [(3, &1), (4999, &7)]);
        assert_eq!(table.get(9000), None);
    }

    #[test]
    fn segments_of_a_disk_that_grew_are_kept_behind_the_first_ones() {
        let table = SegmentTable::new(model::SEGMENT_LEN);
        table.get_or_init(1023, || 1);
        assert_eq!((table.get(1024), table.get(u32::MAX)), (None, None));
        table.get_or_init(1024, || 2);
        let last = segment_count(LENGTH_MAX) - 1;
        table.get_or_init(last, || 3);
        assert_eq!((table.get(1024), table.get(last)), (Some(&2), Some(&3)));
        assert_eq!(table.iter().collect::<Vec<_>>(), [(1023, &1), (1024, &2), (last, &3)]);
        assert_eq!(table.get(last + 1), None);
    }
}
