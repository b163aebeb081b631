//! What a small write costs in metadata, however large the disk.

mod fixtures;

use fixtures::{block_digests, noise, segment};
use format::{
    EncodedManifest, Encoding, EntryKind, PackBuilder, encode_manifest, encode_segment_map,
    map_digest,
};
use model::{
    BLOCK_LEN, BLOCKS_PER_SEGMENT, ChunkDigest, Manifest, Run, SEGMENT_LEN, SegmentMap, VersionKind,
};

const LIMIT: usize = 64 << 10;

/// The map of a segment that was imported as new, in chunks of 256 KiB, and then had the blocks at
/// `writes` written, each as a chunk of its own.
fn map_of_full_segment(writes: &[u32]) -> SegmentMap {
    let chunk = |name: String| ChunkDigest(fixtures::digest(&name));
    let mut runs = Vec::new();
    for first in (0..BLOCKS_PER_SEGMENT).step_by(64) {
        let mut at = first;
        let here = writes.iter().filter(|write| (first..first + 64).contains(*write));
        for write in here.copied().chain([first + 64]) {
            if write > at {
                runs.push(Run {
                    first_block: at,
                    block_count: write - at,
                    chunk: chunk(format!("chunk at {first}")),
                    first_in_chunk: at - first,
                });
            }
            if write < first + 64 {
                let chunk = chunk(format!("write at {write}"));
                runs.push(Run { first_block: write, block_count: 1, chunk, first_in_chunk: 0 });
            }
            at = write + 1;
        }
    }
    SegmentMap::new(runs).expect("a sound map")
}

/// A full disk of 16 TiB, one segment of which has that map.
fn full_disk(map: &[u8]) -> (Manifest, EncodedManifest) {
    let length = 16 << 40;
    let mut segments: Vec<_> = (0..(length / SEGMENT_LEN) as u32).map(segment).collect();
    segments[100_000].map = map_digest(map);
    let manifest = Manifest::new(VersionKind::Disk, length, segments).expect("sound");
    let encoded = encode_manifest(&manifest);
    (manifest, encoded)
}

#[test]
fn a_block_written_to_a_full_disk_of_16_tib_adds_at_most_64_kib_of_metadata() {
    let before = full_disk(&encode_segment_map(&map_of_full_segment(&[]))).1;
    let map = encode_segment_map(&map_of_full_segment(&[4000]));
    let (manifest, after) = full_disk(&map);

    let old: std::collections::HashSet<_> = before.leaves.iter().map(|leaf| leaf.digest).collect();
    let changed: Vec<_> = after.leaves.iter().filter(|leaf| !old.contains(&leaf.digest)).collect();
    assert_eq!((before.leaves.len(), changed.len()), (512, 1));
    assert_eq!((after.root.len(), changed[0].bytes.len()), (18_456, 32_840));

    let block = noise("written", BLOCK_LEN);
    let blocks = block_digests(&block);
    let mut pack = PackBuilder::new();
    let mut push = |kind, digest, bytes: &[u8], blocks: &[_]| {
        pack.push(kind, Encoding::Plain, digest, bytes.len() as u32, bytes, blocks);
    };
    push(EntryKind::Chunk, ChunkDigest::of(&blocks).0, &block, &blocks);
    push(EntryKind::SegmentMap, map_digest(&map).0, &map, &[]);
    push(EntryKind::ManifestLeaf, changed[0].digest, &changed[0].bytes, &[]);
    push(EntryKind::Manifest, after.layout.0, &after.root, &[]);
    let metadata = pack.finish().bytes.len() - BLOCK_LEN;
    assert!(metadata <= LIMIT, "{metadata} bytes of metadata, map {} bytes", map.len());
    assert_eq!(manifest.segments().len(), 262_144);
}

#[test]
fn a_map_leaves_room_for_over_a_hundred_scattered_writes_before_64_kib_are_reached() {
    let room = LIMIT - 18_456 - 32_840 - (16 + 4 * 44 + 32 + 64);
    let cost = |count: u32| {
        let writes: Vec<_> = (0..count).map(|number| number * 101 + 50).collect();
        encode_segment_map(&map_of_full_segment(&writes)).len()
    };
    assert_eq!(cost(0), 16 + 256 * 32 + 256 * 2);
    assert!(cost(120) <= room, "{} bytes of map, room for {room}", cost(120));
}
