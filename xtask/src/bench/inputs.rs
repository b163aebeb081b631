//! What is measured on: disks, and larder itself.
//!
//! At the full size the disks are two Debian images and larder is a release build; at the small
//! size the disks are made up and larder is the build that the tests have made anyway.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use model::{Error, Result};
use rustix::fs::SeekFrom as Find;
use rustix::io::Errno;

use super::{Session, Size};
use crate::demo::larder::Larder;
use crate::workspace::{self, cargo};
use crate::{images, process};

/// Bytes of data in a made-up disk.
const MADE_UP_DATA_LEN: usize = 4 << 20;

/// Two disks that are much alike.
pub fn disks(session: &Session) -> Result<Vec<PathBuf>> {
    if session.size == Size::Full {
        return images::ensure(&[&images::MINIMAL, &images::NGINX]);
    }
    let folder = session.folder.path();
    let (first, second) = (folder.join("first.raw"), folder.join("second.raw"));
    made_up(&first, 0)?;
    made_up(&second, MADE_UP_DATA_LEN / 8)?;
    Ok(vec![first, second])
}

/// A disk that others come before and after.
pub struct Image {
    /// What it is.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
}

/// Eight disks, in the order in which they are imported: real ones, see
/// `images::corpus`, or made-up ones that share much.
pub fn corpus(session: &mut Session) -> Result<Vec<Image>> {
    if session.size == Size::Full {
        let (members, left_out) = images::corpus::ensure()?;
        session.notes.extend(left_out);
        let image = |member: images::corpus::Member| Image {
            name: member.name.to_owned(),
            path: member.path,
        };
        return Ok(members.into_iter().map(image).collect());
    }
    let mut made = Vec::new();
    for number in 0..images::corpus::IMAGE_COUNT {
        let name = format!("made-up-{number}");
        let path = session.folder.path().join(format!("{name}.raw"));
        made_up(&path, MADE_UP_DATA_LEN / 16 * number)?;
        made.push(Image { name, path });
    }
    Ok(made)
}

/// A larder whose repository and state are in the folder of this name.
pub fn larder(session: &Session, name: &str) -> Result<Larder> {
    Ok(Larder::new(binary(session.size)?, &session.folder.path().join(name)))
}

/// Builds larder.
pub fn binary(size: Size) -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--locked", "--package", "cli", "--quiet"]);
    let folder = match size {
        Size::Small => "debug",
        Size::Full => {
            command.arg("--release");
            "release"
        }
    };
    process::run(&mut command)?;
    Ok(workspace::target().join(folder).join("larder"))
}

/// Writes a sparse file of 16 MiB, the first 4 MiB of which are data: half of it text, half of it
/// noise. The first `other_len` bytes are other noise.
fn made_up(path: &Path, other_len: usize) -> Result<()> {
    let mut bytes = Vec::with_capacity(MADE_UP_DATA_LEN);
    for line in 0.. {
        if bytes.len() >= MADE_UP_DATA_LEN / 2 {
            break;
        }
        bytes.extend_from_slice(format!("line {line} of a disk\n").as_bytes());
    }
    bytes.resize(MADE_UP_DATA_LEN, 0);
    noise(1).fill(&mut bytes[MADE_UP_DATA_LEN / 2..]);
    noise(2).fill(&mut bytes[..other_len]);
    let failed = |source| Error::io("write", path.display().to_string(), source);
    fs::write(path, &bytes).map_err(failed)?;
    File::options().write(true).open(path).and_then(|f| f.set_len(16 << 20)).map_err(failed)
}

/// Bytes without a pattern, the same for the same seed.
pub fn noise(seed: u64) -> blake3::OutputReader {
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof()
}

/// Writes the bytes of a file that are in no hole, one behind the other. Returns how many.
pub fn write_data_of(disk: &Path, to: &Path) -> Result<u64> {
    let failed = |source| Error::io("copy the data of", disk.display().to_string(), source);
    let mut from = File::open(disk).map_err(failed)?;
    let mut to = File::create(to).map_err(failed)?;
    let (mut at, mut copied) = (0, 0);
    loop {
        let begin = match rustix::fs::seek(&from, Find::Data(at)) {
            Ok(begin) => begin,
            Err(Errno::NXIO) => return to.flush().map(|()| copied).map_err(failed),
            Err(errno) => return Err(failed(errno.into())),
        };
        let end = rustix::fs::seek(&from, Find::Hole(begin)).map_err(|e| failed(e.into()))?;
        from.seek(SeekFrom::Start(begin)).map_err(failed)?;
        copied += io::copy(&mut (&mut from).take(end - begin), &mut to).map_err(failed)?;
        at = end;
    }
}

/// Removes a folder or a file, if it is there.
pub fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", path.display().to_string(), error))
        }
        _ => Ok(()),
    }
}

/// Bytes of a file or of everything in a folder: as long as the files are, and as they take of the
/// disk, folders included.
pub fn size_of(path: &Path) -> Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let failed = |source| Error::io("measure", path.display().to_string(), source);
    let meta = path.symlink_metadata().map_err(failed)?;
    // The kernel counts in units of 512 bytes, whatever the file system's own.
    let allocated = meta.blocks() * 512;
    if !meta.is_dir() {
        return Ok((meta.len(), allocated));
    }
    let mut sum = (0, allocated);
    for entry in fs::read_dir(path).map_err(failed)? {
        let (apparent, allocated) = size_of(&entry.map_err(failed)?.path())?;
        sum = (sum.0 + apparent, sum.1 + allocated);
    }
    Ok(sum)
}

/// A path as an argument of larder.
pub fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| {
        Error::new(model::Kind::Invalid, "use", path.display().to_string())
            .because("it is not UTF-8")
    })
}

/// A folder for sockets, whose paths must be short; it goes when it is dropped.
pub fn sockets() -> Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix("larder-bench-")
        .tempdir()
        .map_err(|source| Error::io("make", "a folder for sockets", source))
}

/// How NBD's clients call a socket's default export.
pub fn nbd_uri(socket: &Path) -> String {
    format!("nbd+unix:///?socket={}", socket.display())
}

/// Waits until everything written is on the disk, so that nobody pays for another's bytes.
pub fn settle() {
    rustix::fs::sync();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_left_out_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let (disk, data) = (folder.path().join("disk"), folder.path().join("data"));
        made_up(&disk, 0).unwrap();
        assert_eq!(write_data_of(&disk, &data).unwrap(), MADE_UP_DATA_LEN as u64);
        let (whole, data) = (fs::read(&disk).unwrap(), fs::read(&data).unwrap());
        assert!(whole[..MADE_UP_DATA_LEN] == data[..]);
        assert!(size_of(folder.path()).unwrap().0 == (20 << 20));
    }
}
