//! A base together with where its missing blocks come from.
//!
//! ```text
//! read -> missing block -> segment map -> run -> chunk, verified by the store
//!                                                  `-> all runs of this segment that use it -> base
//! ```
//!
//! **Invariants**: no lock is held while the store works. A block is marked present after its
//! bytes were written. A failure is an error of the read at hand and is never remembered.
//!
//! **A new layout**: collect may lay a version out anew and remove what only the old layout needed.
//! Whoever meets `NotFound` asks the store for the content's layout of now and goes on by that; the
//! bytes are equal, and so are the holes.
//!
//! **Failure**: a store that fails, is slow or panics delays those who wait for the same chunk;
//! each then tries itself. A store that cannot be reached is waited for, see `patience`. Wrong bytes
//! are asked for once more. On a full disk blocks are served without being kept.

use std::collections::HashSet;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use env::File;
use model::block::{BLOCKS_PER_SEGMENT, SEGMENT_LEN, blocks_in_segment};
use model::boot_set::BootPiece;
use model::{
    BLOCK_LEN, ChunkDigest, Error, Kind, LayoutDigest, Manifest, MapDigest, Result, Run, SegmentMap,
};
use store::{Chunk, ChunkStore, Recent};

use crate::at_once::at_once;
use crate::background::Background;
use crate::base::{Base, FetchKey};
use crate::boot::{Boot, BootCounts};
use crate::journal::{Journal, Origin};
use crate::patience::{FetchError, Patience, Reachability, persist};
use crate::plan::BaseBlock;
use crate::presence::{BaseSegment, PresentBits};
use crate::readahead::{Distance, Readahead};
use crate::recorder::Recorder;
use crate::room::Room;

/// A base and a way to complete it by one layout.
pub(crate) struct BaseView {
    pub(crate) base: Arc<Base>,
    store: Arc<dyn ChunkStore>,
    /// Which segments hold data: equal in every layout of the content.
    manifest: Arc<Manifest>,
    layout: RwLock<Arc<Layout>>,
    pub(crate) parts: Parts,
    pub(crate) readahead: Readahead,
    pub(crate) distance: Distance,
    fetched_bytes: AtomicU64,
    patience: Mutex<Patience>,
    /// Nobody waits any more.
    is_given_up: AtomicBool,
    /// The last failure that was logged: one that comes again and again is logged once.
    told: Mutex<String>,
    has_boot: AtomicBool,
    boot: Mutex<Option<Arc<Boot>>>,
    pub(crate) boot_counts: BootCounts,
    pub(crate) recorder: Recorder,
    pub(crate) journal: Journal,
}

/// Chunks that one read, or one prefetch, has under way at once.
const AT_ONCE_MAX: NonZeroUsize = NonZeroUsize::new(8).unwrap();

/// What all views of a state folder share.
pub(crate) struct Parts {
    pub(crate) chunks: Arc<Recent<ChunkDigest, Chunk>>,
    pub(crate) maps: Arc<Recent<MapDigest, Arc<SegmentMap>>>,
    pub(crate) background: Arc<Background>,
    pub(crate) reachability: Arc<Reachability>,
    pub(crate) room: Arc<Room>,
}

/// How often one read fetches what was evicted before it could be read, before it reads past the base.
pub(crate) const FETCHED_MAX: usize = 4;

/// How often one read follows the content to a new layout.
const FOLLOWED_MAX: usize = 8;

/// One way to read the content.
pub(crate) struct Layout {
    digest: LayoutDigest,
    manifest: Arc<Manifest>,
}

impl Layout {
    fn load(
        base: &Base,
        digest: LayoutDigest,
        length: u64,
        store: &dyn ChunkStore,
    ) -> Result<Self> {
        let manifest = store.manifest(digest)?;
        if manifest.length() != length || manifest.content() != base.content() {
            return Err(Error::new(Kind::Corrupt, "attach", base.content().to_string())
                .because(format!("the manifest {digest} is that of another content")));
        }
        Ok(Layout { digest, manifest })
    }
}

