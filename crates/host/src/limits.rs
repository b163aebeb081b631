//! How much of a host's disk caches may take where nobody said so.
//!
//! ```text
//! |<------------------- the file system that holds the state folder ------------------>|
//! | other things | overlays | bases: at most 80 % ... | ... but never the last | 5 %    |
//! ```
//!
//! Bases are a cache, and a cache that is small for no reason only costs time: so most of the disk. The
//! last 5 % stay free because guests' writes have to go somewhere, and file systems slow down when they
//! are full. What is on the disk besides counts as it is when a process starts; when the disk fills up
//! later, bases give way to guests' writes.

use std::path::Path;

use env::FileSystem;
use mirror::StateFolder;
use model::{Error, Result};

/// Parts of a hundred of the file system.
const BASES_PERCENT: u64 = 80;
const FREE_PERCENT: u64 = 5;
/// What bases may take on a disk that is full of other things.
const LEAST_PERCENT: u64 = 1;
/// What the chunk cache may take where it is used and nobody said how much.
const CHUNKS_PERCENT: u64 = 10;

/// Bytes that caches may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLimits {
    /// Local copies of versions, as far as they were read.
    pub bases: u64,
    /// Compressed chunks of all versions.
    pub chunks: u64,
}

/// The limits for a state folder where nobody has set any.
///
/// # Errors
/// What the system says of the file system.
pub fn default_limits(file_system: &dyn FileSystem, state: &StateFolder) -> Result<CacheLimits> {
    let path = state.path();
    let failed = |error| Error::io("measure the disk of", path.display().to_string(), error);
    // Where nothing was kept yet, the folder that it will be made in tells.
    let is_there = |folder: &&Path| file_system.exists(folder).unwrap_or(false);
    let absolute = std::path::absolute(path).map_err(failed)?;
    let folder = absolute.ancestors().find(is_there).unwrap_or(Path::new("/"));
    let space = file_system.space(folder).map_err(failed)?;
    Ok(limits_of(space.total, space.available, state.base_bytes()?))
}

fn limits_of(total: u64, available: u64, bases: u64) -> CacheLimits {
    let percent = |part: u64| total / 100 * part;
    let room = bases.saturating_add(available).saturating_sub(percent(FREE_PERCENT));
    CacheLimits {
        bases: room.max(percent(LEAST_PERCENT)).min(percent(BASES_PERCENT)),
        chunks: percent(CHUNKS_PERCENT).min(room / 2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_take_most_of_an_empty_disk_and_little_of_a_full_one() {
        let check = |total, available, bases, limit| {
            assert_eq!(limits_of(total, available, bases).bases, limit, "{total} {available}");
        };
        check(1000, 1000, 0, 800);
        check(1000, 500, 0, 450);
        check(1000, 100, 300, 350);
        check(1000, 20, 0, 10);
        check(0, 0, 0, 0);
        assert_eq!(limits_of(1000, 1000, 0).chunks, 100);
        assert_eq!(limits_of(1000, 60, 0).chunks, 5);
    }
}
