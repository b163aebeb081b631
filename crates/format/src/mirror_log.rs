//! The state of one mirror: the log that survives power loss, and the live states that survive the
//! death of the process. The page is `docs/formats/mirror-log.md`.
//!
//! ```text
//! state.log   header | binding | ranges | length | ranges | segment | parent | ... | zeros
//! live        header | one byte per segment | groups of 64 blocks: places, dirty bits, marker
//! ```
//!
//! **Invariants**: a record's checksum covers the checksum before it, so a record left over from a
//! failed append can never follow one that it was not written behind. Decoding is total: any bytes
//! give records or an error.
//!
//! **Failure**: a torn tail ends the log at the last whole record. Damage in the middle looks the
//! same; what lies behind it is not seen.

use std::ops::Range;

use model::block::{BLOCKS_PER_SEGMENT, LENGTH_MAX, block_count, segment_count};
use model::{ContentDigest, ImageName, LayoutDigest, VersionId, VersionNumber};

/// Bytes of the log's header.
pub const LOG_HEADER_LEN: usize = 32;

/// Bytes in front of a record's payload.
pub const RECORD_HEADER_LEN: usize = 24;

/// The longest payload of a record.
pub const PAYLOAD_LEN_MAX: usize = 1 << 20;

/// Entries that fit into one record of ranges.
pub const RANGES_MAX: usize = PAYLOAD_LEN_MAX / RANGE_LEN;

const LOG_MAGIC: &[u8; 8] = b"LARDMLOG";
const LIVE_MAGIC: &[u8; 8] = b"LARDMLIV";
/// The number that new logs have.
const FORMAT: u32 = 2;
/// The oldest log that is read: one of format 1 has no record of a length.
const FORMAT_MIN: u32 = 1;
const LIVE_FORMAT: u32 = 1;
const RANGE_LEN: usize = 16;
const SEGMENT_PAYLOAD_LEN: usize = 8 + GROUPS_PER_SEGMENT * 24;
const PAGE_LEN: u64 = 4096;

const KIND_BINDING: u32 = 1;
const KIND_RANGES: u32 = 2;
const KIND_SEGMENT: u32 = 3;
const KIND_PARENT: u32 = 4;
const KIND_LENGTH: u32 = 5;

/// Blocks of a group: the unit in which states are kept.
pub const BLOCKS_PER_GROUP: u32 = 64;

/// Groups of a segment.
pub const GROUPS_PER_SEGMENT: usize = (BLOCKS_PER_SEGMENT / BLOCKS_PER_GROUP) as usize;

/// What is wrong with the bytes of a mirror's state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MirrorLogError {
    /// The file does not begin as it must.
    #[error("it does not begin as a mirror's state does")]
    NotALog,
    /// The file was made by a newer Larder.
    #[error("its format is {found}, and this Larder knows {FORMAT_MIN} to {FORMAT} only")]
    Format {
        /// The format's number.
        found: u32,
    },
    /// A field of the header or of a record with a right checksum makes no sense.
    #[error("field `{field}` at offset {offset} makes no sense")]
    Field {
        /// Its name in the documentation of the format.
        field: &'static str,
        /// Where its record begins, from the start of the file.
        offset: usize,
    },
}

/// Where the newest bytes of a block are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Place {
    /// In the base.
    #[default]
    Absent = 0,
    /// Nowhere: the block reads as zeros.
    Zero = 1,
    /// In the first overlay file.
    First = 2,
    /// In the second overlay file.
    Second = 3,
}

impl Place {
    /// The place of the two low bits.
    pub fn from_bits(bits: u64) -> Self {
        match bits & 3 {
            0 => Place::Absent,
            1 => Place::Zero,
            2 => Place::First,
            _ => Place::Second,
        }
    }

    /// The place of data in overlay file 0 or 1.
    pub fn in_file(file: usize) -> Self {
        if file == 0 { Place::First } else { Place::Second }
    }

