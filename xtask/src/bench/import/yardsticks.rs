//! What an import cannot do without: hashing all bytes, compressing those that are new.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use model::{BLOCK_LEN, Error, Result};

use super::super::blocks::{self, Seen};
use super::super::inputs::Image;

/// Threads that hash: the cores that larder has, too.
const THREAD_COUNT: usize = 2;

/// Bytes that one thread reads and hashes at a time.
const PIECE_LEN: u64 = 4 << 20;

/// Writes each different block of the images once, in the order of importing. Returns how many bytes.
pub fn write_unique(images: &[Image], to: &Path) -> Result<u64> {
    let failed = |source| Error::io("write", to.display().to_string(), source);
    let mut out = BufWriter::with_capacity(1 << 20, File::create(to).map_err(failed)?);
    let mut seen = Seen::default();
    for image in images {
        blocks::for_each(&image.path, |_, block| match seen.is_new(block) {
            true => out.write_all(block).map_err(failed),
            false => Ok(()),
        })?;
    }
    out.flush().map_err(failed)?;
    Ok((seen.count() * BLOCK_LEN) as u64)
}

/// How much of a disk one digest is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Digests {
    /// Of long stretches, which takes the least time.
    OfPieces,
    /// Of each block, as whoever looks for blocks needs them.
    OfBlocks,
}

/// Reads what is in no hole of the images and hashes it on two threads; keeps nothing. Returns how
/// long that took and how many bytes there were.
pub fn hash(images: &[Image], digests: Digests) -> Result<(Duration, u64)> {
    let mut sum = 0;
    let began = Instant::now();
    for image in images {
        let mut pieces = Vec::new();
        blocks::for_each_range(&image.path, |begin, len| {
            let end = begin + len;
            pieces.extend(
                (begin..end)
                    .step_by(PIECE_LEN as usize)
                    .map(|at| (at, (end - at).min(PIECE_LEN) as usize)),
            );
            sum += len;
            Ok(())
        })?;
        hash_pieces(&image.path, pieces, digests)?;
    }
    Ok((began.elapsed(), sum))
}

fn hash_pieces(disk: &Path, pieces: Vec<(u64, usize)>, digests: Digests) -> Result<()> {
    let failed = |source| Error::io("read", disk.display().to_string(), source);
    let file = File::open(disk).map_err(failed)?;
    let next = Mutex::new(pieces.into_iter());
    let work = || -> Result<()> {
        let mut buffer = vec![0; PIECE_LEN as usize];
        loop {
            let piece = next.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
            let Some((at, len)) = piece else { return Ok(()) };
            let bytes = &mut buffer[..len];
            file.read_exact_at(bytes, at).map_err(failed)?;
            match digests {
                Digests::OfPieces => drop(std::hint::black_box(blake3::hash(bytes))),
                Digests::OfBlocks => bytes.chunks(BLOCK_LEN).for_each(|block| {
                    std::hint::black_box(blake3::hash(block));
                }),
            }
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREAD_COUNT).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| {
                Err(Error::new(model::Kind::Bug, "hash", disk.display().to_string()))
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_different_block_is_written_once() {
        let folder = tempfile::tempdir().unwrap();
        let image = |name: &str, blocks: &[u8]| {
            let path = folder.path().join(name);
            let bytes: Vec<u8> = blocks.iter().flat_map(|byte| [*byte; BLOCK_LEN]).collect();
            std::fs::write(&path, bytes).unwrap();
            Image { name: name.to_owned(), path }
        };
        let images = [image("a", &[1, 0, 2, 1]), image("b", &[2, 3])];
        let to = folder.path().join("unique");
        assert_eq!(write_unique(&images, &to).unwrap(), 3 * BLOCK_LEN as u64);
        let expected: Vec<u8> = [1, 2, 3].iter().flat_map(|byte| [*byte; BLOCK_LEN]).collect();
        assert!(std::fs::read(&to).unwrap() == expected);
        for digests in [Digests::OfPieces, Digests::OfBlocks] {
            assert_eq!(hash(&images, digests).unwrap().1, 6 * BLOCK_LEN as u64);
        }
    }
}
