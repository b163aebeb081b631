//! The words of an L2 entry and what they mean.
//!
//! ```text
//! 63 refcount is 1 | 62 compressed | 55..9 host offset | 0 reads as zeros (version 3)
//! compressed: sectors - 1, then host offset in the low 70 - cluster_bits bits
//! extended:   a second word, 32 bits "reads as zeros" above 32 bits "has data"
//! ```

use super::fault::Fault;
use super::header::Header;

const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const READS_AS_ZEROS: u64 = 1;
const SECTOR_LEN: u64 = 512;

/// How one cluster of the disk is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mapping {
    /// Nothing, or zeros.
    Hole,
    /// Plain bytes at `host_offset`; for those subclusters whose bit is set in `present` (bit 0 is
    /// the first), if the image has subclusters.
    Data { host_offset: u64, present: u32 },
    /// A compressed cluster within `len` bytes at `host_offset`.
    Compressed { host_offset: u64, len: u64 },
}

/// How many subclusters a cluster with extended L2 entries has.
pub(super) const SUBCLUSTER_COUNT: u32 = 32;

/// Decodes the entry (`first`, and `second` where entries are extended) for `guest_offset`.
pub(super) fn decode(
    header: &Header,
    first: u64,
    second: u64,
    guest_offset: u64,
) -> Result<Mapping, Fault> {
    if first & COMPRESSED != 0 {
        return decode_compressed(header, first, second, guest_offset);
    }
    let host_offset = first & OFFSET_MASK;
    if !host_offset.is_multiple_of(header.cluster_len()) {
        return Err(Fault::Misaligned { what: "a cluster", offset: host_offset });
    }
    let present = if header.extended_l2 {
        let (present, zeros) = (second as u32, (second >> 32) as u32);
        if present & zeros != 0 || (present != 0 && host_offset == 0) {
            return Err(Fault::Entry { guest_offset });
        }
        present
    } else if header.version >= 3 && first & READS_AS_ZEROS != 0 {
        0
    } else {
        u32::MAX
    };
    if host_offset == 0 || present == 0 {
        return Ok(Mapping::Hole);
    }
    let missing = if header.extended_l2 {
        // Up to the last subcluster that has data.
        let used = SUBCLUSTER_COUNT - present.leading_zeros();
        u64::from(used) * (header.cluster_len() / u64::from(SUBCLUSTER_COUNT))
    } else {
        header.cluster_len()
    };
    // The last cluster of the disk is only as long as the disk.
    let needed = missing.min(header.length - guest_offset);
    if host_offset.checked_add(needed).is_none_or(|end| end > header.file_len) {
        let file_len = header.file_len;
        return Err(Fault::Truncated { what: "the cluster", offset: host_offset, file_len });
    }
    Ok(Mapping::Data { host_offset, present })
}

fn decode_compressed(
    header: &Header,
    first: u64,
    second: u64,
    guest_offset: u64,
) -> Result<Mapping, Fault> {
    if header.extended_l2 && second != 0 {
        return Err(Fault::Entry { guest_offset });
    }
    let offset_bits = 70 - header.cluster_bits;
    let host_offset = first & ((1 << offset_bits) - 1);
    let sectors = ((first & (COMPRESSED - 1)) >> offset_bits) + 1;
    if host_offset >= header.file_len {
        let file_len = header.file_len;
        return Err(Fault::Truncated { what: "the cluster", offset: host_offset, file_len });
    }
    // The last sector of the file need not be whole.
    let len = (sectors * SECTOR_LEN - host_offset % SECTOR_LEN).min(header.file_len - host_offset);
    Ok(Mapping::Compressed { host_offset, len })
}
