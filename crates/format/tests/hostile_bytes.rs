//! Whatever the bytes, a decoder returns: no panic, no read outside, no memory beyond its bound.

mod fixtures;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use fixtures::{
    golden_boot_set, golden_machine, golden_manifest_encoded, golden_map, golden_names,
    golden_record, noise, pack, read_index,
};
use format::boot_set::{decode_boot_set, encode_boot_set};
use format::{
    Encoder, Encoding, FormatError, PLAIN_LEN_MAX, PackIndex, decode, decode_machine,
    decode_manifest, decode_manifest_root, decode_names, decode_record, decode_segment_map,
    encode_machine, encode_manifest, encode_names, encode_record, encode_segment_map,
};
use model::block::BLOCKS_PER_SEGMENT;
use model::map::CHUNK_BLOCKS_MAX;
use model::{BLOCK_LEN, ChunkDigest, Manifest, Run, SegmentMap, VersionKind};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

/// Counts, for each thread, the bytes that are allocated and the most there ever were.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    LIVE.set(LIVE.get() + change);
    PEAK.set(PEAK.get().max(LIVE.get()));
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches only thread-local
// cells, which need no allocation and no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the contract of `dealloc`; the pointer came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `work` and asserts that it never held more than `bound` bytes at once.
fn within<T>(bound: usize, work: impl FnOnce() -> T) -> T {
    let before = LIVE.get();
    PEAK.set(before);
    let result = work();
    let peak = (PEAK.get() - before) as usize;
    assert!(peak <= bound, "{peak} bytes were allocated, more than {bound}");
    result
}

/// What every error and thread-local may cost.
const SMALL: usize = 4096;

fn bounded_map(bytes: &[u8]) -> Result<SegmentMap, FormatError> {
    within(128 * bytes.len() + SMALL, || decode_segment_map(bytes))
}

fn bounded_index(bytes: &[u8]) -> Result<PackIndex, FormatError> {
    within(4 * bytes.len() + SMALL, || read_index(bytes))
}

fn bounded_decode(encoding: Encoding, stored: &[u8], plain_len: u32) -> Option<Vec<u8>> {
    let bound = (plain_len as usize).min(PLAIN_LEN_MAX) + SMALL;
    let plain = within(bound, || decode(encoding, stored, plain_len)).ok()?;
    assert_eq!(plain.len(), plain_len as usize);
    Some(plain)
}

/// One change to valid bytes.
#[derive(Clone, Debug)]
enum Spoil {
    Set(Index, u8),
    Cut(Index),
    Insert(Index, Vec<u8>),
    Copy(Index, Index, usize),
}

fn spoil() -> impl Strategy<Value = Spoil> {
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Spoil::Set(at, byte)),
        any::<Index>().prop_map(Spoil::Cut),
        (any::<Index>(), vec(any::<u8>(), 1..40)).prop_map(|(at, more)| Spoil::Insert(at, more)),
        (any::<Index>(), any::<Index>(), 1usize..40).prop_map(|(a, b, len)| Spoil::Copy(a, b, len)),
    ]
}

fn apply(mut bytes: Vec<u8>, changes: &[Spoil]) -> Vec<u8> {
    for change in changes.iter().cloned() {
        let len = bytes.len();
        match change {
            _ if len == 0 => {}
            Spoil::Set(at, byte) => bytes[at.index(len)] = byte,
            Spoil::Cut(at) => bytes.truncate(at.index(len)),
            Spoil::Insert(at, more) => {
                let at = at.index(len);
                bytes.splice(at..at, more);
            }
            Spoil::Copy(from, to, count) => {
                let (from, to) = (from.index(len), to.index(len));
                let count = count.min(len - from.max(to));
                bytes.copy_within(from..from + count, to);
            }
        }
    }
    bytes
}

/// Maps of up to 60 runs that use up to eight chunks.
fn segment_map() -> impl Strategy<Value = SegmentMap> {
    let gap = prop_oneof![3 => Just(0), 1 => 1u32..400];
    let first = prop_oneof![Just(None), (0..CHUNK_BLOCKS_MAX).prop_map(Some)];
    vec((gap, 1..=CHUNK_BLOCKS_MAX, 0u8..8, first), 0..60).prop_map(|steps| {
        let (mut runs, mut end, mut left_at) = (Vec::new(), 0, [0; 8]);
        for (gap, block_count, chunk, first) in steps {
            let first_in_chunk = first.unwrap_or(left_at[usize::from(chunk)] % CHUNK_BLOCKS_MAX);
            let block_count = block_count.min(CHUNK_BLOCKS_MAX - first_in_chunk);
            let first_block = end + gap;
            end = first_block + block_count;
            left_at[usize::from(chunk)] = first_in_chunk + block_count;
            if end <= BLOCKS_PER_SEGMENT {
                let chunk = ChunkDigest([chunk; 32]);
                runs.push(Run { first_block, block_count, chunk, first_in_chunk });
            }
        }
        SegmentMap::new(runs).expect("a sound map")
    })
}

