//! What each page in `docs/formats/` says a reader must refuse, one by one.

mod fixtures;

use fixtures::{golden_manifest_encoded, golden_map, pack, read_index};
use format::pack::check_header;
use format::{
    Encoding, FormatError, PACK_LEN_MAX, PLAIN_LEN_MAX, PackIndex, decode, decode_manifest,
    decode_manifest_root, decode_segment_map, encode_segment_map,
};
use model::SegmentMap;

#[test]
fn a_newer_format_is_named_before_anything_else_is_looked_at() {
    let newer = |what| FormatError::NewerFormat { what, found: 2, known: 1 };
    // Everything behind the number is nonsense on purpose.
    let spoiled = |bytes: Vec<u8>| {
        let mut bytes = bytes[..24].to_vec();
        bytes[4] = 2;
        bytes[8..].fill(0xff);
        bytes
    };
    let map = spoiled(encode_segment_map(&golden_map()));
    assert_eq!(decode_segment_map(&map), Err(newer("segment map")));

    let encoded = golden_manifest_encoded();
    let mut root = decode_manifest_root(&encoded.root).unwrap();
    assert_eq!(decode_manifest_root(&spoiled(encoded.root)), Err(newer("manifest")));
    let leaf = spoiled(encoded.leaves[0].bytes.clone());
    root.leaves = vec![(0, *blake3::hash(&leaf).as_bytes())];
    assert_eq!(decode_manifest(&root, &[leaf]), Err(newer("manifest leaf")));

    let mut bytes = pack().bytes;
    bytes[8] = 2;
    assert_eq!(check_header(&bytes), Err(newer("pack header")));
    let footer = bytes.len() - 64;
    bytes[footer..footer + 48].fill(0xff);
    bytes[footer + 48] = 2;
    assert_eq!(read_index(&bytes), Err(newer("pack footer")));
}

#[test]
fn one_structure_is_never_taken_for_another() {
    let (map, manifest) = (encode_segment_map(&golden_map()), golden_manifest_encoded());
    let magic = |what| FormatError::Magic { what };
    assert_eq!(decode_segment_map(&manifest.root), Err(magic("segment map")));
    assert_eq!(decode_manifest_root(&map), Err(magic("manifest")));
    let mut root = decode_manifest_root(&manifest.root).unwrap();
    root.leaves = vec![(0, *blake3::hash(&map).as_bytes())];
    assert_eq!(decode_manifest(&root, &[map]), Err(magic("manifest leaf")));
    assert_eq!(check_header(&manifest.leaves[0].bytes), Err(magic("pack header")));
}

