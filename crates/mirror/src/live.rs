//! States of overlay blocks that survive the death of the process, not that of the machine.
//!
//! The file's name tells the life of the log and the boot that it belongs to; others do not count.
//! Whatever a guest was told to be written is here before it is told, so a process that takes over
//! sees every write, flushed or not.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use env::{File, FileSystem, OpenMode};
use format::mirror_log::{
    GROUPS_PER_SEGMENT, GroupStates, LIVE_GROUP_LEN, LIVE_HEADER_LEN, decode_live_group,
    encode_live_group, live_groups, live_header, live_table,
};
use model::block::segment_count;

use crate::overlay::GroupChange;

/// The live states of one life of a mirror's log.
#[derive(Debug)]
pub(crate) struct LiveStates {
    file: Arc<dyn File>,
    length: u64,
    /// Segments whose byte in the table is set.
    listed: Mutex<BTreeSet<u32>>,
}

fn name(epoch: u64, boot_id: &str) -> PathBuf {
    PathBuf::from(format!("live.{epoch}.{boot_id}"))
}

impl LiveStates {
    /// Opens the states of this life and this boot, empty where there are none.
    pub(crate) fn open(
        file_system: &dyn FileSystem,
        folder: &Path,
        epoch: u64,
        length: u64,
    ) -> io::Result<LiveStates> {
        let path = folder.join(name(epoch, &file_system.boot_id()?));
        let file = file_system.open(&path, OpenMode::OpenOrCreate)?;
        if let Some(states) = LiveStates::read_table(file.clone(), length)? {
            return Ok(states);
        }
        file.set_len(0)?;
        file.set_len(live_groups(length, segment_count(length)).start)?;
        file.write_all_at(&live_header(), 0)?;
        Ok(LiveStates { file, length, listed: Mutex::default() })
    }

    /// The same, changing nothing: `None` where there are none.
    pub(crate) fn look(
        file_system: &dyn FileSystem,
        folder: &Path,
        epoch: u64,
        length: u64,
    ) -> io::Result<Option<LiveStates>> {
        let path = folder.join(name(epoch, &file_system.boot_id()?));
        match file_system.open(&path, OpenMode::Read) {
            Ok(file) => LiveStates::read_table(file, length),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read_table(file: Arc<dyn File>, length: u64) -> io::Result<Option<LiveStates>> {
        let mut header = [0; LIVE_HEADER_LEN];
        let whole = live_groups(length, segment_count(length)).start;
        if file.len()? != whole
            || file.read_exact_at(&mut header, 0).is_err()
            || header != live_header()
        {
            return Ok(None);
        }
        let range = live_table(length);
        let mut table = vec![0; (range.end - range.start) as usize];
        file.read_exact_at(&mut table, range.start)?;
        let listed = (0..).zip(table).filter(|(_, byte)| *byte == 1).map(|(number, _)| number);
        let listed = Mutex::new(listed.collect());
        Ok(Some(LiveStates { file, length, listed }))
    }

    /// Removes the states of other lives and boots. Best effort: they never count.
    pub(crate) fn remove_others(
        file_system: &dyn FileSystem,
        folder: &Path,
        epoch: u64,
    ) -> io::Result<()> {
        let keep = name(epoch, &file_system.boot_id()?);
        for file in file_system.list(folder)? {
            if file != keep && file.to_string_lossy().starts_with("live.") {
                let _ = file_system.remove_file(&folder.join(file));
            }
        }
        Ok(())
    }

    /// Removes all live states: those of a mirror of the same name must not count for a new one.
    pub(crate) fn remove_all(file_system: &dyn FileSystem, folder: &Path) -> io::Result<()> {
        for file in file_system.list(folder)? {
            if file.to_string_lossy().starts_with("live.") {
                file_system.remove_file(&folder.join(file))?;
            }
        }
        Ok(())
    }

    /// The segments that have live states.
    pub(crate) fn segments(&self) -> Vec<u32> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }

    /// The groups of a segment that were written.
    pub(crate) fn read(&self, segment: u32) -> io::Result<Vec<(usize, GroupStates)>> {
        let mut bytes = vec![0; GROUPS_PER_SEGMENT * LIVE_GROUP_LEN];
        self.file.read_exact_at(&mut bytes, live_groups(self.length, segment).start)?;
        let groups = bytes.chunks(LIVE_GROUP_LEN).map(decode_live_group).enumerate();
        Ok(groups.filter_map(|(number, group)| group.map(|group| (number, group))).collect())
    }

    /// Writes changed groups of one segment. Cost: one small write without sync, mostly.
    pub(crate) fn write(&self, segment: u32, changes: &[GroupChange]) -> io::Result<()> {
        let start = live_groups(self.length, segment).start;
        let mut at = 0;
        while at < changes.len() {
            let mut bytes = Vec::new();
            let first = changes[at].group;
            while at < changes.len() && changes[at].group == first + bytes.len() / LIVE_GROUP_LEN {
                encode_live_group(&changes[at].states, &mut bytes);
                at += 1;
            }
            self.file.write_all_at(&bytes, start + (first * LIVE_GROUP_LEN) as u64)?;
        }
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        if !listed.contains(&segment) {
            self.file.write_all_at(&[1], live_table(self.length).start + u64::from(segment))?;
            listed.insert(segment);
        }
        Ok(())
    }
}
