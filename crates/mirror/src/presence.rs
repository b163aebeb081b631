//! The bits that say which blocks of a base are here: in memory by segment, and in their files.
//!
//! **Invariants**: bits are set by whoever holds `keeping` shared, cleared by whoever holds it
//! exclusively, and read by anybody.
//!
//! **Not here**: the order in which bits and bytes are written (`base`); the bytes of the files
//! (`format::presence`).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, RwLock};

use env::{File, FileSystem, OpenMode};
use format::presence::{
    PRESENCE_HEADER_LEN, PRESENCE_SEGMENT_LEN, PresenceError, PresenceHeader, WORDS_PER_SEGMENT,
    decode_words, segment_offset,
};
use model::block::segment_count;
use model::{Error, Kind, Result};

use crate::plan::BaseBlock;

/// The presence of one segment's blocks.
#[derive(Debug)]
pub(crate) struct BaseSegment {
    /// Empty where the whole segment is a hole.
    present: Box<[AtomicU64]>,
    pub(crate) publishing: Mutex<()>,
    /// Held shared by whoever writes to it, exclusively by whoever evicts it.
    pub(crate) keeping: RwLock<()>,
    eviction_count: AtomicU32,
    /// When it was read last, by the coarse clock of [`crate::room::Room`].
    used_at: AtomicU32,
    /// Read since somebody last looked whether it can be let go.
    is_used: AtomicBool,
    /// Changes under an exclusive `keeping`, once: its bits are in their files alone.
    is_let_go: AtomicBool,
}

impl BaseSegment {
    /// A segment of which no block is known to be here; a hole needs no bits.
    pub(crate) fn without_bits(is_hole: bool) -> Self {
        let words = if is_hole { 0 } else { WORDS_PER_SEGMENT };
        BaseSegment {
            present: (0..words).map(|_| AtomicU64::new(0)).collect(),
            publishing: Mutex::new(()),
            keeping: RwLock::new(()),
            eviction_count: AtomicU32::new(0),
            used_at: AtomicU32::new(0),
            is_used: AtomicBool::new(true),
            is_let_go: AtomicBool::new(false),
        }
    }

    /// Ends its life in memory, unless it was used since this was tried last or is being written to:
    /// whoever holds it sees a segment that was evicted. Returns how many blocks were known to be here.
    pub(crate) fn let_go(&self) -> Option<u64> {
        if self.is_used.swap(false, Ordering::Relaxed) {
            return None;
        }
        let _keeping = self.keeping.try_write().ok()?;
        self.is_let_go.store(true, Ordering::SeqCst);
        Some(self.take().iter().map(|word| u64::from(word.count_ones())).sum())
    }

    /// True where another stands for the segment by now. Call under `keeping`.
    pub(crate) fn is_let_go(&self) -> bool {
        self.is_let_go.load(Ordering::SeqCst)
    }

    /// How many blocks are here or are holes.
    pub(crate) fn count(&self) -> u64 {
        self.present.iter().map(|word| u64::from(word.load(Ordering::Relaxed).count_ones())).sum()
    }

    /// What is known of a block, counted from the start of the segment.
    #[inline]
    pub(crate) fn block(&self, block: u32) -> BaseBlock {
        match self.present.get(block as usize / 64) {
            None => BaseBlock::Hole,
            Some(word) if word.load(Ordering::Acquire) >> (block % 64) & 1 == 1 => {
                BaseBlock::Present
            }
            Some(_) => BaseBlock::Missing,
        }
    }

    /// The first block of `first..end` that is missing.
    pub(crate) fn first_missing(&self, first: u32, end: u32) -> Option<u32> {
        let mut at = first;
        while at < end {
            let word = self.present.get(at as usize / 64)?.load(Ordering::Acquire);
            let missing = !word & u64::MAX << (at % 64);
            let found = at / 64 * 64 + missing.trailing_zeros();
            match missing {
                0 => at = (at / 64 + 1) * 64,
                _ => return (found < end).then_some(found),
            }
        }
        None
    }

    /// How often it was evicted. Whoever reads `data` asks before looking at bits and after reading:
    /// where the answers differ, the bytes may be zeros that nobody wrote.
    #[inline]
    pub(crate) fn evictions(&self) -> u32 {
        // What was read before is not read after: who saw a hole sees that it was punched.
        fence(Ordering::Acquire);
        self.eviction_count.load(Ordering::Acquire)
    }

    /// Notes that it was read. Cost: a load, and a store once for each tick of the clock.
    #[inline]
    pub(crate) fn note_use(&self, now: u32) {
        if self.used_at.load(Ordering::Relaxed) != now {
            self.used_at.store(now, Ordering::Relaxed);
        }
        if !self.is_used.load(Ordering::Relaxed) {
            self.is_used.store(true, Ordering::Relaxed);
        }
    }

    /// When it was read last.
    pub(crate) fn used_at(&self) -> u32 {
        self.used_at.load(Ordering::Relaxed)
    }

