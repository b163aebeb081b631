//! Disk files that lie: other files they name, lengths that are not there, words turned over.

use std::time::Instant;

use model::Kind;
use proptest::prelude::*;

use super::*;

fn made(folder: &Path, words: &[&str]) -> (PathBuf, Vec<u8>) {
    let (raw, bytes) = mixed_file(folder, 1 << 20);
    let path = folder.join("disk.qcow2");
    let mut all = vec!["convert", "-f", "raw", "-O", "qcow2"];
    all.extend_from_slice(words);
    all.extend_from_slice(&[text(&raw), text(&path)]);
    run("qemu-img", &all);
    (path, bytes)
}

#[test]
fn a_backing_file_is_refused_before_it_is_opened() {
    let folder = folder();
    let path = folder.path().join("top.qcow2");
    // It does not exist: the refusal must not come from looking.
    let words = ["create", "-u", "-f", "qcow2", "-b", "/nowhere/secret\n", "-F", "raw"];
    run("qemu-img", &[&words[..], &[text(&path), "1M"]].concat());
    let error = error_of(&path, &OpenOptions::default());
    assert_eq!(error.kind(), Kind::Refused);
    assert!(error.chain().contains("/nowhere/secret\\n"), "{}", error.chain());
    assert!(error.hint_text().unwrap().contains("--allow-backing"));
}

#[test]
fn an_external_data_file_is_refused_even_when_backing_is_allowed() {
    let folder = folder();
    let path = folder.path().join("disk.qcow2");
    let data = folder.path().join("data.raw");
    let named = format!("data_file={},data_file_raw=on", text(&data));
    run("qemu-img", &["create", "-f", "qcow2", "-o", &named, text(&path), "1M"]);
    std::fs::remove_file(&data).unwrap();
    for allow_backing in [false, true] {
        let options = OpenOptions { format: None, allow_backing, interrupt: None };
        let error = error_of(&path, &options);
        assert_eq!(error.kind(), Kind::Refused);
        assert!(error.chain().contains("data.raw"), "{}", error.chain());
        assert!(error.hint_text().unwrap().contains("qemu-img convert"));
    }
}

#[test]
fn a_file_cut_anywhere_is_an_error_or_still_whole() {
    let folder = folder();
    for words in
        [&[][..], &["-c"], &["-c", "-o", "compression_type=zstd"], &["-o", "extended_l2=on"]]
    {
        let (path, bytes) = made(folder.path(), words);
        let whole = std::fs::read(&path).unwrap();
        let mut cuts: Vec<usize> = (0..120).collect();
        cuts.extend((0..whole.len()).step_by(4093));
        cuts.extend([whole.len() - 1, whole.len() - 512, whole.len() - 4096]);
        let mut refused = 0;
        for cut in cuts {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let outcome = open_source(&path, &options("qcow2"))
                .and_then(|mut source| read_all(&mut *source, 1 << 20));
            match outcome {
                // Only what lies behind the disk's last byte may be missing.
                Ok((disk, _)) => check_equal(&disk, &bytes),
                Err(_) => refused += 1,
            }
        }
        assert!(refused > 150, "{words:?}: only {refused} cuts were noticed");
    }
}

/// Turns `bytes` over at `offset` of a good image and returns the error.
#[track_caller]
fn error_after(offset: u64, bytes: &[u8]) -> Error {
    let folder = folder();
    let (path, _) = made(folder.path(), &[]);
    File::options().write(true).open(&path).unwrap().write_all_at(bytes, offset).unwrap();
    let error = error_of(&path, &options("qcow2"));
    assert!(error.chain().contains("disk.qcow2"), "{}", error.chain());
    error
}

#[test]
fn a_header_that_lies_is_refused_with_what_it_says() {
    let check = |offset, bytes: &[u8], kind, part: &str| {
        let error = error_after(offset, bytes);
        assert_eq!(error.kind(), kind, "{}", error.chain());
        assert!(error.chain().contains(part), "{} / {part}", error.chain());
    };
    check(0, b"QFI\0", Kind::Invalid, "magic");
    check(4, &9u32.to_be_bytes(), Kind::Invalid, "version 9");
    check(20, &8u32.to_be_bytes(), Kind::Corrupt, "cluster size");
    check(20, &63u32.to_be_bytes(), Kind::Corrupt, "cluster size");
    check(24, &u64::MAX.to_be_bytes(), Kind::Corrupt, "disk length");
    check(24, &(1u64 << 50).to_be_bytes(), Kind::Corrupt, "L1 table size");
    check(32, &1u32.to_be_bytes(), Kind::Invalid, "encrypted");
    check(36, &u32::MAX.to_be_bytes(), Kind::Corrupt, "L1 table size");
    check(36, &0u32.to_be_bytes(), Kind::Corrupt, "L1 table size");
    check(40, &u64::MAX.to_be_bytes(), Kind::Corrupt, "L1 table");
    check(40, &(1u64 << 40).to_be_bytes(), Kind::Corrupt, "truncated");
    check(72, &2u64.to_be_bytes(), Kind::Corrupt, "marked as corrupt");
    check(72, &(1u64 << 33).to_be_bytes(), Kind::Invalid, "0x200000000");
    check(100, &3u32.to_be_bytes(), Kind::Corrupt, "header length");
    check(104, &[7], Kind::Invalid, "compression method 7");
}

