//! A host's local copy, as far as present, of one content. Shared by all mirrors of it.
//!
//! ```text
//! bases/<content digest>/data                  sparse, same addresses as the disk
//!                        presence              bits of blocks that are durable
//!                        live.<boot>.<mount>   bits of blocks that are in the page cache
//!                        users                 locked by each process that has it open
//! ```
//!
//! **Invariants**: a bit is set in memory after the block's bytes are in `data`, in `live` after
//! that, in `presence` after `data` was synced. Bits are cleared by eviction alone, under a lock that
//! keeps those out who write to the segment; whoever reads looks before and after whether it came
//! ([`BaseSegment::evictions`]), and takes no lock.
//!
//! **Failure**: after power loss only `presence` counts, because the boot id, and with it the name
//! of `live`, is another; so too where the disk was away and was mounted again. Two processes may
//! lose each other's bits: a block is fetched once more. A full disk loses bits too, but no bytes.
//!
//! **Not here**: where bytes come from (`fetch`); which segments go (`evict`).

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use env::{File, FileSystem, OpenMode};
use format::presence::{
    PRESENCE_HEADER_LEN, PRESENCE_SEGMENT_LEN, PresenceError, PresenceHeader, PresenceKind,
    WORDS_PER_SEGMENT, decode_words, segment_offset,
};
use model::block::{SEGMENT_LEN, block_count, segment_count};
use model::{BLOCK_LEN, ChunkDigest, ContentDigest, Error, Kind, Result};

use crate::backing::Holders;
use crate::flights::Flights;
use crate::plan::BaseBlock;
use crate::room::write_number;
use crate::segments::SegmentTable;

/// Bytes that may be fetched before the next checkpoint.
const CHECKPOINT_BYTES: u64 = 256 << 20;

/// What is being fetched into a base.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum FetchKey {
    Map(u32),
    Chunk(u32, ChunkDigest),
    /// Some pieces of a boot working set, by position.
    Boot(u32),
}

/// The presence of one segment's blocks.
#[derive(Debug)]
pub(crate) struct BaseSegment {
    /// Empty where the whole segment is a hole.
    present: Box<[AtomicU64]>,
    publishing: Mutex<()>,
    /// Held shared by whoever writes to it, exclusively by whoever evicts it.
    keeping: RwLock<()>,
    eviction_count: AtomicU32,
    /// When it was read last, by the coarse clock of [`crate::room::Room`].
    used_at: AtomicU32,
}

/// A host's local copy of one content.
#[derive(Debug)]
pub(crate) struct Base {
    file_system: Arc<dyn FileSystem>,
    folder: PathBuf,
    content: ContentDigest,
    length: u64,
    pub(crate) holders: Holders,
    pub(crate) data: Arc<dyn File>,
    presence: Arc<dyn File>,
    live: Arc<dyn File>,
    segments: SegmentTable<Box<BaseSegment>>,
    pub(crate) flights: Flights<FetchKey>,
    /// Segments with bits that no checkpoint holds yet.
    unsaved: Mutex<BTreeSet<u32>>,
    unsaved_bytes: AtomicU64,
    checkpointing: Mutex<()>,
    /// Locked shared as long as the base is open; exclusively while blocks of it are evicted.
    users: Arc<dyn File>,
    clock: Arc<AtomicU32>,
}

