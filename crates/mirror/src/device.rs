//! Reads and writes of a mirror.
//!
//! A read looks up where each block is, and reads straight into the caller's buffer. A write of
//! whole blocks goes to the overlay and never fetches; a write of part of a block that is not in
//! the overlay yet first brings the block, then writes it whole.
//!
//! **Failure**: a write that fails may have taken effect in part: each sector is old or new.

use std::io;
use std::ops::Range;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, PoisonError};

use format::mirror_log::Place;
use model::block::{BLOCKS_PER_SEGMENT, SEGMENT_LEN};
use model::device::{Device, Extent, Take, check_range};
use model::{BLOCK_LEN, Error, Kind, Result};

use crate::fetch::{BaseView, blocks_of, by_segment};
use crate::mirror::{Gate, Mirror, guard};
use crate::overlay::OverlaySegment;
use crate::plan::{BaseBlock, Source, next_piece, source_of};

const LEN: u64 = BLOCK_LEN as u64;

/// How much is written to a file of the overlay at once. Linux keeps what is written in pieces as long
/// as the write, and on ext4 a later write of one block costs time for each block of its piece: after
/// writes of 1 MiB at once 75,000 a second, after pieces of 128 KiB 270,000, and the long writes
/// take no more time (Linux 6.18).
const PIECE_LEN: usize = 128 << 10;

impl Device for Mirror {
    fn length(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        check_range("read the mirror", self.length(), offset, buffer.len() as u64)?;
        self.put_out_states();
        loop {
            let punches = self.punches.load(Ordering::SeqCst);
            let saw_overlay = self.read_once(offset, buffer)?;
            fence(Ordering::SeqCst);
            // Bytes that were left behind and punched while we read would be zeros that nobody
            // wrote; their successors are there now.
            if !saw_overlay || self.punches.load(Ordering::SeqCst) == punches {
                return Ok(());
            }
        }
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        check_range("write to the mirror", self.length(), offset, bytes.len() as u64)?;
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let step = (SEGMENT_LEN - at % SEGMENT_LEN).min((bytes.len() - done) as u64) as usize;
            self.write_in_segment(at, &bytes[done..done + step])?;
            done += step;
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        loop {
            let length = self.length();
            check_range("write zeros to the mirror", length, offset, len)?;
            let end = offset + len;
            let first_whole = offset.next_multiple_of(LEN).min(end);
            let end_whole = if end == length { end } else { end / LEN * LEN };
            if end_whole <= first_whole {
                return self.write(offset, &[0; BLOCK_LEN + BLOCK_LEN][..len as usize]);
            }
            self.write(offset, &[0; BLOCK_LEN][..(first_whole - offset) as usize])?;
            // Where the disk grew meanwhile, its last block is no longer whole.
            if self.zero_blocks(blocks_of(first_whole, end_whole - first_whole), length)? {
                return self.write(end_whole, &[0; BLOCK_LEN][..(end - end_whole) as usize]);
            }
        }
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        check_range("discard in the mirror", self.length(), offset, len)?;
        let (first, end) = (offset.div_ceil(LEN), (offset + len) / LEN);
        while first < end && !self.zero_blocks(first..end, self.length())? {}
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.flush_all()
    }

    fn prefetch(&self, offset: u64, len: u64) -> Result<()> {
        check_range("prefetch", self.length(), offset, len)?;
        let mut at = blocks_of(offset, len).start;
        let end = blocks_of(offset, len).end;
        // Blocks that the overlay has are not wanted from elsewhere.
        while at < end {
            let (piece, piece_end) =
                self.piece(at, end, |view, segment, block| view.segment(segment).block(block))?;
            if piece == Source::Fetch {
                self.view.bring_if_room(at..piece_end)?;
            }
            at = piece_end;
        }
        Ok(())
    }

