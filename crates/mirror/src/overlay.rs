//! The states of an overlay's blocks, in memory, by segment.
//!
//! ```text
//! place    absent | zero | data in file 0 | data in file 1       where the newest bytes are
//! dirty    changed since the last commit, or since the seal while a commit runs
//! sealed   changed before the seal, not yet committed
//! target   the file that new bytes of the block go to
//! ```
//!
//! A block's bytes are overwritten in place only where they are in its target file. A seal turns
//! the target of every block that holds data to the other file, so bytes that were sealed or
//! committed are never overwritten: a commit reads them in peace, and power loss cannot mix them
//! with bytes whose dirty bit was not yet durable.
//!
//! **Invariants**: places of 32 blocks are one atomic word, so a reader sees a place that was.
//! Places and dirty bits change under `changing`; targets change while no writer is at work.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

use format::mirror_log::{BLOCKS_PER_GROUP, GROUPS_PER_SEGMENT, GroupStates, Place};

/// The states of 64 blocks.
#[derive(Debug, Default)]
pub(crate) struct Group {
    places: [AtomicU64; 2],
    dirty: AtomicU64,
    target: AtomicU64,
    /// Blocks whose state is not in the log yet.
    unlogged: AtomicU64,
}

/// The states of a segment's blocks.
#[derive(Debug)]
pub(crate) struct OverlaySegment {
    /// Shared by those who write bytes in place or whole blocks; exclusive for those who fill a
    /// block or make it zeros.
    pub(crate) writing: RwLock<()>,
    /// Held while states change.
    pub(crate) changing: Mutex<()>,
    groups: Box<[Group]>,
    /// Blocks that were sealed, by group; only while a commit is at work, so that a mirror without one
    /// does not pay for it. Changes while no writer is at work.
    sealed: RwLock<Option<Box<[u64]>>>,
    /// Read or written since somebody last looked whether it can be put out.
    is_used: AtomicBool,
}

/// Bytes of a segment's states as they are put out: six words for each group.
pub(crate) const PUT_OUT_LEN: usize = GROUPS_PER_SEGMENT * WORDS_PER_GROUP * 8;
const WORDS_PER_GROUP: usize = 6;

/// What a change of one group comes to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GroupChange {
    pub(crate) group: usize,
    pub(crate) states: GroupStates,
    /// The changed blocks.
    mask: u64,
}

/// 64 bits to two words with each bit doubled.
fn spread(mask: u64) -> [u64; 2] {
    let double = |half: u64| {
        let mut bits = half & 0xffff_ffff;
        for (shift, keep) in [
            (16, 0x0000_ffff_0000_ffff),
            (8, 0x00ff_00ff_00ff_00ff),
            (4, 0x0f0f_0f0f_0f0f_0f0f),
            (2, 0x3333_3333_3333_3333),
            (1, 0x5555_5555_5555_5555),
        ] {
            bits = (bits | bits << shift) & keep;
        }
        bits | bits << 1
    };
    [double(mask), double(mask >> 32)]
}

/// The bits of blocks `range` in group `group`.
fn mask_of(range: &Range<u32>, group: usize) -> u64 {
    let start = group as u32 * BLOCKS_PER_GROUP;
    let first = range.start.max(start) - start;
    let end = range.end.min(start + BLOCKS_PER_GROUP).saturating_sub(start);
    if first >= end {
        return 0;
    }
    (u64::MAX >> (64 - (end - first))) << first
}

fn groups_of(range: &Range<u32>) -> Range<usize> {
    (range.start / BLOCKS_PER_GROUP) as usize..range.end.div_ceil(BLOCKS_PER_GROUP) as usize
}

/// The place of block `bit` of a group.
pub(crate) fn place_in(places: &[u64; 2], bit: u32) -> Place {
    Place::from_bits(places[bit as usize / 32] >> (bit % 32 * 2))
}

impl Group {
    fn places(&self) -> [u64; 2] {
        [self.places[0].load(Ordering::Acquire), self.places[1].load(Ordering::Acquire)]
    }