impl BaseSegment {
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
        (first..end).find(|block| self.block(*block) == BaseBlock::Missing)
    }

    /// How often it was evicted. Whoever reads `data` asks before looking at bits and after reading:
    /// where the answers differ, the bytes may be zeros that nobody wrote.
    #[inline]
    pub(crate) fn evictions(&self) -> u32 {
        fence(Ordering::SeqCst);
        self.eviction_count.load(Ordering::SeqCst)
    }

    /// Notes that it was read. Cost: a load, and a store once for each tick of the clock.
    #[inline]
    fn note_use(&self, now: u32) {
        if self.used_at.load(Ordering::Relaxed) != now {
            self.used_at.store(now, Ordering::Relaxed);
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

    fn merge(&self, words: &[u64; WORDS_PER_SEGMENT]) {
        for (present, word) in self.present.iter().zip(words).filter(|(_, word)| **word != 0) {
            present.fetch_or(*word, Ordering::Release);
        }
    }

    /// Clears all bits and returns what they were. Readers notice before a byte goes.
    fn take(&self) -> [u64; WORDS_PER_SEGMENT] {
        let mut words = [0; WORDS_PER_SEGMENT];
        for (word, present) in words.iter_mut().zip(&self.present) {
            *word = present.swap(0, Ordering::SeqCst);
        }
        self.eviction_count.fetch_add(1, Ordering::SeqCst);
        words
    }

    fn words(&self) -> [u64; WORDS_PER_SEGMENT] {
        let mut words = [0; WORDS_PER_SEGMENT];
        for (word, present) in words.iter_mut().zip(&self.present) {
            *word = present.load(Ordering::Acquire);
        }
        words
    }
}

/// Bits to be set in one segment.
#[derive(Debug)]
pub(crate) struct PresentBits(Box<[u64; WORDS_PER_SEGMENT]>);

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

impl Base {
    /// Opens the base in `folder`, making it if it is not there. Cost: a few small reads; a new
    /// base is synced. Call under the lock of [`crate::room::Room`].
    pub(crate) fn open(
        shared_file_system: Arc<dyn FileSystem>,
        folder: &Path,
        content: ContentDigest,
        length: u64,
        clock: Arc<AtomicU32>,
    ) -> Result<Base> {
        let file_system = &*shared_file_system;
        let failed = |error| Error::io("open the base", content.to_string(), error);
        let header = |kind| PresenceHeader { kind, content, length };
        file_system.create_folders(folder).map_err(failed)?;
        let data_path = folder.join("data");
        let known = file_system.exists(&data_path).map_err(failed)?;
        let data = file_system.open(&data_path, OpenMode::OpenOrCreate).map_err(failed)?;
        let data_len = block_count(length) * BLOCK_LEN as u64;
        let sound = known && data.len().map_err(failed)? == data_len;
        if !sound {
            data.set_len(data_len).and_then(|()| data.sync()).map_err(failed)?;
        }
        let presence =
            file_system.open(&folder.join("presence"), OpenMode::OpenOrCreate).map_err(failed)?;
        let checkpoint = header(PresenceKind::Checkpoint);
        if !sound || !is_of(&*presence, &checkpoint)? {
            begin(&*presence, &checkpoint).and_then(|()| presence.sync()).map_err(failed)?;
            sync_names(file_system, folder).map_err(failed)?;
        }
        let users =
            file_system.open(&folder.join("users"), OpenMode::OpenOrCreate).map_err(failed)?;
        let is_alone = users.try_lock().map_err(failed)?;
        let live = open_live(file_system, folder, &header(PresenceKind::Live), sound, is_alone)
            .map_err(failed)?;
        if !users.try_lock_shared().map_err(failed)? {
            return Err(Error::new(Kind::Unavailable, "open the base", content.to_string())
                .because("another process has locked it"));
        }
        Ok(Base {
            file_system: shared_file_system.clone(),
            folder: folder.to_path_buf(),
            content,
            length,
            holders: Holders::default(),
            data,
            presence,
            live,
            segments: SegmentTable::new(length),
            flights: Flights::new(),
            unsaved: Mutex::default(),
            unsaved_bytes: AtomicU64::new(0),
            checkpointing: Mutex::default(),
            users,
            clock,
        })
    }

    /// The identity of what it is a copy of.
    pub(crate) fn content(&self) -> ContentDigest {
        self.content
    }

    pub(crate) fn file_system(&self) -> &dyn FileSystem {
        &*self.file_system
    }

    /// Where its files are.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Bytes of disk that it takes.
    pub(crate) fn allocated_bytes(&self) -> io::Result<u64> {
        self.data.allocated_bytes()
    }

    /// A segment, if it was touched before. No I/O.
    #[inline]
    pub(crate) fn touched_segment(&self, segment: u32) -> Option<&BaseSegment> {
        self.segments.get(segment).map(|boxed| &**boxed)
    }

    /// A segment; its bits are read when it is first touched. Bits that cannot be read count as
    /// not set. `is_hole` is asked only then.
    #[inline]
    pub(crate) fn segment(&self, segment: u32, is_hole: impl FnOnce() -> bool) -> &BaseSegment {
        if let Some(segment) = self.touched_segment(segment) {
            return segment;
        }
        self.segments.get_or_init(segment, || Box::new(self.load(segment, is_hole())))
    }

    fn load(&self, segment: u32, is_hole: bool) -> BaseSegment {
        let words = if is_hole { 0 } else { WORDS_PER_SEGMENT };
        let loaded = BaseSegment {
            present: (0..words).map(|_| AtomicU64::new(0)).collect(),
            publishing: Mutex::new(()),
            keeping: RwLock::new(()),
            eviction_count: AtomicU32::new(0),
            used_at: AtomicU32::new(0),
        };
        if !is_hole {
            loaded.merge(&read_words(&*self.presence, segment));
            loaded.merge(&read_words(&*self.live, segment));
        }
        loaded
    }

    /// Learns what other processes have fetched. Cost: one read of 2 KiB.
    pub(crate) fn refresh(&self, segment: u32, bits: &BaseSegment) {
        let _keeping = bits.keeping.read().unwrap_or_else(PoisonError::into_inner);
        bits.merge(&read_words(&*self.live, segment));
    }

    /// Lets `write` put bytes into `data`, then marks their blocks present. Nothing of the segment is
    /// evicted meanwhile. Holes need no bytes.
    pub(crate) fn keep(
        &self,
        segment: u32,
        bits: &BaseSegment,
        added: &PresentBits,
        write: impl FnOnce(&dyn File) -> io::Result<()>,
    ) -> io::Result<()> {
        let _keeping = bits.keeping.read().unwrap_or_else(PoisonError::into_inner);
        write(&*self.data)?;
        self.mark_present(segment, bits, added);
        Ok(())
    }

    /// Marks blocks present whose bytes are in `data` already, or that are holes.
    fn mark_present(&self, segment: u32, bits: &BaseSegment, added: &PresentBits) {
        bits.merge(&added.0);
        let first = added.0.iter().position(|word| *word != 0);
        let last = added.0.iter().rposition(|word| *word != 0);
        let (Some(first), Some(last)) = (first, last) else { return };
        {
            let _publishing = bits.publishing.lock().unwrap_or_else(PoisonError::into_inner);
            let words = bits.words();
            let bytes: Vec<u8> = words[first..=last].iter().flat_map(|w| w.to_le_bytes()).collect();
            // Lost bits cost a fetch after a restart; the read at hand must not fail for them.
            let _ = self.live.write_all_at(&bytes, segment_offset(segment) + 8 * first as u64);
        }
        self.unsaved.lock().unwrap_or_else(PoisonError::into_inner).insert(segment);
    }

    /// Counts bytes written to `data`. True where a checkpoint is due.
    pub(crate) fn count_fetched(&self, bytes: u64) -> bool {
        let before = self.unsaved_bytes.fetch_add(bytes, Ordering::Relaxed);
        before < CHECKPOINT_BYTES && before + bytes >= CHECKPOINT_BYTES
    }

    /// Makes all that is present survive power loss. Cost: two syncs, none where nothing is new.
    pub(crate) fn checkpoint(&self) -> Result<()> {
        let _checkpointing = self.checkpointing.lock().unwrap_or_else(PoisonError::into_inner);
        let segments = std::mem::take(&mut *self.unsaved_guard());
        if segments.is_empty() {
            return Ok(());
        }
        self.unsaved_bytes.store(0, Ordering::Relaxed);
        let saved = self.save(&segments);
        if saved.is_err() {
            self.unsaved_guard().extend(segments);
        }
        saved.map_err(|error| Error::io("checkpoint the base", self.content.to_string(), error))
    }

    fn unsaved_guard(&self) -> std::sync::MutexGuard<'_, BTreeSet<u32>> {
        self.unsaved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bits first, then the bytes' sync, then the bits' write: each bit that is written stands for
    /// bytes that were there before the sync.
    fn save(&self, segments: &BTreeSet<u32>) -> io::Result<()> {
        let bits: Vec<(u32, [u64; WORDS_PER_SEGMENT])> = segments
            .iter()
            .filter_map(|number| Some((*number, self.touched_segment(*number)?.words())))
            .collect();
        self.data.sync()?;
        for (segment, words) in bits {
            let known = read_words(&*self.presence, segment);
            let bytes: Vec<u8> = words
                .iter()
                .zip(known)
                .flat_map(|(word, known)| (word | known).to_le_bytes())
                .collect();
            self.presence.write_all_at(&bytes, segment_offset(segment))?;
        }
        self.presence.sync()
    }

    /// Notes that a segment was read.
    #[inline]
    pub(crate) fn note_use(&self, bits: &BaseSegment) {
        bits.note_use(self.clock.load(Ordering::Relaxed));
    }

    /// Notes how many bases were opened before it: those opened long ago are evicted first.
    pub(crate) fn note_opened(&self, number: u64) -> io::Result<()> {
        write_number(&*self.users, number)
    }

    /// True where no other process has it open; none can open it then until [`Base::share`]. Call
    /// under the lock of [`crate::room::Room`].
    pub(crate) fn try_claim(&self) -> io::Result<bool> {
        let is_claimed = self.users.try_lock()?;
        if !is_claimed {
            self.share()?;
        }
        Ok(is_claimed)
    }

    /// Lets other processes open it again.
    pub(crate) fn share(&self) -> io::Result<()> {
        match self.users.try_lock_shared()? {
            true => Ok(()),
            false => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// The segments of which blocks are here, with the time of their last use: 0 where nobody has
    /// read them since the base was opened.
    pub(crate) fn segments_here(&self) -> Vec<(u32, u32)> {
        let mut here = Vec::new();
        for segment in 0..segment_count(self.length) {
            match self.touched_segment(segment) {
                Some(bits) if bits.is_empty() => {}
                Some(bits) => here.push((segment, bits.used_at())),
                None => {
                    let (durable, live) =
                        (read_words(&*self.presence, segment), read_words(&*self.live, segment));
                    if durable.iter().chain(&live).any(|word| *word != 0) {
                        here.push((segment, 0));
                    }
                }
            }
        }
        here
    }

    /// Gives the space of segments back. Call with the base claimed, and nobody holding its file.
    ///
    /// Order: the bits are cleared in memory, then durably, then the bytes go.
    ///
    /// # Errors
    /// What the system says; every block that is still present has its bytes.
    pub(crate) fn evict(&self, segments: &[u32]) -> io::Result<()> {
        // A checkpoint under way would write bits that it took before.
        let _checkpointing = self.checkpointing.lock().unwrap_or_else(PoisonError::into_inner);
        // Bits that another mount of this disk has left must not count once the bytes are gone.
        let name = live_name(self.file_system(), &self.folder)?;
        remove_other_lives(self.file_system(), &self.folder, &name, None)?;
        let bits: Vec<(u32, &BaseSegment)> =
            segments.iter().map(|segment| (*segment, self.segment(*segment, || false))).collect();
        let _keeping: Vec<_> = bits
            .iter()
            .map(|(_, bits)| bits.keeping.write().unwrap_or_else(PoisonError::into_inner))
            .collect();
        let before: Vec<_> = bits.iter().map(|(_, bits)| bits.take()).collect();
        if let Err(error) = self.forget_durably(segments) {
            for ((_, bits), words) in bits.iter().zip(&before) {
                bits.merge(words);
            }
            return Err(error);
        }
        for segment in segments {
            let start = u64::from(*segment) * SEGMENT_LEN;
            let len = SEGMENT_LEN.min(block_count(self.length) * BLOCK_LEN as u64 - start);
            self.data.punch_hole(start, len)?;
        }
        Ok(())
    }

    fn forget_durably(&self, segments: &[u32]) -> io::Result<()> {
        for segment in segments {
            // Zeros that were written could need space, of which there may be none left.
            let (offset, len) = (segment_offset(*segment), PRESENCE_SEGMENT_LEN as u64);
            self.live.punch_hole(offset, len)?;
            self.presence.punch_hole(offset, len)?;
        }
        self.presence.sync()
    }

    /// Bytes that are present and no hole, as far as segments were touched.
    pub(crate) fn present_bytes(&self) -> u64 {
        let blocks: u64 = self
            .segments
            .iter()
            .flat_map(|(_, segment)| segment.present.iter())
            .map(|word| u64::from(word.load(Ordering::Relaxed).count_ones()))
            .sum();
        (blocks * BLOCK_LEN as u64).min(self.length)
    }
}

fn read_words(file: &dyn File, segment: u32) -> [u64; WORDS_PER_SEGMENT] {
    let mut bytes = vec![0; PRESENCE_SEGMENT_LEN];
    match file.read_exact_at(&mut bytes, segment_offset(segment)) {
        Ok(()) => decode_words(&bytes),
        Err(_) => [0; WORDS_PER_SEGMENT],
    }
}

/// True where the file has this header; false where it has none that is sound.
fn is_of(file: &dyn File, header: &PresenceHeader) -> Result<bool> {
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
fn begin(file: &dyn File, header: &PresenceHeader) -> io::Result<()> {
    file.set_len(0)?;
    file.set_len(segment_offset(segment_count(header.length)))?;
    file.write_all_at(&header.encode(), 0)
}

/// Makes the names of a new folder and its files durable.
fn sync_names(file_system: &dyn FileSystem, folder: &Path) -> io::Result<()> {
    folder.ancestors().take(4).try_for_each(|folder| file_system.sync_folder(folder))
}

/// The name of the bits that count now.
fn live_name(file_system: &dyn FileSystem, folder: &Path) -> io::Result<PathBuf> {
    let (boot, mount) = (file_system.boot_id()?, file_system.mount_id(folder)?);
    Ok(PathBuf::from(format!("live.{boot}.{mount}")))
}

/// Removes bits that do not count: all but `own`, or those that do not begin with `spared` either.
fn remove_other_lives(
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
fn open_live(
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
