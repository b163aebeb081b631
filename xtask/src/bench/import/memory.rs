//! Whether an import's memory grows with what is in the repository.

use std::fs;
use std::path::Path;

use model::{BLOCK_LEN, Error, Result};

use super::super::inputs::{self, Image};
use super::super::rows::Row;
use super::super::{Session, Size};
use super::keepers::{self, Keeper};

/// Bytes of one disk.
const DISK_LEN: usize = 48 << 20;

/// Of these, what no other disk has.
const OWN_LEN: usize = 8 << 20;

/// Imports many disks that share most of their blocks, in places of their own, and keeps the peak of
/// each import.
pub fn run(session: &mut Session, larder: &dyn Keeper) -> Result<()> {
    let counts = match session.size {
        Size::Small => [2, 5],
        Size::Full => [2, 200],
    };
    larder.begin()?;
    let path = session.folder.path().join("many.raw");
    let shared = text(0, DISK_LEN - OWN_LEN);
    for number in 1..=counts[1] {
        let image = Image { name: format!("many-{number}"), path: path.clone() };
        write_disk(&path, &shared, number)?;
        let measured = keepers::import(larder, &image)?;
        if counts.contains(&number) {
            session.rows.add(Row {
                contender: format!("larder, image {number} of many"),
                round: 0,
                columns: measured.columns(),
            });
        }
    }
    let peak = |count: u64| {
        let contender = format!("larder, image {count} of many");
        session.rows.median(&contender, "peak_mib").unwrap_or(0.0)
    };
    let [few, many] = counts.map(peak);
    let note = format!(
        "Peak memory of importing one image of {} MiB into a repository with all before it: {few:.0} MiB \
         as number {}, {many:.0} MiB as number {}: {:+.0} % (goal: within 10 %, and below 256 MiB).",
        DISK_LEN >> 20,
        counts[0],
        counts[1],
        (many / few - 1.0) * 100.0
    );
    session.notes.push(note);
    inputs::remove(&path)?;
    larder.begin()
}

/// A disk of shared blocks, with others of its own in between.
fn write_disk(path: &Path, shared: &[u8], number: u64) -> Result<()> {
    let own = text(number, OWN_LEN);
    let every = shared.len() / own.len();
    let mut disk = Vec::with_capacity(DISK_LEN);
    let runs = shared.chunks(every * 16 * BLOCK_LEN).zip(own.chunks(16 * BLOCK_LEN));
    for (shared, own) in runs {
        disk.extend_from_slice(shared);
        disk.extend_from_slice(own);
    }
    fs::write(path, disk).map_err(|source| Error::io("write", path.display().to_string(), source))
}

/// Bytes that compress about as programs do, each block of them unlike any other.
fn text(seed: u64, len: usize) -> Vec<u8> {
    let mut noise = inputs::noise(seed);
    let mut bytes = vec![0; len];
    for block in bytes.chunks_mut(64) {
        let half = block.len() / 3;
        noise.fill(&mut block[..half]);
    }
    bytes
}