    /// Which overlay file it is in, where it is data.
    pub fn file(self) -> Option<usize> {
        match self {
            Place::First => Some(0),
            Place::Second => Some(1),
            Place::Absent | Place::Zero => None,
        }
    }
}

/// Blocks in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateRange {
    /// The first block, counted from the start of the disk.
    pub first_block: u64,
    /// How many; never 0.
    pub block_count: u32,
    /// Where they are.
    pub place: Place,
    /// True where they changed since the last commit.
    pub dirty: bool,
}

/// The states of 64 blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupStates {
    /// Two bits per block, see [`Place`]: blocks 0..32, then blocks 32..64.
    pub places: [u64; 2],
    /// One bit per block.
    pub dirty: u64,
}

/// What a mirror is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogBinding {
    /// The content of its base.
    pub content: ContentDigest,
    /// The layout by which the base is read.
    pub layout: LayoutDigest,
    /// Bytes of the base. The disk is as long, unless the log says that it grew.
    pub length: u64,
    /// The version that the mirror was attached to.
    pub base: VersionId,
    /// The version that the next commit follows.
    pub parent: VersionId,
}

/// One record of the log. Later records win.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogRecord {
    /// What the mirror is bound to; the first record of every log, and only the first.
    Binding(LogBinding),
    /// New states of ranges of blocks; at most [`RANGES_MAX`].
    Ranges(Vec<StateRange>),
    /// The states of a whole segment.
    Segment {
        /// Which.
        segment: u32,
        /// [`GROUPS_PER_SEGMENT`] of them.
        groups: Vec<GroupStates>,
    },
    /// Another version that the next commit follows.
    Parent(VersionId),
    /// The disk has this many bytes from here on; it never becomes shorter.
    Length(u64),
}

/// Encodes records, each chained to the one before. A copy taken before an append that failed
/// encodes the next try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEncoder {
    sequence: u64,
    chain: u64,
}

/// A log that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodedLog {
    /// Which life of the log this is: one more after each commit.
    pub epoch: u64,
    /// Bytes of the disk.
    pub length: u64,
    /// The records; the first is a [`LogRecord::Binding`].
    pub records: Vec<LogRecord>,
    /// Where the next record goes.
    pub end: usize,
    /// Encodes the next record.
    pub encoder: LogEncoder,
}

impl LogEncoder {
    /// Begins a log: its header goes to `out`.
    pub fn begin(epoch: u64, out: &mut Vec<u8>) -> Self {
        let start = out.len();
        out.extend_from_slice(LOG_MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&epoch.to_le_bytes());
        let chain = checksum(&[&out[start..]]);
        out.extend_from_slice(&chain.to_le_bytes());
        LogEncoder { sequence: 0, chain }
    }

    /// Appends one record to `out`.
    pub fn push(&mut self, record: &LogRecord, out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + RECORD_HEADER_LEN, 0);
        let kind = encode_payload(record, out);
        let payload_len = (out.len() - start - RECORD_HEADER_LEN) as u32;
        out[start..start + 4].copy_from_slice(&payload_len.to_le_bytes());
        out[start + 4..start + 8].copy_from_slice(&kind.to_le_bytes());
        out[start + 8..start + 16].copy_from_slice(&self.sequence.to_le_bytes());
        let sum = self.checksum(&out[start..start + 16], &out[start + RECORD_HEADER_LEN..]);
        out[start + 16..start + 24].copy_from_slice(&sum.to_le_bytes());
        self.advance(sum);
    }

    fn checksum(&self, head: &[u8], payload: &[u8]) -> u64 {
        checksum(&[&self.chain.to_le_bytes(), head, payload])
    }

    fn advance(&mut self, sum: u64) {
        self.chain = sum;
        self.sequence += 1;
    }
}

