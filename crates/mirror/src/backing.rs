//! A base's file in the kernel's hands: for FUSE passthrough, and for mappings.
//!
//! ```text
//! none ─ hold ─► mark on disk ─► held ─ last guard dropped ─► mark removed ─► none
//!                    `bases/<content>/held.<boot>.<random>`
//! ```
//!
//! **Invariants**: no byte of a held base goes away. The mark is durable before a guard is given,
//! and counts for other processes too.
//!
//! **Failure**: a process that is killed leaves its mark, because the kernel may go on reading for
//! whoever has the file open; the mark counts until the machine starts again.
//!
//! **Not here**: who may be given the file; what the last, partial block means to its reader.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use env::entropy::{Entropy, SystemEntropy};
use env::{FileSystem, OpenMode};
use model::block::{blocks_in_segment, segment_count};
use model::device::WholeFile;
use model::{Error, Result};

use crate::base::Base;
use crate::fetch::BaseView;
use crate::view::ReadOnlyView;

const MARK: &str = "held.";

/// Who holds a base's file in this process.
#[derive(Debug, Default)]
pub(crate) struct Holders(Mutex<Held>);

#[derive(Debug, Default)]
pub(crate) struct Held {
    count: usize,
    mark: Option<PathBuf>,
}

/// A complete base's file that stays complete until this is dropped. Clones share it.
#[derive(Clone, Debug)]
pub struct BackingFile {
    guard: Arc<Guard>,
}

#[derive(Debug)]
struct Guard(Arc<Base>);

impl BackingFile {
    fn take(base: Arc<Base>) -> Result<Self> {
        base.hold()?;
        Ok(BackingFile { guard: Arc::new(Guard(base)) })
    }

    /// The file: the version's bytes at the same addresses, padded with zeros to a whole block.
    /// Open for reading and writing; whoever hands it out must see to it that nobody writes. `None`
    /// where the file system has no descriptors, as simulated ones.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.guard.0.data.fd()
    }
}

impl WholeFile for BackingFile {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.release();
    }
}

impl ReadOnlyView {
    /// The file of the version's base, if all of the version is on this host. It stays complete as
    /// long as the guard lives.
    ///
    /// Order: that the base is held is durable when it returns. Cost: one sync where nobody held it;
    /// a look at every segment, and the map of each that is not full of data.
    ///
    /// # Errors
    /// Those of the host's disk: read through [`model::device::Device`] instead.
    pub fn hold_file(&self) -> Result<Option<BackingFile>> {
        // Held first: what is looked at afterwards cannot go.
        let file = BackingFile::take(self.base_view().base.clone())?;
        Ok(self.base_view().is_complete().then_some(file))
    }
}

impl BaseView {
    /// True where every block is on this host or is a hole. False too where that cannot be told
    /// without a store that does not answer.
    pub(crate) fn is_complete(&self) -> bool {
        (0..segment_count(self.length())).all(|segment| {
            if self.is_hole(segment) {
                return true;
            }
            let end = blocks_in_segment(self.length(), segment);
            let is_full = || self.segment(segment).first_missing(0, end).is_none();
            if is_full() {
                return true;
            }
            self.base.refresh(segment, &self.segment(segment));
            if is_full() {
                return true;
            }
            let map = self.segment_map(segment);
            map.inspect(|map| self.mark_holes(segment, map)).is_ok() && is_full()
        })
    }
}

impl Base {
    fn hold(&self) -> Result<()> {
        let mut held = self.holders.guard();
        if held.count == 0 {
            let failed = |error| Error::io("hold the base", self.content().to_string(), error);
            held.mark = Some(make_mark(self.file_system(), self.folder()).map_err(failed)?);
        }
        held.count += 1;
        Ok(())
    }

    fn release(&self) {
        let mut held = self.holders.guard();
        held.count -= 1;
        if held.count == 0
            && let Some(mark) = held.mark.take()
            && let Err(error) = self.file_system().remove_file(&mark)
        {
            // It counts until the machine starts again: space, but no byte, is lost.
            tracing::warn!(mark = %mark.display(), %error, "the mark of a held base stays");
        }
    }
}

impl Holders {
    /// Nobody begins or ends to hold the base while this is held.
    pub(crate) fn guard(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn make_mark(file_system: &dyn FileSystem, folder: &Path) -> io::Result<PathBuf> {
    let name = format!("{MARK}{}.{}", file_system.boot_id()?, SystemEntropy.name());
    let path = folder.join(name);
    file_system.open(&path, OpenMode::CreateNew)?;
    let durable = file_system.sync_folder(folder).inspect_err(|_| {
        let _ = file_system.remove_file(&path);
    });
    durable.map(|()| path)
}
/// True where a process of this boot holds the base, or died while it did. Marks of other boots are
/// removed.
pub(crate) fn is_held(file_system: &dyn FileSystem, folder: &Path) -> io::Result<bool> {
    let of_this_boot = format!("{MARK}{}.", file_system.boot_id()?);
    let mut is_held = false;
    for name in file_system.list(folder)? {
        let text = name.to_string_lossy();
        if text.starts_with(&of_this_boot) {
            is_held = true;
        } else if text.starts_with(MARK) {
            let _ = file_system.remove_file(&folder.join(&name));
        }
    }
    Ok(is_held)
}
