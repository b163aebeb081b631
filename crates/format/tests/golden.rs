//! Bytes on disk are a promise: what an older Larder wrote reads back, and is written again alike.
//!
//! The files in `golden/` are never written again. A new format number gets files of its own beside
//! them.

mod fixtures;

use std::path::PathBuf;

use fixtures::{
    entry_digest, golden_boot_set, golden_machine, golden_manifest, golden_manifest_encoded,
    golden_map, golden_names, golden_record, pack, pack_of, plain_entries, read_index, record_pack,
};
use format::boot_set::{decode_boot_set, encode_boot_set};
use format::{
    Encoding, EntryKind, decode, decode_machine, decode_manifest, decode_manifest_root,
    decode_names, decode_names_header, decode_record, decode_segment_map, encode_machine,
    encode_names, encode_record, encode_segment_map, record_digest,
};
use model::VersionKind;

fn path(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "golden", name].iter().collect()
}

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn the_golden_pack_reads_back_and_is_built_again_alike() {
    let bytes = golden("pack-1.bin");
    format::pack::check_header(&bytes).unwrap();
    let index = read_index(&bytes).unwrap();
    let expected = plain_entries();
    assert_eq!(index.entries().len(), expected.len());
    let mut stored = Vec::new();
    for (entry, (kind, plain)) in index.entries().iter().zip(&expected) {
        let start = entry.offset as usize;
        let raw = &bytes[start..start + entry.stored_len as usize];
        assert_eq!(&decode(entry.encoding, raw, entry.plain_len).unwrap(), plain);
        assert_eq!((entry.kind, entry.digest), (*kind, entry_digest(*kind, plain)));
        // As it was stored then: another zstd may find other bytes for the same plain ones.
        stored.push((entry.encoding, raw.to_vec()));
    }
    assert_eq!(index.block_digests(0), fixtures::block_digests(&expected[0].1));
    assert_eq!(index.block_digests(1), fixtures::block_digests(&expected[1].1));
    assert_eq!(index.entries()[0].encoding, Encoding::Zstd);
    assert_eq!(index.entries()[1].encoding, Encoding::Plain);
    assert_eq!(pack_of(stored).bytes, bytes);
}

#[test]
fn the_golden_segment_map_reads_back_and_is_encoded_again_alike() {
    let bytes = golden("segment-map-1.bin");
    assert_eq!(decode_segment_map(&bytes).unwrap(), golden_map());
    assert_eq!(encode_segment_map(&golden_map()), bytes);
}

#[test]
fn the_golden_boot_set_reads_back_and_is_encoded_again_alike() {
    let bytes = golden("boot-set-1.bin");
    assert_eq!(decode_boot_set(&bytes).unwrap(), golden_boot_set());
    assert_eq!(encode_boot_set(&golden_boot_set()), bytes);
}

#[test]
fn the_golden_manifest_reads_back_and_is_encoded_again_alike() {
    let root_bytes = golden("manifest-1.bin");
    let leaves = [golden("manifest-1-leaf-0.bin"), golden("manifest-1-leaf-2.bin")];
    let root = decode_manifest_root(&root_bytes).unwrap();
    assert_eq!((root.kind, root.leaves.len()), (VersionKind::Machine, 2));
    assert_eq!((root.leaves[0].0, root.leaves[1].0), (0, 2));
    assert_eq!(decode_manifest(&root, &leaves).unwrap(), golden_manifest());
    let encoded = golden_manifest_encoded();
    assert_eq!(encoded.root, root_bytes);
    assert_eq!(encoded.layout.as_bytes(), blake3::hash(&root_bytes).as_bytes());
    assert!(encoded.leaves.iter().map(|leaf| &leaf.bytes).eq(&leaves));
}

#[test]
fn the_golden_record_and_its_pack_read_back_and_are_written_again_alike() {
    let bytes = golden("record-1.bin");
    assert_eq!(decode_record(&bytes).unwrap(), golden_record());
    assert_eq!(encode_record(&golden_record()), bytes);
    let pack = golden("pack-1-record.bin");
    let index = read_index(&pack).unwrap();
    let entry = index.entries()[0];
    assert_eq!((entry.kind, entry.digest), (EntryKind::Record, record_digest(&bytes)));
    assert_eq!(&pack[entry.offset as usize..][..entry.stored_len as usize], bytes);
    assert_eq!(record_pack().bytes, pack);
}

#[test]
fn the_golden_names_read_back_and_are_written_again_alike() {
    let bytes = golden("names-2.bin");
    let (header, names) = golden_names();
    assert_eq!(decode_names_header(&bytes).unwrap(), header);
    assert_eq!(decode_names(&bytes).unwrap(), (header.clone(), names.clone()));
    assert_eq!(encode_names(&header, &names), bytes);
}

#[test]
fn the_golden_machine_reads_back_and_is_encoded_again_alike() {
    let bytes = golden("machine-1.bin");
    assert_eq!(decode_machine(&bytes).unwrap(), golden_machine());
    assert_eq!(encode_machine(&golden_machine()).unwrap(), bytes);
}

#[test]
#[ignore = "writes the golden files of a new format number, once; refuses to touch those there are"]
fn write_golden_files_that_are_missing() {
    let encoded = golden_manifest_encoded();
    for (name, bytes) in [
        ("pack-1.bin", pack().bytes),
        ("segment-map-1.bin", encode_segment_map(&golden_map())),
        ("manifest-1.bin", encoded.root),
        ("machine-1.bin", encode_machine(&golden_machine()).unwrap()),
        ("record-1.bin", encode_record(&golden_record())),
        ("pack-1-record.bin", record_pack().bytes),
        ("names-2.bin", encode_names(&golden_names().0, &golden_names().1)),
        ("manifest-1-leaf-0.bin", encoded.leaves[0].bytes.clone()),
        ("manifest-1-leaf-2.bin", encoded.leaves[1].bytes.clone()),
    ] {
        if !path(name).exists() {
            std::fs::write(path(name), bytes).unwrap();
        }
    }
}
