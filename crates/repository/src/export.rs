//! Export: a version becomes a disk file.
//!
//! Chunks are read and unpacked on all cores, a window of the disk at a time, while the window
//! before it is written.

use std::sync::Arc;

use catalog::VersionRecord;
use crossbeam_channel::{Sender, bounded};
use model::progress::{Cancel, Progress};
use model::source::DiskSink;
use model::{BLOCK_LEN, Error, Kind, Manifest, Result, Run, SEGMENT_LEN, SegmentMap, VersionId};
use rayon::prelude::*;
use store::ChunkStore;

use crate::repository::Repository;

/// Blocks of a window of the disk: 16 MiB.
const WINDOW_BLOCKS: u32 = 4096;

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
        self.export_record(&record, sink, progress, cancel).map_err(|error| match error.kind() {
            // What is damaged names its versions itself; what is not there can not.
            Kind::NotFound => Error::new(Kind::NotFound, "export", version.to_string())
                .because("a part of it is missing")
                .caused_by(error),
            _ => error,
        })
    }

    fn export_record(
        &self,
        record: &VersionRecord,
        sink: Box<dyn DiskSink>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Exported> {
        let version = &record.id;
        let chunks = self.chunks();
        let manifest = self.manifest_of(record)?;
        let mut sink = sink;
        let mut data_len = 0;
        let (send, receive) = bounded(2);
        std::thread::scope(|scope| {
            let (chunks, manifest) = (&*chunks, &*manifest);
            let reader = scope.spawn(move || read_all(chunks, manifest, &send));
            let written = receive.iter().try_for_each(|filled: Filled| {
                cancel.check("export", &version.to_string())?;
                sink.write(filled.offset, &filled.bytes)?;
                data_len += filled.bytes.len() as u64;
                progress.advance(filled.bytes.len() as u64);
                Ok(())
            });
            drop(receive);
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

impl Repository {
    /// The manifest of a version, which holds what the catalog says.
    ///
    /// # Errors
    /// `Corrupt` where it holds something else: a row of the catalog is damaged.
    pub(crate) fn manifest_of(&self, record: &VersionRecord) -> Result<Arc<Manifest>> {
        let manifest = self.chunks().manifest(record.facts.layout)?;
        match manifest.content() == record.facts.content {
            true => Ok(manifest),
            false => Err(Error::new(Kind::Corrupt, "read", record.id.to_string())
                .because("its manifest is of another content than the catalog says")
                .hint("`larder scrub` looks for what is damaged")),
        }
    }
}

fn read_all(chunks: &dyn ChunkStore, manifest: &Manifest, send: &Sender<Filled>) -> Result<()> {
    for entry in manifest.segments() {
        let map = chunks.segment_map(entry.map)?;
        let base = u64::from(entry.segment) * SEGMENT_LEN;
        for stretch in stretches(&map) {
            let offset = base + u64::from(stretch.start) * BLOCK_LEN as u64;
            let mut bytes = fill(chunks, &map, &stretch)?;
            // The last block of a disk of an odd length is stored whole.
            bytes.truncate(manifest.length().saturating_sub(offset).min(bytes.len() as u64) as usize);
            if send.send(Filled { offset, bytes }).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
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

/// Reads a stretch: each chunk once, on all cores.
fn fill(
    chunks: &dyn ChunkStore,
    map: &SegmentMap,
    stretch: &std::ops::Range<u32>,
) -> Result<Vec<u8>> {
    let runs = map.runs_in(stretch.start, stretch.end);
    let mut bytes = vec![0; stretch.len() * BLOCK_LEN];
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
        let chunk = chunks.chunk(first.chunk)?;
        for (run, target) in targets {
            target.copy_from_slice(chunk.blocks(run.first_in_chunk, run.block_count)?);
        }
        Ok(())
    })?;
    Ok(bytes)
}
