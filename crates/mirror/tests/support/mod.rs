//! A disk of several segments, mostly hole, that a model in memory can be compared with.
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use env::FileSystem;
use env::entropy::SeededEntropy;
use mirror::{Binding, Mirror, StateFolder};
use model::changes::Changes;
use model::device::Device;
use model::{
    BLOCK_LEN, BlockRange, ImageName, MirrorName, Result, SEGMENT_LEN, VersionId, VersionNumber,
};
use store::{ChunkStore, MemoryChunkStore};

pub const LEN: u64 = BLOCK_LEN as u64;

/// Three segments and a bit; the last block is partial.
pub const LENGTH: u64 = 3 * SEGMENT_LEN + 5 * LEN + 1234;

/// Where tests work: around segment borders and at the end, so that few blocks matter.
pub const WINDOWS: [(u64, u64); 3] = [
    (0, 24 * LEN),
    (SEGMENT_LEN - 12 * LEN, 24 * LEN),
    (LENGTH - 16 * LEN - 1234, 16 * LEN + 1234),
];

pub fn name(text: &str) -> MirrorName {
    MirrorName::new(text).unwrap()
}

pub fn version(number: u64) -> VersionId {
    VersionId {
        image: ImageName::new("debian").unwrap(),
        version: VersionNumber::new(number).unwrap(),
    }
}

/// A disk: bytes of the blocks that are no hole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    pub blocks: BTreeMap<u64, Vec<u8>>,
}

impl Model {
    /// Data, holes and duplicates in every window.
    pub fn example() -> Model {
        let mut model = Model::default();
        for (window, (start, len)) in WINDOWS.into_iter().enumerate() {
            for block in start / LEN..(start + len).div_ceil(LEN) {
                if block % 5 != 3 {
                    let mut bytes = vec![(block % 7 + 1) as u8; BLOCK_LEN];
                    if block % 2 == 0 {
                        bytes[7] = window as u8;
                    }
                    if (block + 1) * LEN > LENGTH {
                        bytes[(LENGTH % LEN) as usize..].fill(0);
                    }
                    model.blocks.insert(block, bytes);
                }
            }
        }
        model
    }

    pub fn read(&self, offset: u64, buffer: &mut [u8]) {
        for (block, from, range) in pieces(offset, buffer.len()) {
            let piece = &mut buffer[range];
            match self.blocks.get(&block) {
                Some(bytes) => piece.copy_from_slice(&bytes[from..from + piece.len()]),
                None => piece.fill(0),
            }
        }
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (block, from, range) in pieces(offset, bytes.len()) {
            let block = self.blocks.entry(block).or_insert_with(|| vec![0; BLOCK_LEN]);
            block[from..from + range.len()].copy_from_slice(&bytes[range]);
        }
    }

    pub fn discard(&mut self, offset: u64, len: u64) {
        for block in offset.div_ceil(LEN)..(offset + len) / LEN {
            self.blocks.remove(&block);
        }
    }

    pub fn block(&self, block: u64) -> Vec<u8> {
        self.blocks.get(&block).cloned().unwrap_or_else(|| vec![0; BLOCK_LEN])
    }
}

/// Cuts a range at blocks: block, where in it, where in the range.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let end = offset + len as u64;
    (offset / LEN..end.div_ceil(LEN)).map(move |block| {
        let (start, stop) = (offset.max(block * LEN), end.min((block + 1) * LEN));
        (block, (start % LEN) as usize, (start - offset) as usize..(stop - offset) as usize)
    })
}

/// A version, its store, and a state folder on some file system.
pub struct Host {
    pub store: Arc<dyn ChunkStore>,
    pub binding: Binding,
    pub state: StateFolder,
}

pub fn store_of(model: &Model) -> (MemoryChunkStore, Binding) {
    let mut store = MemoryChunkStore::new(4);
    let (content, layout) = store.add(LENGTH, &model.blocks);
    (store, Binding { parent: version(1), content, layout, length: LENGTH })
}

impl Host {
    pub fn new(file_system: Arc<dyn FileSystem>, model: &Model) -> Host {
        let (store, binding) = store_of(model);
        Host::with_store(file_system, Arc::new(store), binding)
    }

    pub fn with_store(
        file_system: Arc<dyn FileSystem>,
        store: Arc<dyn ChunkStore>,
        binding: Binding,
    ) -> Host {
        Host { store, binding, state: StateFolder::without_background(file_system, "/state") }
    }