    /// Places, and dirty bits as they are on disk: sealed blocks are not committed yet.
    fn states(&self, sealed: u64) -> GroupStates {
        GroupStates { places: self.places(), dirty: self.dirty.load(Ordering::Acquire) | sealed }
    }

    fn store(&self, states: &GroupStates) {
        self.places[0].store(states.places[0], Ordering::Release);
        self.places[1].store(states.places[1], Ordering::Release);
    }
}

impl OverlaySegment {
    /// A segment whose blocks are all absent.
    pub(crate) fn absent() -> Self {
        OverlaySegment {
            writing: RwLock::new(()),
            changing: Mutex::new(()),
            groups: (0..GROUPS_PER_SEGMENT).map(|_| Group::default()).collect(),
            sealed: RwLock::default(),
            is_used: AtomicBool::new(false),
        }
    }

    /// Notes that it is used. Cost: a load, mostly.
    #[inline]
    pub(crate) fn note_use(&self) {
        if !self.is_used.load(Ordering::Relaxed) {
            self.is_used.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it was used since this was asked last.
    pub(crate) fn take_use(&self) -> bool {
        self.is_used.swap(false, Ordering::Relaxed)
    }

    /// All that is known of it, for this process only. Call while nobody changes it.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let sealed = self.sealed();
        let words = self.groups.iter().enumerate().flat_map(|(number, group)| {
            let [first, second] = group.places();
            let of = |word: &AtomicU64| word.load(Ordering::Acquire);
            let (dirty, target) = (of(&group.dirty), of(&group.target));
            [first, second, dirty, target, of(&group.unlogged), sealed(number)]
        });
        words.flat_map(u64::to_ne_bytes).collect()
    }

    /// The same, back from bytes.
    ///
    /// Shape: `bytes.len() == PUT_OUT_LEN`
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        assert_eq!(bytes.len(), PUT_OUT_LEN);
        let words = bytes.as_chunks().0.iter().map(|word| u64::from_ne_bytes(*word));
        let words: Vec<u64> = words.collect();
        let mut sealed = vec![0; GROUPS_PER_SEGMENT];
        let segment = OverlaySegment::absent();
        let parts = words.as_chunks::<WORDS_PER_GROUP>().0.iter().zip(&segment.groups);
        for (([first, second, dirty, target, unlogged, sealed_word], group), sealed) in
            parts.zip(&mut sealed)
        {
            let states = GroupStates { places: [*first, *second], dirty: *dirty };
            group.store(&states);
            group.dirty.store(*dirty, Ordering::Release);
            group.target.store(*target, Ordering::Release);
            group.unlogged.store(*unlogged, Ordering::Release);
            *sealed = *sealed_word;
        }
        let is_sealed = sealed.iter().any(|word| *word != 0);
        let sealed = RwLock::new(is_sealed.then(|| sealed.into_boxed_slice()));
        OverlaySegment { sealed, ..segment }
    }

