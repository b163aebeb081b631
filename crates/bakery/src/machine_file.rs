//! A machine as a file: the guest's memory first, then device state, then the record.
//!
//! ```text
//! made:      [ memory, shared with the monitor ]
//! saved:     [ memory | zeros to a segment's end | state ]       the monitor writes it there itself
//! finished:  [ memory | zeros                    | state | zeros | record, 64 KiB ]
//! ```
//!
//! While a guest is baked the file has no name: it goes with the processes that have it open. So it
//! can be imported as it lies, and nothing is left of it when that fails.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use format::foreign::{InputFormat, OpenOptions, open_source};
use format::{decode_machine, encode_machine};
use model::device::Device;
use model::machine::{
    MachineOrigin, MachineRecord, MachineShape, MonitorFacts, RECORD_REGION_LEN, StateRegion,
    state_offset, version_len,
};
use model::source::DiskSource;
use model::{ContentDigest, Error, Kind, Result};
use rustix::fs::MemfdFlags;

/// Bytes that are read at a time.
const PIECE_LEN: usize = 1 << 20;

/// The path by which a process that has inherited a descriptor opens its file anew.
pub fn path_of(descriptor: &Arc<OwnedFd>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))
}

/// How a machine came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    /// Baked or suspended.
    pub origin: MachineOrigin,
    /// Whether Larder's helper runs in the guest.
    pub has_helper: bool,
}

/// A machine that is being made.
pub struct MachineFile {
    file: Arc<OwnedFd>,
    memory_len: u64,
}

impl MachineFile {
    /// A file of so much memory, all zeros.
    ///
    /// # Errors
    /// `Full`, `Unavailable`: memory or descriptors are short.
    pub fn new(memory_len: u64) -> Result<Self> {
        let failed = |error: std::io::Error| Error::io("make memory for", "the guest", error);
        let file = rustix::fs::memfd_create("larder-machine", MemfdFlags::CLOEXEC)
            .map_err(|error| failed(error.into()))?;
        rustix::fs::ftruncate(&file, memory_len).map_err(|error| failed(error.into()))?;
        Ok(MachineFile { file: Arc::new(file), memory_len })
    }

    /// A copy of a guest's memory, which must not change meanwhile. Holes stay holes.
    ///
    /// Cost: all cores copy what is no hole.
    pub fn copy_of(memory: &Arc<OwnedFd>, memory_len: u64) -> Result<Self> {
        let copy = Self::new(memory_len)?;
        let failed = |error| Error::io("copy the memory of", "the guest", error);
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let step = memory_len.div_ceil(cores).next_multiple_of(PIECE_LEN as u64);
        std::thread::scope(|scope| {
            let parts = (0..cores).map(|part| {
                let range = (part * step).min(memory_len)..((part + 1) * step).min(memory_len);
                let copy = &copy;
                scope.spawn(move || copy_data(memory, &copy.file, range))
            });
            let parts: Vec<_> = parts.collect();
            parts.into_iter().try_for_each(|part| {
                part.join().unwrap_or_else(|_| Err(std::io::Error::other("a thread ended")))
            })
        })
        .map_err(failed)?;
        Ok(copy)
    }

    /// A copy of the memory in a machine's version.
    ///
    /// # Errors
    /// Those of the device.
    pub fn memory_of(device: &dyn Device, memory_len: u64) -> Result<Self> {
        let copy = Self::new(memory_len)?;
        let file = copy.open()?;
        let failed = |error| Error::io("copy the memory of", "the machine", error);
        let mut piece = vec![0; PIECE_LEN];
        for at in (0..memory_len).step_by(PIECE_LEN) {
            let step = (memory_len - at).min(PIECE_LEN as u64) as usize;
            device.read(at, &mut piece[..step])?;
            if piece[..step].iter().any(|byte| *byte != 0) {
                file.write_all_at(&piece[..step], at).map_err(failed)?;
            }
        }
        Ok(copy)
    }

    /// The guest's memory.
    pub fn memory(&self) -> Arc<OwnedFd> {
        self.file.clone()
    }

    fn path(&self) -> PathBuf {
        path_of(&self.file)
    }

    fn open(&self) -> Result<File> {
        File::options()
            .read(true)
            .write(true)
            .open(self.path())
            .map_err(|error| Error::io("open", "the machine's file", error))
    }