/// Cuts a range of blocks of the disk at segments: segment, first and end block in it.
pub(crate) fn by_segment(blocks: Range<u64>) -> impl Iterator<Item = (u32, Range<u32>)> {
    let per_segment = u64::from(BLOCKS_PER_SEGMENT);
    let segments = match blocks.is_empty() {
        true => 0..0,
        false => blocks.start / per_segment..blocks.end.div_ceil(per_segment),
    };
    segments.map(move |segment| {
        let start = segment * per_segment;
        let first = blocks.start.max(start) - start;
        let end = blocks.end.min(start + per_segment) - start;
        (segment as u32, first as u32..end as u32)
    })
}

/// The blocks that a range of bytes touches.
pub(crate) fn blocks_of(offset: u64, len: u64) -> Range<u64> {
    let block_len = BLOCK_LEN as u64;
    offset / block_len..(offset + len).div_ceil(block_len)
}

impl BaseView {
    /// Joins a base and the layout by which it is read: the one given, or where that is gone the one
    /// that the content has now.
    ///
    /// # Errors
    /// `Corrupt` where the manifest is not that of the base's content; those of the store.
    pub(crate) fn new(
        base: Arc<Base>,
        layout: LayoutDigest,
        length: u64,
        store: Arc<dyn ChunkStore>,
        parts: Parts,
    ) -> Result<BaseView> {
        let loaded = match Layout::load(&base, layout, length, &*store) {
            Err(error) if error.kind() == Kind::NotFound => {
                match store.current_layout(base.content())? {
                    Some(now) if now != layout => Layout::load(&base, now, length, &*store)?,
                    _ => return Err(error),
                }
            }
            other => other?,
        };
        Ok(BaseView {
            base,
            store,
            manifest: loaded.manifest.clone(),
            layout: RwLock::new(Arc::new(loaded)),
            parts,
            readahead: Readahead::default(),
            distance: Distance::default(),
            fetched_bytes: AtomicU64::new(0),
            patience: Mutex::new(Patience::Limited(Duration::ZERO)),
            is_given_up: AtomicBool::new(false),
            told: Mutex::default(),
            has_boot: AtomicBool::new(false),
            boot: Mutex::default(),
            boot_counts: BootCounts::default(),
            recorder: Recorder::default(),
            journal: Journal::new(),
        })
    }

    /// Says how long reads wait from now on; those that wait go on as they began.
    pub(crate) fn set_patience(&self, patience: Patience) {
        *self.patience.lock().unwrap_or_else(PoisonError::into_inner) = patience;
    }

    /// Ends all waits for a store that cannot be reached, with its error.
    pub(crate) fn give_up(&self) {
        self.is_given_up.store(true, Ordering::SeqCst);
        self.parts.reachability.wake_all();
    }

    /// Does work that may need the store, as patiently as was asked for.
    pub(crate) fn persist<T>(&self, work: impl FnMut() -> Result<T, FetchError>) -> Result<T> {
        let patience = *self.patience.lock().unwrap_or_else(PoisonError::into_inner);
        let done = persist(patience, &self.parts.reachability, &self.is_given_up, work);
        done.inspect_err(|error| self.tell(error))
    }

    fn tell(&self, error: &Error) {
        let text = error.chain();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if error.kind() != Kind::Full && *told != text {
            tracing::error!(content = %self.base.content(), error = %text, "a read failed");
            *told = text;
        }
    }

    /// Asks the store; once more where the bytes came wrong.
    fn ask<T>(&self, question: impl Fn(&dyn ChunkStore) -> Result<T>) -> Result<T, FetchError> {
        let mut answer = question(&*self.store);
        if let Err(error) = &answer
            && error.kind() == Kind::Corrupt
        {
            tracing::warn!(error = %error.chain(), "wrong bytes came; asking once more");
            answer = question(&*self.store);
        }
        self.parts.reachability.note(&answer);
        answer.map_err(FetchError::Store)
    }

