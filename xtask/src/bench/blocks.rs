//! A disk's blocks one after the other, holes and zeros left out.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use model::{BLOCK_LEN, Error, Result};
use rustix::fs::SeekFrom as Find;
use rustix::io::Errno;

/// How much is read at once; a multiple of a block.
const READ_LEN: usize = 1 << 20;

/// Hands over each range of a disk that is data for its file system, as an offset and a length.
pub fn for_each_range(disk: &Path, mut take: impl FnMut(u64, u64) -> Result<()>) -> Result<()> {
    let failed = |source| Error::io("look for the data of", disk.display().to_string(), source);
    let file = File::open(disk).map_err(failed)?;
    let mut at = 0;
    loop {
        let begin = match rustix::fs::seek(&file, Find::Data(at)) {
            Ok(begin) => begin,
            Err(Errno::NXIO) => return Ok(()),
            Err(errno) => return Err(failed(errno.into())),
        };
        at = rustix::fs::seek(&file, Find::Hole(begin)).map_err(|errno| failed(errno.into()))?;
        take(begin, at - begin)?;
    }
}

/// Hands over each block that is not all zeros, with its offset. A partial last one is padded.
pub fn for_each(disk: &Path, mut take: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
    let failed = |source| Error::io("read", disk.display().to_string(), source);
    let mut file = File::open(disk).map_err(failed)?;
    let mut buffer = vec![0; READ_LEN];
    for_each_range(disk, |begin, len| {
        // Ranges begin and end where the file system's own blocks do, or the file ends.
        let mut at = begin - begin % BLOCK_LEN as u64;
        let end = begin + len;
        file.seek(SeekFrom::Start(at)).map_err(failed)?;
        while at < end {
            let want = usize::try_from(end - at).unwrap_or(READ_LEN).min(READ_LEN);
            file.read_exact(&mut buffer[..want]).map_err(failed)?;
            let padded = want.next_multiple_of(BLOCK_LEN);
            buffer[want..padded].fill(0);
            for (number, block) in buffer[..padded].chunks_exact(BLOCK_LEN).enumerate() {
                if block.iter().any(|byte| *byte != 0) {
                    take(at + (number * BLOCK_LEN) as u64, block)?;
                }
            }
            at += want as u64;
        }
        Ok(())
    })
}

/// Blocks that have been seen, by their digests.
#[derive(Default)]
pub struct Seen(HashSet<blake3::Hash>);

impl Seen {
    /// Whether this one comes for the first time.
    pub fn is_new(&mut self, block: &[u8]) -> bool {
        self.0.insert(blake3::hash(block))
    }

    /// How many different ones there were.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn zeros_are_left_out_and_the_last_block_is_padded() {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk");
        let mut bytes = vec![0; 5 * BLOCK_LEN + 1];
        bytes[BLOCK_LEN + 7] = 1;
        bytes[5 * BLOCK_LEN] = 2;
        fs::write(&disk, &bytes).unwrap();
        let (mut found, mut seen) = (Vec::new(), Seen::default());
        for_each(&disk, |offset, block| {
            assert_eq!(block.len(), BLOCK_LEN);
            found.push((offset / BLOCK_LEN as u64, seen.is_new(block), seen.is_new(block)));
            Ok(())
        })
        .unwrap();
        assert_eq!(found, [(1, true, false), (5, true, false)]);
        assert_eq!(seen.count(), 2);
    }
}