    /// Where the device state is written to: positioned there.
    pub fn state_writer(&self) -> Result<OwnedFd> {
        let mut file = self.open()?;
        file.seek(SeekFrom::Start(state_offset(self.memory_len)))
            .map_err(|error| Error::io("open", "the machine's file", error))?;
        Ok(file.into())
    }

    /// Writes the record behind the state that was written. Afterwards the file is the machine.
    ///
    /// # Errors
    /// `Bug` where no state was written; `Invalid` where what the monitor says cannot be kept.
    pub fn finish(
        &self,
        made: Made,
        shape: MachineShape,
        monitor: MonitorFacts,
        disk: ContentDigest,
    ) -> Result<MachineRecord> {
        let Made { origin, has_helper } = made;
        let failed = |error| Error::io("write", "the machine's record", error);
        let file = self.open()?;
        let offset = state_offset(self.memory_len);
        let len = match self.recorded_state_len(&file)? {
            Some(len) => len,
            None => file.metadata().map_err(failed)?.len().saturating_sub(offset),
        };
        if len == 0 {
            return Err(Error::new(Kind::Bug, "write", "the machine's record")
                .because("there is no device state"));
        }
        let digest = hash(&file, offset, len).map_err(failed)?;
        let state = StateRegion { offset, len, digest };
        let record = MachineRecord { origin, has_helper, shape, state, disk, monitor };
        let bytes = encode_machine(&record).map_err(|error| {
            Error::new(Kind::Invalid, "write", "the machine's record").caused_by(error)
        })?;
        let end = version_len(self.memory_len, len);
        file.set_len(end).map_err(failed)?;
        file.write_all_at(&bytes, end - RECORD_REGION_LEN).map_err(failed)?;
        Ok(record)
    }

    /// The length of the state, where the record is there already: it is written once more when the
    /// disk had to be laid out again.
    fn recorded_state_len(&self, file: &File) -> Result<Option<u64>> {
        let failed = |error| Error::io("read", "the machine's record", error);
        let len = file.metadata().map_err(failed)?.len();
        let Some(start) = len.checked_sub(RECORD_REGION_LEN) else { return Ok(None) };
        let mut bytes = vec![0; RECORD_REGION_LEN as usize];
        file.read_exact_at(&mut bytes, start).map_err(failed)?;
        Ok(decode_machine(&bytes).ok().map(|record| record.state.len))
    }

    /// The file as a source of an import; what is no hole is read.
    pub fn source(&self) -> Result<Box<dyn DiskSource>> {
        let options =
            OpenOptions { format: Some(InputFormat::Raw), allow_backing: false, interrupt: None };
        open_source(&self.path(), &options)
    }
}

/// Copies what is no hole in a range.
fn copy_data(from: &OwnedFd, to: &OwnedFd, range: Range<u64>) -> std::io::Result<()> {
    // Opened anew: the position of the descriptor belongs to all who have it.
    let open = |fd: &OwnedFd| {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        File::options().read(true).write(true).open(path)
    };
    let (from, to) = (open(from)?, open(to)?);
    let mut piece = vec![0; PIECE_LEN];
    let mut at = range.start;
    while at < range.end {
        let data = match rustix::fs::seek(&from, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data.min(range.end),
            // No data behind it.
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let hole = rustix::fs::seek(&from, rustix::fs::SeekFrom::Hole(data))?.min(range.end);
        at = data;
        while at < hole {
            let step = (hole - at).min(PIECE_LEN as u64) as usize;
            from.read_exact_at(&mut piece[..step], at)?;
            to.write_all_at(&piece[..step], at)?;
            at += step as u64;
        }
        at = hole.max(at);
        if data >= range.end {
            return Ok(());
        }
    }
    Ok(())
}

fn hash(file: &File, offset: u64, len: u64) -> std::io::Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE_LEN];
    let mut done = 0;
    while done < len {
        let step = (len - done).min(PIECE_LEN as u64) as usize;
        file.read_exact_at(&mut piece[..step], offset + done)?;
        hasher.update(&piece[..step]);
        done += step as u64;
    }
    Ok(*hasher.finalize().as_bytes())
}