    fn layout(&self) -> Arc<Layout> {
        self.layout.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Does what needs the store by the layout in use; where something of it is gone, by the one that
    /// the content has now.
    pub(crate) fn by_layout<T>(
        &self,
        work: impl Fn(&Layout) -> Result<T, FetchError>,
    ) -> Result<T, FetchError> {
        let mut layout = self.layout();
        for _ in 0..FOLLOWED_MAX {
            match work(&layout) {
                Err(error) if error.kind() == Kind::NotFound => match self.follow(&layout)? {
                    Some(newer) => layout = newer,
                    None => return Err(error),
                },
                other => return other,
            }
        }
        work(&layout)
    }

    /// The layout that the content has now, if it is another than `old`; in use from now on.
    fn follow(&self, old: &Layout) -> Result<Option<Arc<Layout>>, FetchError> {
        let in_use = self.layout();
        if in_use.digest != old.digest {
            return Ok(Some(in_use));
        }
        let now = self.ask(|store| store.current_layout(self.base.content()))?;
        let Some(digest) = now.filter(|digest| *digest != old.digest) else { return Ok(None) };
        let newer =
            Arc::new(self.ask(|store| Layout::load(&self.base, digest, self.length(), store))?);
        *self.layout.write().unwrap_or_else(PoisonError::into_inner) = newer.clone();
        Ok(Some(newer))
    }

    /// Bytes of the disk.
    pub(crate) fn length(&self) -> u64 {
        self.manifest.length()
    }

    /// Plain bytes that were fetched into the base or past it.
    pub(crate) fn fetched_bytes(&self) -> u64 {
        self.fetched_bytes.load(Ordering::Relaxed)
    }

    /// The presence of a segment.
    #[inline]
    pub(crate) fn segment(&self, segment: u32) -> Arc<BaseSegment> {
        self.base.segment(segment, || self.manifest.segment(segment).is_none())
    }

    /// True where a segment has no data at all.
    pub(crate) fn is_hole(&self, segment: u32) -> bool {
        self.manifest.segment(segment).is_none()
    }

    /// What is known of a block without any I/O; `Missing` where nothing is.
    pub(crate) fn glance(&self, segment: u32, block: u32) -> BaseBlock {
        match self.base.touched_segment(segment) {
            Some(bits) => bits.block(block),
            None if self.manifest.segment(segment).is_none() => BaseBlock::Hole,
            None => BaseBlock::Missing,
        }
    }

    /// The map of a segment, if it was loaded.
    pub(crate) fn loaded_map(&self, segment: u32) -> Option<Arc<SegmentMap>> {
        match self.layout().manifest.segment(segment) {
            Some(entry) => self.parts.maps.get(&entry.map),
            None => Some(Arc::default()),
        }
    }

    /// The map of a segment, loaded now if it was not. Does not wait for a store that cannot be
    /// reached.
    pub(crate) fn segment_map(&self, segment: u32) -> Result<Arc<SegmentMap>> {
        Ok(self.by_layout(|layout| self.map(layout, segment))?)
    }

    /// The map of a segment in one layout. Its holes count as present from then on.
    pub(crate) fn map(&self, layout: &Layout, segment: u32) -> Result<Arc<SegmentMap>, FetchError> {
        let Some(entry) = layout.manifest.segment(segment) else { return Ok(Arc::default()) };
        loop {
            if let Some(map) = self.parts.maps.get(&entry.map) {
                return Ok(map);
            }
            let Some(_flight) = self.base.flights.board(FetchKey::Map(segment)) else { continue };
            if let Some(map) = self.parts.maps.get(&entry.map) {
                return Ok(map);
            }
            let map = self.ask(|store| store.segment_map(entry.map))?;
            self.mark_holes(segment, &map);
            self.parts.maps.put(entry.map, map.clone());
            return Ok(map);
        }
    }

    /// Marks the holes of a segment present: they need no bytes.
    pub(crate) fn mark_holes(&self, segment: u32, map: &SegmentMap) {
        let mut holes = PresentBits::none();
        let mut at = 0;
        for run in map.runs() {
            holes.add(at, run.first_block);
            at = run.end_block();
        }
        holes.add(at, blocks_in_segment(self.length(), segment).max(at));
        // Without bytes to write nothing fails.
        let _ = self.base.keep(segment, &holes, |_| Ok(()));
    }

    /// Brings blocks into the base. Waits for fetches, and as long as the patience lasts for a store
    /// that cannot be reached.
    ///
    /// # Errors
    /// Those of the store; `Full` where the base cannot grow: [`BaseView::read_past`] may do.
    pub(crate) fn ensure_present(&self, blocks: Range<u64>) -> Result<()> {
        self.persist(|| self.bring(blocks.clone()))
    }

    /// The same as far as there is room.
    pub(crate) fn bring_if_room(&self, blocks: Range<u64>) -> Result<()> {
        match self.ensure_present(blocks) {
            Err(error) if error.kind() == Kind::Full => Ok(()),
            other => other,
        }
    }

    /// The same for whom nobody waits: several chunks at once, and a store that cannot be reached is
    /// an error at once.
    pub(crate) fn bring_ahead(&self, blocks: Range<u64>) -> Result<()> {
        let mut wanted = Vec::new();
        for (segment, range) in by_segment(blocks) {
            let bits = self.segment(segment);
            if bits.first_missing(range.start, range.end).is_none() {
                continue;
            }
            self.base.refresh(segment, &bits);
            let map = self.segment_map(segment)?;
            let first = u64::from(segment) * u64::from(BLOCKS_PER_SEGMENT);
            let missing = missing_runs(&map, &bits, range);
            wanted.extend(missing.into_iter().map(|run| first + u64::from(run.first_block)));
        }
        self.at_once(&wanted, |block| Ok(self.bring(*block..*block + 1)?))
    }

    /// Brings the maps of segments, several at once.
    pub(crate) fn bring_maps(&self, segments: Range<u32>) -> Result<()> {
        let segments: Vec<u32> = segments.collect();
        self.at_once(&segments, |segment| self.segment_map(*segment).map(drop))
    }

    /// Does the work for all items, a few at once.
    fn at_once<T: Sync, E: Send>(
        &self,
        items: &[T],
        work: impl Fn(&T) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        at_once(self.background().spare_threads(), AT_ONCE_MAX, items, work)
    }

    fn bring(&self, blocks: Range<u64>) -> Result<(), FetchError> {
        for (segment, range) in by_segment(blocks) {
            let bits = self.segment(segment);
            if bits.first_missing(range.start, range.end).is_none() {
                continue;
            }
            self.base.refresh(segment, &bits);
            if bits.first_missing(range.start, range.end).is_none() {
                continue;
            }
            self.by_layout(|layout| self.bring_in(layout, segment, range.clone()))?;
        }
        Ok(())
    }

    /// Brings blocks of one segment. Each is fetched once at most: where they are evicted as fast as
    /// they come, there is no room for them.
    fn bring_in(&self, layout: &Layout, segment: u32, range: Range<u32>) -> Result<(), FetchError> {
        let map = self.map(layout, segment)?;
        let mut fetches_left = range.len() + FETCHED_MAX;
        // Who waits for several chunks waits for the slowest alone. A set has units of its own.
        if self.boot().is_none() {
            let missing = missing_runs(&map, &self.segment(segment), range.clone());
            self.at_once(&missing, |run| self.fetch(segment, &map, run.chunk))?;
        }
        while let Some(missing) = self.segment(segment).first_missing(range.start, range.end) {
            if fetches_left == 0 {
                let subject = self.base.content().to_string();
                return Err(FetchError::Disk(
                    Error::new(Kind::Full, "keep fetched blocks of", subject)
                        .because("they are evicted as fast as they come"),
                ));
            }
            fetches_left -= 1;
            if self.bring_by_boot_set(segment, missing, &map) {
                continue;
            }
            match map.runs_in(missing, missing + 1).first() {
                Some(run) => self.fetch(segment, &map, run.chunk)?,
                // Its mark went with an eviction, or the map came by another base.
                None => self.mark_holes(segment, &map),
            }
        }
        Ok(())
    }

    /// Fetches one chunk, or waits for another who does.
    fn fetch(&self, segment: u32, map: &SegmentMap, digest: ChunkDigest) -> Result<(), FetchError> {
        let key = FetchKey::Chunk(segment, digest);
        let Some(_flight) = self.base.flights.board(key) else { return Ok(()) };
        let bits = self.segment(segment);
        let wanted: Vec<&Run> = map
            .runs()
            .iter()
            .filter(|run| run.chunk == digest)
            .filter(|run| bits.first_missing(run.first_block, run.end_block()).is_some())
            .collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let began = self.journal.now();
        let first_block =
            u64::from(segment) * u64::from(BLOCKS_PER_SEGMENT) + u64::from(wanted[0].first_block);
        let chunk = self.chunk(digest)?;
        let mut added = PresentBits::none();
        let mut pieces = Vec::with_capacity(wanted.len());
        for run in wanted {
            let bytes =
                chunk.blocks(run.first_in_chunk, run.block_count).map_err(FetchError::Store)?;
            pieces.push((run.first_block, bytes));
            added.add(run.first_block, run.end_block());
        }
        let written = self.keep(segment, &added, &pieces).map_err(FetchError::Disk)?;
        self.journal.fetched(began, Origin::Chunk, first_block, written);
        self.count_kept(written);
        Ok(())
    }

    /// Writes blocks into the base, each piece from a block of the segment on, and marks them present.
    /// Returns how many bytes that were.
    ///
    /// # Errors
    /// `Full` where there is no room, neither under the limit nor on the disk, and none can be made.
    pub(crate) fn keep(
        &self,
        segment: u32,
        added: &PresentBits,
        pieces: &[(u32, &[u8])],
    ) -> Result<u64> {
        let len = pieces.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        let _room = self.parts.room.reserve(len)?;
        let write = |data: &dyn File| {
            pieces.iter().try_for_each(|(block, bytes)| {
                let offset =
                    u64::from(segment) * SEGMENT_LEN + u64::from(*block) * BLOCK_LEN as u64;
                data.write_all_at(bytes, offset)
            })
        };
        let mut kept = self.base.keep(segment, added, write);
        if let Err(error) = &kept
            && error.kind() == io::ErrorKind::StorageFull
            && self.parts.room.relieve(len)
        {
            kept = self.base.keep(segment, added, write);
        }
        let subject = || self.base.content().to_string();
        kept.map_err(|error| Error::io("keep fetched blocks of", subject(), error))?;
        self.base.note_use(&self.segment(segment));
        Ok(len)
    }

    /// Counts bytes that were written into the base; now and then a checkpoint is due.
    pub(crate) fn count_kept(&self, len: u64) {
        if self.base.count_fetched(len) {
            self.parts.background.checkpoint(&self.base);
        }
    }

    pub(crate) fn background(&self) -> &Background {
        &self.parts.background
    }

    /// The boot working set that is on its way.
    pub(crate) fn boot(&self) -> Option<Arc<Boot>> {
        match self.has_boot.load(Ordering::Acquire) {
            true => self.boot.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            false => None,
        }
    }

    pub(crate) fn use_boot(&self, boot: Option<Arc<Boot>>) {
        let mut slot = self.boot.lock().unwrap_or_else(PoisonError::into_inner);
        self.has_boot.store(boot.is_some(), Ordering::Release);
        *slot = boot;
    }

    /// Reads pieces of a boot working set. Their blocks are not verified.
    pub(crate) fn boot_pieces(&self, pieces: &[BootPiece]) -> Result<Vec<Vec<u8>>> {
        let bytes = self.store.boot_pieces(pieces)?;
        let len: usize = bytes.iter().map(Vec::len).sum();
        self.fetched_bytes.fetch_add(len as u64, Ordering::Relaxed);
        Ok(bytes)
    }

    pub(crate) fn chunk(&self, digest: ChunkDigest) -> Result<Chunk, FetchError> {
        self.parts.chunks.get_or_fetch(&digest, || {
            let asked = self.journal.now();
            let chunk = self.ask(|store| store.chunk(digest))?;
            self.distance.learn(self.journal.now() - asked);
            self.fetched_bytes.fetch_add(chunk.bytes().len() as u64, Ordering::Relaxed);
            Ok(chunk)
        })
    }
}

/// For each chunk that something in the range is missing of, the run that misses first, from where it
/// does.
fn missing_runs(map: &SegmentMap, bits: &BaseSegment, range: Range<u32>) -> Vec<Run> {
    let mut seen = HashSet::new();
    let missing = |run: &Run| {
        let (start, end) = (run.first_block.max(range.start), run.end_block().min(range.end));
        let first_block = bits.first_missing(start, end)?;
        seen.insert(run.chunk).then_some(Run { first_block, ..*run })
    };
    map.runs_in(range.start, range.end).iter().filter_map(missing).collect()
}
