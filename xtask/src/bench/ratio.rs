//! How much of a set of images is there once, by how it is cut.
//!
//! ```text
//!   fixed            |----------|----------|----------|   a chunk is a duplicate, or new as a whole
//!   FastCDC          |------|-------------|-------|--    the same, cut where the bytes say
//!   block in chunk   |..x..x.xx.|...x......|..........|   blocks (x) are new, chunks are made of those
//! ```

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;

use fastcdc::v2020::FastCDC;
use model::block::is_zero;
use model::{BLOCK_LEN, BlockDigest, Error, Result};
use rayon::prelude::*;

use super::chart::{self, LineChart, Series};
use super::inputs::{self, Image};
use super::rows::Row;
use super::{Bench, Session, blocks};

pub const BENCH: Bench = Bench {
    name: "ratio",
    about: "1 - unique / non-zero chunks, against the chunk size: fixed, FastCDC, block in chunk.",
    in_tests: true,
    tools: &[],
    run,
};

/// 4 KiB to 4 MiB.
const SIZES: std::ops::RangeInclusive<u32> = 12..=22;

const FIXED: &str = "fixed";
const CUT: &str = "FastCDC";
const LARDER: &str = "block in chunk";

const NOTE: &str = "Ratio: 1 - unique / non-zero chunks, by number as in the literature, and by bytes, which \
    differs where chunks differ in length. FastCDC (crate `fastcdc`, v2020) has its size as the average, a quarter \
    of it as the least and four times as the most; each range of a disk between two holes is cut by itself. \
    Block in chunk is Larder's way: what is new is decided for blocks of 4 KiB, and chunks of any \
    size are made of those, so its ratio does not hang on the chunk size. Ratios of one way at \
    different sizes have different non-zero chunks below the line; `unique_mb` compares all of them. No compression; \
    all indexes are exhaustive.";

fn run(session: &mut Session) -> Result<()> {
    let images = inputs::corpus(session)?;
    let sizes: Vec<usize> = SIZES.map(|power| 1 << power).collect();
    let mut fixed: Vec<Tally> = sizes.iter().map(|_| Tally::default()).collect();
    let mut cut: Vec<Tally> = sizes.iter().map(|_| Tally::default()).collect();
    let mut larder = Tally::default();
    for image in &images {
        let digests = digests_of(image)?;
        sizes
            .par_iter()
            .zip(&mut fixed)
            .for_each(|(size, tally)| add_fixed(&digests, *size, tally));
        digests.values().for_each(|digest| larder.add(digest.0, BLOCK_LEN));
        add_cut(image, &sizes, &mut cut)?;
        println!("{} cut", image.name);
    }
    let mut series = Vec::new();
    for (name, tallies) in [
        (LARDER, sizes.iter().map(|_| &larder).collect::<Vec<_>>()),
        (CUT, cut.iter().collect()),
        (FIXED, fixed.iter().collect()),
    ] {
        let mut points = Vec::new();
        for (size, tally) in sizes.iter().zip(tallies) {
            let contender = format!("{name}, {}", chart::binary_bytes(*size as f64));
            session.rows.add(Row { contender, round: 0, columns: tally.columns() });
            points.push((*size as f64, tally.ratio()));
        }
        series.push(Series { name: name.to_owned(), points });
    }
    let chart = LineChart {
        title: format!("What {} images have in common, by how they are cut", images.len()),
        x_label: "chunk size (FastCDC: average)".to_owned(),
        y_label: "1 - unique / non-zero chunks".to_owned(),
        log_x: true,
        x_tick: chart::binary_bytes,
        y_tick: chart::percent,
        y_range: 0.0..0.0,
        series,
    };
    session.attachments.push(("ratio.svg", chart.to_svg()?));
    session.notes.push(NOTE.to_owned());
    Ok(())
}

/// Chunks that were seen.
#[derive(Default)]
struct Tally {
    known: HashSet<[u8; 32]>,
    count: u64,
    len: u64,
    unique_len: u64,
}

impl Tally {
    fn add(&mut self, digest: [u8; 32], len: usize) {
        self.count += 1;
        self.len += len as u64;
        if self.known.insert(digest) {
            self.unique_len += len as u64;
        }
    }

