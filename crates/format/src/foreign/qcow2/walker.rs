//! Walks the tables of a qcow2 and tells its pieces of data in address order.
//!
//! **Invariants**: pieces ascend, never overlap and end within the disk; each lies within the file.
//! One L2 table is in memory at a time.

use std::fs::File;

use super::entry::{self, Mapping, SUBCLUSTER_COUNT};
use super::fault::Fault;
use super::header::Header;
use crate::foreign::open::read_up_to;

const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;

/// The shortest a compressed cluster can be; only used to bound how many a file can hold.
const COMPRESSED_LEN_MIN: u64 = 8;

/// Where the bytes of a piece come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// As they are, from this offset of the file.
    Plain(u64),
    /// From a compressed cluster, within `len` bytes at `host_offset`.
    Compressed { host_offset: u64, len: u64 },
}

/// A stretch of the disk that has data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub guest_offset: u64,
    pub len: u64,
    pub origin: Origin,
}

/// A position in the tables.
#[derive(Debug)]
pub(super) struct Walker {
    l1: Vec<u64>,
    /// The L2 table that covers `next_cluster`, if it has been read; its L1 index.
    table_index: Option<u64>,
    table: Vec<u8>,
    next_cluster: u64,
    /// The next subcluster of `next_cluster`, in images that have them.
    next_subcluster: u32,
    /// How many tables and clusters have been met, against lies.
    tables_met: u64,
    plain_met: u64,
    compressed_met: u64,
}

impl Walker {
    /// Reads the L1 table.
    pub(super) fn new(file: &File, header: &Header) -> Result<Self, Fault> {
        // At most 32 MiB, and within the file: the header was checked.
        let mut bytes = vec![0; header.l1_count as usize * 8];
        read_exactly(file, &mut bytes, header.l1_offset)?;
        let l1 = bytes.as_chunks().0.iter().map(|entry| u64::from_be_bytes(*entry)).collect();
        Ok(Walker {
            l1,
            table_index: None,
            table: Vec::new(),
            next_cluster: 0,
            next_subcluster: 0,
            tables_met: 0,
            plain_met: 0,
            compressed_met: 0,
        })
    }

    /// How many L2 tables the L1 table names.
    pub(super) fn table_count(&self) -> usize {
        self.l1.iter().filter(|entry| **entry & OFFSET_MASK != 0).count()
    }

    /// Back to the disk's beginning.
    pub(super) fn rewind(&mut self) {
        self.table_index = None;
        (self.next_cluster, self.next_subcluster) = (0, 0);
        (self.tables_met, self.plain_met, self.compressed_met) = (0, 0, 0);
    }

    /// The next piece; plain clusters that lie one behind the other in the file come as one, as far
    /// as their table goes.
    pub(super) fn next(&mut self, file: &File, header: &Header) -> Result<Option<Piece>, Fault> {
        let cluster_count = header.length.div_ceil(header.cluster_len());
        while self.next_cluster < cluster_count {
            let table_index = self.next_cluster / header.l2_count();
            if !self.load_table(file, header, table_index)? {
                self.next_cluster = (table_index + 1) * header.l2_count();
                self.next_subcluster = 0;
                continue;
            }
            if let Some(piece) = self.piece_of_cluster(header)? {
                return self.extended(header, piece, cluster_count).map(Some);
            }
        }
        Ok(None)
    }

    /// Grows a plain piece by the clusters that follow it on the disk and in the file.
    fn extended(
        &mut self,
        header: &Header,
        mut piece: Piece,
        cluster_count: u64,
    ) -> Result<Piece, Fault> {
        let Origin::Plain(start) = piece.origin else { return Ok(piece) };
        while self.next_cluster < cluster_count
            && !self.next_cluster.is_multiple_of(header.l2_count())
        {
            let before =
                (self.next_cluster, self.next_subcluster, self.plain_met, self.compressed_met);
            let end = piece.guest_offset + piece.len;
            match self.piece_of_cluster(header)? {
                Some(next)
                    if next.guest_offset == end
                        && next.origin == Origin::Plain(start + piece.len) =>
                {
                    piece.len += next.len;
                }
                _ => {
                    (
                        self.next_cluster,
                        self.next_subcluster,
                        self.plain_met,
                        self.compressed_met,
                    ) = before;
                    break;
                }
            }
        }
        Ok(piece)
    }