fn manifest() -> impl Strategy<Value = Manifest> {
    let kind = prop_oneof![
        Just(VersionKind::Disk),
        Just(VersionKind::Memory),
        Just(VersionKind::Machine),
        Just(VersionKind::Group)
    ];
    (kind, proptest::collection::btree_set(0u32..3000, 0..40), 1u64..model::SEGMENT_LEN).prop_map(
        |(kind, numbers, last_len)| {
            let last = numbers.last().map_or(0, |last| u64::from(*last));
            let segments = numbers.into_iter().map(fixtures::segment).collect();
            Manifest::new(kind, last * model::SEGMENT_LEN + last_len, segments).expect("sound")
        },
    )
}

/// Gives a spoiled pack a footer checksum that fits again, as a liar would.
fn seal_again(bytes: &mut [u8]) {
    let Some(footer) = bytes.len().checked_sub(64) else { return };
    let table = u64::from_le_bytes(bytes[footer..footer + 8].try_into().unwrap());
    if table <= footer as u64 {
        let checksum = *blake3::hash(&bytes[table as usize..footer + 16]).as_bytes();
        bytes[footer + 16..footer + 48].copy_from_slice(&checksum);
    }
}

/// What every index that was believed must keep.
fn assert_sound(index: &PackIndex, pack_len: usize) {
    let mut end = 16;
    for (position, entry) in index.entries().iter().enumerate() {
        assert_eq!(entry.offset, end);
        end += u64::from(entry.stored_len);
        assert!(end <= pack_len as u64 - 64);
        assert!(entry.plain_len as usize <= entry.kind.plain_len_max());
        let blocks = index.block_digests(position);
        if entry.kind == format::EntryKind::Chunk {
            assert_eq!(blocks.len() * BLOCK_LEN, entry.plain_len as usize);
            assert_eq!(ChunkDigest::of(blocks).0, entry.digest);
        } else {
            assert!(blocks.is_empty());
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_structure_or_an_error(
        bytes in vec(any::<u8>(), 0..600),
        plain_len in prop_oneof![0u32..2000, any::<u32>()],
    ) {
        let _ = bounded_index(&bytes);
        let _ = bounded_map(&bytes);
        let root = within(4 * bytes.len() + SMALL, || decode_manifest_root(&bytes));
        prop_assert!(root.is_err());
        prop_assert!(within(2 * bytes.len() + SMALL, || decode_record(&bytes)).is_err());
        prop_assert!(within(2 * bytes.len() + SMALL, || decode_names(&bytes)).is_err());
        prop_assert!(within(2 * bytes.len() + SMALL, || decode_machine(&bytes)).is_err());
        let _ = format::pack::check_header(&bytes);
        let _ = bounded_decode(Encoding::Zstd, &bytes, plain_len);
        let _ = bounded_decode(Encoding::Plain, &bytes, plain_len);
    }

    #[test]
    fn a_segment_map_survives_its_bytes(map in segment_map()) {
        let bytes = encode_segment_map(&map);
        prop_assert_eq!(bounded_map(&bytes).unwrap(), map);
    }

    #[test]
    fn a_spoiled_segment_map_is_refused_or_is_the_encoding_of_another(
        map in segment_map(),
        changes in vec(spoil(), 1..4),
    ) {
        let bytes = apply(encode_segment_map(&map), &changes);
        if let Ok(other) = bounded_map(&bytes) {
            prop_assert_eq!(encode_segment_map(&other), bytes);
        }
    }

    #[test]
    fn any_runs_behind_a_sound_table_are_a_map_or_an_error(
        run_count in 0u32..40,
        runs in vec(any::<u8>(), 0..120),
    ) {
        let mut bytes = encode_segment_map(&golden_map())[..16 + 4 * 32].to_vec();
        bytes[12..16].copy_from_slice(&run_count.to_le_bytes());
        bytes.extend_from_slice(&runs);
        if let Ok(map) = bounded_map(&bytes) {
            prop_assert_eq!(encode_segment_map(&map), bytes);
        }
    }

    #[test]
    fn a_manifest_survives_its_bytes(manifest in manifest()) {
        let encoded = encode_manifest(&manifest);
        let leaves: Vec<_> = encoded.leaves.into_iter().map(|leaf| leaf.bytes).collect();
        let root = decode_manifest_root(&encoded.root).unwrap();
        prop_assert_eq!(decode_manifest(&root, &leaves).unwrap(), manifest);
    }

    #[test]
    fn a_spoiled_boot_set_is_refused_or_is_the_encoding_of_another(
        changes in vec(spoil(), 1..4),
    ) {
        let bytes = apply(encode_boot_set(&golden_boot_set()), &changes);
        // The limit is that of the blocks that a set may name, each remembered once.
        let bound = 8 * bytes.len() + 64 * model::boot_set::BOOT_BLOCKS_MAX as usize;
        if let Ok(other) = within(bound, || decode_boot_set(&bytes)) {
            prop_assert_eq!(encode_boot_set(&other), bytes);
        }
    }

    #[test]
    fn a_spoiled_root_is_refused_or_is_another_root(
        manifest in manifest(),
        changes in vec(spoil(), 1..4),
    ) {
        let valid = encode_manifest(&manifest).root;
        let bytes = apply(valid.clone(), &changes);
        if let Ok(root) = within(4 * bytes.len() + SMALL, || decode_manifest_root(&bytes)) {
            let same = root == decode_manifest_root(&valid).unwrap();
            prop_assert_eq!(same, bytes == valid);
        }
    }

    #[test]
    fn a_spoiled_leaf_that_the_root_vouches_for_is_a_manifest_or_an_error(
        changes in vec(spoil(), 1..4),
        number in prop_oneof![0u32..4, any::<u32>()],
    ) {
        let encoded = golden_manifest_encoded();
        let mut root = decode_manifest_root(&encoded.root).unwrap();
        let spoiled = apply(encoded.leaves[0].bytes.clone(), &changes);
        root.leaves.truncate(1);
        prop_assert!(
            spoiled == encoded.leaves[0].bytes
                || decode_manifest(&root, std::slice::from_ref(&spoiled)).is_err()
        );
        root.leaves[0] = (number, *blake3::hash(&spoiled).as_bytes());
        let bound = 8 * spoiled.len() + SMALL;
        let leaves = [spoiled];
        let decoded = within(bound, || decode_manifest(&root, &leaves));
        if let (Ok(manifest), true) = (decoded, number < 3) {
            prop_assert_eq!(&encode_manifest(&manifest).leaves[0].bytes, &leaves[0]);
        }
    }

    #[test]
    fn a_spoiled_machine_is_refused_or_is_the_encoding_of_another(
        changes in vec(spoil(), 1..4),
        is_sealed in any::<bool>(),
    ) {
        let mut bytes = apply(encode_machine(&golden_machine()).unwrap(), &changes);
        if is_sealed {
            // A checksum that fits: what lies before it must be looked at all the same.
            let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            if let Some(start) = end.checked_sub(32) {
                let sum = *blake3::hash(&bytes[..start]).as_bytes();
                bytes[start..end].copy_from_slice(&sum);
            }
        }
        if let Ok(record) = within(8 * bytes.len() + SMALL, || decode_machine(&bytes)) {
            prop_assert_eq!(encode_machine(&record).unwrap(), bytes);
        }
    }

    #[test]
    fn a_spoiled_record_is_refused_or_is_the_encoding_of_another(changes in vec(spoil(), 1..4)) {
        let bytes = apply(encode_record(&golden_record()), &changes);
        if let Ok(other) = within(2 * bytes.len() + SMALL, || decode_record(&bytes)) {
            prop_assert_eq!(encode_record(&other), bytes);
        }
    }

    #[test]
    fn spoiled_names_are_refused_or_are_the_encoding_of_others(
        changes in vec(spoil(), 1..4),
        liar in any::<bool>(),
    ) {
        let (header, names) = golden_names();
        let valid = encode_names(&header, &names);
        let body = valid.len() - 32;
        let mut bytes = apply(valid[..body].to_vec(), &changes);
        let checksum = match liar {
            true => *blake3::hash(&bytes).as_bytes(),
            false => valid[body..].try_into().unwrap(),
        };
        bytes.extend_from_slice(&checksum);
        let decoded = within(64 * bytes.len() + SMALL, || decode_names(&bytes));
        match decoded {
            Ok((header, names)) => prop_assert_eq!(encode_names(&header, &names), bytes),
            Err(_) => prop_assert!(bytes != valid),
        }
    }

    #[test]
    fn a_spoiled_pack_is_refused_or_sound(changes in vec(spoil(), 1..4), liar in any::<bool>()) {
        let valid = pack().bytes;
        // Only table, list and footer: what lies before is no concern of the index.
        let (entries, index) = valid.split_at(valid.len() - 64 - 4 * 32 - 5 * 44);
        let mut bytes = [entries, &apply(index.to_vec(), &changes)].concat();
        if liar {
            seal_again(&mut bytes);
        }
        match bounded_index(&bytes) {
            Ok(read) if liar => assert_sound(&read, bytes.len()),
            Ok(_) => prop_assert_eq!(bytes, valid),
            Err(_) => {}
        }
    }

    #[test]
    fn a_spoiled_entry_decodes_to_its_length_or_is_refused(
        changes in vec(spoil(), 1..4),
        lie in prop_oneof![3 => Just(None), 1 => any::<u32>().prop_map(Some)],
    ) {
        let plain = [noise("entry", 5000), vec![9; 15_000]].concat();
        let (encoding, stored) = Encoder::new(3).encode(&plain);
        prop_assert_eq!(encoding, Encoding::Zstd);
        let stored = apply(stored, &changes);
        let _ = bounded_decode(encoding, &stored, lie.unwrap_or(plain.len() as u32));
    }
}

#[test]
fn every_flipped_bit_of_a_packs_table_list_and_footer_is_refused() {
    let valid = pack().bytes;
    read_index(&valid).unwrap();
    for position in valid.len() - 64 - 4 * 32 - 5 * 44..valid.len() {
        for bit in 0..8 {
            let mut bytes = valid.clone();
            bytes[position] ^= 1 << bit;
            assert!(read_index(&bytes).is_err(), "byte {position}, bit {bit}");
        }
    }
}

#[test]
fn every_cut_of_every_structure_is_refused() {
    let (map, manifest) = (encode_segment_map(&golden_map()), golden_manifest_encoded());
    let pack = pack().bytes;
    let set = encode_boot_set(&golden_boot_set());
    for len in 0..set.len() {
        assert!(decode_boot_set(&set[..len]).is_err(), "set of {len} bytes");
    }
    for len in 0..map.len() {
        assert!(decode_segment_map(&map[..len]).is_err(), "map of {len} bytes");
    }
    for len in 0..manifest.root.len() {
        assert!(decode_manifest_root(&manifest.root[..len]).is_err(), "root of {len} bytes");
    }
    for len in 0..pack.len() {
        assert!(read_index(&pack[..len]).is_err(), "pack of {len} bytes");
    }
    let record = encode_record(&golden_record());
    for len in 0..record.len() {
        assert!(decode_record(&record[..len]).is_err(), "record of {len} bytes");
    }
    let (header, names) = golden_names();
    let names = encode_names(&header, &names);
    for len in 0..names.len() {
        assert!(decode_names(&names[..len]).is_err(), "names of {len} bytes");
    }
}

#[test]
fn no_length_in_a_few_bytes_makes_a_decoder_allocate() {
    let mut map = encode_segment_map(&SegmentMap::default());
    map[8..16].fill(0xff);
    assert!(bounded_map(&map).is_err());
    map[8..16].copy_from_slice(&[0, 0, 0, 0, 0, 0x40, 0, 0]);
    assert!(bounded_map(&map).is_err());
    for count in [8, 12, 16] {
        let mut set = encode_boot_set(&golden_boot_set());
        set[count..count + 4].fill(0xff);
        assert!(within(8 * set.len() + SMALL, || decode_boot_set(&set)).is_err());
    }
    let mut root = golden_manifest_encoded().root;
    root[12..16].fill(0xff);
    assert!(within(SMALL, || decode_manifest_root(&root)).is_err());
    let mut footer = pack().bytes;
    let at = footer.len() - 56;
    footer[at..at + 8].fill(0xff);
    assert!(within(2 * SMALL, || read_index(&footer)).is_err());
    let bomb = Encoder::new(3).encode(&vec![0; PLAIN_LEN_MAX]).1;
    assert!(within(SMALL, || decode(Encoding::Zstd, &bomb, 4096)).is_err());
}