    /// The blocks of a group that were sealed and are not committed yet.
    fn sealed(&self) -> impl Fn(usize) -> u64 + '_ {
        let sealed = self.sealed.read().unwrap_or_else(PoisonError::into_inner);
        move |group| sealed.as_ref().map_or(0, |sealed| sealed[group])
    }

    /// Where the newest bytes of a block are.
    #[inline]
    pub(crate) fn place(&self, block: u32) -> Place {
        let group = &self.groups[(block / BLOCKS_PER_GROUP) as usize];
        let word = group.places[(block / 32 % 2) as usize].load(Ordering::Acquire);
        Place::from_bits(word >> (block % 32 * 2))
    }

    /// The file that new bytes of a block go to.
    pub(crate) fn target(&self, block: u32) -> usize {
        let group = &self.groups[(block / BLOCKS_PER_GROUP) as usize];
        (group.target.load(Ordering::Relaxed) >> (block % BLOCKS_PER_GROUP) & 1) as usize
    }

    /// True where a block's bytes are overwritten in place.
    pub(crate) fn is_in_target(&self, block: u32) -> bool {
        self.place(block) == Place::in_file(self.target(block))
    }

    /// What putting `range` at `place`, dirty, changes. Call under `changing`.
    pub(crate) fn plan_change(&self, range: &Range<u32>, place: Place) -> Vec<GroupChange> {
        let sealed = self.sealed();
        groups_of(range)
            .filter_map(|number| {
                let group = &self.groups[number];
                let mask = mask_of(range, number);
                let before = group.states(sealed(number));
                let mut states = before;
                for (word, wide) in states.places.iter_mut().zip(spread(mask)) {
                    *word =
                        *word & !wide | (place as u64).wrapping_mul(0x5555_5555_5555_5555) & wide;
                }
                states.dirty |= mask;
                let redirtied = mask & !group.dirty.load(Ordering::Acquire);
                (states != before || redirtied != 0).then_some(GroupChange {
                    group: number,
                    states,
                    mask,
                })
            })
            .collect()
    }

    /// Blocks of `range` that leave data behind in a file which is not their target, when they move
    /// to `place`. Call under `changing`.
    pub(crate) fn left_behind(&self, range: &Range<u32>, place: Place) -> Vec<(usize, u32)> {
        let data = |block: u32| {
            let file = self.place(block).file()?;
            (Place::in_file(file) != place && file != self.target(block)).then_some((file, block))
        };
        range.clone().filter_map(data).collect()
    }

    /// Carries out what [`OverlaySegment::plan_change`] planned. Call under the same `changing`.
    pub(crate) fn apply(&self, changes: &[GroupChange]) {
        for change in changes {
            let group = &self.groups[change.group];
            group.store(&change.states);
            group.dirty.fetch_or(change.mask, Ordering::Release);
            group.unlogged.fetch_or(change.mask, Ordering::Release);
        }
    }

    /// Takes what is not in the log yet: group, its states, the blocks that changed. Call under
    /// `changing`.
    pub(crate) fn take_unlogged(&self) -> Vec<(usize, GroupStates, u64)> {
        let sealed = self.sealed();
        let taken = self.groups.iter().enumerate().filter_map(|(number, group)| {
            let unlogged = group.unlogged.swap(0, Ordering::AcqRel);
            (unlogged != 0).then(|| (number, group.states(sealed(number)), unlogged))
        });
        taken.collect()
    }

    /// Gives back what could not be logged.
    pub(crate) fn give_back_unlogged(&self, group: usize, mask: u64) {
        self.groups[group].unlogged.fetch_or(mask, Ordering::AcqRel);
    }

    /// All states; dirty bits without those of sealed blocks where `committed`.
    pub(crate) fn snapshot(&self, committed: bool) -> Vec<GroupStates> {
        let sealed = self.sealed();
        let states = |(number, group): (usize, &Group)| match committed {
            true => {
                GroupStates { places: group.places(), dirty: group.dirty.load(Ordering::Acquire) }
            }
            false => group.states(sealed(number)),
        };
        self.groups.iter().enumerate().map(states).collect()
    }

    /// Sets states that were read from disk; targets follow: dirty data stays where it is, other
    /// data is not overwritten.
    pub(crate) fn restore(&self, number: usize, states: &GroupStates, unlogged: u64) {
        let group = &self.groups[number];
        group.store(states);
        group.dirty.store(states.dirty, Ordering::Release);
        group.unlogged.fetch_or(unlogged, Ordering::Release);
        let mut target = 0;
        for bit in 0..BLOCKS_PER_GROUP {
            if let Some(file) = place_in(&states.places, bit).file() {
                let dirty = (states.dirty >> bit & 1) as usize;
                target |= ((file ^ dirty ^ 1) as u64) << bit;
            }
        }
        group.target.store(target, Ordering::Release);
    }

    /// Seals: dirty blocks become sealed, data is no longer overwritten. Returns the sealed states,
    /// nothing where no block is dirty. Call while no writer is at work.
    pub(crate) fn seal(&self) -> Option<Vec<GroupStates>> {
        let mut any = 0;
        let mut slot = self.sealed.write().unwrap_or_else(PoisonError::into_inner);
        let before = slot.take();
        let sealed = self.groups.iter().enumerate().map(|(number, group)| {
            let states = group.states(before.as_ref().map_or(0, |sealed| sealed[number]));
            any |= states.dirty;
            group.dirty.store(0, Ordering::Release);
            let mut target = group.target.load(Ordering::Acquire);
            for bit in 0..BLOCKS_PER_GROUP {
                if let Some(file) = place_in(&states.places, bit).file() {
                    target = target & !(1 << bit) | ((file ^ 1) as u64) << bit;
                }
            }
            group.target.store(target, Ordering::Release);
            states
        });
        let sealed: Vec<GroupStates> = sealed.collect();
        *slot = (any != 0).then(|| sealed.iter().map(|states| states.dirty).collect());
        (any != 0).then_some(sealed)
    }

    /// Ends a seal: its blocks are committed, or dirty again. Call while no writer is at work.
    pub(crate) fn end_seal(&self, committed: bool) {
        let mut slot = self.sealed.write().unwrap_or_else(PoisonError::into_inner);
        let sealed = slot.take();
        for (group, sealed) in self.groups.iter().zip(sealed.iter().flatten()) {
            if !committed {
                group.dirty.fetch_or(*sealed, Ordering::AcqRel);
            }
        }
    }

    /// How many blocks are dirty, and how many hold data.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let mut counts = (0, 0);
        let sealed = self.sealed();
        for (number, group) in self.groups.iter().enumerate() {
            let states = group.states(sealed(number));
            counts.0 += u64::from(states.dirty.count_ones());
            let data = |word: u64| u64::from((word & 0xaaaa_aaaa_aaaa_aaaa).count_ones());
            counts.1 += data(states.places[0]) + data(states.places[1]);
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_and_spread_agree_with_a_loop() {
        for (first, end) in [(0, 1), (3, 64), (63, 65), (60, 200), (64, 128)] {
            for group in 0..4 {
                let mask = mask_of(&(first..end), group);
                for bit in 0..64 {
                    let block = group as u32 * 64 + bit;
                    assert_eq!(mask >> bit & 1 == 1, (first..end).contains(&block));
                    let wide = spread(mask)[bit as usize / 32] >> (bit % 32 * 2) & 3;
                    assert_eq!(wide, (mask >> bit & 1) * 3);
                }
            }
        }
    }

    #[test]
    fn sealed_data_is_not_its_own_target_until_it_is_written_again() {
        let segment = OverlaySegment::absent();
        let put = |range: Range<u32>, place| {
            let changes = segment.plan_change(&range, place);
            segment.apply(&changes);
            changes.len()
        };
        assert_eq!(put(60..70, Place::First), 2);
        assert_eq!(put(60..70, Place::First), 0);
        assert!(segment.is_in_target(69) && !segment.is_in_target(70));
        let sealed = segment.seal().unwrap();
        assert_eq!((sealed[0].dirty, sealed[1].dirty), (0xf << 60, 0x3f));
        assert!(!segment.is_in_target(60));
        assert_eq!(segment.target(60), 1);
        assert_eq!(segment.left_behind(&(60..61), Place::Second), [(0, 60)]);
        assert_eq!(put(60..61, Place::Second), 1);
        assert!(segment.is_in_target(60));
        assert_eq!(segment.counts(), (10, 10));
        segment.end_seal(true);
        assert_eq!(segment.counts(), (1, 10));
        let again = OverlaySegment::absent();
        again.restore(0, &segment.snapshot(false)[0], 0);
        assert!(again.is_in_target(60) && !again.is_in_target(61));
        assert_eq!((again.target(60), again.target(61), again.target(0)), (1, 1, 0));
    }
}