#[test]
fn a_dirty_image_is_read() {
    let folder = folder();
    let (path, bytes) = made(folder.path(), &[]);
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&1u64.to_be_bytes(), 72).unwrap();
    check_reads(&path, &options("qcow2"), &bytes);
}

fn word_at(path: &Path, offset: u64) -> u64 {
    let mut word = [0; 8];
    File::open(path).unwrap().read_exact_at(&mut word, offset).unwrap();
    u64::from_be_bytes(word)
}

#[test]
fn tables_that_lie_are_refused() {
    let folder = folder();
    let (path, _) = made(folder.path(), &[]);
    let l1 = word_at(&path, 40);
    let l2 = word_at(&path, l1) & 0x00ff_ffff_ffff_fe00;
    let cases = [
        (l1, (1u64 << 63) | (1 << 40), "truncated"),
        (l1, (1u64 << 63) | (l2 + 512), "not at a cluster's start"),
        (l2, (1u64 << 63) | (1 << 40), "truncated"),
        (l2, (1u64 << 63) | 512, "not at a cluster's start"),
        (l2, (1u64 << 62) | (1 << 45), "truncated"),
        (l2, (1u64 << 62) | 70_000, "does not unpack"),
    ];
    for (offset, word, part) in cases {
        let error = error_after(offset, &word.to_be_bytes());
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.chain().contains(part), "{} / {part}", error.chain());
    }
}

/// An image of a few hundred KiB that claims 512 TiB of data, in one cluster, again and again.
#[test]
fn a_small_file_cannot_claim_a_large_disk() {
    let folder = folder();
    let path = folder.path().join("bomb.qcow2");
    let cluster: u64 = 2 << 20;
    for (entry, what) in [((2 * cluster) | (1 << 63), "more clusters"), (0, "more L2 tables")] {
        let file = File::create(&path).unwrap();
        let length = 512u64 << 40;
        let l1_count = length / (cluster * cluster / 8);
        let mut header = b"QFI\xfb\0\0\0\x02".to_vec();
        header.extend_from_slice(&[0; 12]);
        header.extend_from_slice(&21u32.to_be_bytes());
        header.extend_from_slice(&length.to_be_bytes());
        header.extend_from_slice(&[0; 4]);
        header.extend_from_slice(&(l1_count as u32).to_be_bytes());
        header.extend_from_slice(&cluster.to_be_bytes());
        header.extend_from_slice(&[0; 24]);
        file.write_all_at(&header, 0).unwrap();
        let tables = (3 * cluster).to_be_bytes().repeat(l1_count as usize);
        file.write_all_at(&tables, cluster).unwrap();
        file.write_all_at(&entry.to_be_bytes().repeat(cluster as usize / 8), 3 * cluster).unwrap();
        file.set_len(4 * cluster).unwrap();
        let begun = Instant::now();
        let error = error_of(&path, &options("qcow2"));
        assert!(error.chain().contains(what), "{}", error.chain());
        assert!(begun.elapsed().as_secs() < 20);
    }
}

/// Small images of several kinds, made once.
fn seeds() -> &'static [Vec<u8>] {
    static SEEDS: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
    SEEDS.get_or_init(|| {
        let kinds: [&[&str]; 5] = [
            &["-o", "cluster_size=4k"],
            &["-c", "-o", "cluster_size=4k"],
            &["-c", "-o", "cluster_size=4k,compression_type=zstd"],
            &["-o", "cluster_size=16k,extended_l2=on"],
            &["-o", "cluster_size=512,compat=0.10"],
        ];
        kinds.iter().map(|words| std::fs::read(made(folder().path(), words).0).unwrap()).collect()
    })
}

/// Places where a lie counts: the header, or anywhere (tables are most of what is not data).
fn mutation() -> impl Strategy<Value = (prop::sample::Index, bool, Vec<u8>)> {
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..9),
        any::<u64>().prop_map(|word| word.to_be_bytes().to_vec()),
        (0u32..64).prop_map(|bit| (1u64 << bit).to_be_bytes().to_vec()),
        Just(u64::MAX.to_be_bytes().to_vec()),
    ];
    (any::<prop::sample::Index>(), any::<bool>(), bytes)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..Default::default() })]

    #[test]
    fn no_mutation_of_an_image_makes_a_panic_or_endless_work(
        seed in 0usize..5,
        mutations in prop::collection::vec(mutation(), 1..5),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut image = seeds()[seed].clone();
        for (place, in_header, bytes) in mutations {
            // A mutation of the header is at a field's start as often as not.
            let range = if in_header { 112 } else { image.len() };
            let place = place.index(range);
            let place = if in_header { place / 4 * 4 } else { place / 8 * 8 };
            for (index, byte) in bytes.into_iter().enumerate() {
                if let Some(there) = image.get_mut(place + index) {
                    *there = byte;
                }
            }
        }
        if let Some(cut) = cut {
            image.truncate(cut.index(image.len()));
        }
        let folder = folder();
        let path = folder.path().join("mutated.qcow2");
        std::fs::write(&path, &image).unwrap();
        if let Ok(mut source) = open_source(&path, &options("qcow2")) {
            let mut buffer = vec![0; 64 << 10];
            let mut given = 0;
            while let Ok(Some(run)) = source.read(&mut buffer) {
                given += run.len as u64;
            }
            // Each plain cluster once, and whatever the compressed ones unpack to.
            prop_assert!(given <= source.length().next_multiple_of(4096));
        }
    }
}
