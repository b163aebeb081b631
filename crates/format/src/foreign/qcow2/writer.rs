//! A qcow2 written in one pass: clusters and L2 tables as they come, the rest at the end.
//!
//! ```text
//! |header|data|data|...|L2 of 512 MiB|data|...|L2|L1 table|refcount blocks|refcount table|
//!  last                                                                              end of file
//! ```
//!
//! **Invariants**: host clusters are given out in order and each exactly once, so every refcount is
//! 1; clusters of zeros are given none.
//!
//! **Failure**: the file has no name before `finish` has synced it.

use model::source::DiskSink;
use model::{Result, block::is_zero};

use crate::foreign::create::check_order;
use crate::foreign::destination::Destination;
use crate::foreign::raw_sink::for_each_data_run;

const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
const CLUSTER_LEN: usize = CLUSTER as usize;
/// Bytes of the disk that one L2 table covers.
const TABLE_SPAN: u64 = CLUSTER * (CLUSTER / 8);
/// How many clusters one refcount block counts, 16 bits each.
const REFCOUNTS_PER_BLOCK: u64 = CLUSTER / 2;
const HEADER_LEN: u32 = 104;
/// Set in L1 and L2 entries whose target has a refcount of 1.
const COPIED: u64 = 1 << 63;
const SECTOR_LEN: u64 = 512;

/// A qcow2 being written.
#[derive(Debug)]
pub(in crate::foreign) struct Qcow2Sink {
    destination: Destination,
    position: u64,
    /// The next host cluster to give out.
    next_cluster: u64,
    l1: Vec<u64>,
    /// The L2 table of the stretch being written, and whether it has entries.
    l2: Vec<u64>,
    l2_used: bool,
    l2_index: u64,
    /// A cluster of the disk that has been written in part: its number and its bytes.
    partial: Option<u64>,
    partial_bytes: Vec<u8>,
}

impl Qcow2Sink {
    /// Takes over an empty destination.
    pub(in crate::foreign) fn new(destination: Destination) -> Result<Self> {
        Ok(Qcow2Sink {
            destination,
            position: 0,
            next_cluster: 1,
            l1: Vec::new(),
            l2: vec![0; CLUSTER_LEN / 8],
            l2_used: false,
            l2_index: 0,
            partial: None,
            partial_bytes: vec![0; CLUSTER_LEN],
        })
    }

