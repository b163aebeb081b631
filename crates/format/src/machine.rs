//! The record of a machine as bytes: the last 64 KiB of its version.
//!
//! ```text
//! | LMCH | format | origin u8, helper u8, zeros 6 | memory | memory max | slots u32 | cpus u32 | cpus max u32 |
//! | state offset | state len | state digest | disk content |
//! | monitor | version | accelerator | machine type | cpu model |       each a text
//! | feature count | features ... | device count | devices ... |         texts
//! | BLAKE3 over all before | zeros |
//! ```
//!
//! **Invariants**: one record has one encoding; texts are printable ASCII without control
//! characters, so that they may be shown and compared but never begin a new line.

use model::ContentDigest;
use model::digest::DIGEST_LEN;
use model::machine::{
    MachineOrigin, MachineRecord, MachineShape, MonitorFacts, RECORD_REGION_LEN, StateRegion,
};

use crate::FormatError;
use crate::cursor::Cursor;
use crate::record::push_text;

/// The format number that [`encode_machine`] writes.
pub const MACHINE_FORMAT: u32 = 1;

/// The most bytes of one text.
pub const MACHINE_TEXT_LEN_MAX: usize = 512;

const WHAT: &str = "machine record";
const MAGIC: [u8; 4] = *b"LMCH";

/// Encodes a record, padded to the region's length.
///
/// # Errors
/// Where its parts do not fit together, or its texts do not fit the region.
pub fn encode_machine(record: &MachineRecord) -> Result<Vec<u8>, FormatError> {
    if !record.is_sound() {
        return Err(FormatError::Unsound { what: WHAT, field: "sizes", offset: 16, value: 0 });
    }
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&MACHINE_FORMAT.to_le_bytes());
    let helper = u8::from(record.has_helper);
    bytes.extend_from_slice(&[origin_code(record.origin), helper, 0, 0, 0, 0, 0, 0]);
    let shape = &record.shape;
    bytes.extend_from_slice(&shape.memory_len.to_le_bytes());
    bytes.extend_from_slice(&shape.memory_max_len.to_le_bytes());
    for count in [shape.memory_slots, shape.cpus, shape.cpus_max] {
        bytes.extend_from_slice(&count.to_le_bytes());
    }
    bytes.extend_from_slice(&record.state.offset.to_le_bytes());
    bytes.extend_from_slice(&record.state.len.to_le_bytes());
    bytes.extend_from_slice(&record.state.digest);
    bytes.extend_from_slice(record.disk.as_bytes());
    let monitor = &record.monitor;
    let texts = [
        &monitor.name,
        &monitor.version,
        &monitor.accelerator,
        &monitor.machine_type,
        &monitor.cpu_model,
    ];
    for text in texts {
        push_checked(&mut bytes, text)?;
    }
    for list in [&monitor.cpu_features, &monitor.devices] {
        bytes.extend_from_slice(&(list.len() as u32).to_le_bytes());
        list.iter().try_for_each(|text| push_checked(&mut bytes, text))?;
    }
    let checksum = blake3::hash(&bytes);
    bytes.extend_from_slice(checksum.as_bytes());
    let (len, max) = (bytes.len() as u64, RECORD_REGION_LEN);
    if len > max {
        return Err(FormatError::TooLong { what: WHAT, len, max });
    }
    bytes.resize(RECORD_REGION_LEN as usize, 0);
    Ok(bytes)
}

/// Decodes a record from the region that holds it.
///
/// # Errors
/// Where the bytes are no record, a newer Larder wrote them, they were changed, or what they say
/// does not fit together.
pub fn decode_machine(bytes: &[u8]) -> Result<MachineRecord, FormatError> {
    let (len, max) = (bytes.len() as u64, RECORD_REGION_LEN);
    if len > max {
        return Err(FormatError::TooLong { what: WHAT, len, max });
    }
    let mut cursor = Cursor::new(WHAT, bytes);
    cursor.preamble(MAGIC, MACHINE_FORMAT)?;
    let [code, helper, reserved @ ..] = cursor.array::<8>()?;
    if reserved != [0; 6] {
        return Err(cursor.unsound_before(6, "reserved", 1));
    }
    if helper > 1 {
        return Err(cursor.unsound_before(7, "helper", helper.into()));
    }
    let has_helper = helper == 1;
    let origin = origin_of(code).ok_or(cursor.unsound_before(8, "origin", code.into()))?;
    let (memory_len, memory_max_len) = (cursor.u64()?, cursor.u64()?);
    let [memory_slots, cpus, cpus_max] = [cursor.u32()?, cursor.u32()?, cursor.u32()?];
    let shape = MachineShape { cpus, cpus_max, memory_len, memory_slots, memory_max_len };
    let (offset, len) = (cursor.u64()?, cursor.u64()?);
    let state = StateRegion { offset, len, digest: cursor.array()? };
    let disk = ContentDigest(cursor.array()?);
    let [name, version, accelerator, machine_type, cpu_model] = [
        take_text(&mut cursor, "monitor")?,
        take_text(&mut cursor, "monitor's version")?,
        take_text(&mut cursor, "accelerator")?,
        take_text(&mut cursor, "machine type")?,
        take_text(&mut cursor, "CPU model")?,
    ];
    let cpu_features = take_list(&mut cursor, "CPU feature")?;
    let devices = take_list(&mut cursor, "device")?;
    let end = cursor.offset() as usize;
    let checksum: [u8; DIGEST_LEN] = cursor.array()?;
    if *blake3::hash(&bytes[..end]).as_bytes() != checksum {
        return Err(FormatError::Checksum { what: WHAT });
    }
    let rest = end + DIGEST_LEN;
    if bytes.len() != RECORD_REGION_LEN as usize || bytes[rest..].iter().any(|byte| *byte != 0) {
        return Err(FormatError::Trailing { what: WHAT, offset: rest as u64 });
    }
    let monitor =
        MonitorFacts { name, version, accelerator, machine_type, cpu_model, cpu_features, devices };
    let record = MachineRecord { origin, has_helper, shape, state, disk, monitor };
    match record.is_sound() {
        true => Ok(record),
        false => Err(FormatError::Unsound { what: WHAT, field: "sizes", offset: 16, value: 0 }),
    }
}

