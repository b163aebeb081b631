//! Where on a disk file systems of the ext family lie: bare, or in partitions of an MBR or a GPT.
//!
//! **Invariants**: every range lies inside the disk; no more than [`PARTITIONS_MAX`] are read.
//!
//! **Not here**: logical partitions inside extended ones; sectors other than 512 bytes; checksums of
//! tables: whoever reads what lies in a partition must doubt it anyway.
//!
//! **Source**: UEFI 2.10, section 5; the kernel's documentation of ext4's superblock.

use std::ops::Range;

use crate::cursor::Cursor;

/// How many partitions of a disk are looked at.
pub const PARTITIONS_MAX: u32 = 128;

const SECTOR_LEN: u64 = 512;

/// Bytes from the start of a disk, or of a file system, that hold what is read here at once.
pub const START_LEN: usize = 2048;

/// What the start of a disk says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Table {
    /// Partitions, as byte ranges.
    Partitions(Vec<Range<u64>>),
    /// A GPT, whose entries lie there: offset, length of one, how many.
    Entries(u64, u32, u32),
    /// No table: the disk may be one file system.
    None,
}

/// Reads the table at the start of a disk of `length` bytes.
pub fn partition_table(start: &[u8; START_LEN], length: u64) -> Table {
    if start[510..512] != [0x55, 0xaa] {
        return Table::None;
    }
    let mut found = Vec::new();
    for entry in start[446..510].as_chunks::<16>().0 {
        let mut cursor = Cursor::new("partition", &entry[8..]);
        let (Ok(first), Ok(count)) = (cursor.u32(), cursor.u32()) else { continue };
        match entry[4] {
            0 => {}
            0xee if &start[512..520] == b"EFI PART" => return gpt(start),
            _ => found.extend(inside(u64::from(first), u64::from(count), length)),
        }
    }
    match found.is_empty() {
        true => Table::None,
        false => Table::Partitions(found),
    }
}

fn gpt(start: &[u8; START_LEN]) -> Table {
    let mut cursor = Cursor::new("GPT", &start[512 + 72..512 + 88]);
    match (cursor.u64(), cursor.u32(), cursor.u32()) {
        (Ok(sector), Ok(count), Ok(len)) if (128..=4096).contains(&len) => {
            match sector.checked_mul(SECTOR_LEN) {
                Some(offset) => Table::Entries(offset, len, count.min(PARTITIONS_MAX)),
                None => Table::None,
            }
        }
        _ => Table::None,
    }
}

/// The partition of one entry of a GPT; `None` where it is empty or not inside the disk.
pub fn gpt_partition(entry: &[u8], length: u64) -> Option<Range<u64>> {
    if entry.get(..16)?.iter().all(|byte| *byte == 0) {
        return None;
    }
    let mut cursor = Cursor::new("GPT entry", entry.get(32..48)?);
    let (first, last) = (cursor.u64().ok()?, cursor.u64().ok()?);
    inside(first, last.checked_sub(first)?.checked_add(1)?, length)
}

fn inside(first: u64, count: u64, length: u64) -> Option<Range<u64>> {
    let start = first.checked_mul(SECTOR_LEN)?;
    let end = start.checked_add(count.checked_mul(SECTOR_LEN)?)?;
    (count > 0 && end <= length).then_some(start..end)
}

/// True where these are the first bytes of a file system of the ext family whose own sizes are
/// possible in `length` bytes.
pub fn is_ext(start: &[u8; START_LEN], length: u64) -> bool {
    let field = |offset: usize| {
        Cursor::new("superblock", &start[1024 + offset..1028 + offset]).u32().unwrap_or(0)
    };
    if start[1024 + 0x38..1024 + 0x3a] != [0x53, 0xef] || field(0x18) > 6 {
        return false;
    }
    let block_len = 1024 << field(0x18);
    let has_high = field(0x60) & 0x80 != 0;
    let high = if has_high { u64::from(field(0x150)) << 32 } else { 0 };
    let count = high | u64::from(field(0x4));
    // Fewer than 256 blocks a group is nothing that mke2fs makes, and would need much memory.
    count.checked_mul(block_len).is_some_and(|len| len <= length) && field(0x20) >= 256
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_entry(kind: u8, first: u32, count: u32) -> [u8; START_LEN] {
        let mut start = [0; START_LEN];
        start[510..512].copy_from_slice(&[0x55, 0xaa]);
        start[450] = kind;
        start[454..458].copy_from_slice(&first.to_le_bytes());
        start[458..462].copy_from_slice(&count.to_le_bytes());
        start
    }

    #[test]
    fn partitions_that_leave_the_disk_are_left_out() {
        let table = |first, count| partition_table(&with_entry(0x83, first, count), 8192);
        assert_eq!(table(2, 14), Table::Partitions(Vec::from([Range { start: 1024, end: 8192 }])));
        for (first, count) in [(2, 15), (2, 0), (u32::MAX, u32::MAX)] {
            assert_eq!(table(first, count), Table::None);
        }
    }

    #[test]
    fn a_gpt_is_read_behind_its_protective_entry() {
        let mut start = with_entry(0xee, 1, u32::MAX);
        start[512..520].copy_from_slice(b"EFI PART");
        start[584..592].copy_from_slice(&2_u64.to_le_bytes());
        start[592..596].copy_from_slice(&u32::MAX.to_le_bytes());
        start[596..600].copy_from_slice(&128_u32.to_le_bytes());
        assert_eq!(partition_table(&start, 8192), Table::Entries(1024, 128, PARTITIONS_MAX));
        start[596..600].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(partition_table(&start, 8192), Table::None);
        let mut entry = [1; 128];
        entry[32..40].copy_from_slice(&2_u64.to_le_bytes());
        entry[40..48].copy_from_slice(&15_u64.to_le_bytes());
        assert_eq!(gpt_partition(&entry, 8192), Some(1024..8192));
        entry[40..48].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(gpt_partition(&entry, 8192), None);
    }
}