    fn extents(&self, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>> {
        check_range("list the extents of the mirror", self.length(), offset, len)?;
        self.put_out_states();
        let states = |segment: u32| self.states.get(segment);
        crate::extents::extents(&self.view, offset..offset + len, max, states)
            .map_err(|error| self.io_error("list the extents of the mirror", error))
    }

    fn take_from_file(&self, offset: u64, len: usize, take: &mut Take<'_>) -> usize {
        let Some(end) = offset.checked_add(len as u64).filter(|end| *end <= self.length()) else {
            return 0;
        };
        let piece = self.piece(offset / LEN, end.div_ceil(LEN), |_, _, _| BaseBlock::Present);
        // What fails here is read, and fails, the ordinary way.
        let Ok((source, piece_end)) = piece else { return 0 };
        match source {
            // What is written goes to the overlay: the base never changes under a reader.
            Source::Base => self.view.take(offset, end.min(piece_end * LEN), take),
            Source::Zero | Source::Overlay(_) | Source::Fetch => 0,
        }
    }

    fn may_wait(&self, offset: u64, len: u64) -> bool {
        if offset.checked_add(len).is_none_or(|end| end > self.length()) {
            return false;
        }
        let Range { start: mut at, end } = blocks_of(offset, len);
        while at < end {
            let Ok((source, piece_end)) = self.piece(at, end, BaseView::glance) else {
                return true;
            };
            if source == Source::Fetch {
                return true;
            }
            at = piece_end;
        }
        false
    }
}

impl Mirror {
    /// The source of block `first`, and the end of the piece of its segment that shares it.
    #[inline]
    fn piece(
        &self,
        first: u64,
        end: u64,
        base: impl Fn(&BaseView, u32, u32) -> BaseBlock,
    ) -> Result<(Source, u64)> {
        let segment = (first / u64::from(BLOCKS_PER_SEGMENT)) as u32;
        let start = u64::from(segment) * u64::from(BLOCKS_PER_SEGMENT);
        let is_beyond = first >= self.base_blocks;
        let end = if is_beyond { end } else { end.min(self.base_blocks) };
        let end = (end - start).min(u64::from(BLOCKS_PER_SEGMENT)) as u32;
        let first = (first - start) as u32;
        let base = |view: &BaseView, segment, block| match is_beyond {
            true => BaseBlock::Hole,
            false => base(view, segment, block),
        };
        let piece = match self.states_of(segment)? {
            None => next_piece(first, end, |block| {
                source_of(Place::Absent, || base(&self.view, segment, block))
            }),
            Some(bits) => next_piece(first, end, |block| {
                source_of(bits.place(block), || base(&self.view, segment, block))
            }),
        };
        Ok((piece.source, start + u64::from(piece.end)))
    }

    /// One pass over a range. True where bytes came from the overlay.
    fn read_once(&self, offset: u64, buffer: &mut [u8]) -> Result<bool> {
        let end = offset + buffer.len() as u64;
        let (mut at, mut saw_overlay) = (offset, false);
        while at < end {
            // Where the base has it is the view's to know.
            let (source, piece_end) =
                self.piece(at / LEN, end.div_ceil(LEN), |_, _, _| BaseBlock::Present)?;
            let stop = (piece_end * LEN).min(end);
            let piece = &mut buffer[(at - offset) as usize..(stop - offset) as usize];
            match source {
                Source::Zero => piece.fill(0),
                Source::Overlay(file) => {
                    saw_overlay = true;
                    self.read_file(&*self.files[file], piece, at)?;
                }
                Source::Base | Source::Fetch => self.view.read(at, piece)?,
            }
            at = stop;
        }
        Ok(saw_overlay)
    }

    fn read_file(&self, file: &dyn env::File, buffer: &mut [u8], offset: u64) -> Result<()> {
        file.read_exact_at(buffer, offset).map_err(|error| self.io_error("read the mirror", error))
    }

    /// The states of a segment, if it has any.
    #[inline]
    fn states_of(&self, segment: u32) -> Result<Option<Arc<OverlaySegment>>> {
        self.states.get(segment).map_err(|error| self.io_error("read the states of", error))
    }

    /// The states of a segment that is about to change. Call under `gate`.
    fn segment_states(&self, segment: u32) -> Result<Arc<OverlaySegment>> {
        let states = self.states.get_or_make(segment);
        states.map_err(|error| self.io_error("write to the mirror", error))
    }

    /// Puts out states where more are loaded than should be. Holds writers for that while.
    #[inline]
    fn put_out_states(&self) {
        if self.states.is_crowded() {
            let _gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
            self.states.put_out();
        }
    }

