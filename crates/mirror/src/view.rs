//! A version to be read, without a mirror: for read-only doors.

use std::ops::Range;
use std::sync::Arc;

use model::boot_set::BootSet;
use model::device::{Device, Extent, Take, WholeFile, check_range};
use model::{BLOCK_LEN, Error, Kind, Result};
use store::ChunkStore;

use crate::fetch::{BaseView, blocks_of, by_segment};
use crate::patience::Patience;
use crate::plan::BaseBlock;
use crate::state_folder::{Binding, StateFolder};

/// A version on this host, read-only. What it fetches serves all mirrors of that content.
pub struct ReadOnlyView {
    view: Arc<BaseView>,
    /// The version, for messages.
    subject: String,
}

impl ReadOnlyView {
    /// Opens a version. `binding.parent` names it in messages.
    ///
    /// # Errors
    /// Those of the store, where the version's manifest cannot be read.
    pub fn open(
        state: &StateFolder,
        binding: &Binding,
        store: Arc<dyn ChunkStore>,
    ) -> Result<Self> {
        let view = state.open_base(binding.content, binding.layout, binding.length, store)?;
        Ok(ReadOnlyView { view, subject: binding.parent.to_string() })
    }

    /// Plain bytes of the chunks that were fetched since it was opened.
    pub fn fetched_bytes(&self) -> u64 {
        self.view.fetched_bytes()
    }

    /// Says how long its reads wait for a store that cannot be reached, from now on. Without it they
    /// fail at once.
    pub fn set_patience(&self, patience: Patience) {
        self.view.set_patience(patience);
    }

    /// Ends all waits for a store that cannot be reached, with its error, now and later.
    pub fn give_up(&self) {
        self.view.give_up();
    }

    /// Brings a range, and fails where it cannot be kept: for whoever wants all of it here.
    ///
    /// # Errors
    /// `Full` where there is no room; those of the store.
    pub fn bring(&self, offset: u64, len: u64) -> Result<()> {
        check_range("bring the version", self.length(), offset, len)?;
        self.view.ensure_present(blocks_of(offset, len))
    }

    /// Bytes of a range that are no hole, as far as its maps were loaded.
    pub fn data_len(&self, offset: u64, len: u64) -> u64 {
        let blocks = by_segment(blocks_of(offset, len)).map(|(segment, blocks)| {
            let map = self.view.loaded_map(segment);
            let runs = map.as_ref().map_or(&[][..], |map| map.runs_in(blocks.start, blocks.end));
            let within = |run: &model::Run| {
                run.end_block().min(blocks.end) - run.first_block.max(blocks.start)
            };
            runs.iter().map(|run| u64::from(within(run))).sum::<u64>()
        });
        blocks.sum::<u64>() * BLOCK_LEN as u64
    }

    /// True where all of it is on this host. Cost: a look at every segment, and the map of each that
    /// is not full of data.
    pub fn is_complete(&self) -> bool {
        self.view.is_complete()
    }

    /// Makes what was fetched survive power loss. Not needed for anything but that.
    pub fn close(&self) -> Result<()> {
        self.view.base.checkpoint()
    }

    /// Brings the blocks of a working set in the background, as far as the version has them. Reads
    /// overtake it.
    pub fn prefetch_boot_set(&self, set: Arc<BootSet>) {
        self.view.prefetch_boot_set(set);
    }

    pub(crate) fn base_view(&self) -> &BaseView {
        &self.view
    }

    fn refused(&self, operation: &'static str) -> Error {
        Error::new(Kind::Refused, operation, self.subject.as_str())
            .because("a version never changes")
            .hint("attach it as a mirror to write to it")
    }
}

impl Device for ReadOnlyView {
    fn length(&self) -> u64 {
        self.view.length()
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        check_range("read the version", self.length(), offset, buffer.len() as u64)?;
        self.view.read(offset, buffer)
    }

    fn write(&self, _offset: u64, _bytes: &[u8]) -> Result<()> {
        Err(self.refused("write to the version"))
    }

    fn write_zeroes(&self, _offset: u64, _len: u64) -> Result<()> {
        Err(self.refused("write zeros to the version"))
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        Err(self.refused("discard in the version"))
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn take_from_file(&self, offset: u64, len: usize, take: &mut Take<'_>) -> usize {
        match check_range("read the version", self.length(), offset, len as u64) {
            Ok(()) => self.view.take(offset, offset + len as u64, take),
            Err(_) => 0,
        }
    }

    fn prefetch(&self, offset: u64, len: u64) -> Result<()> {
        check_range("prefetch", self.length(), offset, len)?;
        self.view.bring_if_room(blocks_of(offset, len))
    }

    fn whole_file(&self) -> Result<Option<Box<dyn WholeFile>>> {
        // The file is padded to whole blocks: a reader without us would see the padding. What is
        // incomplete is not held, which would cost a sync at each open.
        let is_whole = self.length().is_multiple_of(BLOCK_LEN as u64) && self.view.is_complete();
        let held = if is_whole { self.hold_file()? } else { None };
        Ok(held.map(|file| Box::new(file) as Box<dyn WholeFile>))
    }

    fn extents(&self, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>> {
        check_range("list the extents of the version", self.length(), offset, len)?;
        crate::extents::extents(&self.view, offset..offset + len, max, |_| Ok(None))
            .map_err(|error| Error::io("list the extents of", self.subject.as_str(), error))
    }

    fn may_wait(&self, offset: u64, len: u64) -> bool {
        if offset.checked_add(len).is_none_or(|end| end > self.length()) {
            return false;
        }
        let missing = |(segment, blocks): (u32, Range<u32>)| {
            blocks.into_iter().any(|b| self.view.glance(segment, b) == BaseBlock::Missing)
        };
        by_segment(blocks_of(offset, len)).any(missing)
    }
}
