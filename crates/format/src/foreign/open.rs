//! From a path to a source: what it is (file, device, pipe), in which format, by which reader.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use model::source::DiskSource;
use model::{Error, Kind, Result};

use super::kind::{InputFormat, PROBE_LEN};
use super::qcow2::Qcow2Source;
use super::qemu_img;
use super::raw::RawSource;
use super::stream::StreamSource;

pub(super) const OPERATION: &str = "read the disk";

/// How a disk is opened.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// The format, or `None` to guess it from the first bytes. A guest can write those of a raw
    /// disk: for a disk of a stranger, say [`InputFormat::Raw`].
    pub format: Option<InputFormat>,
    /// Whether a disk that lies on another file (its backing file) may have that file opened,
    /// wherever it is. Only for disks that are trusted like the user who imports them.
    pub allow_backing: bool,
    /// Ends a wait for the bytes of a pipe or a terminal when it becomes readable or its other end is
    /// closed.
    pub interrupt: Option<BorrowedFd<'static>>,
}

/// Opens the disk at `path`: a file or a block device in any [`InputFormat`], or `-` for a raw disk
/// from the standard input.
///
/// Guarantees: without `allow_backing` nothing but `path` is opened. Raw and qcow2 are read in
/// place; other formats are converted into a sparse file without a name in `TMPDIR` first, by a
/// `qemu-img` child that has no network and bounded resources.
///
/// Cost: for qcow2, one pass over its tables. For other formats, a conversion and its room.
///
/// # Errors
/// `NotFound`, `Unavailable` (I/O, or `qemu-img` is missing); `Corrupt` for a disk that
/// contradicts itself or is truncated: fetch another copy; `Refused` where it names other files;
/// `Invalid` for a format or a feature that is not read here; `Full` when a conversion has no room.
pub fn open_source(path: &Path, options: &OpenOptions) -> Result<Box<dyn DiskSource>> {
    if path == Path::new("-") {
        return open_standard_input(options);
    }
    let subject = path.display().to_string();
    // A pipe would block in open(2) until somebody writes to it: look before.
    let file_type =
        std::fs::metadata(path).map_err(|e| Error::io(OPERATION, &subject, e))?.file_type();
    if file_type.is_dir() || file_type.is_socket() {
        let reason = "it is neither a file nor a block device";
        return Err(Error::new(Kind::Invalid, OPERATION, subject).because(reason));
    }
    let file = File::open(path).map_err(|e| Error::io(OPERATION, &subject, e))?;
    if file_type.is_fifo() || file_type.is_char_device() {
        require_raw(options, &subject)?;
        return Ok(Box::new(StreamSource::new(file, subject, options.interrupt)));
    }
    let format = match &options.format {
        Some(format) => format.clone(),
        None => recognise(&file).map_err(|e| Error::io(OPERATION, &subject, e))?,
    };
    match format {
        InputFormat::Raw => Ok(Box::new(RawSource::open(file, subject)?)),
        InputFormat::Qcow2 => match Qcow2Source::open(file, subject, options.allow_backing)? {
            Some(source) => Ok(Box::new(source)),
            None => qemu_img::open_trusted_chain(path),
        },
        InputFormat::Other(name) => qemu_img::open_converted(file, subject, &name),
    }
}

fn open_standard_input(options: &OpenOptions) -> Result<Box<dyn DiskSource>> {
    let subject = "standard input".to_owned();
    require_raw(options, &subject)?;
    let input = std::io::stdin();
    let owned = input.as_fd().try_clone_to_owned();
    let mut file = File::from(owned.map_err(|e| Error::io(OPERATION, &subject, e))?);
    let is_file = file.metadata().is_ok_and(|data| data.is_file());
    // `larder import - < FILE` has a file to ask for holes; `(read x; larder import -) < FILE`
    // means only what is left of it.
    if is_file && file.stream_position().is_ok_and(|position| position == 0) {
        return Ok(Box::new(RawSource::open(file, subject)?));
    }
    Ok(Box::new(StreamSource::new(file, subject, options.interrupt)))
}

fn require_raw(options: &OpenOptions, subject: &str) -> Result<()> {
    match &options.format {
        None | Some(InputFormat::Raw) => Ok(()),
        Some(format) => Err(Error::new(Kind::Invalid, OPERATION, subject)
            .because(format!("a {format} cannot be read from a pipe, only raw can"))
            .hint("save it to a file first, and import that")),
    }
}

fn recognise(file: &File) -> std::io::Result<InputFormat> {
    let mut first = [0; PROBE_LEN];
    let len = read_up_to(file, &mut first, 0)?;
    Ok(InputFormat::recognise(&first[..len]))
}

/// Fills `buffer` from `offset` as far as the file goes; returns how many bytes that was.
pub(super) fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(len) => done += len,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// The length of a file or a block device, whose metadata say 0.
pub(super) fn length_of(file: &File) -> std::io::Result<u64> {
    let metadata = file.metadata()?;
    if metadata.file_type().is_block_device() {
        let mut handle: &File = file;
        return handle.seek(SeekFrom::End(0));
    }
    Ok(metadata.len())
}
