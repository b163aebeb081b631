//! The log of one mirror's state, as a file.
//!
//! **Order**: bytes, sync, and only then does the end move. A new log is written beside the old
//! one, synced, renamed over it, and the folder synced.
//!
//! **Failure**: an append that fails is overwritten by the next; a torn one is not seen.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use env::{File, FileSystem, OpenMode};
use format::mirror_log::{DecodedLog, LogBinding, LogEncoder, LogRecord, decode_log};
use model::{Error, Kind, Result};

/// Log files grow by this, so that a short append leaves the file's length as it is.
const STEP: usize = 64 << 10;

/// A log below this is not compacted.
const COMPACT_MIN: usize = 1 << 20;

/// A log that is this many times longer than its snapshot is compacted.
const COMPACT_FACTOR: usize = 4;

/// The longest log that is read.
const LOG_LEN_MAX: u64 = 4 << 30;

/// An open log, at its end.
#[derive(Debug)]
pub(crate) struct MirrorLog {
    file_system: Arc<dyn FileSystem>,
    path: PathBuf,
    file: Arc<dyn File>,
    epoch: u64,
    end: usize,
    allocated: usize,
    snapshot_len: usize,
    encoder: LogEncoder,
}

/// Where a mirror's log is.
pub(crate) fn log_path(folder: &Path) -> PathBuf {
    folder.join("state.log")
}

/// Reads a log.
///
/// # Errors
/// `NotFound` where the mirror does not exist; `Corrupt`, `Refused` where the log cannot be read.
pub(crate) fn read_log(
    file_system: &dyn FileSystem,
    folder: &Path,
    mirror: &str,
) -> Result<(DecodedLog, LogBinding)> {
    let operation = "read the state of the mirror";
    let bytes = file_system
        .read_file(&log_path(folder), LOG_LEN_MAX)
        .map_err(|error| Error::io(operation, mirror, error))?;
    let log = decode_log(&bytes).map_err(|error| {
        let kind = match error {
            format::mirror_log::MirrorLogError::Format { .. } => Kind::Refused,
            _ => Kind::Corrupt,
        };
        Error::new(kind, operation, mirror).caused_by(error)
    })?;
    let Some(LogRecord::Binding(binding)) = log.records.first() else {
        return Err(Error::new(Kind::Bug, operation, mirror).because("it has no binding"));
    };
    let mut binding = binding.clone();
    for record in &log.records {
        if let LogRecord::Parent(parent) = record {
            binding.parent = parent.clone();
        }
    }
    Ok((log, binding))
}

impl MirrorLog {
    /// Writes a new log beside the one there, if any, durably. It counts once it is installed.
    pub(crate) fn prepare(
        file_system: Arc<dyn FileSystem>,
        folder: &Path,
        epoch: u64,
        records: &[LogRecord],
    ) -> io::Result<MirrorLog> {
        let log = MirrorLog::write_beside(file_system, folder, epoch, records)?;
        log.file.sync()?;
        Ok(log)
    }

    fn write_beside(
        file_system: Arc<dyn FileSystem>,
        folder: &Path,
        epoch: u64,
        records: &[LogRecord],
    ) -> io::Result<MirrorLog> {
        let path = log_path(folder);
        let mut bytes = Vec::new();
        let mut encoder = LogEncoder::begin(epoch, &mut bytes);
        records.iter().for_each(|record| encoder.push(record, &mut bytes));
        let end = bytes.len();
        bytes.resize((end + 1).next_multiple_of(STEP), 0);
        let file = file_system.open(&path.with_extension("new"), OpenMode::OpenOrCreate)?;
        file.set_len(0)?;
        file.write_all_at(&bytes, 0)?;
        let (allocated, snapshot_len) = (bytes.len(), end);
        Ok(MirrorLog { file_system, path, file, epoch, end, allocated, snapshot_len, encoder })
    }

    /// Puts a prepared log in place of the one there, if any. Durable when it returns; where it
    /// fails, nobody knows which of the two is there after a crash.
    pub(crate) fn install(&self) -> io::Result<()> {
        self.file_system.rename(&self.path.with_extension("new"), &self.path)?;
        self.file_system.sync_folder(self.path.parent().unwrap_or(Path::new("/")))
    }

    /// Writes and installs the log of a new mirror, which exists with it: so `files`, and the names
    /// of the folder and the three above it, are made durable before.
    pub(crate) fn create(
        file_system: Arc<dyn FileSystem>,
        folder: &Path,
        records: &[LogRecord],
        files: &[Arc<dyn File>],
    ) -> io::Result<MirrorLog> {
        let log = MirrorLog::write_beside(file_system, folder, 0, records)?;
        let files: Vec<&dyn File> = files.iter().chain([&log.file]).map(|file| &**file).collect();
        let folders: Vec<&Path> = folder.ancestors().take(4).collect();
        log.file_system.sync_together(&files, &folders)?;
        log.install()?;
        Ok(log)
    }

    /// Opens a log that was read, to append to it.
    pub(crate) fn open(
        file_system: Arc<dyn FileSystem>,
        folder: &Path,
        log: &DecodedLog,
    ) -> io::Result<MirrorLog> {
        let path = log_path(folder);
        let file = file_system.open(&path, OpenMode::ReadWrite)?;
        let allocated = file.len()? as usize;
        Ok(MirrorLog {
            file_system,
            path,
            file,
            epoch: log.epoch,
            end: log.end,
            allocated,
            snapshot_len: log.end,
            encoder: log.encoder.clone(),
        })
    }

    /// Which life of the log this is.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// True where a snapshot would save space.
    pub(crate) fn wants_compaction(&self) -> bool {
        self.end > COMPACT_MIN && self.end > COMPACT_FACTOR * self.snapshot_len
    }

    /// Bytes of disk that it takes.
    pub(crate) fn len(&self) -> u64 {
        self.allocated as u64
    }

    /// Writes records behind the last. Durable after [`MirrorLog::commit`].
    pub(crate) fn append(&self, records: &[LogRecord]) -> io::Result<Append> {
        let mut encoder = self.encoder.clone();
        let mut bytes = Vec::new();
        records.iter().for_each(|record| encoder.push(record, &mut bytes));
        let end = self.end + bytes.len();
        let mut allocated = self.allocated;
        if end > allocated {
            allocated = end.next_multiple_of(STEP);
            bytes.resize(allocated - self.end, 0);
        }
        self.file.write_all_at(&bytes, self.end as u64)?;
        Ok(Append { encoder, end, allocated })
    }

    /// Makes an append durable.
    pub(crate) fn commit(&mut self, append: Append) -> io::Result<()> {
        self.file.sync()?;
        (self.encoder, self.end, self.allocated) = (append.encoder, append.end, append.allocated);
        Ok(())
    }
}

/// An append that is written but not yet durable.
#[derive(Debug)]
pub(crate) struct Append {
    encoder: LogEncoder,
    end: usize,
    allocated: usize,
}
