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
//! ([`BaseSegment::evictions`]), and takes no lock. A segment that is let go from memory is to its readers
//! like one that was evicted, and who writes to it looks for the one that stands for it now.
//!
//! **Failure**: after power loss only `presence` counts, because the boot id, and with it the name
//! of `live`, is another; so too where the disk was away and was mounted again. Two processes may
//! lose each other's bits: a block is fetched once more. A full disk loses bits too, but no bytes.
//!
//! **Not here**: where bytes come from (`fetch`); which segments go (`evict`).

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use env::{File, FileSystem, OpenMode};
use format::presence::{
    PRESENCE_SEGMENT_LEN, PresenceHeader, PresenceKind, WORDS_PER_SEGMENT, segment_offset,
};
use model::block::{SEGMENT_LEN, block_count, segment_count};
use model::{BLOCK_LEN, ChunkDigest, ContentDigest, Error, Kind, Result};

use crate::backing::Holders;
use crate::flights::Flights;
use crate::presence::{
    BaseSegment, PresentBits, begin, is_of, live_name, open_live, read_words, remove_other_lives,
};
use crate::room::write_number;
use crate::segments::SegmentTable;

/// Bytes that may be fetched before the next checkpoint.
const CHECKPOINT_BYTES: u64 = 256 << 20;

/// Segments whose bits are in memory: 4 MiB of them, for 128 GiB. The others' are read from their files.
const LOADED_MAX: usize = 2048;

