//! Windows of data on their way to be laid out: read on one thread, digested on all cores.
//!
//! ```text
//! source ─► reader thread ─►(1)─► digest thread, all cores ─►(1)─► layout
//!     ▲                                                           │
//!     └────────────────────── empty windows ◄─────────────────────┘
//! ```
//!
//! Four windows go round, so reading, digesting and deciding run at once in bounded memory; two
//! inside a [turn](crate::turns), so that one is read while the other is laid out.

use chunking::{WINDOW_LEN, digest_blocks};
use crossbeam_channel::{Receiver, Sender, bounded};
use model::block::BLOCKS_PER_SEGMENT;
use model::changes::{ChangedBlocks, Changes};
use model::source::DiskSource;
use model::{BLOCK_LEN, BlockDigest, BlockRange, Error, Kind, Result};
use rayon::prelude::*;

use crate::turns::Crew;

/// How many windows go round.
const WINDOW_COUNT: usize = 4;
/// How many do inside a turn.
const SPARING_WINDOW_COUNT: usize = 2;

/// Bytes that one job of the thread pool digests.
const DIGEST_JOB_LEN: usize = 256 << 10;

/// Blocks of the disk that lie one behind the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Data, at this position of the window's bytes.
    Data { first_block: u64, byte_len: usize, position: usize },
    /// Blocks that became zeros.
    Zero { first_block: u64, block_count: u64 },
    /// A segment that is laid out anew though no block of it changed.
    Touch { segment: u32 },
}

/// A stretch of data, in pieces, in ascending order.
pub struct Window {
    pub bytes: Vec<u8>,
    pub pieces: Vec<Piece>,
    /// The digest of each block, piece after piece.
    pub digests: Vec<BlockDigest>,
    /// How many of `bytes` are filled.
    pub len: usize,
}

impl Window {
    fn new(capacity: usize) -> Self {
        Window { bytes: vec![0; capacity], pieces: Vec::new(), digests: Vec::new(), len: 0 }
    }

    fn clear(&mut self) {
        self.pieces.clear();
        self.digests.clear();
        self.len = 0;
    }

    /// Bytes of the blocks that its pieces change.
    pub fn changed_len(&self) -> u64 {
        let len_of = |piece: &Piece| match piece {
            Piece::Data { byte_len, .. } => *byte_len as u64,
            Piece::Zero { block_count, .. } => block_count * BLOCK_LEN as u64,
            Piece::Touch { .. } => 0,
        };
        self.pieces.iter().map(len_of).sum()
    }

    fn has_room(&self) -> bool {
        self.bytes.len() - self.len >= BLOCK_LEN
    }

    /// Says that the bytes behind those that are filled are the data of these blocks.
    pub fn push_data(&mut self, first_block: u64, byte_len: usize) {
        self.pieces.push(Piece::Data { first_block, byte_len, position: self.len });
        // The next piece starts on a block, so that each block's bytes are found by its position.
        self.len += byte_len.next_multiple_of(BLOCK_LEN);
    }

    fn digest(&mut self) {
        for piece in &self.pieces {
            let Piece::Data { byte_len, position, .. } = *piece else { continue };
            let first = self.digests.len();
            self.digests.resize(first + byte_len.div_ceil(BLOCK_LEN), BlockDigest::HOLE);
            self.bytes[position..position + byte_len]
                .par_chunks(DIGEST_JOB_LEN)
                .zip(self.digests[first..].par_chunks_mut(DIGEST_JOB_LEN / BLOCK_LEN))
                .for_each(|(bytes, digests)| digest_blocks(bytes, digests));
        }
    }
}

/// What fills windows.
pub trait WindowSource: Send {
    /// Puts the next data into an empty window. False when there is none any more.
    fn fill(&mut self, window: &mut Window) -> Result<bool>;

    /// Bytes of data to come, as far as known: a small source gets small windows.
    fn data_len_hint(&self) -> Option<u64>;
}

/// Windows from a disk that is imported.
pub struct ImportWindows<'a>(pub &'a mut dyn DiskSource);

impl WindowSource for ImportWindows<'_> {
    fn fill(&mut self, window: &mut Window) -> Result<bool> {
        while window.has_room() {
            let Some(run) = self.0.read(&mut window.bytes[window.len..])? else {
                return Ok(window.len > 0);
            };
            window.push_data(run.offset / BLOCK_LEN as u64, run.len);
        }
        Ok(true)
    }

    fn data_len_hint(&self) -> Option<u64> {
        // One block more, so that the end is met in the same window.
        self.0.data_len_hint().map(|len| len + BLOCK_LEN as u64)
    }
}

/// Windows from a sealed overlay that is committed.
pub struct CommitWindows<'a> {
    changes: &'a dyn Changes,
    segments: std::vec::IntoIter<(u32, bool)>,
    current: std::vec::IntoIter<ChangedBlocks>,
    rest: Option<ChangedBlocks>,
}

