//! From a path to a sink: what lies there decides how it is written.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use model::block::LENGTH_MAX;
use model::source::DiskSink;
use model::{Error, Kind, Result};

use super::destination::Destination;
use super::kind::OutputFormat;
use super::qcow2::Qcow2Sink;
use super::raw_sink::{DeviceSink, RawSink};
use super::stream::StreamSink;

pub(super) const OPERATION: &str = "write the disk";

/// Makes a sink that writes a disk of `length` bytes to `path`, or a raw one to the standard output
/// where `path` is `-`.
///
/// Guarantees: a file at `path` is replaced as a whole by `finish`, or not at all; a sink that is
/// dropped leaves nothing behind. A block device is written in place, its holes zeroed, and what
/// lies on it behind the disk's end is left alone. Pipes and the standard output get holes as
/// zeros.
///
/// # Errors
/// `Invalid` for a destination that cannot hold the format (a qcow2 needs a file); `Full` when a
/// device is too small; `NotFound` when the folder is missing; `Refused` for missing rights, or a
/// device that is mounted.
pub fn create_sink(path: &Path, format: OutputFormat, length: u64) -> Result<Box<dyn DiskSink>> {
    let is_stdout = path == Path::new("-");
    let subject = if is_stdout { "standard output".to_owned() } else { path.display().to_string() };
    if length > LENGTH_MAX {
        let reason = format!("{length} bytes are more than a disk can have, {LENGTH_MAX}");
        return Err(Error::new(Kind::Invalid, OPERATION, subject).because(reason));
    }
    if is_stdout {
        require_raw(format, &subject)?;
        let output = std::io::stdout().as_fd().try_clone_to_owned();
        let output = output.map_err(|e| Error::io(OPERATION, &subject, e))?;
        return Ok(Box::new(StreamSink::new(File::from(output), subject)));
    }
    let file_type = match std::fs::metadata(path) {
        Ok(metadata) => Some(metadata.file_type()),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(Error::io(OPERATION, subject, error)),
    };
    match file_type {
        Some(there) if there.is_dir() || there.is_socket() => {
            Err(Error::new(Kind::Invalid, OPERATION, subject)
                .because("something that is no file is in its place"))
        }
        Some(there) if there.is_block_device() => {
            require_raw(format, &subject)?;
            Ok(Box::new(DeviceSink::open(path, subject, length)?))
        }
        Some(there) if there.is_fifo() || there.is_char_device() => {
            require_raw(format, &subject)?;
            let output = File::options().write(true).open(path);
            let output = output.map_err(|e| Error::io(OPERATION, &subject, e))?;
            Ok(Box::new(StreamSink::new(output, subject)))
        }
        _ => {
            let destination = Destination::create(path, subject)?;
            Ok(match format {
                OutputFormat::Raw => Box::new(RawSink::new(destination)),
                OutputFormat::Qcow2 => Box::new(Qcow2Sink::new(destination)?),
            })
        }
    }
}

fn require_raw(format: OutputFormat, subject: &str) -> Result<()> {
    match format {
        OutputFormat::Raw => Ok(()),
        OutputFormat::Qcow2 => Err(Error::new(Kind::Invalid, OPERATION, subject)
            .because("a qcow2 can only be written to a file")
            .hint("write it to a file, or choose --output-format raw")),
    }
}

/// Checks that a write follows the last one and stays inside the longest disk; returns its end.
pub(super) fn check_order(subject: &str, position: u64, offset: u64, len: usize) -> Result<u64> {
    let end = offset.checked_add(len as u64).filter(|end| *end <= LENGTH_MAX);
    match end {
        Some(end) if offset >= position => Ok(end),
        _ => Err(Error::new(Kind::Bug, OPERATION, subject)
            .because(format!("{len} bytes at {offset} were to be written after {position}"))),
    }
}