    fn enter(&self, operation: &'static str) -> Result<std::sync::RwLockReadGuard<'_, Gate>> {
        self.put_out_states();
        let gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        match gate.closed {
            false => Ok(gate),
            true => Err(Error::new(Kind::Refused, operation, self.name.as_str())
                .because("the mirror is closed")),
        }
    }

    /// True where `start..end` covers all bytes of a block that the disk has.
    fn is_whole(&self, block: u64, start: u64, end: u64) -> bool {
        start <= block * LEN && end >= ((block + 1) * LEN).min(self.length())
    }

    /// Reads the blocks of the version that a write covers in part, then enters: they never change, so
    /// they are read before any lock is taken.
    fn enter_with_edges(
        &self,
        offset: u64,
        end: u64,
        blocks: &Range<u64>,
    ) -> Result<(std::sync::RwLockReadGuard<'_, Gate>, Fills)> {
        loop {
            let length = self.length();
            let mut fills = Fills::default();
            for edge in [blocks.start, blocks.end - 1] {
                if self.is_whole(edge, offset, end) || fills.has(edge) {
                    continue;
                }
                let (segment, block) = split(edge);
                let states = self.states_of(segment)?;
                if states.is_some_and(|states| states.place(block) != Place::Absent) {
                    continue;
                }
                let mut bytes = vec![0; BLOCK_LEN];
                // Behind the version there is nothing.
                if edge < self.base_blocks {
                    let len = LEN.min(self.view.length() - edge * LEN) as usize;
                    self.view.read(edge * LEN, &mut bytes[..len])?;
                }
                fills.0.push((edge, bytes));
            }
            let gate = self.enter("write to the mirror")?;
            // Where the disk grew meanwhile, its last block is no longer whole.
            if self.length() == length {
                return Ok((gate, fills));
            }
        }
    }

    fn write_in_segment(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let end = offset + bytes.len() as u64;
        let blocks = blocks_of(offset, bytes.len() as u64);
        let (gate, fills) = self.enter_with_edges(offset, end, &blocks)?;
        let bits = &*self.segment_states(split(blocks.start).0)?;
        let needs_fill = || {
            let partial =
                |edge: u64| !self.is_whole(edge, offset, end) && !bits.is_in_target(split(edge).1);
            partial(blocks.start) || partial(blocks.end - 1)
        };
        let shared = bits.writing.read().unwrap_or_else(PoisonError::into_inner);
        if !needs_fill() {
            return self.write_blocks(&gate, bits, &fills, offset, bytes);
        }
        drop(shared);
        let _exclusive = bits.writing.write().unwrap_or_else(PoisonError::into_inner);
        self.write_blocks(&gate, bits, &fills, offset, bytes)
    }

    /// Writes bytes within one segment. Call under `writing`, exclusively where blocks are filled.
    fn write_blocks(
        &self,
        gate: &Gate,
        bits: &OverlaySegment,
        fills: &Fills,
        offset: u64,
        bytes: &[u8],
    ) -> Result<()> {
        let end = offset + bytes.len() as u64;
        let blocks = blocks_of(offset, bytes.len() as u64);
        let direct =
            |block: u64| self.is_whole(block, offset, end) || bits.is_in_target(split(block).1);
        let mut block = blocks.start;
        while block < blocks.end {
            let target = bits.target(split(block).1);
            let first = block;
            block += 1;
            let (start, stop) = if direct(first) {
                while block < blocks.end && bits.target(split(block).1) == target && direct(block) {
                    block += 1;
                }
                let (start, stop) = ((first * LEN).max(offset), (block * LEN).min(end));
                let piece = &bytes[(start - offset) as usize..(stop - offset) as usize];
                self.write_file(target, piece, start)?;
                (first, block)
            } else {
                self.write_filled(bits, fills, target, first, offset, bytes)?;
                (first, block)
            };
            let range = split(start).1..split(stop - 1).1 + 1;
            self.change(gate, bits, split(first).0, range, Place::in_file(target))?;
        }
        Ok(())
    }

    /// Writes; once more where the disk was full and bases gave space back. What a guest writes goes
    /// before what can be fetched again.
    fn with_room(&self, write: impl Fn() -> io::Result<()>) -> io::Result<()> {
        match write() {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                match self.state.room().relieve(BLOCK_LEN as u64) {
                    true => write(),
                    false => Err(error),
                }
            }
            other => other,
        }
    }

    fn write_file(&self, file: usize, bytes: &[u8], offset: u64) -> Result<()> {
        let written = self.write_in_pieces(file, bytes, offset);
        // Not before: a flush between the mark and the bytes would leave them to nobody.
        self.touched[file].store(true, Ordering::SeqCst);
        written.map_err(|error| self.io_error("write to the mirror", error))
    }

    fn write_in_pieces(&self, file: usize, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let to_boundary = PIECE_LEN - (at % PIECE_LEN as u64) as usize;
            let piece = &bytes[done..bytes.len().min(done + to_boundary)];
            self.with_room(|| self.files[file].write_all_at(piece, at))?;
            done += piece.len();
        }
        Ok(())
    }