    /// True where no block is known to be present.
    pub(crate) fn is_empty(&self) -> bool {
        self.present.iter().all(|word| word.load(Ordering::Relaxed) == 0)
    }

    pub(crate) fn merge(&self, words: &[u64; WORDS_PER_SEGMENT]) {
        for (present, word) in self.present.iter().zip(words).filter(|(_, word)| **word != 0) {
            present.fetch_or(*word, Ordering::Release);
        }
    }

    /// Clears all bits and returns what they were. Readers notice before a byte goes.
    pub(crate) fn take(&self) -> [u64; WORDS_PER_SEGMENT] {
        let mut words = [0; WORDS_PER_SEGMENT];
        for (word, present) in words.iter_mut().zip(&self.present) {
            *word = present.swap(0, Ordering::SeqCst);
        }
        self.eviction_count.fetch_add(1, Ordering::SeqCst);
        words
    }

    pub(crate) fn words(&self) -> [u64; WORDS_PER_SEGMENT] {
        let mut words = [0; WORDS_PER_SEGMENT];
        for (word, present) in words.iter_mut().zip(&self.present) {
            *word = present.load(Ordering::Acquire);
        }
        words
    }
}

/// Bits to be set in one segment.
#[derive(Debug)]
pub(crate) struct PresentBits(pub(crate) Box<[u64; WORDS_PER_SEGMENT]>);

impl PresentBits {
    pub(crate) fn none() -> Self {
        PresentBits(Box::new([0; WORDS_PER_SEGMENT]))
    }

    /// Adds blocks `first..end`.
    pub(crate) fn add(&mut self, first: u32, end: u32) {
        for block in first..end {
            self.0[block as usize / 64] |= 1 << (block % 64);
        }
    }
}

pub(crate) fn read_words(file: &dyn File, segment: u32) -> [u64; WORDS_PER_SEGMENT] {
    let mut bytes = vec![0; PRESENCE_SEGMENT_LEN];
    match file.read_exact_at(&mut bytes, segment_offset(segment)) {
        Ok(()) => decode_words(&bytes),
        Err(_) => [0; WORDS_PER_SEGMENT],
    }
}

/// True where the file has this header; false where it has none that is sound.
pub(crate) fn is_of(file: &dyn File, header: &PresenceHeader) -> Result<bool> {
    let mut bytes = [0; PRESENCE_HEADER_LEN];
    if file.read_exact_at(&mut bytes, 0).is_err() {
        return Ok(false);
    }
    match PresenceHeader::decode(&bytes) {
        Ok(found) => Ok(found == *header),
        Err(PresenceError::NotPresence) => Ok(false),
        Err(error) => Err(Error::new(Kind::Refused, "open the base", header.content.to_string())
            .caused_by(error)
            .hint("a newer Larder made it: use that one, or another state folder")),
    }
}

/// Makes the file a header without bits.
pub(crate) fn begin(file: &dyn File, header: &PresenceHeader) -> io::Result<()> {
    file.set_len(0)?;
    file.set_len(segment_offset(segment_count(header.length)))?;
    file.write_all_at(&header.encode(), 0)
}

/// The name of the bits that count now.
pub(crate) fn live_name(file_system: &dyn FileSystem, folder: &Path) -> io::Result<PathBuf> {
    let (boot, mount) = (file_system.boot_id()?, file_system.mount_id(folder)?);
    Ok(PathBuf::from(format!("live.{boot}.{mount}")))
}

/// Removes bits that do not count: all but `own`, or those that do not begin with `spared` either.
pub(crate) fn remove_other_lives(
    file_system: &dyn FileSystem,
    folder: &Path,
    own: &Path,
    spared: Option<&str>,
) -> io::Result<()> {
    for other in file_system.list(folder)? {
        let text = other.to_string_lossy();
        let is_spared = spared.is_some_and(|spared| text.starts_with(spared));
        if other != own && text.starts_with("live.") && !is_spared {
            file_system.remove_file(&folder.join(&other))?;
        }
    }
    Ok(())
}

/// Opens the bits of this boot and mount, and removes those of others. Where another process has the
/// base open, it may see the disk by another mount, so all bits of this boot stay.
pub(crate) fn open_live(
    file_system: &dyn FileSystem,
    folder: &Path,
    header: &PresenceHeader,
    sound: bool,
    is_alone: bool,
) -> io::Result<Arc<dyn File>> {
    let name = live_name(file_system, folder)?;
    let of_this_boot = format!("live.{}.", file_system.boot_id()?);
    let spared = (!is_alone).then_some(&*of_this_boot);
    remove_other_lives(file_system, folder, &name, spared)?;
    let live = file_system.open(&folder.join(name), OpenMode::OpenOrCreate)?;
    if !sound || !is_of(&*live, header).unwrap_or(false) {
        begin(&*live, header)?;
    }
    Ok(live)
}
