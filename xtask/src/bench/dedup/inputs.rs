//! What is imported: whole images, what a boot reads of them, and others' packs in between.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use model::{BLOCK_LEN, BlockDigest, Error, Result};

use super::super::blocks;
use super::super::inputs;
use super::super::replay::trace::{self, Call};
use super::super::{Session, Size};
use crate::{images, workspace};

/// What the inputs are.
pub const NOTE: &str = "Corpus: the eight images of `bench corpus`, one after the other, without holes and \
    zeros, in windows of 16 MiB. Boot sets: the blocks that the reads of one recorded boot \
    (`bench/runs/2026-11-21-replay/boot.trace`) touch in each image, in ascending order; the boot \
    was that of `minimal`, so in others the same places hold other files. Grown: the same upon 2048 packs (64 \
    times as many as lists are kept in memory) of blocks that nobody else has, and 64 such packs \
    between any two images, so that no list of an earlier image is still in memory. Simulated with digests: \
    neither compression nor writing of data is done, and each pack is visible from the next window on.";

/// A boot's reads, as recorded by `bench replay`.
const BOOT_TRACE: &str = "bench/runs/2026-11-21-replay/boot.trace";

/// One thing that happens to an index.
pub enum Step {
    /// A disk, or a part of one, is imported.
    Import(Arc<Vec<BlockDigest>>),
    /// Others import what nobody else has.
    Others { pack_count: usize },
}

/// What happens to an index, in order.
pub struct Scenario {
    pub name: &'static str,
    pub steps: Vec<Step>,
}

/// All of them.
pub fn scenarios(session: &mut Session) -> Result<Vec<Scenario>> {
    let reads = reads(session.size)?;
    let (mut wholes, mut boots) = (Vec::new(), Vec::new());
    for image in inputs::corpus(session)? {
        let digests = digests_of(&image.path)?;
        boots.push(Arc::new(touched(&digests, &reads)));
        wholes.push(Arc::new(digests.into_values().collect()));
    }
    if session.size == Size::Full {
        for path in images::ensure(&[&images::MINIMAL, &images::NGINX])? {
            boots.push(Arc::new(touched(&digests_of(&path)?, &reads)));
        }
    }
    let (first, between) = if session.size == Size::Full { (2048, 64) } else { (40, 33) };
    let grown = |all: &[Arc<Vec<BlockDigest>>]| {
        let mut steps = vec![Step::Others { pack_count: first }];
        for one in all {
            steps.push(Step::Import(Arc::clone(one)));
            steps.push(Step::Others { pack_count: between });
        }
        steps
    };
    let (grown_wholes, grown_boots) = (grown(&wholes), grown(&boots));
    let imports = |all: Vec<Arc<Vec<BlockDigest>>>| all.into_iter().map(Step::Import).collect();
    Ok(vec![
        Scenario { name: "corpus", steps: imports(wholes) },
        Scenario { name: "boot sets", steps: imports(boots) },
        Scenario { name: "corpus, grown", steps: grown_wholes },
        Scenario { name: "boot sets, grown", steps: grown_boots },
    ])
}

fn digests_of(disk: &std::path::Path) -> Result<BTreeMap<u64, BlockDigest>> {
    let mut digests = BTreeMap::new();
    blocks::for_each(disk, |offset, block| {
        digests.insert(offset / BLOCK_LEN as u64, BlockDigest::of(block));
        Ok(())
    })?;
    Ok(digests)
}

/// The blocks that reads touch, each once.
fn touched(digests: &BTreeMap<u64, BlockDigest>, reads: &[(u64, u64)]) -> Vec<BlockDigest> {
    let mut found = BTreeMap::new();
    for (offset, len) in reads {
        let first = offset / BLOCK_LEN as u64;
        let end = (offset + len).div_ceil(BLOCK_LEN as u64);
        found.extend(digests.range(first..end));
    }
    found.into_values().copied().collect()
}

/// Offsets and lengths of a boot's reads.
fn reads(size: Size) -> Result<Vec<(u64, u64)>> {
    if size == Size::Small {
        return Ok((0..40).map(|number| (number * 98_304, 49_152)).collect());
    }
    let path = workspace::root().join(BOOT_TRACE);
    let text = fs::read_to_string(&path)
        .map_err(|source| Error::io("read", path.display().to_string(), source))?;
    let calls = trace::from_text(&text)?;
    let to_read = |call: &Call| match call {
        Call::Read { offset, len } => Some((*offset, u64::from(*len))),
        _ => None,
    };
    Ok(calls.iter().filter_map(to_read).collect())
}
