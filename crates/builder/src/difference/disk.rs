//! The root file system of a version, read without a kernel.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::error::Error as StdError;
use std::ops::Range;
use std::sync::Arc;

use ext4_view::{Ext4, Ext4Error, Ext4Read, Path};
use format::partitions::{START_LEN, Table, gpt_partition, is_ext, partition_table};
use model::{Error, Kind, Result};
use repository::Reader;

const WINDOW_LEN: u64 = 1 << 20;

/// Windows that stay in memory: 48 MiB.
const WINDOWS_MAX: usize = 48;

/// The root file system of a version: of those of the ext family the first that has `etc` or `usr`,
/// otherwise the first.
///
/// # Errors
/// `Invalid` where there is none; `Corrupt` where it is damaged.
pub fn root_file_system(reader: &Arc<Reader>) -> Result<Ext4> {
    let length = reader.length();
    let mut first = None;
    for range in candidates(reader, length)? {
        let Some(start) = start_of(reader, &range)? else { continue };
        if !is_ext(&start, range.end - range.start) {
            continue;
        }
        let windows = Windows { reader: reader.clone(), range, kept: RefCell::default() };
        let found = Ext4::load(Box::new(windows)).map_err(|error| damaged(reader, "/", error))?;
        let has = |path: &str| found.exists(Path::new(path)).unwrap_or(false);
        if has("/etc") || has("/usr") {
            return Ok(found);
        }
        first.get_or_insert(found);
    }
    first.ok_or_else(|| {
        Error::new(Kind::Invalid, "read the files of", reader.version().id.to_string())
            .because("it holds no file system of the ext family")
            .hint("`larder diff --bytes` compares blocks of whatever there is")
    })
}

/// What a failure of the file system means.
pub fn damaged(reader: &Reader, path: &str, error: Ext4Error) -> Error {
    let told = Error::new(Kind::Corrupt, "read the files of", reader.version().id.to_string());
    let reason = match &error {
        Ext4Error::Io(source) => source.to_string(),
        other => other.to_string(),
    };
    told.because(format!("{path}: {reason}"))
        .hint("`larder diff --bytes` compares blocks of whatever there is")
}

/// The partitions, or the whole disk.
fn candidates(reader: &Reader, length: u64) -> Result<Vec<Range<u64>>> {
    let Some(start) = start_of(reader, &(0..length))? else { return Ok(Vec::new()) };
    // A bare file system may hold a boot sector before its superblock.
    if is_ext(&start, length) {
        return Ok(Vec::from([Range { start: 0, end: length }]));
    }
    match partition_table(&start, length) {
        Table::None => Ok(Vec::new()),
        Table::Partitions(found) => Ok(found),
        Table::Entries(offset, entry_len, count) => {
            let len = u64::from(entry_len) * u64::from(count);
            if offset.checked_add(len).is_none_or(|end| end > length) {
                return Ok(Vec::new());
            }
            let mut entries = vec![0; len as usize];
            reader.read_at(offset, &mut entries)?;
            let entries = entries.chunks_exact(entry_len as usize);
            Ok(entries.filter_map(|entry| gpt_partition(entry, length)).collect())
        }
    }
}

fn start_of(reader: &Reader, range: &Range<u64>) -> Result<Option<[u8; START_LEN]>> {
    if range.end - range.start < START_LEN as u64 {
        return Ok(None);
    }
    let mut start = [0; START_LEN];
    reader.read_at(range.start, &mut start)?;
    Ok(Some(start))
}

/// A range of a version; the windows that were read last are kept.
struct Windows {
    reader: Arc<Reader>,
    range: Range<u64>,
    kept: RefCell<VecDeque<(u64, Vec<u8>)>>,
}

impl Ext4Read for Windows {
    fn read(
        &mut self,
        start: u64,
        target: &mut [u8],
    ) -> Result<(), Box<dyn StdError + Send + Sync>> {
        let first = self.range.start.checked_add(start);
        let end = first.and_then(|first| first.checked_add(target.len() as u64));
        let (Some(mut at), Some(end)) = (first, end.filter(|end| *end <= self.range.end)) else {
            return Err("it reaches beyond its partition".into());
        };
        let mut rest = target;
        while at < end {
            let window = at / WINDOW_LEN;
            let from = (at - window * WINDOW_LEN) as usize;
            let len = rest.len().min(WINDOW_LEN as usize - from);
            let (now, behind) = rest.split_at_mut(len);
            self.with_window(window, |bytes| now.copy_from_slice(&bytes[from..from + len]))
                .map_err(|error| error.chain())?;
            rest = behind;
            at += len as u64;
        }
        Ok(())
    }
}

impl Windows {
    fn with_window(&self, window: u64, mut each: impl FnMut(&[u8])) -> Result<()> {
        let mut kept = self.kept.borrow_mut();
        let entry = match kept.iter().position(|(number, _)| *number == window) {
            Some(position) => kept.remove(position),
            None => None,
        };
        let entry = match entry {
            Some(entry) => entry,
            None => {
                let start = window * WINDOW_LEN;
                let len = (self.reader.length() - start).min(WINDOW_LEN);
                let mut bytes = vec![0; len as usize];
                self.reader.read_at(start, &mut bytes)?;
                (window, bytes)
            }
        };
        each(&entry.1);
        kept.push_front(entry);
        kept.truncate(WINDOWS_MAX);
        Ok(())
    }
}