    /// The same version on what became of the file system.
    pub fn on(&self, file_system: Arc<dyn FileSystem>) -> Host {
        Host::with_store(file_system, self.store.clone(), self.binding.clone())
    }

    pub fn create(&self) -> Result<Arc<Mirror>> {
        Mirror::create(&self.state, &name("web"), self.binding.clone(), self.store.clone())
    }

    pub fn reopen(&self) -> Result<Arc<Mirror>> {
        Mirror::reopen(&self.state, &name("web"), |_| Ok(self.store.clone()))
    }
}

/// Panics where the windows of a device do not read as the model says.
pub fn assert_same(device: &dyn Device, model: &Model, context: &str) {
    for (start, len) in WINDOWS {
        let (mut found, mut expected) = (vec![0; len as usize], vec![0; len as usize]);
        device.read(start, &mut found).unwrap();
        model.read(start, &mut expected);
        for (number, (found, expected)) in
            found.chunks(BLOCK_LEN).zip(expected.chunks(BLOCK_LEN)).enumerate()
        {
            let block = start / LEN + number as u64;
            assert!(
                found == expected,
                "{context}: from block {block}: {:?}... for {:?}...",
                &found[..16],
                &expected[..16]
            );
        }
    }
}

/// All blocks that changes name, as a commit sees them; `None` for zeros.
pub fn read_changes(changes: &dyn Changes) -> BTreeMap<u64, Option<Vec<u8>>> {
    let mut all = BTreeMap::new();
    for segment in changes.segments() {
        for changed in changes.in_segment(segment).unwrap() {
            let mut bytes = vec![0; changed.blocks.len() as usize];
            if !changed.zero {
                changes.read(changed.blocks, &mut bytes).unwrap();
            }
            for (block, bytes) in
                (changed.blocks.start()..changed.blocks.end()).zip(bytes.chunks(BLOCK_LEN))
            {
                let bytes = (!changed.zero).then(|| bytes.to_vec());
                assert!(all.insert(block, bytes).is_none(), "block {block} comes twice");
            }
        }
    }
    all
}

/// One step of a guest.
#[derive(Clone, Debug)]
pub enum Step {
    Read(u64, u64),
    Write(u64, Vec<u8>),
    Zero(u64, u64),
    Discard(u64, u64),
    Flush,
    Prefetch(u64, u64),
    Seal,
    Finish,
    Abandon,
    Close,
    Kill,
}

pub struct Steps(pub SeededEntropy);

impl Steps {
    pub fn new(seed: u64) -> Steps {
        Steps(SeededEntropy::new(seed))
    }

    pub fn below(&self, end: u64) -> u64 {
        self.0.next() % end
    }

    pub fn range(&self) -> (u64, u64) {
        let (start, len) = WINDOWS[self.below(3) as usize];
        let (offset, max) = match self.below(3) {
            0 => (self.below(len / LEN) * LEN, 6 * LEN),
            1 => (self.below(len / 512) * 512, 3 * LEN),
            _ => (self.below(len), 2 * LEN),
        };
        let size = match self.below(3) {
            0 => LEN * (1 + self.below(4)),
            1 => 512,
            _ => 1 + self.below(max),
        };
        (start + offset, size.min(len - offset))
    }

    pub fn write(&self) -> Step {
        let (offset, len) = self.range();
        let seed = self.0.next();
        Step::Write(offset, (0..len).map(|at| ((seed + at / 512) % 251) as u8 + 1).collect())
    }

    pub fn next(&self) -> Step {
        let (offset, len) = self.range();
        match self.below(40) {
            0..8 => Step::Read(offset, len),
            8..22 => self.write(),
            22..25 => Step::Zero(offset, len),
            25..29 => Step::Discard(offset, len),
            29..33 => Step::Flush,
            33 => Step::Prefetch(offset, len),
            34 | 35 => Step::Seal,
            36 => Step::Finish,
            37 => Step::Abandon,
            38 => Step::Close,
            _ => Step::Kill,
        }
    }
}

/// The blocks in which two models differ.
pub fn differing(a: &Model, b: &Model) -> BTreeSet<u64> {
    let blocks: BTreeSet<u64> = a.blocks.keys().chain(b.blocks.keys()).copied().collect();
    blocks.into_iter().filter(|block| a.block(*block) != b.block(*block)).collect()
}

/// Blocks as a range.
pub fn range(start: u64, end: u64) -> BlockRange {
    BlockRange::new(start..end).unwrap()
}
