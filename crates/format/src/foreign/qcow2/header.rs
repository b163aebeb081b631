//! The header of a qcow2, believed only as far as the file's own length bears it out.
//!
//! ```text
//! 0 magic | 4 version | 8 backing name at, 16 its len | 20 cluster bits | 24 disk length
//! 32 encryption | 36 L1 entries | 40 L1 at | 48 refcount table at, 56 its clusters
//! 60 snapshots | 64 snapshots at
//! version 3: 72 incompatible | 80 compatible | 88 autoclear features | 96 refcount order
//!            100 header len | 104 compression method | extensions (type, len, bytes)
//! ```

use std::fs::File;

use model::block::LENGTH_MAX;

use super::fault::Fault;
use crate::foreign::open::read_up_to;

/// Bytes of a version 2 header.
const LEN_V2: usize = 72;
/// Bytes of the shortest version 3 header.
const LEN_V3: usize = 104;
/// How much of the file is looked at for the header and its extensions; the smallest cluster of an
/// image with long extensions is larger, but only names for error messages are lost then.
const READ_LEN: usize = 64 << 10;
/// The longest L1 table, the limit that QEMU has too.
const L1_LEN_MAX: u64 = 32 << 20;
/// The longest name of a backing file.
const NAME_LEN_MAX: usize = 1023;

const FEATURE_DIRTY: u64 = 1;
const FEATURE_CORRUPT: u64 = 1 << 1;
const FEATURE_DATA_FILE: u64 = 1 << 2;
const FEATURE_COMPRESSION: u64 = 1 << 3;
const FEATURE_EXTENDED_L2: u64 = 1 << 4;
const FEATURES_KNOWN: u64 =
    FEATURE_DIRTY | FEATURE_CORRUPT | FEATURE_DATA_FILE | FEATURE_COMPRESSION | FEATURE_EXTENDED_L2;

const EXTENSION_END: u32 = 0;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    /// Raw deflate.
    Deflate,
    /// One zstd frame.
    Zstd,
}

/// What the reader needs to know, all of it checked.
#[derive(Clone, Debug)]
pub(super) struct Header {
    /// 2 or 3.
    pub version: u32,
    /// log2 of the cluster's bytes, 9 to 21.
    pub cluster_bits: u32,
    /// Bytes of the disk, at most [`LENGTH_MAX`].
    pub length: u64,
    /// Bytes of the file that holds it.
    pub file_len: u64,
    /// Where the L1 table begins; the part that the disk needs lies in the file.
    pub l1_offset: u64,
    /// How many of its entries the disk needs.
    pub l1_count: u64,
    /// How clusters are compressed.
    pub compression: Compression,
    /// Whether L2 entries have bits for 32 subclusters each.
    pub extended_l2: bool,
}

impl Header {
    /// Reads and checks the header of `file`, which has `file_len` bytes.
    pub(super) fn read(file: &File, file_len: u64, allow_backing: bool) -> Result<Self, Fault> {
        let mut first = vec![0; READ_LEN];
        let len = read_up_to(file, &mut first, 0)?;
        Header::decode(&first[..len], file_len, allow_backing)
    }

    /// Decodes a header from the file's first bytes.
    pub(super) fn decode(first: &[u8], file_len: u64, allow_backing: bool) -> Result<Self, Fault> {
        let fields = Fields { first, file_len };
        if !first.starts_with(b"QFI\xfb") {
            return Err(Fault::Magic);
        }
        let version = fields.u32_at(4)?;
        if version != 2 && version != 3 {
            return Err(Fault::Version(version));
        }
        fields.need(if version == 2 { LEN_V2 } else { LEN_V3 })?;
        let (incompatible, header_len) = match version {
            2 => (0, LEN_V2),
            _ => (fields.u64_at(72)?, fields.u32_at(100)? as usize),
        };
        if version == 3 && (header_len < LEN_V3 || !header_len.is_multiple_of(8)) {
            return Err(Fault::Field { field: "header length", value: header_len as u64 });
        }
        check_features(incompatible)?;
        if incompatible & FEATURE_DATA_FILE != 0 {
            return Err(Fault::DataFile(fields.data_file_name(header_len)));
        }
        if fields.u32_at(32)? != 0 {
            return Err(Fault::Encrypted);
        }
        if !allow_backing && fields.u64_at(8)? != 0 {
            return Err(Fault::Backing(fields.backing_name()?));
        }
        let compression = match version {
            3 if header_len > LEN_V3 => fields.u8_at(104)?,
            _ => 0,
        };
        let compression = match compression {
            0 => Compression::Deflate,
            1 => Compression::Zstd,
            unknown => return Err(Fault::Compression(unknown)),
        };
        fields.geometry(version, compression, incompatible & FEATURE_EXTENDED_L2 != 0)
    }

