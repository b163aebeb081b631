//! Disks in memory as sources, sinks and changes; repositories that live random lives.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod lives;

use std::sync::{Arc, Mutex};

use env::SeededEntropy;
use model::block::{BLOCKS_PER_SEGMENT, is_zero};
use model::changes::{ChangedBlocks, Changes};
use model::progress::{Cancel, Silent};
use model::source::{DataRun, DiskSink, DiskSource};
use model::{BLOCK_LEN, BlockRange, ImageName, Result, VersionKind};
use repository::ImportRequest;

/// A disk in memory as a source: non-zero stretches of at most `step` bytes.
pub struct BytesSource<'a> {
    pub bytes: &'a [u8],
    pub at: usize,
    pub step: usize,
    pub knows_length: bool,
}

impl<'a> BytesSource<'a> {
    /// Stretches of at most 1 MiB of a disk whose length is known.
    pub fn new(bytes: &'a [u8]) -> Self {
        BytesSource { bytes, at: 0, step: 1 << 20, knows_length: true }
    }
}

impl DiskSource for BytesSource<'_> {
    fn length_hint(&self) -> Option<u64> {
        self.knows_length.then_some(self.bytes.len() as u64)
    }

    fn data_len_hint(&self) -> Option<u64> {
        self.length_hint()
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<Option<DataRun>> {
        while self.at < self.bytes.len() {
            let end = (self.at + BLOCK_LEN).min(self.bytes.len());
            if !is_zero(&self.bytes[self.at..end]) {
                let room = buffer.len().min(self.step) / BLOCK_LEN * BLOCK_LEN;
                let len = room.min(self.bytes.len() - self.at);
                buffer[..len].copy_from_slice(&self.bytes[self.at..self.at + len]);
                let run = DataRun { offset: self.at as u64, len };
                self.at += len;
                return Ok(Some(run));
            }
            self.at = end;
        }
        Ok(None)
    }

    fn length(&self) -> u64 {
        self.bytes.len() as u64
    }
}

/// Collects an export in memory.
#[derive(Clone, Default)]
pub struct BytesSink(Arc<Mutex<Vec<u8>>>);

impl BytesSink {
    /// What was exported.
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl DiskSink for BytesSink {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut all = self.0.lock().unwrap();
        assert!(offset >= all.len() as u64, "exports ascend");
        all.resize(offset as usize, 0);
        all.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(self: Box<Self>, length: u64) -> Result<()> {
        self.0.lock().unwrap().resize(length as usize, 0);
        Ok(())
    }
}

/// Changes from one disk in memory to another.
pub struct Difference<'a> {
    pub old: &'a [u8],
    pub new: &'a [u8],
}

impl Difference<'_> {
    fn block(bytes: &[u8], block: u64) -> &[u8] {
        let start = (block as usize * BLOCK_LEN).min(bytes.len());
        &bytes[start..(start + BLOCK_LEN).min(bytes.len())]
    }

    fn changed(&self) -> Vec<ChangedBlocks> {
        let count = (self.new.len() as u64).div_ceil(BLOCK_LEN as u64);
        // Blocks are compared as they are stored, padded with zeros: what is cut off inside a block
        // is a change of that block, what grows as zeros is none.
        let padded = |bytes: &[u8]| [bytes, &vec![0; BLOCK_LEN - bytes.len()]].concat();
        let differs = |block: &u64| {
            padded(Self::block(self.old, *block)) != padded(Self::block(self.new, *block))
        };
        let to_change = |block| ChangedBlocks {
            blocks: BlockRange::new(block..block + 1).unwrap(),
            zero: is_zero(Self::block(self.new, block)),
        };
        (0..count).filter(differs).map(to_change).collect()
    }
}

impl Changes for Difference<'_> {
    fn length(&self) -> u64 {
        self.new.len() as u64
    }

    fn segments(&self) -> Vec<u32> {
        let per_segment = u64::from(BLOCKS_PER_SEGMENT);
        let mut segments: Vec<u32> =
            self.changed().iter().map(|c| (c.blocks.start() / per_segment) as u32).collect();
        segments.dedup();
        segments
    }

    fn in_segment(&self, segment: u32) -> Result<Vec<ChangedBlocks>> {
        let per_segment = u64::from(BLOCKS_PER_SEGMENT);
        let inside = |c: &ChangedBlocks| c.blocks.start() / per_segment == u64::from(segment);
        Ok(self.changed().into_iter().filter(inside).collect())
    }

    fn read(&self, blocks: BlockRange, buffer: &mut [u8]) -> Result<()> {
        buffer.fill(0);
        for (block, target) in (blocks.start()..blocks.end()).zip(buffer.chunks_mut(BLOCK_LEN)) {
            let bytes = Self::block(self.new, block);
            target[..bytes.len()].copy_from_slice(bytes);
        }
        Ok(())
    }
}

/// An import of a disk.
pub fn request<'a>(image: &str, cancel: &'a Cancel) -> ImportRequest<'a> {
    ImportRequest {
        image: ImageName::new(image).unwrap(),
        tag: None,
        origin: "test".into(),
        kind: VersionKind::Disk,
        progress: &Silent,
        cancel,
    }
}

/// A disk of random blocks, zero blocks and repeated blocks.
pub fn disk(seed: u64, length: usize, kinds: u64) -> Vec<u8> {
    let random = SeededEntropy::new(seed);
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let block = match random.next() % 4 {
            0 => vec![0; BLOCK_LEN],
            _ => {
                let number = random.next() % kinds;
                let text = format!("block {number} of disk; ");
                text.bytes().cycle().take(BLOCK_LEN).collect()
            }
        };
        bytes.extend_from_slice(&block[..block.len().min(length - bytes.len())]);
    }
    bytes
}
