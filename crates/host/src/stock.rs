//! This host's stock of boot working sets: where it is, and reading from it before the repository.
//!
//! ```text
//! mirror ─► manifest, maps, pieces ─► stocked? ─► STATE/stock
//!                                  └► not, or damaged ─► repository
//! ```

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use catalog::{BootSetRecord, ImageFilter};
use mirror::StateFolder;
use model::boot_set::{BootPiece, BootSet};
use model::progress::{Cancel, Silent};
use model::{ChunkDigest, ContentDigest, LayoutDigest, Manifest, MapDigest, Result, SegmentMap};
use repository::repository::Machine;
use repository::{Repository, RepositoryChunks, Stock, StockedSet, SyncRequest, Wanted};
use store::{Chunk, ChunkStore, StoredChunk};

/// How often a daemon syncs the stock.
const SYNC_EVERY: Duration = Duration::from_secs(600);

/// Where the stock of a state folder is.
pub fn stock_folder(state: &StateFolder) -> PathBuf {
    state.path().join("stock")
}

/// The stock as owners of mirrors see it: opened when it is first there. All owners of a process
/// share it.
#[derive(Default)]
pub(crate) struct Shelf(Mutex<Option<Stock>>);

impl Shelf {
    /// What is stocked for a content.
    pub(crate) fn find(&self, state: &StateFolder, content: ContentDigest) -> Option<StockedSet> {
        let stock = {
            let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if open.is_none() {
                match Stock::open(&Machine::real(), &stock_folder(state)) {
                    Ok(stock) => *open = stock,
                    Err(error) => tracing::warn!("without the stock: {}", error.chain()),
                }
            }
            open.clone()
        };
        stock?.find(content)
    }
}

/// A repository's chunk store that looks into the stock first.
pub(crate) struct StockedChunks {
    chunks: Arc<RepositoryChunks>,
    stocked: Option<StockedSet>,
}

impl StockedChunks {
    pub(crate) fn new(chunks: Arc<RepositoryChunks>, stocked: Option<StockedSet>) -> Self {
        StockedChunks { chunks, stocked }
    }

    /// From the stock, or where that fails from the repository.
    fn either<T>(
        &self,
        near: impl FnOnce(&StockedSet) -> Result<T>,
        far: impl FnOnce(&RepositoryChunks) -> Result<T>,
    ) -> Result<T> {
        match self.stocked.as_ref().map(near) {
            Some(Ok(found)) => Ok(found),
            Some(Err(error)) => {
                tracing::debug!("not from the stock: {}", error.chain());
                far(&self.chunks)
            }
            None => far(&self.chunks),
        }
    }

    /// The set of a record.
    pub(crate) fn boot_set(&self, record: &BootSetRecord) -> Result<BootSet> {
        self.either(
            |stocked| stocked.boot_set(record.digest),
            |chunks| chunks.boot_set(record.digest),
        )
    }
}

impl ChunkStore for StockedChunks {
    fn current_layout(&self, content: ContentDigest) -> Result<Option<LayoutDigest>> {
        self.chunks.current_layout(content)
    }

    fn manifest(&self, layout: LayoutDigest) -> Result<Arc<Manifest>> {
        self.either(
            |stocked| stocked.manifest(layout).map(Arc::new),
            |chunks| chunks.manifest(layout),
        )
    }

    fn segment_map(&self, map: MapDigest) -> Result<Arc<SegmentMap>> {
        self.either(
            |stocked| stocked.segment_map(map).map(Arc::new),
            |chunks| chunks.segment_map(map),
        )
    }

    fn chunk_as_stored(&self, chunk: ChunkDigest) -> Result<(Chunk, Option<StoredChunk>)> {
        self.chunks.chunk_as_stored(chunk)
    }

    fn boot_pieces(&self, pieces: &[BootPiece]) -> Result<Vec<Vec<u8>>> {
        self.either(|stocked| stocked.boot_pieces(pieces), |chunks| chunks.boot_pieces(pieces))
    }
}

/// Syncs the stock of a daemon's host now and then. Ends when dropped.
pub(crate) struct StockKeeper {
    ended: Arc<(Mutex<bool>, Condvar)>,
    cancel: Arc<Cancel>,
    thread: Option<JoinHandle<()>>,
}

impl StockKeeper {
    /// Starts; the first sync begins at once.
    pub(crate) fn start(
        state: &StateFolder,
        limit_len: u64,
        repository: impl Fn() -> Result<Repository> + Send + 'static,
    ) -> Self {
        let ended = Arc::new((Mutex::new(false), Condvar::new()));
        let cancel = Arc::new(Cancel::new());
        let folder = stock_folder(state);
        let thread = std::thread::spawn({
            let (ended, cancel) = (ended.clone(), cancel.clone());
            move || {
                loop {
                    let synced = repository().and_then(|repository| {
                        let stock = Stock::open_or_create(&Machine::real(), &folder)?;
                        stock.sync(&SyncRequest {
                            from: &repository,
                            wanted: Wanted::Images(ImageFilter::default()),
                            limit_len,
                            progress: &Silent,
                            cancel: &cancel,
                        })
                    });
                    match synced {
                        Ok(synced) if synced.added + synced.evicted > 0 => tracing::info!(
                            stocked = synced.stocked,
                            added = synced.added,
                            evicted = synced.evicted,
                            stored_bytes = synced.stored_len,
                            "synced the stock"
                        ),
                        Ok(_) => {}
                        Err(error) => tracing::warn!("{}", error.chain()),
                    }
                    let is_ended = ended.0.lock().unwrap_or_else(PoisonError::into_inner);
                    let waited = ended.1.wait_timeout_while(is_ended, SYNC_EVERY, |ended| !*ended);
                    if *waited.unwrap_or_else(PoisonError::into_inner).0 {
                        return;
                    }
                }
            }
        });
        StockKeeper { ended, cancel, thread: Some(thread) }
    }
}

impl Drop for StockKeeper {
    fn drop(&mut self) {
        self.cancel.cancel();
        *self.ended.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.ended.1.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
