//! What a collect does to a disk onto which a hundred commits of random blocks were made: how many
//! chunks reading in order touches, and how many bytes are alive.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use env::{Clock, Entropy, SeededEntropy, SystemClock};
use model::block::BLOCKS_PER_SEGMENT;
use model::changes::{ChangedBlocks, Changes};
use model::progress::{Cancel, Silent};
use model::source::{DataRun, DiskSink, DiskSource};
use model::{BLOCK_LEN, BlockRange, Error, ImageName, Kind, Result, SEGMENT_LEN, VersionKind};
use repository::repository::Machine;
use repository::{CollectLimits, CollectRequest, CommitRequest, ImportRequest, Repository};
use store::ChunkStore;

use super::rows::Row;
use super::{Bench, Session, Size};
use crate::process;

pub const BENCH: Bench = Bench {
    name: "collect",
    about: "Commits of random blocks, then a collect: chunks that reading in order touches, bytes.",
    in_tests: true,
    tools: &[],
    run,
};

/// How much is made.
struct Scale {
    disk_blocks: u64,
    commits: u64,
    changed_blocks: u64,
}

fn run(session: &mut Session) -> Result<()> {
    let scale = match session.size {
        Size::Small => Scale { disk_blocks: 4096, commits: 10, changed_blocks: 256 },
        Size::Full => Scale { disk_blocks: 131_072, commits: 100, changed_blocks: 3662 },
    };
    let folder = session.folder.path().to_path_buf();
    let all = folder.join("all");
    let disk = make(&all, &scale)?;
    // Packs never change, so a copy may share them.
    let newest = folder.join("newest");
    let copy = format!(
        "cp -al {0} {1} && rm {1}/catalog.sqlite* && cp {0}/catalog.sqlite* {1}",
        all.display(),
        newest.display()
    );
    process::run(std::process::Command::new("sh").args(["-c", &copy]))?;
    let fresh = open(&folder.join("fresh"))?;
    import(&fresh, &disk)?;
    let fresh = Shape::of(&fresh, "disk")?;
    let middle = format!("disk@{}", scale.commits / 2);
    measure(session, "all versions kept", &all, &fresh, &["disk@1", &middle])?;
    let repository = open(&newest)?;
    let image = ImageName::new("disk")?;
    for version in repository.catalog().versions(&image)? {
        if version.id.version.get() <= scale.commits {
            repository.catalog().remove_version(&version.id)?;
        }
    }
    drop(repository);
    measure(session, "newest kept alone", &newest, &fresh, &[])?;
    session.notes.push(format!(
        "A disk of {} MiB without holes; {} commits of {} random blocks of 4 KiB each, each unlike any \
         before, half of it compressible. Touches are chunks for each MiB that is read in order; \
         `fresh` is an import of the newest version into an empty repository. Bytes are those of all \
         packs. A second collect had nothing to do.",
        scale.disk_blocks * 4 / 1024, scale.commits, scale.changed_blocks
    ));
    Ok(())
}

fn open(folder: &Path) -> Result<Repository> {
    Ok(Repository::open_or_create(&Machine::real(), folder)?.0)
}

fn measure(
    session: &mut Session,
    contender: &str,
    folder: &Path,
    fresh: &Shape,
    others: &[&str],
) -> Result<()> {
    let repository = open(folder)?;
    let before = Shape::of(&repository, "disk")?;
    let others_before = shapes(&repository, others)?;
    let start = SystemClock.monotonic();
    let collected = collect(&repository)?;
    let seconds = (SystemClock.monotonic() - start).as_secs_f64();
    drop(repository);
    let repository = open(folder)?;
    let after = Shape::of(&repository, "disk")?;
    let others_after = shapes(&repository, others)?;
    let plan = repository.plan_collect(&CollectLimits::default(), &Cancel::new())?;
    if !plan.is_empty() {
        return Err(Error::new(Kind::Bug, "collect", contender).because("there is more to do"));
    }
    let mut columns = vec![
        ("touches_fresh", fresh.touches),
        ("touches_before", before.touches),
        ("touches_after", after.touches),
        ("fresh_bytes", fresh.bytes),
        ("bytes_before", before.bytes),
        ("bytes_after", after.bytes),
        ("export_seconds_before", before.seconds),
        ("export_seconds_after", after.seconds),
        ("collect_seconds", seconds),
        ("written_bytes", collected.written_len as f64),
    ];
    let names = [
        ("oldest_touches_before", "oldest_touches_after"),
        ("middle_touches_before", "middle_touches_after"),
    ];
    for ((before, after), names) in others_before.iter().zip(&others_after).zip(names) {
        columns.extend([(names.0, before.touches), (names.1, after.touches)]);
    }
    session.rows.add(Row { contender: contender.to_owned(), round: 0, columns });
    Ok(())
}

fn shapes(repository: &Repository, references: &[&str]) -> Result<Vec<Shape>> {
    references.iter().map(|reference| Shape::of(repository, reference)).collect()
}

/// What a version is like to read, and what its repository takes.
struct Shape {
    touches: f64,
    bytes: f64,
    seconds: f64,
}

