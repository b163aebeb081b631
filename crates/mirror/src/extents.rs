//! Which parts of a disk hold data: the overlay's word first, then the segment map's.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use format::mirror_log::Place;
use model::BLOCK_LEN;
use model::device::{Extent, ExtentKind};

use crate::fetch::{BaseView, blocks_of, by_segment};
use crate::overlay::OverlaySegment;
use crate::plan::BaseBlock;

/// The extents of `range`, at most `max`. Loads segment maps; where one cannot be had, the answer
/// is `Data`.
///
/// # Errors
/// What `states` says.
pub(crate) fn extents(
    view: &BaseView,
    range: Range<u64>,
    max: usize,
    states: impl Fn(u32) -> io::Result<Option<Arc<OverlaySegment>>>,
) -> io::Result<Vec<Extent>> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut at = range.start;
    for (segment, blocks) in by_segment(blocks_of(range.start, range.end - range.start)) {
        let whole_hole = view.glance(segment, blocks.start) == BaseBlock::Hole;
        let map = if whole_hole { None } else { view.segment_map(segment).ok() };
        let states = states(segment)?;
        let place = |block| states.as_ref().map_or(Place::Absent, |states| states.place(block));
        let mut runs = map
            .as_ref()
            .map_or(&[][..], |map| map.runs_in(blocks.start, blocks.end))
            .iter()
            .peekable();
        for block in blocks {
            while runs.next_if(|run| run.end_block() <= block).is_some() {}
            let in_base = match (whole_hole, &map) {
                (true, _) => false,
                (false, None) => true,
                (false, Some(_)) => runs.peek().is_some_and(|run| run.first_block <= block),
            };
            let data = match place(block) {
                Place::Absent => in_base,
                Place::Zero => false,
                Place::First | Place::Second => true,
            };
            let kind = if data { ExtentKind::Data } else { ExtentKind::Hole };
            let end = ((at / BLOCK_LEN as u64 + 1) * BLOCK_LEN as u64).min(range.end);
            let full = extents.len() >= max;
            match extents.last_mut() {
                Some(last) if last.kind == kind => last.len += end - at,
                _ if full => return Ok(extents),
                _ => extents.push(Extent { offset: at, len: end - at, kind }),
            }
            at = end;
        }
    }
    Ok(extents)
}