fn origin_code(origin: MachineOrigin) -> u8 {
    match origin {
        MachineOrigin::Baked => 1,
        MachineOrigin::Suspended => 2,
    }
}

fn origin_of(code: u8) -> Option<MachineOrigin> {
    [MachineOrigin::Baked, MachineOrigin::Suspended].into_iter().find(|o| origin_code(*o) == code)
}

fn is_printable(text: &str) -> bool {
    text.len() <= MACHINE_TEXT_LEN_MAX && text.bytes().all(|byte| (0x20..0x7f).contains(&byte))
}

fn push_checked(bytes: &mut Vec<u8>, text: &str) -> Result<(), FormatError> {
    if !is_printable(text) {
        let (offset, value) = (bytes.len() as u64, text.len() as u64);
        return Err(FormatError::Unsound { what: WHAT, field: "text", offset, value });
    }
    push_text(bytes, text);
    Ok(())
}

fn take_text(cursor: &mut Cursor<'_>, field: &'static str) -> Result<String, FormatError> {
    cursor.text(field, |text| is_printable(text).then(|| text.to_string()).ok_or(()))
}

fn take_list(cursor: &mut Cursor<'_>, field: &'static str) -> Result<Vec<String>, FormatError> {
    let count = cursor.u32()?;
    let mut list = Vec::new();
    for _ in 0..count {
        list.push(take_text(cursor, field)?);
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn record() -> MachineRecord {
        let text = |text: &str| text.to_string();
        MachineRecord {
            origin: MachineOrigin::Baked,
            has_helper: true,
            shape: MachineShape {
                cpus: 1,
                cpus_max: 8,
                memory_len: 256 << 20,
                memory_slots: 4,
                memory_max_len: 64 << 30,
            },
            state: StateRegion { offset: 256 << 20, len: 300_000, digest: [7; DIGEST_LEN] },
            disk: ContentDigest([9; DIGEST_LEN]),
            monitor: MonitorFacts {
                name: text("qemu"),
                version: text("7.2"),
                accelerator: text("tcg"),
                machine_type: text("pc-q35-7.2"),
                cpu_model: text("max"),
                cpu_features: vec![text("aes"), text("avx")],
                devices: vec![text("virtio-rng-pci,id=random")],
            },
        }
    }

    #[test]
    fn a_record_survives_its_bytes_and_every_flipped_bit_of_it_is_refused() {
        let bytes = encode_machine(&record()).unwrap();
        assert_eq!(bytes.len() as u64, RECORD_REGION_LEN);
        assert_eq!(decode_machine(&bytes).unwrap(), record());
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 2;
        for position in 0..used {
            let mut spoiled = bytes.clone();
            spoiled[position] ^= 1;
            assert!(decode_machine(&spoiled).is_err(), "byte {position}");
        }
        for len in (0..used).chain([bytes.len() - 1]) {
            assert!(decode_machine(&bytes[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn what_does_not_fit_together_is_not_written() {
        let with = |change: &dyn Fn(&mut MachineRecord)| {
            let mut changed = record();
            change(&mut changed);
            encode_machine(&changed).is_err()
        };
        assert!(with(&|r| r.shape.memory_len = 4096));
        assert!(with(&|r| r.shape.cpus = 9));
        assert!(with(&|r| r.state.offset = 0));
        assert!(with(&|r| r.monitor.devices = vec!["a\nb".to_string()]));
        assert!(with(&|r| r.monitor.devices = vec!["x".repeat(500); 200]));
    }
}
