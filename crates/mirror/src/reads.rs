//! Reading a version through its base: what is here without a lock, what is missing after a fetch.
//!
//! ```text
//! evictions? ─► bits ─► read the base ─► evictions? ─ the same ─► done
//!      ▲                                     └─ others: the bytes may be those of a hole
//!      └───────────────────────────────────────┘
//! ```
//!
//! **Failure**: where there is no room to keep what is fetched, or it is evicted before it is read, the
//! bytes come from the chunk in memory.

use std::sync::Arc;

use format::mirror_log::Place;
use model::block::{BLOCKS_PER_SEGMENT, SEGMENT_LEN};
use model::device::Take;
use model::{BLOCK_LEN, Error, Kind, Result};

use crate::fetch::{BaseView, FETCHED_MAX, blocks_of};
use crate::plan::{Source, next_piece, source_of};

impl BaseView {
    /// Reads bytes of the version: from the base, fetched first where they are missing. Takes no lock
    /// where they are here.
    ///
    /// # Errors
    /// Those of [`BaseView::ensure_present`]; a base without room is read past.
    pub(crate) fn read(self: &Arc<Self>, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset + buffer.len() as u64;
        let (mut at, mut fetched) = (offset, 0);
        while at < end {
            let (segment, start) = ((at / SEGMENT_LEN) as u32, at / SEGMENT_LEN * SEGMENT_LEN);
            let bits = self.segment(segment);
            let evictions = bits.evictions();
            let first = ((at - start) / BLOCK_LEN as u64) as u32;
            let end_block = (end - start).min(SEGMENT_LEN).div_ceil(BLOCK_LEN as u64) as u32;
            let piece = next_piece(first, end_block, |block| {
                source_of(Place::Absent, || bits.block(block))
            });
            let stop = (start + u64::from(piece.end) * BLOCK_LEN as u64).min(end);
            let bytes = &mut buffer[(at - offset) as usize..(stop - offset) as usize];
            match piece.source {
                Source::Fetch => {
                    let waited = match fetched < FETCHED_MAX {
                        true => self.fetch_for_reader(at, stop),
                        false => Err(Error::new(Kind::Full, "read", "what is evicted at once")),
                    };
                    fetched += 1;
                    match waited {
                        Ok(()) => continue,
                        Err(error) if error.kind() == Kind::Full => self.read_past(at, bytes)?,
                        Err(error) => return Err(error),
                    }
                }
                Source::Base => {
                    if self.recorder.is_active() {
                        self.recorder.note(blocks_of(at, stop - at));
                    }
                    self.base.note_use(&bits);
                    self.base.data.read_exact_at(bytes, at).map_err(|error| {
                        let subject = self.base.content().to_string();
                        Error::io("read the local copy of", subject, error)
                    })?;
                    if bits.evictions() != evictions {
                        // The bytes may be those of a hole that was punched meanwhile.
                        continue;
                    }
                }
                Source::Zero | Source::Overlay(_) => bytes.fill(0),
            }
            (at, fetched) = (stop, 0);
        }
        Ok(())
    }

    /// Has `take` take bytes of the version out of the base's file, as far as they are here in one
    /// piece. Returns how many count: 0 where they were evicted meanwhile.
    pub(crate) fn take(&self, offset: u64, end: u64, take: &mut Take<'_>) -> usize {
        let (segment, start) = ((offset / SEGMENT_LEN) as u32, offset / SEGMENT_LEN * SEGMENT_LEN);
        let Some(fd) = self.base.data.fd() else { return 0 };
        let bits = self.segment(segment);
        let evictions = bits.evictions();
        let first = ((offset - start) / BLOCK_LEN as u64) as u32;
        let end_block = (end - start).min(SEGMENT_LEN).div_ceil(BLOCK_LEN as u64) as u32;
        let piece =
            next_piece(first, end_block, |block| source_of(Place::Absent, || bits.block(block)));
        if piece.source != Source::Base {
            return 0;
        }
        let stop = (start + u64::from(piece.end) * BLOCK_LEN as u64).min(end);
        self.base.note_use(&bits);
        let taken = take(fd, offset, (stop - offset) as usize).unwrap_or(0);
        if bits.evictions() != evictions {
            return 0;
        }
        if taken > 0 && self.recorder.is_active() {
            self.recorder.note(blocks_of(offset, taken as u64));
        }
        taken
    }

    /// Brings what a reader waits for.
    fn fetch_for_reader(self: &Arc<Self>, start: u64, end: u64) -> Result<()> {
        let began = self.journal.now();
        self.missed(start, end - start);
        let fetched = self.ensure_present(blocks_of(start, end - start));
        self.journal.waited(began, start, end - start);
        fetched
    }

    /// Reads bytes of the version without keeping them. For hosts without space.
    pub(crate) fn read_past(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let (segment, block) =
                ((at / SEGMENT_LEN) as u32, (at % SEGMENT_LEN) as usize / BLOCK_LEN);
            let from = (at % BLOCK_LEN as u64) as usize;
            let step = (BLOCK_LEN - from).min(buffer.len() - done);
            let piece = &mut buffer[done..done + step];
            let found = self.persist(|| {
                self.by_layout(|layout| {
                    match self.map(layout, segment)?.runs_in(block as u32, block as u32 + 1).first()
                    {
                        None => Ok(None),
                        Some(run) => {
                            let index = run.first_in_chunk + block as u32 - run.first_block;
                            Ok(Some((self.chunk(run.chunk)?, index)))
                        }
                    }
                })
            })?;
            match found {
                None => piece.fill(0),
                Some((chunk, index)) => {
                    piece.copy_from_slice(&chunk.blocks(index, 1)?[from..from + step]);
                }
            }
            done += step;
        }
        Ok(())
    }

    /// Told of each read that had to fetch; brings what follows where reads ascend, and what lies
    /// beside it where chunks come from afar.
    fn missed(self: &Arc<Self>, offset: u64, len: u64) {
        if let Some(segments) = self.readahead.after_segment((offset / SEGMENT_LEN) as u32)
            && self.distance.is_far()
        {
            self.parts.background.maps(self, segments);
        }
        if let Some(range) = self.readahead.after_miss(offset, len, self.length()) {
            self.parts.background.prefetch(self, blocks_of(range.start, range.end - range.start));
            return;
        }
        let segment = (offset / SEGMENT_LEN) as u32;
        let first = u64::from(segment) * u64::from(BLOCKS_PER_SEGMENT);
        let block = (offset % SEGMENT_LEN / BLOCK_LEN as u64) as u32;
        let Some(map) = self.loaded_map(segment) else { return };
        let boot = self.boot();
        let is_by_set =
            boot.is_some_and(|boot| boot.unit_of(first + u64::from(block), &map).is_some());
        if is_by_set {
            return;
        }
        if let Some(around) = self.distance.around(&map, block) {
            let blocks = first + u64::from(around.start)..first + u64::from(around.end);
            self.parts.background.prefetch(self, blocks);
        }
    }
}