    /// Writes one block whole whose bytes come in part from where they were. Call under an
    /// exclusive `writing`.
    fn write_filled(
        &self,
        bits: &OverlaySegment,
        fills: &Fills,
        target: usize,
        block: u64,
        offset: u64,
        bytes: &[u8],
    ) -> Result<()> {
        let mut whole = [0; BLOCK_LEN];
        match bits.place(split(block).1) {
            Place::Zero => {}
            Place::First => self.read_file(&*self.files[0], &mut whole, block * LEN)?,
            Place::Second => self.read_file(&*self.files[1], &mut whole, block * LEN)?,
            Place::Absent => whole.copy_from_slice(fills.get(block).ok_or_else(|| {
                // What is in the overlay once never leaves it.
                Error::new(Kind::Bug, "write to the mirror", self.name.as_str())
                    .because("a block that was in the overlay is in the base")
            })?),
        }
        let (start, stop) =
            ((block * LEN).max(offset), ((block + 1) * LEN).min(offset + bytes.len() as u64));
        whole[(start - block * LEN) as usize..(stop - block * LEN) as usize]
            .copy_from_slice(&bytes[(start - offset) as usize..(stop - offset) as usize]);
        self.write_file(target, &whole, block * LEN)
    }

    /// Puts blocks whose bytes were written at `place`, dirty.
    fn change(
        &self,
        gate: &Gate,
        bits: &OverlaySegment,
        segment: u32,
        blocks: Range<u32>,
        place: Place,
    ) -> Result<()> {
        let _changing = guard(&bits.changing);
        let changes = bits.plan_change(&blocks, place);
        if changes.is_empty() {
            return Ok(());
        }
        self.with_room(|| gate.live.write(segment, &changes))
            .map_err(|error| self.io_error("write to the mirror", error))?;
        let first = u64::from(segment) * u64::from(BLOCKS_PER_SEGMENT);
        let left = bits.left_behind(&blocks, place);
        // Before what is left behind is told of: a flush that takes the one takes the other.
        guard(&self.unlogged).insert(segment);
        bits.apply(&changes);
        if !left.is_empty() {
            let left = left.into_iter().map(|(file, block)| (file, first + u64::from(block)));
            guard(&self.stale).extend(left);
        }
        Ok(())
    }

    /// Makes blocks, whole on a disk of `length` bytes, zeros and gives their space back. False, with
    /// some of them done, where the disk has another length by now.
    fn zero_blocks(&self, blocks: Range<u64>, length: u64) -> Result<bool> {
        for (segment, range) in by_segment(blocks) {
            let gate = self.enter("write zeros to the mirror")?;
            if self.length() != length {
                return Ok(false);
            }
            if self.states_of(segment)?.is_none() && self.is_known_hole(segment, &range) {
                continue;
            }
            let bits = &*self.segment_states(segment)?;
            let _exclusive = bits.writing.write().unwrap_or_else(PoisonError::into_inner);
            // Bytes in their target are nobody else's: their space goes at once.
            let own = |block: u32| bits.is_in_target(block).then(|| bits.target(block));
            let mut punches = Vec::new();
            let mut block = range.start;
            while block < range.end {
                let (first, file) = (block, own(block));
                while block < range.end && own(block) == file {
                    block += 1;
                }
                punches.extend(file.map(|file| (file, first..block)));
            }
            self.change(&gate, bits, segment, range, Place::Zero)?;
            let start = u64::from(segment) * u64::from(BLOCKS_PER_SEGMENT);
            for (file, blocks) in punches {
                self.punch(file, start + u64::from(blocks.start)..start + u64::from(blocks.end));
                self.touched[file].store(true, Ordering::SeqCst);
            }
        }
        Ok(true)
    }

    /// True where the base is known to have no data there. No I/O.
    fn is_known_hole(&self, segment: u32, range: &Range<u32>) -> bool {
        match self.view.loaded_map(segment) {
            Some(map) => map.runs_in(range.start, range.end).is_empty(),
            None => self.view.glance(segment, range.start) == BaseBlock::Hole,
        }
    }
}

/// Blocks of the version that a write covers in part.
#[derive(Default)]
struct Fills(Vec<(u64, Vec<u8>)>);

impl Fills {
    fn get(&self, block: u64) -> Option<&[u8]> {
        self.0.iter().find(|(number, _)| *number == block).map(|(_, bytes)| &bytes[..])
    }

    fn has(&self, block: u64) -> bool {
        self.get(block).is_some()
    }
}

/// The segment of a block of the disk, and its number in it.
fn split(block: u64) -> (u32, u32) {
    let per_segment = u64::from(BLOCKS_PER_SEGMENT);
    ((block / per_segment) as u32, (block % per_segment) as u32)
}