/// What is being fetched into a base.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum FetchKey {
    Map(u32),
    Chunk(u32, ChunkDigest),
    /// Some pieces of a boot working set, by position.
    Boot(u32),
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
    /// A slot is made when its segment is first touched; it is empty while that is let go.
    segments: SegmentTable<ArcSwapOption<BaseSegment>>,
    /// What is loaded, in the order in which it is looked at. Held while a segment is loaded or let go.
    loaded: Mutex<VecDeque<u32>>,
    /// Blocks that were here in segments that are let go.
    let_go_blocks: AtomicU64,
    pub(crate) flights: Flights<FetchKey>,
    /// Segments with bits that no checkpoint holds yet.
    unsaved: Mutex<BTreeSet<u32>>,
    unsaved_bytes: AtomicU64,
    checkpointing: Mutex<()>,
    /// Locked shared as long as the base is open; exclusively while blocks of it are evicted.
    users: Arc<dyn File>,
    clock: Arc<AtomicU32>,
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
        let presence =
            file_system.open(&folder.join("presence"), OpenMode::OpenOrCreate).map_err(failed)?;
        let checkpoint = header(PresenceKind::Checkpoint);
        if !sound || !is_of(&*presence, &checkpoint)? {
            let was_used = !presence.is_empty().map_err(failed)?;
            begin(&*presence, &checkpoint).map_err(failed)?;
            if was_used {
                // No bit may tell of the data that is made now.
                presence.sync().map_err(failed)?;
            }
            data.set_len(data_len).map_err(failed)?;
            let folders: Vec<&Path> = folder.ancestors().take(4).collect();
            file_system.sync_together(&[&*data, &*presence], &folders).map_err(failed)?;
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
            loaded: Mutex::default(),
            let_go_blocks: AtomicU64::new(0),
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

    /// A segment, if it is loaded. No I/O.
    #[inline]
    pub(crate) fn touched_segment(&self, segment: u32) -> Option<Arc<BaseSegment>> {
        self.segments.get(segment)?.load_full()
    }

    /// A segment; its bits are read when it is touched and not loaded. Bits that cannot be read count as
    /// not set. `is_hole` is asked only then.
    ///
    /// What is returned may be let go at any time, and is like one that was evicted then.
    #[inline]
    pub(crate) fn segment(&self, segment: u32, is_hole: impl FnOnce() -> bool) -> Arc<BaseSegment> {
        match self.touched_segment(segment) {
            Some(segment) => segment,
            None => self.load_segment(segment, is_hole()),
        }
    }

    fn load_segment(&self, segment: u32, is_hole: bool) -> Arc<BaseSegment> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = self.segments.get_or_init(segment, ArcSwapOption::empty);
        if let Some(known) = slot.load_full() {
            return known;
        }
        self.let_go_some(&mut loaded);
        let bits = Arc::new(self.load(segment, is_hole));
        let known = self.let_go_blocks.load(Ordering::Relaxed);
        self.let_go_blocks.store(known.saturating_sub(bits.count()), Ordering::Relaxed);
        slot.store(Some(bits.clone()));
        loaded.push_back(segment);
        bits
    }

    /// Lets segments go that were not used of late, where as many are loaded as may be.
    fn let_go_some(&self, loaded: &mut VecDeque<u32>) {
        for _ in 0..2 * loaded.len() {
            if loaded.len() < LOADED_MAX {
                return;
            }
            let Some(segment) = loaded.pop_front() else { return };
            let Some(slot) = self.segments.get(segment) else { continue };
            match slot.load_full().map(|bits| bits.let_go()) {
                Some(Some(count)) => {
                    self.let_go_blocks.fetch_add(count, Ordering::Relaxed);
                    slot.store(None);
                }
                Some(None) => loaded.push_back(segment),
                None => {}
            }
        }
    }

    fn load(&self, segment: u32, is_hole: bool) -> BaseSegment {
        let loaded = BaseSegment::without_bits(is_hole);
        if !is_hole {
            loaded.merge(&read_words(&*self.presence, segment));
            loaded.merge(&read_words(&*self.live, segment));
        }
        loaded
    }

    /// Learns what other processes have fetched. Cost: one read of 2 KiB.
    pub(crate) fn refresh(&self, segment: u32, bits: &BaseSegment) {
        let _keeping = bits.keeping.read().unwrap_or_else(PoisonError::into_inner);
        if !bits.is_let_go() {
            bits.merge(&read_words(&*self.live, segment));
        }
    }

    /// Lets `write` put bytes into `data`, then marks their blocks present. Nothing of the segment is
    /// evicted meanwhile. Holes need no bytes.
    pub(crate) fn keep(
        &self,
        segment: u32,
        added: &PresentBits,
        write: impl FnOnce(&dyn File) -> io::Result<()>,
    ) -> io::Result<()> {
        loop {
            let bits = self.segment(segment, || false);
            let _keeping = bits.keeping.read().unwrap_or_else(PoisonError::into_inner);
            if bits.is_let_go() {
                continue;
            }
            write(&*self.data)?;
            self.mark_present(segment, &bits, added);
            return Ok(());
        }
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
            .map(|number| {
                let words = || read_words(&*self.live, *number);
                (*number, self.touched_segment(*number).map_or_else(words, |bits| bits.words()))
            })
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
        let load = || segments.iter().map(|segment| self.segment(*segment, || false));
        let mut bits: Vec<Arc<BaseSegment>> = load().collect();
        let _keeping = loop {
            let keeping: Vec<_> = bits
                .iter()
                .map(|bits| bits.keeping.write().unwrap_or_else(PoisonError::into_inner))
                .collect();
            if bits.iter().all(|bits| !bits.is_let_go()) {
                break keeping;
            }
            drop(keeping);
            bits = load().collect();
        };
        let before: Vec<_> = bits.iter().map(|bits| bits.take()).collect();
        if let Err(error) = self.forget_durably(segments) {
            for (bits, words) in bits.iter().zip(&before) {
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
        let loaded = self.segments.iter().filter_map(|(_, slot)| slot.load_full());
        let loaded: u64 = loaded.map(|segment| segment.count()).sum();
        let blocks = loaded + self.let_go_blocks.load(Ordering::Relaxed);
        (blocks * BLOCK_LEN as u64).min(self.length)
    }
}
