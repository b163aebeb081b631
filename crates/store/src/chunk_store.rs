//! What mirrors and exports read from. Whether a disk, a peer or a site answers, they cannot tell.

use std::sync::Arc;

use format::Encoding;
use model::boot_set::BootPiece;
use model::{ChunkDigest, ContentDigest, LayoutDigest, Manifest, MapDigest, Result, SegmentMap};

use crate::Chunk;

/// A chunk's bytes as they are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredChunk {
    /// How they are stored.
    pub encoding: Encoding,
    /// The stored bytes.
    pub bytes: Vec<u8>,
}

/// Reads verified chunks, maps and manifests by digest. Calls may come from many threads at once.
///
/// Everything returned was checked against the digest it was asked for. A failure is never
/// remembered: asking again asks again.
///
/// # Errors
/// `NotFound` where no copy exists, `Corrupt` where none is sound, `Unavailable` where asking again
/// may help.
pub trait ChunkStore: Send + Sync {
    /// The layout by which a content is to be read now, `None` where no version has it any more.
    ///
    /// Collect lays versions out anew and then removes what only the old layout needs. Whoever reads
    /// by a layout and gets `NotFound` asks here, and goes on with the new one: the bytes are equal.
    fn current_layout(&self, content: ContentDigest) -> Result<Option<LayoutDigest>>;

    /// Reads the manifest of a version. Cost: one or two small reads per 32 GiB that hold data.
    fn manifest(&self, layout: LayoutDigest) -> Result<Arc<Manifest>>;

    /// Reads the map of one segment.
    fn segment_map(&self, map: MapDigest) -> Result<Arc<SegmentMap>>;

    /// Reads one chunk whole, with its bytes as they are stored where that is known: whoever keeps
    /// them need not compress anew.
    fn chunk_as_stored(&self, chunk: ChunkDigest) -> Result<(Chunk, Option<StoredChunk>)>;

    /// Reads one chunk whole.
    fn chunk(&self, chunk: ChunkDigest) -> Result<Chunk> {
        self.chunk_as_stored(chunk).map(|(chunk, _)| chunk)
    }

    /// Reads pieces of a boot working set, in the order asked; those that lie one behind the other
    /// come in one request.
    ///
    /// Their blocks are **not verified** here: the caller compares each with the digest that the set's
    /// source lists.
    fn boot_pieces(&self, pieces: &[BootPiece]) -> Result<Vec<Vec<u8>>>;
}