    /// Adds bytes that do not make a whole cluster.
    fn put_part(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let cluster = offset / CLUSTER;
        if self.partial != Some(cluster) {
            self.flush_partial()?;
            self.partial_bytes.fill(0);
            self.partial = Some(cluster);
        }
        let at = (offset % CLUSTER) as usize;
        self.partial_bytes[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn flush_partial(&mut self) -> Result<()> {
        let Some(cluster) = self.partial.take() else { return Ok(()) };
        let bytes = std::mem::take(&mut self.partial_bytes);
        let result = if is_zero(&bytes) { Ok(()) } else { self.put_clusters(cluster, &bytes) };
        self.partial_bytes = bytes;
        result
    }

    /// Adds whole clusters, of which none is all zeros, from cluster `first` of the disk on.
    fn put_clusters(&mut self, first: u64, bytes: &[u8]) -> Result<()> {
        let mut first = first;
        let mut rest = bytes;
        while !rest.is_empty() {
            let index = first / (TABLE_SPAN / CLUSTER);
            self.turn_to_table(index)?;
            let in_table = (first % (TABLE_SPAN / CLUSTER)) as usize;
            let count = (rest.len() / CLUSTER_LEN).min(self.l2.len() - in_table);
            let (now, later) = rest.split_at(count * CLUSTER_LEN);
            let host = self.next_cluster;
            self.destination.write_at(now, host * CLUSTER)?;
            for (entry, host) in self.l2[in_table..in_table + count].iter_mut().zip(host..) {
                *entry = (host * CLUSTER) | COPIED;
            }
            self.l2_used = true;
            self.next_cluster += count as u64;
            first += count as u64;
            rest = later;
        }
        Ok(())
    }

    /// Makes `index` the table being filled, and writes the one before it.
    fn turn_to_table(&mut self, index: u64) -> Result<()> {
        if index != self.l2_index {
            self.flush_table()?;
            self.l2_index = index;
        }
        Ok(())
    }

    fn flush_table(&mut self) -> Result<()> {
        if !self.l2_used {
            return Ok(());
        }
        let host = self.give_out(1) * CLUSTER;
        self.destination.write_at(&words(&self.l2), host)?;
        self.l1.resize(self.l2_index as usize + 1, 0);
        self.l1[self.l2_index as usize] = host | COPIED;
        self.l2.fill(0);
        self.l2_used = false;
        Ok(())
    }

    fn give_out(&mut self, count: u64) -> u64 {
        let first = self.next_cluster;
        self.next_cluster += count;
        first
    }

    /// Writes refcounts of 1 for all clusters, these tables' own among them; returns where the
    /// table begins and how many clusters it has.
    fn write_refcounts(&mut self) -> Result<(u64, u32)> {
        let (mut blocks, mut table) = (1, 1);
        loop {
            let total = self.next_cluster + blocks + table;
            let blocks_needed = total.div_ceil(REFCOUNTS_PER_BLOCK);
            let table_needed = (blocks_needed * 8).div_ceil(CLUSTER);
            if blocks_needed <= blocks && table_needed <= table {
                break;
            }
            (blocks, table) = (blocks_needed.max(blocks), table_needed.max(table));
        }
        let first_block = self.give_out(blocks);
        let table_start = self.give_out(table);
        let total = self.next_cluster;
        for block in 0..blocks {
            let counted = block * REFCOUNTS_PER_BLOCK;
            let ones = total.saturating_sub(counted).min(REFCOUNTS_PER_BLOCK) as usize;
            let mut bytes = vec![0; CLUSTER_LEN];
            bytes.as_chunks_mut().0[..ones].fill(1u16.to_be_bytes());
            self.destination.write_at(&bytes, (first_block + block) * CLUSTER)?;
        }
        let entries: Vec<u64> = (first_block..first_block + blocks).map(|b| b * CLUSTER).collect();
        self.destination.write_at(&words(&entries), table_start * CLUSTER)?;
        Ok((table_start * CLUSTER, table as u32))
    }

    /// Writes the L1 table for a disk of `length` bytes; returns where it begins and its entries.
    fn write_l1(&mut self, length: u64) -> Result<(u64, u32)> {
        let count = length.div_ceil(TABLE_SPAN).max(1);
        self.l1.resize(count as usize, 0);
        let host = self.give_out((count * 8).div_ceil(CLUSTER)) * CLUSTER;
        self.destination.write_at(&words(&self.l1), host)?;
        Ok((host, count as u32))
    }
}

impl DiskSink for Qcow2Sink {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let subject = self.destination.subject();
        self.position = check_order(subject, self.position, offset, bytes.len())?;
        let to_edge = (offset.next_multiple_of(CLUSTER) - offset) as usize;
        let (head, rest) = bytes.split_at(to_edge.min(bytes.len()));
        if !head.is_empty() {
            self.put_part(offset, head)?;
        }
        let (whole, tail) = rest.split_at(rest.len() / CLUSTER_LEN * CLUSTER_LEN);
        let at = offset + head.len() as u64;
        if !whole.is_empty() {
            self.flush_partial()?;
            for_each_data_run(at, whole, CLUSTER_LEN, |at, run| {
                self.put_clusters(at / CLUSTER, run)
            })?;
        }
        if !tail.is_empty() {
            self.put_part(at + whole.len() as u64, tail)?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>, length: u64) -> Result<()> {
        check_order(self.destination.subject(), self.position, length, 0)?;
        self.flush_partial()?;
        self.flush_table()?;
        // QEMU counts disks in sectors.
        let length = length.next_multiple_of(SECTOR_LEN);
        let (l1_offset, l1_count) = self.write_l1(length)?;
        let (refcount_offset, refcount_clusters) = self.write_refcounts()?;
        let mut header = Vec::with_capacity(HEADER_LEN as usize + 8);
        header.extend_from_slice(b"QFI\xfb");
        header.extend_from_slice(&3u32.to_be_bytes());
        header.extend_from_slice(&[0; 12]); // no backing file
        header.extend_from_slice(&CLUSTER_BITS.to_be_bytes());
        header.extend_from_slice(&length.to_be_bytes());
        header.extend_from_slice(&0u32.to_be_bytes()); // not encrypted
        header.extend_from_slice(&l1_count.to_be_bytes());
        header.extend_from_slice(&l1_offset.to_be_bytes());
        header.extend_from_slice(&refcount_offset.to_be_bytes());
        header.extend_from_slice(&refcount_clusters.to_be_bytes());
        header.extend_from_slice(&[0; 12]); // no snapshots
        header.extend_from_slice(&[0; 24]); // no features
        header.extend_from_slice(&4u32.to_be_bytes()); // refcounts of 16 bits
        header.extend_from_slice(&HEADER_LEN.to_be_bytes());
        header.extend_from_slice(&[0; 8]); // no extensions
        self.destination.write_at(&header, 0)?;
        self.destination.commit(self.next_cluster * CLUSTER)
    }
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}