impl<'a> CommitWindows<'a> {
    /// The changes, and segments, ascending, that must be laid out anew in any case.
    pub fn new(changes: &'a dyn Changes, touched: &[u32]) -> Self {
        let mut segments: Vec<(u32, bool)> =
            changes.segments().into_iter().map(|segment| (segment, true)).collect();
        segments.extend(touched.iter().map(|segment| (*segment, false)));
        // Of two that are equal the one with changes comes first, and stays.
        segments.sort_unstable_by_key(|(segment, changed)| (*segment, !changed));
        segments.dedup_by_key(|(segment, _)| *segment);
        CommitWindows {
            changes,
            segments: segments.into_iter(),
            current: Vec::new().into_iter(),
            rest: None,
        }
    }

    fn next(&mut self) -> Result<Option<Step>> {
        loop {
            if let Some(changed) = self.rest.take().or_else(|| self.current.next()) {
                return Ok(Some(Step::Changed(changed)));
            }
            match self.segments.next() {
                None => return Ok(None),
                Some((segment, false)) => return Ok(Some(Step::Touch(segment))),
                Some((segment, true)) => {
                    self.current = self.changes.in_segment(segment)?.into_iter();
                }
            }
        }
    }
}

enum Step {
    Changed(ChangedBlocks),
    Touch(u32),
}

impl WindowSource for CommitWindows<'_> {
    fn fill(&mut self, window: &mut Window) -> Result<bool> {
        while window.has_room() {
            let changed = match self.next()? {
                None => return Ok(!window.pieces.is_empty()),
                Some(Step::Touch(segment)) => {
                    window.pieces.push(Piece::Touch { segment });
                    continue;
                }
                Some(Step::Changed(changed)) => changed,
            };
            let blocks = changed.blocks;
            if changed.zero {
                let (first_block, block_count) = (blocks.start(), blocks.count());
                window.pieces.push(Piece::Zero { first_block, block_count });
                continue;
            }
            let room = ((window.bytes.len() - window.len) / BLOCK_LEN) as u64;
            let end = blocks.end().min(blocks.start() + room);
            let Some(part) = BlockRange::new(blocks.start()..end) else { continue };
            self.changes.read(part, &mut window.bytes[window.len..][..part.len() as usize])?;
            window.push_data(part.start(), part.len() as usize);
            self.rest = BlockRange::new(end..blocks.end())
                .map(|blocks| ChangedBlocks { blocks, zero: false });
        }
        Ok(true)
    }

    fn data_len_hint(&self) -> Option<u64> {
        let segments = self.segments.as_slice().iter().filter(|(_, changed)| *changed);
        let mut sum = BLOCK_LEN as u64;
        for (segment, _) in segments {
            let changed = self.changes.in_segment(*segment).ok()?;
            sum += changed.iter().filter(|c| !c.zero).map(|c| c.blocks.len()).sum::<u64>();
            if sum > WINDOW_LEN as u64 {
                break;
            }
        }
        Some(sum)
    }
}

/// Reads and digests all windows of a source while `consume` takes them, in order.
///
/// # Errors
/// The first error of the source or of `consume`; the other side is stopped.
pub fn run(
    mut source: impl WindowSource,
    mut consume: impl FnMut(&Window) -> Result<()>,
) -> Result<()> {
    let capacity =
        source.data_len_hint().map_or(WINDOW_LEN as u64, |len| len.min(WINDOW_LEN as u64));
    let capacity = (capacity as usize).next_multiple_of(BLOCK_LEN).max(BLOCK_LEN);
    let crew = Crew::of_this_thread();
    let count = if crew.is_sparing() { SPARING_WINDOW_COUNT } else { WINDOW_COUNT };
    let (give, empty) = bounded(count);
    let (read, to_digest) = bounded(1);
    let (digested, to_consume) = bounded(1);
    for _ in 0..count {
        let _ = give.send(Window::new(capacity));
    }
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || read_all(&mut source, &empty, &read));
        scope.spawn(move || digest_all(crew, &to_digest, &digested));
        let consumed = to_consume.iter().try_for_each(|window: Window| {
            consume(&window)?;
            // The reader may have ended: then nobody needs the window.
            let _ = give.send(window);
            Ok(())
        });
        drop((to_consume, give));
        let was_read = reader.join().unwrap_or_else(|_| {
            Err(Error::new(Kind::Bug, "read", "the source").because("its thread ended early"))
        });
        consumed.and(was_read)
    })
}

fn read_all(
    source: &mut impl WindowSource,
    empty: &Receiver<Window>,
    read: &Sender<Window>,
) -> Result<()> {
    for mut window in empty {
        window.clear();
        // A closed channel means that the consumer has failed; its error is returned there.
        if !source.fill(&mut window)? || read.send(window).is_err() {
            break;
        }
    }
    Ok(())
}

fn digest_all(crew: Crew, to_digest: &Receiver<Window>, digested: &Sender<Window>) {
    for mut window in to_digest {
        crew.run(|| window.digest());
        if digested.send(window).is_err() {
            break;
        }
    }
}

/// The segment that a block lies in, and its number there.
pub fn split(block: u64) -> (u32, u32) {
    let per_segment = u64::from(BLOCKS_PER_SEGMENT);
    ((block / per_segment) as u32, (block % per_segment) as u32)
}
