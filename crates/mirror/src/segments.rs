//! Something kept for each segment of a disk, made when the segment is first touched.
//!
//! ```text
//! groups  [ . | * | . | ... ]        a group is made with its first segment
//!               `-> [ . | . | * | ... ]   1024 segments
//! ```
//!
//! **Invariants**: what was made stays until the table is dropped, so references need no lock.

use std::sync::OnceLock;

use model::block::segment_count;

const GROUP_LEN: usize = 1024;

/// A slot for each segment. Cost: 32 bytes per GiB of a 1 PiB disk until something is touched.
#[derive(Debug)]
pub(crate) struct SegmentTable<T> {
    groups: Box<[OnceLock<Slots<T>>]>,
}

/// The slots of one group.
type Slots<T> = Box<[OnceLock<T>]>;

impl<T> SegmentTable<T> {
    /// An empty table for a disk of `length` bytes.
    pub(crate) fn new(length: u64) -> Self {
        let count = (segment_count(length) as usize).div_ceil(GROUP_LEN);
        SegmentTable { groups: (0..count).map(|_| OnceLock::new()).collect() }
    }

    /// What is there for a segment, if it was made.
    pub(crate) fn get(&self, segment: u32) -> Option<&T> {
        self.groups.get(segment as usize / GROUP_LEN)?.get()?[segment as usize % GROUP_LEN].get()
    }

    /// What is there for a segment inside the disk, made now if it was not.
    pub(crate) fn get_or_init(&self, segment: u32, make: impl FnOnce() -> T) -> &T {
        let group = self.groups[segment as usize / GROUP_LEN]
            .get_or_init(|| (0..GROUP_LEN).map(|_| OnceLock::new()).collect());
        group[segment as usize % GROUP_LEN].get_or_init(make)
    }

    /// Everything that was made, by segment, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        let made = self.groups.iter().enumerate().filter_map(|(number, group)| {
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
}