/// Reads the record of a machine.
///
/// # Errors
/// `Corrupt` where it is none; those of the device.
pub fn read_record(device: &dyn Device, subject: &str) -> Result<MachineRecord> {
    let unsound = |reason: &str| {
        Error::new(Kind::Corrupt, "read the machine", subject).because(reason.to_string())
    };
    let start = device.length().checked_sub(RECORD_REGION_LEN);
    let start = start.ok_or_else(|| unsound("it is too short to be one"))?;
    let mut bytes = vec![0; RECORD_REGION_LEN as usize];
    device.read(start, &mut bytes)?;
    let record = decode_machine(&bytes)
        .map_err(|error| Error::new(Kind::Corrupt, "read the machine", subject).caused_by(error))?;
    match record.version_len() == device.length() {
        true => Ok(record),
        false => Err(unsound("its length is not what its record says")),
    }
}

/// Copies the device state of a machine into a file without a name, positioned at its start.
///
/// # Errors
/// `Corrupt` where it is not what the record says; those of the device.
pub fn read_state(device: &dyn Device, record: &MachineRecord, subject: &str) -> Result<OwnedFd> {
    let failed = |error| Error::io("read the device state of", subject, error);
    let file = rustix::fs::memfd_create("larder-state", MemfdFlags::CLOEXEC);
    let mut file = File::from(file.map_err(|error| failed(error.into()))?);
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE_LEN];
    let mut done = 0;
    while done < record.state.len {
        let step = (record.state.len - done).min(PIECE_LEN as u64) as usize;
        device.read(record.state.offset + done, &mut piece[..step])?;
        hasher.update(&piece[..step]);
        file.write_all_at(&piece[..step], done).map_err(failed)?;
        done += step as u64;
    }
    if *hasher.finalize().as_bytes() != record.state.digest {
        return Err(Error::new(Kind::Corrupt, "read the device state of", subject)
            .because("its bytes are not those that were saved"));
    }
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::device::MemoryDevice;

    fn finished() -> (MachineFile, MachineRecord, MemoryDevice) {
        let machine = MachineFile::new(1 << 20).unwrap();
        machine.open().unwrap().write_all_at(b"memory", 4096).unwrap();
        let mut state = File::from(machine.state_writer().unwrap());
        std::io::Write::write_all(&mut state, &[7; 5000]).unwrap();
        let shape = MachineShape {
            cpus: 1,
            cpus_max: 1,
            memory_len: 1 << 20,
            memory_slots: 0,
            memory_max_len: 1 << 20,
        };
        let monitor = MonitorFacts {
            name: "qemu".into(),
            version: "7.2".into(),
            accelerator: "tcg".into(),
            machine_type: "pc".into(),
            cpu_model: "max".into(),
            cpu_features: Vec::new(),
            devices: Vec::new(),
        };
        let copy = MachineFile::copy_of(&machine.memory(), 1 << 20).unwrap();
        let mut copied = [0; 6];
        copy.open().unwrap().read_exact_at(&mut copied, 4096).unwrap();
        assert_eq!(&copied, b"memory");
        let finish = |disk| {
            let made = Made { origin: MachineOrigin::Baked, has_helper: true };
            machine.finish(made, shape, monitor.clone(), ContentDigest([disk; 32]))
        };
        let first = finish(1).unwrap();
        let record = finish(2).unwrap();
        assert_eq!(first.state, record.state, "written once more, it is the same");
        let mut bytes = vec![0; record.version_len() as usize];
        machine.open().unwrap().read_exact_at(&mut bytes, 0).unwrap();
        (machine, record, MemoryDevice::read_only(bytes))
    }

    #[test]
    fn what_was_saved_is_read_back_from_the_version() {
        let (_machine, record, device) = finished();
        assert_eq!(read_record(&device, "m@1").unwrap(), record);
        let state = File::from(read_state(&device, &record, "m@1").unwrap());
        let mut bytes = vec![0; 5000];
        state.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!((bytes, state.metadata().unwrap().len()), (vec![7; 5000], 5000));
    }

    #[test]
    fn damage_is_told_and_no_machine_is_none() {
        let (_machine, record, device) = finished();
        let mut bytes = device.to_vec();
        bytes[record.state.offset as usize] ^= 1;
        let error = read_state(&MemoryDevice::read_only(bytes), &record, "m@1").unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        for bytes in [vec![0; 100], vec![0; 1 << 20], device.to_vec()[4096..].to_vec()] {
            let error = read_record(&MemoryDevice::read_only(bytes), "m@1").unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt);
        }
    }
}