    fn ratio(&self) -> f64 {
        1.0 - self.known.len() as f64 / self.count.max(1) as f64
    }

    fn columns(&self) -> Vec<(&'static str, f64)> {
        vec![
            ("ratio", self.ratio()),
            ("ratio_of_bytes", 1.0 - self.unique_len as f64 / self.len.max(1) as f64),
            ("chunks", self.count as f64),
            ("unique_chunks", self.known.len() as f64),
            ("nonzero_mb", self.len as f64 / 1e6),
            ("unique_mb", self.unique_len as f64 / 1e6),
        ]
    }
}

fn digests_of(image: &Image) -> Result<BTreeMap<u64, BlockDigest>> {
    let mut digests = BTreeMap::new();
    blocks::for_each(&image.path, |offset, block| {
        digests.insert(offset / BLOCK_LEN as u64, BlockDigest::of(block));
        Ok(())
    })?;
    Ok(digests)
}

/// Chunks at multiples of their size. Two are equal where they have equal blocks at equal places.
fn add_fixed(digests: &BTreeMap<u64, BlockDigest>, size: usize, tally: &mut Tally) {
    let per_chunk = (size / BLOCK_LEN) as u64;
    let mut chunk: Option<(u64, blake3::Hasher)> = None;
    for (block, digest) in digests {
        let number = block / per_chunk;
        if let Some((before, hasher)) = chunk.take_if(|(before, _)| *before != number) {
            debug_assert!(before < number);
            tally.add(*hasher.finalize().as_bytes(), size);
        }
        let (_, hasher) = chunk.get_or_insert_with(|| (number, blake3::Hasher::new()));
        hasher.update(&(block % per_chunk).to_le_bytes()).update(&digest.0);
    }
    if let Some((_, hasher)) = chunk {
        tally.add(*hasher.finalize().as_bytes(), size);
    }
}

/// Chunks that end where the bytes say.
fn add_cut(image: &Image, sizes: &[usize], tallies: &mut [Tally]) -> Result<()> {
    let failed = |source| Error::io("read", image.path.display().to_string(), source);
    let file = File::open(&image.path).map_err(failed)?;
    blocks::for_each_range(&image.path, |offset, len| {
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut bytes, offset).map_err(failed)?;
        sizes.par_iter().zip(&mut *tallies).for_each(|(size, tally)| {
            for chunk in FastCDC::new(&bytes, size / 4, *size, size * 4) {
                let chunk = &bytes[chunk.offset..chunk.offset + chunk.length];
                if !is_zero(chunk) {
                    tally.add(*blake3::hash(chunk).as_bytes(), chunk.len());
                }
            }
        });
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(blocks: &[(u64, u8)]) -> BTreeMap<u64, BlockDigest> {
        blocks
            .iter()
            .map(|(number, byte)| (*number, BlockDigest::of(&[*byte; BLOCK_LEN])))
            .collect()
    }

    #[test]
    fn chunks_are_equal_where_equal_blocks_have_equal_places() {
        let check = |blocks: &[(u64, u8)], size: usize, expected: (u64, usize)| {
            let mut tally = Tally::default();
            add_fixed(&disk(blocks), size, &mut tally);
            assert_eq!((tally.count, tally.known.len()), expected, "{blocks:?} by {size}");
        };
        check(&[], 8192, (0, 0));
        check(&[(0, 1), (1, 2), (2, 1), (3, 2)], 4096, (4, 2));
        check(&[(0, 1), (1, 2), (2, 1), (3, 2)], 8192, (2, 1));
        // The same block after a hole is another chunk than before one.
        check(&[(0, 1), (3, 1)], 8192, (2, 2));
        check(&[(1, 1), (3, 1), (9, 1)], 8192, (3, 1));
    }

    #[test]
    fn the_ratio_is_what_is_not_unique() {
        let mut tally = Tally::default();
        for digest in [1, 1, 1, 2] {
            tally.add([digest; 32], 4096);
        }
        assert!((tally.ratio() - 0.5).abs() < 1e-9);
        assert_eq!(tally.unique_len, 8192);
    }
}
