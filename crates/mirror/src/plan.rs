//! Where the bytes of a read are: decided without I/O.
//!
//! ```text
//! overlay   |  .  |data 0|data 0| zero |  .  |  .  |
//! base      |there|  .   |there |there |there|  -  |
//! plan      |Base |   Overlay 0 | Zero |Base |Fetch|
//! ```

use format::mirror_log::Place;

/// Where a block's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// In overlay file 0 or 1.
    Overlay(usize),
    /// In the base.
    Base,
    /// Nowhere: zeros.
    Zero,
    /// Not on this host yet.
    Fetch,
}

/// What the base knows of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BaseBlock {
    /// Its bytes are in the base's file.
    Present,
    /// It lies in a segment without data.
    Hole,
    /// Its bytes are elsewhere.
    Missing,
}

/// Blocks of a segment, one behind the other, that come from one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) source: Source,
    /// The block behind the last.
    pub(crate) end: u32,
}

/// Where the newest bytes of a block are: the overlay wins.
pub(crate) fn source_of(place: Place, base: impl FnOnce() -> BaseBlock) -> Source {
    match place {
        Place::Zero => Source::Zero,
        Place::First => Source::Overlay(0),
        Place::Second => Source::Overlay(1),
        Place::Absent => match base() {
            BaseBlock::Present => Source::Base,
            BaseBlock::Hole => Source::Zero,
            BaseBlock::Missing => Source::Fetch,
        },
    }
}

/// The longest piece from block `first`, ending at `end` at the latest.
pub(crate) fn next_piece(first: u32, end: u32, source: impl Fn(u32) -> Source) -> Piece {
    let kind = source(first);
    let mut at = first + 1;
    while at < end && source(at) == kind {
        at += 1;
    }
    Piece { source: kind, end: at }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_one_source_become_one_piece_and_the_overlay_wins() {
        use BaseBlock::{Hole, Missing, Present};
        let blocks = [
            (Place::Absent, Present),
            (Place::First, Missing),
            (Place::First, Present),
            (Place::Zero, Present),
            (Place::Absent, Hole),
            (Place::Second, Hole),
            (Place::Absent, Missing),
        ];
        let source = |at: u32| source_of(blocks[at as usize].0, || blocks[at as usize].1);
        let (mut at, mut plan) = (0, Vec::new());
        while at < blocks.len() as u32 {
            let piece = next_piece(at, blocks.len() as u32, source);
            plan.push((piece.source, piece.end));
            at = piece.end;
        }
        let expected = [
            (Source::Base, 1),
            (Source::Overlay(0), 3),
            (Source::Zero, 5),
            (Source::Overlay(1), 6),
            (Source::Fetch, 7),
        ];
        assert_eq!(plan, expected);
        assert_eq!(next_piece(1, 2, source).end, 2);
    }
}