    /// The piece that begins at or behind the next subcluster of the next cluster, and steps behind
    /// it; `None` when the rest of that cluster is a hole.
    fn piece_of_cluster(&mut self, header: &Header) -> Result<Option<Piece>, Fault> {
        let guest_offset = self.next_cluster << header.cluster_bits;
        let left = header.length - guest_offset;
        let mapping = self.mapping(header, guest_offset)?;
        let (first, count) = match mapping {
            Mapping::Data { present, .. } if header.extended_l2 => {
                next_run(present, self.next_subcluster)
            }
            _ => (0, SUBCLUSTER_COUNT),
        };
        if self.next_subcluster == 0 {
            self.count(header, &mapping)?;
        }
        if first + count >= SUBCLUSTER_COUNT {
            self.next_cluster += 1;
            self.next_subcluster = 0;
        } else {
            self.next_subcluster = first + count;
        }
        Ok(match mapping {
            Mapping::Hole => None,
            Mapping::Compressed { host_offset, len } => Some(Piece {
                guest_offset,
                len: header.cluster_len().min(left),
                origin: Origin::Compressed { host_offset, len },
            }),
            Mapping::Data { host_offset, .. } => {
                let subcluster_len = header.cluster_len() / u64::from(SUBCLUSTER_COUNT);
                let skip = u64::from(first) * subcluster_len;
                let len = (u64::from(count) * subcluster_len).min(left.saturating_sub(skip));
                (len > 0).then_some(Piece {
                    guest_offset: guest_offset + skip,
                    len,
                    origin: Origin::Plain(host_offset + skip),
                })
            }
        })
    }

    fn mapping(&self, header: &Header, guest_offset: u64) -> Result<Mapping, Fault> {
        let index = self.next_cluster % header.l2_count();
        let at = (index * header.entry_len()) as usize;
        let word = |at: usize| {
            self.table[at..].first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
        };
        let second = if header.extended_l2 { word(at + 8) } else { 0 };
        entry::decode(header, word(at), second, guest_offset)
    }

    /// Every host cluster belongs to one cluster of the disk: more clusters than the file has room
    /// for are a lie, and would make work without end.
    fn count(&mut self, header: &Header, mapping: &Mapping) -> Result<(), Fault> {
        let file_len = header.file_len;
        match mapping {
            Mapping::Hole => {}
            Mapping::Data { .. } => self.plain_met += 1,
            Mapping::Compressed { .. } => self.compressed_met += 1,
        }
        if self.plain_met > file_len.div_ceil(header.cluster_len()) {
            return Err(Fault::Overcommitted { what: "clusters", file_len });
        }
        if self.compressed_met > file_len / COMPRESSED_LEN_MIN {
            return Err(Fault::Overcommitted { what: "compressed clusters", file_len });
        }
        Ok(())
    }

    /// Makes sure that the table for L1 entry `index` is loaded; false when there is none.
    fn load_table(&mut self, file: &File, header: &Header, index: u64) -> Result<bool, Fault> {
        if self.table_index == Some(index) {
            return Ok(true);
        }
        let offset = self.l1[index as usize] & OFFSET_MASK;
        if offset == 0 {
            return Ok(false);
        }
        let (what, file_len) = ("the L2 table", header.file_len);
        if !offset.is_multiple_of(header.cluster_len()) {
            return Err(Fault::Misaligned { what, offset });
        }
        if offset.checked_add(header.cluster_len()).is_none_or(|end| end > file_len) {
            return Err(Fault::Truncated { what, offset, file_len });
        }
        self.tables_met += 1;
        if self.tables_met > file_len / header.cluster_len() {
            return Err(Fault::Overcommitted { what: "L2 tables", file_len });
        }
        self.table.resize(header.cluster_len() as usize, 0);
        self.table_index = None;
        read_exactly(file, &mut self.table, offset)?;
        self.table_index = Some(index);
        Ok(true)
    }
}

/// The first run of set bits in `present` from bit `from` on: where it begins and how many; at the
/// end with none when there is none.
fn next_run(present: u32, from: u32) -> (u32, u32) {
    let rest = present.checked_shr(from).unwrap_or(0);
    if rest == 0 {
        return (SUBCLUSTER_COUNT, 0);
    }
    let first = from + rest.trailing_zeros();
    (first, (present >> first).trailing_ones())
}

/// Fills `buffer`, or says that the file shrank.
pub(super) fn read_exactly(file: &File, buffer: &mut [u8], offset: u64) -> Result<(), Fault> {
    match read_up_to(file, buffer, offset)? {
        len if len == buffer.len() => Ok(()),
        _ => Err(Fault::Shrunk),
    }
}
