//! Export: a version becomes a disk file.
//!
//! ```text
//! planner ──► [stretches under way, in order] ──► writer: the caller
//!     └──► thread pool: read, unpack, verify chunks ──┘
//!     ▲                                               │
//!     └──────────────── empty buffers ◄───────────────┘
//! ```
//!
//! A stretch need not wait for the one before it, so no core waits for the last chunk of a stretch.
//! A chunk that two stretches near each other use is unpacked once.

use crossbeam_channel::{Receiver, Sender, bounded};
use model::progress::{Cancel, Progress};
use model::source::DiskSink;
use model::{
    BLOCK_LEN, ChunkDigest, Error, Kind, Manifest, Result, Run, SEGMENT_LEN, SegmentMap, VersionId,
};
use quick_cache::sync::Cache;
use rayon::prelude::*;
use store::{Chunk, ChunkStore};

use crate::repository::Repository;

/// Blocks of a window of the disk: 16 MiB.
const WINDOW_BLOCKS: u32 = 4096;

/// How many stretches are under way at once, each with a buffer of a window.
const STRETCHES_MAX: usize = 3;

/// How many unpacked chunks are kept for the stretches to come.
const CHUNKS_KEPT_MAX: usize = 128;

/// What was exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Bytes that a guest sees.
    pub length: u64,
    /// Bytes that were written: no holes.
    pub data_len: u64,
}

/// A stretch of the disk without holes.
struct Filled {
    offset: u64,
    bytes: Vec<u8>,
}

/// A stretch under way.
type Under = Receiver<Result<Filled>>;

impl Repository {
    /// Writes a version to a sink. Every byte is verified on the way.
    ///
    /// # Errors
    /// Those of the sink; `Corrupt` where the repository is damaged: the error names the entry.
    pub fn export(
        &self,
        version: &VersionId,
        sink: Box<dyn DiskSink>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Exported> {
        // Dropped at the end: until then collect leaves what is read here alone.
        let _lease = self.begin_lease()?;
        let record = self.catalog.version(&version.clone().into())?;
        progress.expect(Some(record.facts.data_len));
        let chunks = self.chunks();
        let manifest = chunks.manifest(record.facts.layout)?;
        let mut sink = sink;
        let mut data_len = 0;
        let (send, receive) = bounded(STRETCHES_MAX);
        let (give, empty) = bounded(STRETCHES_MAX);
        for _ in 0..STRETCHES_MAX {
            let _ = give.send(Vec::new());
        }
        std::thread::scope(|scope| {
            let reader = Reader { chunks: &*chunks, kept: Cache::new(CHUNKS_KEPT_MAX) };
            let manifest = &*manifest;
            let reader = scope.spawn(move || reader.read_all(manifest, &empty, &send));
            let written = receive.iter().try_for_each(|under: Under| {
                // A thread pool that drops a job has panicked; the reader says so.
                let Ok(filled) = under.recv() else { return Ok(()) };
                let filled = filled?;
                cancel.check("export", &version.to_string())?;
                sink.write(filled.offset, &filled.bytes)?;
                data_len += filled.bytes.len() as u64;
                progress.advance(filled.bytes.len() as u64);
                // The reader may have ended: then nobody needs the buffer.
                let _ = give.send(filled.bytes);
                Ok(())
            });
            drop((receive, give));
            let was_read = reader.join().unwrap_or_else(|_| {
                Err(Error::new(Kind::Bug, "export", version.to_string())
                    .because("the thread that reads ended early"))
            });
            written.and(was_read)
        })?;
        sink.finish(manifest.length())?;
        Ok(Exported { length: manifest.length(), data_len })
    }
}

/// Reads a version's data.
struct Reader<'a> {
    chunks: &'a dyn ChunkStore,
    /// The chunks that were used last.
    kept: Cache<ChunkDigest, Chunk>,
}

impl Reader<'_> {
    /// Sends all stretches, in order, each as soon as it is under way.
    fn read_all(
        &self,
        manifest: &Manifest,
        empty: &Receiver<Vec<u8>>,
        send: &Sender<Under>,
    ) -> Result<()> {
        rayon::in_place_scope(|pool| {
            for entry in manifest.segments() {
                let map = self.chunks.segment_map(entry.map)?;
                let base = u64::from(entry.segment) * SEGMENT_LEN;
                for stretch in stretches(&map) {
                    let offset = base + u64::from(stretch.start) * BLOCK_LEN as u64;
                    // The last block of a disk of an odd length is stored whole.
                    let rest = manifest.length().saturating_sub(offset);
                    // Closed channels mean that the writer has failed; its error is returned there.
                    let Ok(mut bytes) = empty.recv() else { return Ok(()) };
                    let (done, under) = bounded(1);
                    let map = map.clone();
                    pool.spawn(move |_| {
                        let filled = self.fill(&map, &stretch, &mut bytes).map(|()| {
                            bytes.truncate(rest.min(bytes.len() as u64) as usize);
                            Filled { offset, bytes }
                        });
                        let _ = done.send(filled);
                    });
                    if send.send(under).is_err() {
                        return Ok(());
                    }
                }
            }
            Ok(())
        })
    }

    /// Reads a stretch: each chunk once, on all cores.
    fn fill(
        &self,
        map: &SegmentMap,
        stretch: &std::ops::Range<u32>,
        bytes: &mut Vec<u8>,
    ) -> Result<()> {
        let runs = map.runs_in(stretch.start, stretch.end);
        bytes.resize(stretch.len() * BLOCK_LEN, 0);
        let mut targets: Vec<(&Run, &mut [u8])> = Vec::with_capacity(runs.len());
        let mut rest = bytes.as_mut_slice();
        for run in runs {
            let (target, behind) = rest.split_at_mut(run.block_count as usize * BLOCK_LEN);
            targets.push((run, target));
            rest = behind;
        }
        targets.sort_by_key(|(run, _)| run.chunk);
        let by_chunk: Vec<&mut [(&Run, &mut [u8])]> =
            targets.chunk_by_mut(|(a, _), (b, _)| a.chunk == b.chunk).collect();
        by_chunk.into_par_iter().try_for_each(|targets| -> Result<()> {
            let Some((first, _)) = targets.first() else { return Ok(()) };
            let chunk =
                self.kept.get_or_insert_with(&first.chunk, || self.chunks.chunk(first.chunk))?;
            for (run, target) in targets {
                target.copy_from_slice(chunk.blocks(run.first_in_chunk, run.block_count)?);
            }
            Ok(())
        })
    }
}

/// The stretches of blocks without holes, cut to windows.
fn stretches(map: &SegmentMap) -> Vec<std::ops::Range<u32>> {
    let mut stretches: Vec<std::ops::Range<u32>> = Vec::new();
    for run in map.runs() {
        match stretches.last_mut() {
            Some(last)
                if last.end == run.first_block && run.end_block() - last.start <= WINDOW_BLOCKS =>
            {
                last.end = run.end_block();
            }
            _ => stretches.push(run.first_block..run.end_block()),
        }
    }
    stretches
}