fn checksum(parts: &[&[u8]]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    let mut bytes = [0; 8];
    hasher.finalize_xof().fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

fn encode_payload(record: &LogRecord, out: &mut Vec<u8>) -> u32 {
    match record {
        LogRecord::Binding(binding) => {
            out.extend_from_slice(binding.content.as_bytes());
            out.extend_from_slice(binding.layout.as_bytes());
            out.extend_from_slice(&binding.length.to_le_bytes());
            encode_version(&binding.base, out);
            encode_version(&binding.parent, out);
            KIND_BINDING
        }
        LogRecord::Ranges(ranges) => {
            for range in ranges {
                out.extend_from_slice(&range.first_block.to_le_bytes());
                out.extend_from_slice(&range.block_count.to_le_bytes());
                out.extend_from_slice(&[range.place as u8, u8::from(range.dirty), 0, 0]);
            }
            KIND_RANGES
        }
        LogRecord::Segment { segment, groups } => {
            out.extend_from_slice(&segment.to_le_bytes());
            out.extend_from_slice(&[0; 4]);
            groups.iter().for_each(|group| encode_group(group, out));
            KIND_SEGMENT
        }
        LogRecord::Parent(parent) => {
            encode_version(parent, out);
            KIND_PARENT
        }
        LogRecord::Length(length) => {
            out.extend_from_slice(&length.to_le_bytes());
            KIND_LENGTH
        }
    }
}

fn encode_version(version: &VersionId, out: &mut Vec<u8>) {
    let name = version.image.as_str().as_bytes();
    out.extend_from_slice(&version.version.get().to_le_bytes());
    out.extend_from_slice(&(name.len() as u16).to_le_bytes());
    out.extend_from_slice(name);
}

fn encode_group(group: &GroupStates, out: &mut Vec<u8>) {
    for word in [group.places[0], group.places[1], group.dirty] {
        out.extend_from_slice(&word.to_le_bytes());
    }
}

/// Reads a log, up to its last whole record.
pub fn decode_log(bytes: &[u8]) -> Result<DecodedLog, MirrorLogError> {
    let (epoch, encoder) = decode_header(bytes)?;
    let (end, records) = (LOG_HEADER_LEN, Vec::new());
    let mut log = DecodedLog { epoch, length: LENGTH_MAX, records, end, encoder };
    while let Some((kind, sum, payload)) = next_record(bytes, log.end, &log.encoder) {
        let record = decode_payload(kind, payload, log.length)
            .map_err(|field| MirrorLogError::Field { field, offset: log.end })?;
        match (&record, log.records.is_empty()) {
            (LogRecord::Binding(binding), true) => log.length = binding.length,
            (LogRecord::Length(length), false) => log.length = *length,
            (LogRecord::Binding(_), false) | (_, true) => {
                return Err(MirrorLogError::Field { field: "kind", offset: log.end });
            }
            _ => {}
        }
        log.records.push(record);
        log.end += RECORD_HEADER_LEN + payload.len();
        log.encoder.advance(sum);
    }
    if log.records.is_empty() {
        return Err(MirrorLogError::Field { field: "binding", offset: LOG_HEADER_LEN });
    }
    Ok(log)
}

fn decode_header(bytes: &[u8]) -> Result<(u64, LogEncoder), MirrorLogError> {
    let mut reader = Reader(bytes);
    if reader.take(8) != Some(LOG_MAGIC) {
        return Err(MirrorLogError::NotALog);
    }
    let field = |field| MirrorLogError::Field { field, offset: 0 };
    match reader.u32().ok_or(field("format"))? {
        FORMAT_MIN..=FORMAT => {}
        found => return Err(MirrorLogError::Format { found }),
    }
    reader.take(4).ok_or(field("reserved"))?;
    let epoch = reader.u64().ok_or(field("epoch"))?;
    let chain = checksum(&[&bytes[..LOG_HEADER_LEN - 8]]);
    if reader.u64() != Some(chain) {
        return Err(field("checksum"));
    }
    Ok((epoch, LogEncoder { sequence: 0, chain }))
}

/// Kind, checksum and payload of the record at `at`, if a whole one is there.
fn next_record<'a>(
    bytes: &'a [u8],
    at: usize,
    encoder: &LogEncoder,
) -> Option<(u32, u64, &'a [u8])> {
    let mut reader = Reader(bytes.get(at..)?);
    let head = reader.take(16)?;
    let sum = reader.u64()?;
    let mut fields = Reader(head);
    let (payload_len, kind, sequence) = (fields.u32()? as usize, fields.u32()?, fields.u64()?);
    if payload_len > PAYLOAD_LEN_MAX || sequence != encoder.sequence {
        return None;
    }
    let payload = reader.take(payload_len)?;
    (encoder.checksum(head, payload) == sum).then_some((kind, sum, payload))
}

