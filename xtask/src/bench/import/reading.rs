//! Reads here and there in an image that is stored, without restoring it first.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use model::{Error, Kind, Result};

use super::super::blocks;
use super::super::inputs::{self, Image};
use super::keepers::{Keeper, Shown, quiet};
use crate::process::{self, Registered};
use crate::workspace::system_program;

/// Bytes of one read, and where reads begin.
pub const READ_LEN: u64 = 64 << 10;

/// How long an image may take until it is seen.
const SHOWN_MAX: Duration = Duration::from_secs(60);

/// How often we look whether it is.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// What reading here and there took.
pub struct Read {
    /// From the command's start until the image is there.
    pub opened: Duration,
    /// All reads, one after the other.
    pub read: Duration,
}

/// Places of an image that hold data, chosen without a pattern, always the same.
pub fn places(image: &Path, count: usize) -> Result<Vec<u64>> {
    let mut all = Vec::new();
    blocks::for_each_range(image, |begin, len| {
        let first = begin.next_multiple_of(READ_LEN);
        all.extend((first..(begin + len).saturating_sub(READ_LEN - 1)).step_by(READ_LEN as usize));
        Ok(())
    })?;
    let mut noise = inputs::noise(4);
    let mut random = || {
        let mut bytes = [0; 8];
        noise.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    };
    // The first `count` of a shuffle: no place twice.
    let count = count.min(all.len());
    for at in 0..count {
        let other = at + (random() % (all.len() - at) as u64) as usize;
        all.swap(at, other);
    }
    all.truncate(count);
    Ok(all)
}

/// Reads an image at these places through what a tool offers for that, and compares with the disk.
///
/// # Errors
/// `Unavailable`: the tool offers nothing; why is the error's reason. `Corrupt`: other bytes.
pub fn read(keeper: &dyn Keeper, image: &Image, folder: &Path, places: &[u64]) -> Result<Read> {
    let failed = |source| Error::io("read", image.path.display().to_string(), source);
    let unavailable = |why: String| {
        Error::new(Kind::Unavailable, "read", format!("an image of {}", keeper.name())).because(why)
    };
    let mut expected = vec![0; READ_LEN as usize];
    let mut found = vec![0; READ_LEN as usize];
    let disk = File::open(&image.path).map_err(failed)?;
    let mut shown = keeper.show(image, folder).map_err(|why| unavailable(why.to_owned()))?;
    inputs::settle();
    let began = Instant::now();
    let showing = Showing::start(&mut shown, folder)?;
    let opened = began.elapsed();
    let file = File::open(&shown.file).map_err(|error| unavailable(error.to_string()))?;
    let mut read = Duration::ZERO;
    for place in places {
        let began = Instant::now();
        file.read_exact_at(&mut found, *place).map_err(failed)?;
        read += began.elapsed();
        disk.read_exact_at(&mut expected, *place).map_err(failed)?;
        if found != expected {
            return Err(Error::new(Kind::Corrupt, "read", image.name.clone())
                .because(format!("{} shows other bytes at {place}", keeper.name())));
        }
    }
    drop((file, showing));
    Ok(Read { opened, read })
}

/// A process that shows an image; dropped, it ends and nothing stays mounted.
struct Showing {
    folder: PathBuf,
    child: Child,
    _registered: Registered,
}

impl Showing {
    fn start(shown: &mut Shown, folder: &Path) -> Result<Showing> {
        let (child, registered) = process::start(quiet(&mut shown.command))?;
        let mut showing = Showing { folder: folder.to_path_buf(), child, _registered: registered };
        let began = Instant::now();
        while !shown.file.exists() {
            let ended = process::wait(&mut showing.child, LOOK_EVERY)?.is_some();
            if ended || began.elapsed() > SHOWN_MAX {
                process::go_on()?;
                return Err(Error::new(Kind::Unavailable, "run", process::shown(&shown.command))
                    .because("it ended, or showed nothing for a minute"));
            }
        }
        Ok(showing)
    }
}

impl Drop for Showing {
    fn drop(&mut self) {
        // Whoever shows a folder ends when that is taken away; larder, when it is told to.
        let mut unmount = system_program("fusermount3");
        let _unmounted = process::output(unmount.arg("-u").arg(&self.folder), "");
        process::end(&mut self.child);
        let mut unmount = system_program("fusermount3");
        let _unmounted = process::output(unmount.args(["-u", "-z"]).arg(&self.folder), "");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_hold_data_and_come_once() {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk");
        let file = File::create(&disk).unwrap();
        file.set_len(64 * READ_LEN).unwrap();
        for at in 20..30 {
            file.write_all_at(&vec![1; READ_LEN as usize], at * READ_LEN).unwrap();
        }
        let mut found = places(&disk, 6).unwrap();
        assert_eq!(found, places(&disk, 6).unwrap());
        found.sort_unstable();
        found.dedup();
        assert_eq!(found.len(), 6);
        assert!(found.iter().all(|at| (20..30).contains(&(at / READ_LEN))), "{found:?}");
        assert_eq!(places(&disk, 100).unwrap().len(), 10);
    }
}