    /// Bytes of a cluster.
    pub(super) fn cluster_len(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of an L2 entry.
    pub(super) fn entry_len(&self) -> u64 {
        if self.extended_l2 { 16 } else { 8 }
    }

    /// How many entries an L2 table has.
    pub(super) fn l2_count(&self) -> u64 {
        self.cluster_len() / self.entry_len()
    }
}

fn check_features(incompatible: u64) -> Result<(), Fault> {
    let unknown = incompatible & !FEATURES_KNOWN;
    if unknown != 0 {
        return Err(Fault::Feature { bits: unknown });
    }
    // A dirty image has stale refcounts; reading needs none.
    if incompatible & FEATURE_CORRUPT != 0 { Err(Fault::MarkedCorrupt) } else { Ok(()) }
}

/// True when the header names a backing file.
pub(super) fn has_backing(first: &[u8]) -> bool {
    first.get(8..16).is_some_and(|bytes| bytes != [0; 8])
}

/// The first bytes of the file, read field by field.
struct Fields<'a> {
    first: &'a [u8],
    file_len: u64,
}

impl Fields<'_> {
    fn need(&self, len: usize) -> Result<(), Fault> {
        if self.first.len() < len { Err(self.truncated("the header", 0)) } else { Ok(()) }
    }

    fn truncated(&self, what: &'static str, offset: u64) -> Fault {
        Fault::Truncated { what, offset, file_len: self.file_len }
    }

    fn u8_at(&self, offset: usize) -> Result<u8, Fault> {
        self.first.get(offset).copied().ok_or_else(|| self.truncated("the header", 0))
    }

    fn u32_at(&self, offset: usize) -> Result<u32, Fault> {
        let bytes = self.first.get(offset..).and_then(|rest| rest.first_chunk());
        bytes.map(|b| u32::from_be_bytes(*b)).ok_or_else(|| self.truncated("the header", 0))
    }

    fn u64_at(&self, offset: usize) -> Result<u64, Fault> {
        let bytes = self.first.get(offset..).and_then(|rest| rest.first_chunk());
        bytes.map(|b| u64::from_be_bytes(*b)).ok_or_else(|| self.truncated("the header", 0))
    }

    fn backing_name(&self) -> Result<String, Fault> {
        let len = self.u32_at(16)? as usize;
        let offset = usize::try_from(self.u64_at(8)?).unwrap_or(usize::MAX);
        let name = self.first.get(offset..).map(|rest| &rest[..len.min(rest.len())]);
        Ok(printable(name.unwrap_or_default()))
    }

    fn data_file_name(&self, header_len: usize) -> String {
        let mut at = header_len;
        // Each turn moves at least 8 bytes ahead, within READ_LEN.
        while let (Ok(kind), Ok(len)) = (self.u32_at(at), self.u32_at(at.saturating_add(4))) {
            let len = len as usize;
            if kind == EXTENSION_DATA_FILE {
                let rest = self.first.get(at + 8..).unwrap_or_default();
                return printable(&rest[..len.min(rest.len())]);
            }
            if kind == EXTENSION_END {
                break;
            }
            at = at.saturating_add(8).saturating_add(len.div_ceil(8).saturating_mul(8));
        }
        "unnamed".to_owned()
    }

    fn geometry(
        &self,
        version: u32,
        compression: Compression,
        extended_l2: bool,
    ) -> Result<Header, Fault> {
        let cluster_bits = self.u32_at(20)?;
        let least = if extended_l2 { 14 } else { 9 };
        if !(least..=21).contains(&cluster_bits) {
            return Err(Fault::Field { field: "cluster size", value: u64::from(cluster_bits) });
        }
        let length = self.u64_at(24)?;
        if length > LENGTH_MAX {
            return Err(Fault::Field { field: "disk length", value: length });
        }
        let mut header = Header {
            version,
            cluster_bits,
            length,
            file_len: self.file_len,
            l1_offset: self.u64_at(40)?,
            l1_count: 0,
            compression,
            extended_l2,
        };
        let needed = length.div_ceil(header.cluster_len()).div_ceil(header.l2_count());
        let l1_size = u64::from(self.u32_at(36)?);
        if l1_size < needed || l1_size > L1_LEN_MAX / 8 {
            return Err(Fault::Field { field: "L1 table size", value: l1_size });
        }
        header.l1_count = needed;
        if needed > 0 {
            if !header.l1_offset.is_multiple_of(header.cluster_len()) || header.l1_offset == 0 {
                let offset = header.l1_offset;
                return Err(Fault::Misaligned { what: "the L1 table", offset });
            }
            let end = header.l1_offset.checked_add(needed * 8);
            if end.is_none_or(|end| end > self.file_len) {
                return Err(self.truncated("the L1 table", header.l1_offset));
            }
        }
        Ok(header)
    }
}

/// A name from an untrusted file, fit for one line of an error message.
fn printable(name: &[u8]) -> String {
    let name = &name[..name.len().min(NAME_LEN_MAX)];
    String::from_utf8_lossy(name).chars().flat_map(char::escape_default).collect()
}