fn decode_payload(kind: u32, payload: &[u8], length: u64) -> Result<LogRecord, &'static str> {
    let mut reader = Reader(payload);
    let record = match kind {
        KIND_BINDING => LogRecord::Binding(decode_binding(&mut reader)?),
        KIND_RANGES => {
            let mut ranges = Vec::with_capacity(payload.len() / RANGE_LEN);
            while !reader.0.is_empty() {
                ranges.push(decode_range(&mut reader, length)?);
            }
            LogRecord::Ranges(ranges)
        }
        KIND_SEGMENT => decode_segment(&mut reader, length)?,
        KIND_PARENT => LogRecord::Parent(decode_version(&mut reader)?),
        KIND_LENGTH => {
            let longer = |found: &u64| (length..=LENGTH_MAX).contains(found);
            LogRecord::Length(reader.u64().filter(longer).ok_or("length")?)
        }
        _ => return Err("kind"),
    };
    if reader.0.is_empty() { Ok(record) } else { Err("payload length") }
}

fn decode_binding(reader: &mut Reader<'_>) -> Result<LogBinding, &'static str> {
    let content = ContentDigest(reader.digest().ok_or("content")?);
    let layout = LayoutDigest(reader.digest().ok_or("layout")?);
    let length = reader.u64().filter(|length| *length <= LENGTH_MAX).ok_or("length")?;
    let (base, parent) = (decode_version(reader)?, decode_version(reader)?);
    Ok(LogBinding { content, layout, length, base, parent })
}

fn decode_version(reader: &mut Reader<'_>) -> Result<VersionId, &'static str> {
    let version = reader.u64().and_then(VersionNumber::new).ok_or("version")?;
    let name_len = reader.u16().ok_or("name length")?;
    let name = reader.take(usize::from(name_len)).ok_or("name")?;
    let image = std::str::from_utf8(name).ok().and_then(|name| ImageName::new(name).ok());
    Ok(VersionId { image: image.ok_or("name")?, version })
}

fn decode_range(reader: &mut Reader<'_>, length: u64) -> Result<StateRange, &'static str> {
    let first_block = reader.u64().ok_or("first block")?;
    let count = reader.u32().filter(|count| *count > 0).ok_or("block count")?;
    let end = first_block.checked_add(u64::from(count)).ok_or("first block")?;
    if end > block_count(length) {
        return Err("block count");
    }
    let [place, dirty, 0, 0] = *reader.take(4).ok_or("state")? else {
        return Err("state");
    };
    if place > 3 || dirty > 1 {
        return Err("state");
    }
    let place = Place::from_bits(u64::from(place));
    Ok(StateRange { first_block, block_count: count, place, dirty: dirty == 1 })
}

fn decode_segment(reader: &mut Reader<'_>, length: u64) -> Result<LogRecord, &'static str> {
    if reader.0.len() != SEGMENT_PAYLOAD_LEN {
        return Err("payload length");
    }
    let segment = reader.u32().filter(|s| *s < segment_count(length)).ok_or("segment")?;
    reader.u32().filter(|reserved| *reserved == 0).ok_or("reserved")?;
    let mut groups = Vec::with_capacity(GROUPS_PER_SEGMENT);
    while let Some(group) = decode_group(reader) {
        groups.push(group);
    }
    Ok(LogRecord::Segment { segment, groups })
}

fn decode_group(reader: &mut Reader<'_>) -> Option<GroupStates> {
    Some(GroupStates { places: [reader.u64()?, reader.u64()?], dirty: reader.u64()? })
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn digest(&mut self) -> Option<[u8; 32]> {
        self.array()
    }
}

/// Bytes of the header of live states.
pub const LIVE_HEADER_LEN: usize = 16;

/// Bytes of one group of live states.
pub const LIVE_GROUP_LEN: usize = 32;

/// The header of live states.
pub fn live_header() -> [u8; LIVE_HEADER_LEN] {
    let mut header = [0; LIVE_HEADER_LEN];
    header[..8].copy_from_slice(LIVE_MAGIC);
    header[8..12].copy_from_slice(&LIVE_FORMAT.to_le_bytes());
    header
}

/// Where the bytes are that tell of each segment whether it has live states (1) or not (0).
pub fn live_table(length: u64) -> Range<u64> {
    PAGE_LEN..PAGE_LEN + u64::from(segment_count(length))
}

/// Where the groups of a segment are.
pub fn live_groups(length: u64, segment: u32) -> Range<u64> {
    let start = live_table(length).end.next_multiple_of(PAGE_LEN);
    let len = (GROUPS_PER_SEGMENT * LIVE_GROUP_LEN) as u64;
    start + u64::from(segment) * len..start + (u64::from(segment) + 1) * len
}

/// Appends a live group to `out`.
pub fn encode_live_group(group: &GroupStates, out: &mut Vec<u8>) {
    encode_group(group, out);
    out.extend_from_slice(&1u64.to_le_bytes());
}

/// The group, where one was written there. Any bytes but the marker's are sound.
pub fn decode_live_group(bytes: &[u8]) -> Option<GroupStates> {
    let mut reader = Reader(bytes);
    let group = decode_group(&mut reader)?;
    (reader.u64()? == 1).then_some(group)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn version(text: &str, number: u64) -> VersionId {
        VersionId {
            image: ImageName::new(text).unwrap(),
            version: VersionNumber::new(number).unwrap(),
        }
    }

    fn range(first_block: u64, block_count: u32, place: Place, dirty: bool) -> StateRange {
        StateRange { first_block, block_count, place, dirty }
    }

    fn example() -> Vec<LogRecord> {
        let mut groups = vec![GroupStates::default(); GROUPS_PER_SEGMENT];
        groups[3] = GroupStates { places: [0x1b, 2 << 62], dirty: 5 };
        vec![
            LogRecord::Binding(LogBinding {
                content: ContentDigest([1; 32]),
                layout: LayoutDigest([2; 32]),
                length: (64 << 20) + 5,
                base: version("debian", 7),
                parent: version("team/web", 2),
            }),
            LogRecord::Ranges(vec![
                range(0, 1, Place::First, true),
                range(16383, 2, Place::Zero, false),
            ]),
            LogRecord::Segment { segment: 1, groups },
            LogRecord::Parent(version("other", 1)),
            LogRecord::Ranges(vec![range(5, 3, Place::Second, true)]),
        ]
    }

    /// A disk that grew: what lies behind its first end is told of after that.
    fn grown() -> Vec<LogRecord> {
        let mut records = example();
        records.insert(2, LogRecord::Length((128 << 20) + 7));
        records.push(LogRecord::Ranges(vec![range(32767, 2, Place::First, true)]));
        records
    }

    fn encode(records: &[LogRecord]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = LogEncoder::begin(3, &mut bytes);
        records.iter().for_each(|record| encoder.push(record, &mut bytes));
        bytes
    }

    #[test]
    fn the_layout_is_that_of_the_golden_file() {
        let bytes = encode(&grown());
        let golden = include_bytes!("../golden/mirror-log-2.bin");
        assert!(bytes == golden, "the bytes on disk are a promise");
        let log = decode_log(golden).unwrap();
        assert_eq!((log.epoch, log.end, log.length), (3, golden.len(), (128 << 20) + 7));
        assert_eq!(log.records, grown());
    }

    #[test]
    fn a_log_of_the_format_before_is_read() {
        let golden = include_bytes!("../golden/mirror-log-1.bin");
        let log = decode_log(golden).unwrap();
        assert_eq!((log.epoch, log.end, log.length), (3, golden.len(), (64 << 20) + 5));
        assert_eq!(log.records, example());
    }

    #[test]
    fn a_torn_tail_ends_the_log_at_the_last_whole_record() {
        let bytes = encode(&example());
        let whole = encode(&example()[..4]).len();
        for cut in whole..bytes.len() {
            let mut torn = bytes[..cut].to_vec();
            torn.resize(bytes.len() + 100, 0xff);
            let log = decode_log(&torn).unwrap();
            assert_eq!((log.records.len(), log.end), (4, whole), "cut at {cut}");
            torn.truncate(log.end);
            let mut encoder = log.encoder;
            encoder.push(&example()[4], &mut torn);
            assert_eq!(torn, bytes);
        }
    }

    #[test]
    fn a_record_left_over_from_a_failed_append_never_follows_another() {
        let records = example();
        let failed = encode(&records);
        let mut other = records[1].clone();
        if let LogRecord::Ranges(ranges) = &mut other {
            ranges[0].place = Place::Zero;
        }
        let good = encode(&[records[0].clone(), other.clone()]);
        let mut file = failed;
        file[..good.len()].copy_from_slice(&good);
        assert_eq!(decode_log(&file).unwrap().records, [records[0].clone(), other]);
    }

    #[test]
    fn states_beyond_the_disk_and_unknown_kinds_are_refused() {
        let first = example().remove(0);
        let bad = LogRecord::Ranges(vec![range(16384, 2, Place::Zero, true)]);
        let error = decode_log(&encode(&[first.clone(), bad])).unwrap_err();
        assert!(matches!(error, MirrorLogError::Field { field: "block count", .. }), "{error}");
        assert!(decode_log(&encode(&[first.clone(), first.clone()])).is_err());
        assert!(decode_log(&encode(&example()[1..])).is_err());
        let shorter = LogRecord::Length(64 << 20);
        let error = decode_log(&encode(&[first, shorter])).unwrap_err();
        assert!(matches!(error, MirrorLogError::Field { field: "length", .. }), "{error}");
        let mut newer = encode(&example());
        newer[8] = 3;
        assert_eq!(decode_log(&newer), Err(MirrorLogError::Format { found: 3 }));
        assert_eq!(decode_log(b"LARDMLO"), Err(MirrorLogError::NotALog));
    }

    #[test]
    fn live_groups_say_whether_they_were_written() {
        let group = GroupStates { places: [1, 2], dirty: 3 };
        let mut bytes = Vec::new();
        encode_live_group(&group, &mut bytes);
        assert_eq!(bytes.len(), LIVE_GROUP_LEN);
        assert_eq!(decode_live_group(&bytes), Some(group));
        assert_eq!(decode_live_group(&[0; LIVE_GROUP_LEN]), None);
        assert_eq!(live_groups(1 << 40, 1).start, 4096 + 16384 + 8192);
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_log(&bytes);
            let _ = decode_live_group(&bytes);
        }

        #[test]
        fn a_changed_byte_never_gives_other_records(at in 0usize..7000, flip in 1u8..) {
            let mut bytes = encode(&example());
            let at = at % bytes.len();
            bytes[at] ^= flip;
            if let Ok(log) = decode_log(&bytes) {
                prop_assert_eq!(&log.records[..], &example()[..log.records.len()]);
            }
        }
    }
}