/// A map of the chunks `[n; 32]`, with run bytes written by hand.
fn map(chunks: &[u8], run_count: u32, runs: &[u8]) -> Result<SegmentMap, FormatError> {
    let mut bytes = b"LMAP\x01\0\0\0".to_vec();
    bytes.extend_from_slice(&(chunks.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&run_count.to_le_bytes());
    chunks.iter().for_each(|chunk| bytes.extend_from_slice(&[*chunk; 32]));
    bytes.extend_from_slice(runs);
    decode_segment_map(&bytes)
}

#[test]
fn a_map_that_could_be_written_otherwise_is_refused() {
    assert!(map(&[1, 2], 2, &[0x11, 0x11]).is_ok());
    let canonical = |result| matches!(result, Err(FormatError::NotCanonical { .. }));
    // A chunk twice in the table; a chunk that no run uses; a position where none is needed.
    assert!(canonical(map(&[1, 1], 2, &[0x11, 0x11])));
    assert!(canonical(map(&[1, 2], 1, &[0x11])));
    assert!(canonical(map(&[1], 1, &[0x19, 0])));
    // The last run's chunk by number.
    assert!(canonical(map(&[1], 2, &[0x11, 0x12, 0])));
    // Digits of a number that say nothing.
    assert!(matches!(
        map(&[1], 1, &[0x15, 0x80, 0]),
        Err(FormatError::Unsound { field: "gap", .. })
    ));
    assert!(matches!(map(&[1], 1, &[0x11, 0]), Err(FormatError::Trailing { .. })));
}

#[test]
fn a_map_with_impossible_runs_is_refused() {
    let field = |result| match result {
        Err(FormatError::Unsound { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    // The last run's chunk before there was one; the next of a table that is used up; a number
    // beyond those used; the code that means nothing.
    assert_eq!(field(map(&[1], 1, &[0x10])), "chunk");
    assert_eq!(field(map(&[1], 2, &[0x11, 0x11])), "chunk");
    assert_eq!(field(map(&[1, 2, 3], 2, &[0x11, 0x12, 2])), "chunk");
    assert_eq!(field(map(&[1], 1, &[0x13])), "chunk");
    // 257 blocks; block 16,384; two blocks from block 16,383; block 256 of a chunk.
    assert_eq!(field(map(&[1], 1, &[0xf1, 0xf1, 0x01])), "block count");
    assert_eq!(field(map(&[1], 1, &[0x05, 0x80, 0x80, 0x01])), "first block");
    assert_eq!(field(map(&[1], 1, &[0x15, 0xfe, 0x7f])), "run");
    assert_eq!(field(map(&[1], 1, &[0x09, 0x80, 0x02])), "run");
    assert_eq!(field(map(&[1], 16_385, &[0x11])), "run count");
}

#[test]
fn a_manifest_with_leaves_or_segments_that_cannot_be_is_refused() {
    let encoded = golden_manifest_encoded();
    let field = |position: usize, value: u8| {
        let mut bytes = encoded.root.clone();
        bytes[position] = value;
        match decode_manifest_root(&bytes) {
            Err(FormatError::Unsound { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(field(8, 4), "kind");
    assert_eq!(field(9, 1), "reserved");
    assert_eq!(field(22, 0xff), "length");
    assert_eq!(field(24, 2), "leaf number"); // the same as the second
    assert_eq!(field(60, 3), "leaf number"); // beyond the length
    assert_eq!(field(4, 0), "format number");

    let root = decode_manifest_root(&encoded.root).unwrap();
    let leaves: Vec<_> = encoded.leaves.iter().map(|leaf| leaf.bytes.clone()).collect();
    assert!(decode_manifest(&root, &leaves).is_ok());
    assert!(decode_manifest(&root, &leaves[..1]).is_err());
    let swapped = [leaves[1].clone(), leaves[0].clone()];
    assert_eq!(
        decode_manifest(&root, &swapped),
        Err(FormatError::Checksum { what: "manifest leaf" })
    );
    // A sound leaf where the length leaves no room for its last segment.
    let short = format::ManifestRoot { length: root.length - 4096, ..root.clone() };
    assert!(matches!(
        decode_manifest(&short, &leaves),
        Err(FormatError::Unsound { field: "segment", .. })
    ));
}

#[test]
fn a_pack_of_an_impossible_length_or_a_reader_that_answers_short_is_refused() {
    let bytes = pack().bytes;
    let never = |_, _| -> Result<Vec<u8>, FormatError> { panic!("nothing is read") };
    let too_long = PackIndex::read(PACK_LEN_MAX + 1, never);
    assert!(matches!(too_long, Err(FormatError::TooLong { .. })));
    assert!(matches!(PackIndex::read(79, never), Err(FormatError::Truncated { .. })));
    for (short_read, what) in [(0, "pack footer"), (1, "pack table")] {
        let mut reads = 0;
        let read = |offset: u64, len: usize| -> Result<Vec<u8>, FormatError> {
            let short = usize::from(reads == short_read);
            reads += 1;
            Ok(bytes[offset as usize..offset as usize + len - short].to_vec())
        };
        match PackIndex::read(bytes.len() as u64, read) {
            Err(FormatError::Truncated { what: found, .. }) => assert_eq!(found, what),
            other => panic!("{other:?}"),
        }
    }
}

/// The golden pack after `spoil` was let at its table, list and footer, with a checksum that fits.
fn sealed_again(spoil: impl FnOnce(&mut Vec<u8>)) -> Result<PackIndex, FormatError> {
    let mut bytes = pack().bytes;
    let table = bytes.len() - 64 - 4 * 32 - 5 * 44;
    let mut index = bytes.split_off(table);
    spoil(&mut index);
    let footer = index.len() - 64;
    let checksum = *blake3::hash(&index[..footer + 16]).as_bytes();
    index[footer + 16..footer + 48].copy_from_slice(&checksum);
    bytes.extend_from_slice(&index);
    read_index(&bytes)
}

fn check_sealed(spoil: impl FnOnce(&mut Vec<u8>), expected: &str) {
    match sealed_again(spoil) {
        Err(FormatError::Unsound { field, .. }) => assert_eq!(field, expected),
        other => panic!("{expected}: {other:?}"),
    }
}

#[test]
fn a_table_with_an_impossible_entry_is_refused_though_its_checksum_fits() {
    assert!(sealed_again(|_| {}).is_ok());
    let put = |at: usize, value: u32| {
        move |index: &mut Vec<u8>| index[at..at + 4].copy_from_slice(&value.to_le_bytes())
    };
    // Entry 0 is a compressed chunk, entry 1 a plain one, entry 2 a plain map.
    check_sealed(|index| index[0] = 9, "kind");
    check_sealed(|index| index[1] = 2, "encoding");
    check_sealed(|index| index[3] = 1, "reserved");
    check_sealed(put(4, 0), "stored length");
    check_sealed(put(4, 3 * 4096), "stored length");
    check_sealed(put(44 + 4, 4095), "stored length");
    check_sealed(put(4, 700), "table offset");
    check_sealed(put(8, 0), "plain length");
    check_sealed(put(8, 3 * 4096 - 1), "plain length");
    check_sealed(put(8, (1 << 20) + 4096), "plain length");
    check_sealed(put(2 * 44 + 8, (4 << 20) + 1), "plain length");
    check_sealed(put(2 * 44 + 8, 0), "plain length");
}

#[test]
fn a_list_of_another_length_than_the_chunks_have_blocks_is_refused() {
    let list = 5 * 44;
    let grow = move |index: &mut Vec<u8>| {
        let footer = index.len() - 64;
        index[footer + 12] += 1;
        index.splice(list + 4 * 32..list + 4 * 32, [7; 32]);
    };
    check_sealed(grow, "block digest count");
    let shrink = move |index: &mut Vec<u8>| {
        let footer = index.len() - 64;
        index[footer + 12] -= 1;
        index.drain(list + 3 * 32..list + 4 * 32);
    };
    check_sealed(shrink, "block digest count");
    // Counts and offsets that do not add up to the pack's length.
    for position in [0, 8, 12] {
        let change = move |index: &mut Vec<u8>| {
            let footer = index.len() - 64;
            index[footer + position] ^= 1;
        };
        check_sealed(change, "table offset");
    }
}

#[test]
fn an_entry_longer_than_any_may_be_is_refused() {
    let stored = vec![0; PLAIN_LEN_MAX + 1];
    assert!(decode(Encoding::Plain, &stored[1..], PLAIN_LEN_MAX as u32).is_ok());
    let too_long = decode(Encoding::Plain, &stored, PLAIN_LEN_MAX as u32 + 1);
    assert!(matches!(too_long, Err(FormatError::TooLong { .. })));
}

#[test]
fn a_leaf_without_segments_is_refused() {
    let encoded = golden_manifest_encoded();
    let mut root = decode_manifest_root(&encoded.root).unwrap();
    let mut leaf = encoded.leaves[0].bytes[..72].to_vec();
    leaf[8..].fill(0);
    root.leaves = vec![(0, *blake3::hash(&leaf).as_bytes())];
    let refused = decode_manifest(&root, &[leaf]);
    assert!(matches!(refused, Err(FormatError::Unsound { field: "bitmap", .. })));
}

#[test]
fn a_list_that_lies_is_refused_though_its_checksum_fits() {
    let what = "block digests of a chunk";
    let lie = |index: &mut Vec<u8>| index[5 * 44] ^= 1;
    assert_eq!(sealed_again(lie), Err(FormatError::Checksum { what }));
}