impl Shape {
    fn of(repository: &Repository, reference: &str) -> Result<Shape> {
        let version = repository.catalog().version(&reference.parse()?)?;
        let chunks = repository.chunks();
        let mut touched = HashSet::new();
        for entry in chunks.manifest(version.facts.layout)?.segments() {
            for run in chunks.segment_map(entry.map)?.runs() {
                for block in run.first_block..run.end_block() {
                    let offset = u64::from(block) * BLOCK_LEN as u64;
                    touched.insert((
                        (u64::from(entry.segment) * SEGMENT_LEN + offset) >> 20,
                        run.chunk,
                    ));
                }
            }
        }
        let start = SystemClock.monotonic();
        repository.export(&version.id, Box::new(Nowhere), &Silent, &Cancel::new())?;
        Ok(Shape {
            touches: touched.len() as f64 / (version.facts.length >> 20) as f64,
            bytes: repository.catalog().statistics()?.pack_len as f64,
            seconds: (SystemClock.monotonic() - start).as_secs_f64(),
        })
    }
}

fn collect(repository: &Repository) -> Result<repository::Collected> {
    let (limits, cancel) = (CollectLimits::default(), Cancel::new());
    repository.collect(&CollectRequest { limits, waits: true, events: &Silent, cancel: &cancel })
}

/// Makes a repository with a disk and commits onto it. Returns which block each holds at the end.
fn make(folder: &Path, scale: &Scale) -> Result<Vec<u64>> {
    let repository = open(folder)?;
    let mut disk: Vec<u64> = (0..scale.disk_blocks).collect();
    import(&repository, &disk)?;
    let random = SeededEntropy::new(7);
    let mut next = scale.disk_blocks;
    for _ in 0..scale.commits {
        let mut changed = BTreeMap::new();
        for _ in 0..scale.changed_blocks {
            changed.insert((random.next() >> 11) % scale.disk_blocks, next);
            next += 1;
        }
        changed.iter().for_each(|(block, number)| disk[*block as usize] = *number);
        let parent = repository.catalog().version(&"disk".parse()?)?.id;
        let changes = RandomBlocks { length: scale.disk_blocks * BLOCK_LEN as u64, changed };
        repository.commit(
            &changes,
            &CommitRequest {
                image: parent.image.clone(),
                parent,
                tag: None,
                origin: "bench".to_owned(),
                progress: &Silent,
            },
        )?;
    }
    Ok(disk)
}

fn import(repository: &Repository, disk: &[u64]) -> Result<()> {
    let request = ImportRequest {
        image: ImageName::new("disk")?,
        tag: None,
        origin: "bench".to_owned(),
        kind: VersionKind::Disk,
        progress: &Silent,
        cancel: &Cancel::new(),
    };
    repository.import(&mut Blocks { disk, at: 0 }, &request).map(drop)
}

/// A block that has this number and is like no other; half of it is zeros.
fn fill(number: u64, block: &mut [u8]) {
    block.fill(0);
    // Of two seeds that differ in their lowest bit alone the sequences are the same.
    SeededEntropy::new(2 * number).fill(&mut block[..BLOCK_LEN / 2]);
}

struct Blocks<'a> {
    disk: &'a [u64],
    at: usize,
}

impl DiskSource for Blocks<'_> {
    fn length_hint(&self) -> Option<u64> {
        Some(self.length())
    }

    fn data_len_hint(&self) -> Option<u64> {
        Some(self.length())
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<Option<DataRun>> {
        let count = (buffer.len() / BLOCK_LEN).min(self.disk.len() - self.at);
        if count == 0 {
            return Ok(None);
        }
        let numbers = &self.disk[self.at..self.at + count];
        for (number, block) in numbers.iter().zip(buffer.chunks_mut(BLOCK_LEN)) {
            fill(*number, block);
        }
        let run = DataRun { offset: (self.at * BLOCK_LEN) as u64, len: count * BLOCK_LEN };
        self.at += count;
        Ok(Some(run))
    }

    fn length(&self) -> u64 {
        (self.disk.len() * BLOCK_LEN) as u64
    }
}

struct RandomBlocks {
    length: u64,
    changed: BTreeMap<u64, u64>,
}

impl Changes for RandomBlocks {
    fn length(&self) -> u64 {
        self.length
    }

    fn segments(&self) -> Vec<u32> {
        let mut segments: Vec<u32> = self
            .changed
            .keys()
            .map(|block| (block / u64::from(BLOCKS_PER_SEGMENT)) as u32)
            .collect();
        segments.dedup();
        segments
    }

    fn in_segment(&self, segment: u32) -> Result<Vec<ChangedBlocks>> {
        let first = u64::from(segment) * u64::from(BLOCKS_PER_SEGMENT);
        let inside = self.changed.range(first..first + u64::from(BLOCKS_PER_SEGMENT));
        let changed = inside.filter_map(|(block, _)| BlockRange::new(*block..block + 1));
        Ok(changed.map(|blocks| ChangedBlocks { blocks, zero: false }).collect())
    }

    fn read(&self, blocks: BlockRange, buffer: &mut [u8]) -> Result<()> {
        for (block, bytes) in (blocks.start()..blocks.end()).zip(buffer.chunks_mut(BLOCK_LEN)) {
            if let Some(number) = self.changed.get(&block) {
                fill(*number, bytes);
            }
        }
        Ok(())
    }
}

struct Nowhere;

impl DiskSink for Nowhere {
    fn write(&mut self, _offset: u64, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }

    fn finish(self: Box<Self>, _length: u64) -> Result<()> {
        Ok(())
    }
}
