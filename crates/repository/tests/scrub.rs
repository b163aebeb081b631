//! Damage of every kind: found by scrub, told by the read that meets it, repaired from copies.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use format::pack::PackIndex;
use format::{EntryKind, PackEntry};
use model::progress::{Cancel, Silent};
use model::{ImageName, Kind, Result, SEGMENT_LEN};
use repository::repository::Machine;
use repository::scrub::finding::{Fault, Outcome};
use repository::{CommitRequest, Repository, ScrubRequest, Scrubbed};
use store::ChunkStore;
use support::{BytesSink, BytesSource, Difference, disk, request};

struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let fixture = Fixture { folder: tempfile::tempdir().unwrap() };
        Repository::open_or_create(&Machine::real(), &fixture.path()).unwrap();
        fixture
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("repository")
    }

    fn open(&self) -> Repository {
        Repository::open(&Machine::real(), &self.path()).unwrap()
    }

    fn import(&self, image: &str, bytes: &[u8]) {
        let mut source = BytesSource::new(bytes);
        self.open().import(&mut source, &request(image, &Cancel::new())).unwrap();
    }

    fn commit(&self, parent: &str, old: &[u8], new: &[u8]) {
        let repository = self.open();
        let parent = repository.catalog().version(&parent.parse().unwrap()).unwrap().id;
        let request = CommitRequest {
            image: parent.image.clone(),
            parent,
            tag: None,
            origin: "test".into(),
            progress: &Silent,
        };
        repository.commit(&Difference { old, new }, &request).unwrap();
    }

    fn scrub(&self, deep: bool) -> Scrubbed {
        self.open().scrub(&scrub_request(deep, &Cancel::new())).unwrap()
    }

    fn repair(&self, from: Option<&Fixture>) -> Scrubbed {
        let from = from.map(Fixture::open);
        self.open().repair(&scrub_request(false, &Cancel::new()), from.as_ref()).unwrap()
    }

    /// Nothing is found any more, and the versions are what they were.
    fn assert_sound(&self, versions: &[(&str, &[u8])]) {
        let scrubbed = self.scrub(true);
        assert!(scrubbed.is_sound(), "{:#?}", scrubbed.findings);
        for (reference, bytes) in versions {
            assert!(export(&self.open(), reference).unwrap() == *bytes, "{reference}");
        }
    }

    fn packs(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(self.path().join("packs")).unwrap();
        let mut packs: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        packs.sort();
        packs
    }

    /// The entries of a kind, each with its pack's file.
    fn entries(&self, kind: EntryKind) -> Vec<(PathBuf, PackEntry)> {
        let packs = self.packs();
        let of_kind = |pack: &PathBuf| -> Vec<_> {
            let index = index_of(pack);
            let entries = index.entries().iter().filter(|entry| entry.kind == kind);
            entries.map(|entry| (pack.clone(), *entry)).collect()
        };
        packs.iter().flat_map(of_kind).collect()
    }

    fn damage(&self, kind: EntryKind) -> PackEntry {
        let (pack, entry) = self.entries(kind)[0].clone();
        flip(&pack, entry.offset + u64::from(entry.stored_len) / 2, 1);
        entry
    }

    fn sql(&self, statement: &str) {
        let file = self.path().join("catalog.sqlite");
        let output = Command::new("sqlite3").arg(file).arg(statement).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

fn scrub_request(deep: bool, cancel: &Cancel) -> ScrubRequest<'_> {
    ScrubRequest { rate_bytes_per_second: None, deep, progress: &Silent, cancel }
}

fn index_of(pack: &Path) -> PackIndex {
    let bytes = std::fs::read(pack).unwrap();
    PackIndex::read(bytes.len() as u64, |offset, len| {
        Ok::<_, format::FormatError>(bytes[offset as usize..offset as usize + len].to_vec())
    })
    .unwrap()
}

fn flip(file: &Path, offset: u64, bit: u8) {
    let mut bytes = std::fs::read(file).unwrap();
    bytes[offset as usize] ^= bit;
    std::fs::write(file, bytes).unwrap();
}

fn export(repository: &Repository, reference: &str) -> Result<Vec<u8>> {
    let version = repository.catalog().version(&reference.parse()?)?;
    let sink = BytesSink::default();
    repository.export(&version.id, Box::new(sink.clone()), &Silent, &Cancel::new())?;
    Ok(sink.take())
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Two versions of one image and another image, in four packs.
fn small() -> (Fixture, Vec<u8>, Vec<u8>, Vec<u8>) {
    let fixture = Fixture::new();
    let old = disk(1, 3 << 20, 1 << 40);
    let mut new = old.clone();
    new[1 << 20..(1 << 20) + 300_000].copy_from_slice(&disk(2, 300_000, 1 << 40));
    let other = disk(3, 1 << 20, 1 << 40);
    fixture.import("web", &old);
    fixture.commit("web", &old, &new);
    fixture.import("other", &other);
    (fixture, old, new, other)
}

#[test]
fn a_sound_repository_has_no_findings_and_everything_in_it_is_read() {
    let (fixture, old, new, other) = small();
    let scrubbed = fixture.scrub(false);
    assert!(scrubbed.is_sound(), "{:#?}", scrubbed.findings);
    let kinds =
        [EntryKind::SegmentMap, EntryKind::ManifestLeaf, EntryKind::Manifest, EntryKind::Record];
    let metadata: usize = kinds.iter().map(|kind| fixture.entries(*kind).len()).sum();
    assert_eq!(scrubbed.chunk_count, fixture.entries(EntryKind::Chunk).len() as u64);
    assert_eq!((scrubbed.metadata_count, scrubbed.root_count), (metadata as u64, 3));
    assert_eq!(metadata, 12);
    fixture.assert_sound(&[("web@1", &old), ("web@2", &new), ("other", &other)]);
}

#[test]
fn each_kind_of_damage_is_found_with_the_versions_that_it_touches() {
    type Damage = fn(&Fixture);
    let cases: [(&str, Damage, Fault, &[&str]); 13] = [
        (
            "a chunk",
            |f| {
                f.damage(EntryKind::Chunk);
            },
            Fault::Damaged,
            &[],
        ),
        (
            "a map",
            |f| {
                f.damage(EntryKind::SegmentMap);
            },
            Fault::Damaged,
            &[],
        ),
        (
            "a leaf",
            |f| {
                f.damage(EntryKind::ManifestLeaf);
            },
            Fault::Damaged,
            &[],
        ),
        (
            "a manifest",
            |f| {
                f.damage(EntryKind::Manifest);
            },
            Fault::Damaged,
            &[],
        ),
        (
            "a record",
            |f| {
                f.damage(EntryKind::Record);
            },
            Fault::Damaged,
            &[],
        ),
        ("a header", |f| flip(&f.packs()[0], 3, 1), Fault::DamagedPack, &["pack"]),
        (
            "a list",
            |f| {
                let pack = &f.packs()[0];
                let len = std::fs::metadata(pack).unwrap().len();
                flip(pack, len - 70, 1);
            },
            Fault::DamagedPack,
            &["pack"],
        ),
        ("a lost pack", |f| std::fs::remove_file(&f.packs()[0]).unwrap(), Fault::Missing, &[]),
        ("an offset", |f| f.sql("UPDATE entry SET offset = offset + 1"), Fault::WrongRow, &[]),
        ("a kind", |f| f.sql("UPDATE entry SET kind = 3 WHERE kind = 1"), Fault::WrongRow, &[]),
        (
            "a row's number",
            |f| f.sql("UPDATE entry SET plain_len = -1 WHERE kind = 2"),
            Fault::WrongRow,
            &[],
        ),
        ("a row that is gone", |f| f.sql("DELETE FROM entry WHERE kind = 1"), Fault::Missing, &[]),
        (
            "a pack that does not list it",
            |f| f.sql("UPDATE entry SET pack = (SELECT max(id) FROM pack) WHERE pack = 1"),
            Fault::WrongRow,
            &[],
        ),
    ];
    for (what, damage, fault, not_touching) in cases {
        let (fixture, ..) = small();
        damage(&fixture);
        let scrubbed = fixture.scrub(false);
        let findings: Vec<_> =
            scrubbed.findings.iter().filter(|finding| finding.fault == fault).collect();
        assert!(!findings.is_empty(), "{what}: {:#?}", scrubbed.findings);
        if not_touching.is_empty() {
            assert!(findings.iter().any(|f| !f.touched.is_empty()), "{what}: {findings:#?}");
        } else {
            assert!(findings.iter().all(|f| f.pack.is_some()), "{what}: {findings:#?}");
        }
    }
}

#[test]
fn what_the_catalog_says_of_a_version_is_compared_with_its_manifest() {
    for statement in [
        "UPDATE version SET length = length + 4096 WHERE number = 2",
        "UPDATE version SET kind = 1 WHERE number = 2",
        "UPDATE version SET content = randomblob(32) WHERE number = 2",
        "UPDATE version SET layout = (SELECT layout FROM version WHERE number = 1 LIMIT 1)
          WHERE number = 2",
    ] {
        let (fixture, ..) = small();
        fixture.sql(statement);
        let scrubbed = fixture.scrub(false);
        let found = scrubbed.findings.iter().find(|f| f.fault == Fault::WrongVersion);
        let found = found.unwrap_or_else(|| panic!("{statement}: {:?}", scrubbed.findings));
        assert_eq!(found.touched[0].version.to_string(), "web@2");
    }
}

#[test]
fn damage_is_told_with_the_addresses_that_it_touches() {
    let fixture = Fixture::new();
    let bytes = disk(1, (SEGMENT_LEN + (1 << 20)) as usize, 1 << 40);
    fixture.import("web", &bytes);
    let repository = fixture.open();
    let version = repository.catalog().version(&"web@1".parse().unwrap()).unwrap();
    let manifest = repository.chunks().manifest(version.facts.layout).unwrap();
    let map = repository.chunks().segment_map(manifest.segments()[1].map).unwrap();
    let last = map.runs().last().unwrap().chunk;
    drop(repository);
    let entries = fixture.entries(EntryKind::Chunk);
    let (pack, entry) = entries.iter().find(|(_, entry)| entry.digest == last.0).unwrap();
    flip(pack, entry.offset, 1);
    let scrubbed = fixture.scrub(false);
    assert_eq!((scrubbed.corrupt_count, scrubbed.missing_count), (1, 0));
    let touched = &scrubbed.findings[0].touched;
    assert_eq!(touched.len(), 1);
    let mut range = bytes.clone();
    for addresses in &touched[0].ranges {
        assert!(addresses.start >= SEGMENT_LEN, "{touched:?}");
        range[addresses.start as usize..addresses.end as usize].fill(0);
    }
    assert!(range != bytes);
    // A hold that outlives its version is touched likewise.
    let version = "web@1".parse().unwrap();
    let id = fixture.open().catalog().version(&version).unwrap().id;
    fixture.open().catalog().hold(&id, "mirror m", None).unwrap();
    fixture.open().catalog().remove_version(&id).unwrap();
    let scrubbed = fixture.scrub(false);
    assert_eq!(scrubbed.findings[0].touched[0].holder.as_deref(), Some("mirror m"));
}

#[test]
fn deep_finds_a_segment_whose_bytes_are_others_than_its_digest_says() {
    let (fixture, old, new, _) = small();
    // A liar's layout: sound in every part, but of other bytes than its content digest says.
    let liar = Fixture::new();
    liar.import("web", &old);
    let repository = fixture.open();
    let version = repository.catalog().version(&"web@2".parse().unwrap()).unwrap();
    let other = repository.catalog().version(&"web@1".parse().unwrap()).unwrap();
    let chunks = repository.chunks();
    let (mine, others) = (
        chunks.manifest(version.facts.layout).unwrap(),
        chunks.manifest(other.facts.layout).unwrap(),
    );
    let lie = model::SegmentEntry { map: others.segments()[0].map, ..mine.segments()[0] };
    let lie = model::Manifest::new(mine.kind(), mine.length(), vec![lie]).unwrap();
    let encoded = format::encode_manifest(&lie);
    let mut builder = format::PackBuilder::new();
    let mut push = |kind, digest, plain: &[u8]| {
        builder.push(kind, format::Encoding::Plain, digest, plain.len() as u32, plain, &[]);
    };
    push(EntryKind::ManifestLeaf, encoded.leaves[0].digest, &encoded.leaves[0].bytes);
    push(EntryKind::Manifest, encoded.layout.0, &encoded.root);
    let pack = builder.finish();
    let name = "00000000000000000000000000000001";
    std::fs::write(fixture.path().join("packs").join(name), &pack.bytes).unwrap();
    let lease = repository.catalog().begin_lease(std::time::Duration::from_secs(99)).unwrap();
    let entries = pack.entries.iter().map(|entry| catalog::EntryRecord {
        digest: entry.digest,
        offset: entry.offset,
        stored_len: entry.stored_len,
        plain_len: entry.plain_len,
        encoding: entry.encoding as u8,
        kind: entry.kind as u8,
    });
    let new_pack = catalog::NewPack {
        name: name.into(),
        realm: model::Realm::default_realm(),
        stored_len: pack.bytes.len() as u64,
        data_len: 0,
        data_stored_len: 0,
        entries: entries.collect(),
        hooks: Vec::new(),
    };
    let catalog = repository.catalog();
    catalog.add_pack(lease, &new_pack).unwrap();
    let content = version.facts.content;
    let swapped =
        catalog.swap_layout(lease, content, version.facts.layout, encoded.layout).unwrap();
    assert_eq!(swapped, 1);
    drop(repository);
    assert!(fixture.scrub(false).is_sound(), "only the bytes themselves tell");
    let found = &fixture.scrub(true).findings;
    assert_eq!(found[0].fault, Fault::WrongVersion);
    assert_eq!(found[0].touched[0].version.to_string(), "web@2");
    drop(new);
}

#[test]
fn a_scrub_stops_when_it_is_told_to() {
    let (fixture, ..) = small();
    let cancel = Cancel::new();
    cancel.cancel();
    let error = fixture.open().scrub(&scrub_request(false, &cancel)).unwrap_err();
    assert_eq!(error.kind(), Kind::Cancelled);
}

#[test]
fn a_pack_that_no_row_names_is_no_damage() {
    let (fixture, ..) = small();
    let stray = fixture.path().join("packs/0123456789abcdef0123456789abcdef");
    std::fs::copy(&fixture.packs()[0], stray).unwrap();
    let scrubbed = fixture.scrub(false);
    assert!(scrubbed.is_sound());
    assert_eq!(scrubbed.unnamed_packs, ["0123456789abcdef0123456789abcdef"]);
}

/// Flips bits all over every pack: an export gives the right bytes, or an error that names what is
/// damaged and the version.
#[test]
fn no_flipped_bit_in_a_pack_ever_gives_wrong_bytes() {
    let (fixture, old, new, other) = small();
    let expected = [("web@1", &old), ("web@2", &new), ("other@1", &other)];
    let (mut refused, mut flips) = (0, 0);
    let repository = fixture.open();
    for pack in fixture.packs() {
        let len = std::fs::metadata(&pack).unwrap().len();
        let index_len = 44 * index_of(&pack).entries().len() as u64 + 64;
        let stride = |offset: u64| if offset + index_len > len { 13 } else { (len / 41).max(5) };
        let mut offset = 0;
        while offset < len {
            let bit = 1 << (offset % 8);
            flip(&pack, offset, bit);
            flips += 1;
            for (reference, bytes) in &expected {
                match export(&repository, reference) {
                    Ok(exported) => assert!(exported == **bytes, "{reference}, byte {offset}"),
                    Err(error) => {
                        refused += 1;
                        let chain = error.chain();
                        assert_eq!(error.kind(), Kind::Corrupt, "{chain}");
                        assert!(chain.contains(reference), "{chain}");
                        assert!(error.hint_text().unwrap().contains("larder scrub"), "{chain}");
                    }
                }
            }
            flip(&pack, offset, bit);
            offset += stride(offset);
        }
    }
    assert!(refused > 40 && flips > 120, "{refused} of {flips}");
    fixture.assert_sound(&[("web@1", &old), ("web@2", &new), ("other@1", &other)]);
}

/// Changes every column of the rows that reads go by.
#[test]
fn no_changed_row_ever_gives_wrong_bytes() {
    let (fixture, old, new, other) = small();
    let expected = [("web@1", &old), ("web@2", &new), ("other@1", &other)];
    let mut changes = Vec::new();
    for column in ["offset", "stored_len", "plain_len", "encoding", "kind", "pack"] {
        for value in ["^ 1", "^ 64", "+ 4096", "- 1", "* -1", "+ (1 << 40)", "+ 5000000000"] {
            let value = match value.strip_prefix("^ ") {
                Some(bit) => format!("({column} | {bit}) - ({column} & {bit})"),
                None => format!("{column} {value}"),
            };
            changes.push(format!("UPDATE entry SET {column} = {value}"));
            changes.push(format!("UPDATE entry SET {column} = {value} WHERE kind > 1"));
        }
    }
    for column in ["content", "layout"] {
        changes.push(format!("UPDATE version SET {column} = randomblob(32)"));
        changes.push(format!("UPDATE version SET {column} = randomblob(31)"));
        changes.push(format!(
            "UPDATE version SET {column} = (SELECT w.{column} FROM version w
              WHERE w.content <> version.content LIMIT 1)"
        ));
    }
    for column in ["length", "data_len", "kind"] {
        changes.push(format!("UPDATE version SET {column} = {column} + 1"));
        changes.push(format!("UPDATE version SET {column} = -7"));
    }
    changes.push("UPDATE pack SET name = randomblob(16)".into());
    changes.push("UPDATE pack SET name = randomblob(5)".into());
    changes.push("UPDATE pack SET stored_len = 7".into());
    let file = fixture.path().join("catalog.sqlite");
    let sound = std::fs::read(&file).unwrap();
    let mut refused = 0;
    for change in &changes {
        fixture.sql(change);
        let repository = fixture.open();
        for (reference, bytes) in &expected {
            match export(&repository, reference) {
                Ok(exported) => assert!(exported == **bytes, "{reference}: {change}"),
                Err(error) => {
                    refused += 1;
                    let kinds = [Kind::Corrupt, Kind::NotFound];
                    assert!(kinds.contains(&error.kind()), "{change}: {}", error.chain());
                    assert!(error.hint_text().is_some(), "{change}: {}", error.chain());
                }
            }
        }
        drop(repository);
        std::fs::write(&file, &sound).unwrap();
    }
    assert!(refused > changes.len(), "{refused}");
}

#[test]
fn damage_is_repaired_from_another_copy_in_the_repository() {
    for kind in [EntryKind::Chunk, EntryKind::SegmentMap, EntryKind::Manifest, EntryKind::Record] {
        let (fixture, old, new, other) = small();
        // A pack that nobody names holds the same entries.
        let (pack, _) = fixture.entries(kind)[0].clone();
        let copy = fixture.path().join("packs/0123456789abcdef0123456789abcdef");
        std::fs::copy(&pack, &copy).unwrap();
        let (_, entry) = fixture.entries(kind).into_iter().find(|(p, _)| *p == pack).unwrap();
        flip(&pack, entry.offset + 1, 1);
        let before = fixture.packs();
        let repaired = fixture.repair(None);
        assert!(repaired.corrupt_count > 0);
        assert!(
            repaired.findings.iter().all(|f| matches!(f.outcome, Outcome::Restored(_))),
            "{:#?}",
            repaired.findings
        );
        assert!(before.iter().all(|pack| pack.exists()), "nothing is removed");
        fixture.assert_sound(&[("web@1", &old), ("web@2", &new), ("other", &other)]);
    }
}

#[test]
fn rows_that_are_wrong_or_gone_are_repaired_from_the_packs_tables() {
    for statement in [
        "UPDATE entry SET offset = offset + 1",
        "UPDATE entry SET kind = 3 WHERE kind = 1",
        "UPDATE entry SET plain_len = -1 WHERE kind = 2",
        "DELETE FROM entry WHERE kind < 5",
        "DELETE FROM entry",
        "UPDATE entry SET pack = (SELECT max(id) FROM pack)",
        "UPDATE pack SET stored_len = stored_len + 1",
        "UPDATE version SET layout = randomblob(32)",
    ] {
        let (fixture, old, new, other) = small();
        fixture.sql(statement);
        let repaired = fixture.repair(None);
        assert!(!repaired.is_sound(), "{statement}");
        fixture.assert_sound(&[("web@1", &old), ("web@2", &new), ("other", &other)]);
    }
}

#[test]
fn a_pack_with_a_damaged_list_or_header_gives_its_entries_to_a_new_one() {
    for offset_from_end in [70, 30, 0] {
        let (fixture, old, new, other) = small();
        for pack in fixture.packs() {
            let len = std::fs::metadata(&pack).unwrap().len();
            flip(&pack, if offset_from_end == 0 { 3 } else { len - offset_from_end }, 4);
        }
        let repaired = fixture.repair(None);
        assert_eq!(repaired.corrupt_count, 3, "{:#?}", repaired.findings);
        fixture.assert_sound(&[("web@1", &old), ("web@2", &new), ("other", &other)]);
        // What was there is a duplicate again, though the old lists are damaged still.
        fixture.import("again", &other);
        fixture.commit("web", &new, &old);
        assert!(export(&fixture.open(), "web").unwrap() == old);
    }
}

/// Another repository with the same bytes, cut into other chunks.
fn donor(bytes: &[&[u8]]) -> Fixture {
    let donor = Fixture::new();
    donor.import("first", &disk(99, 1 << 20, 1 << 40));
    for (number, bytes) in bytes.iter().enumerate() {
        let mut shifted = disk(50 + number as u64, 8192, 1 << 40);
        shifted.extend_from_slice(&bytes[bytes.len() / 3..]);
        donor.import("shifted", &shifted);
        donor.import("same", bytes);
    }
    donor
}

#[test]
fn damage_is_repaired_from_another_repository_with_equal_bytes() {
    type Damage = fn(&Fixture);
    let cases: [(&str, Damage); 7] = [
        ("a chunk", |f| {
            f.damage(EntryKind::Chunk);
        }),
        ("all chunks", |f| {
            f.entries(EntryKind::Chunk)
                .iter()
                .for_each(|(pack, entry)| flip(pack, entry.offset + 9, 1));
        }),
        ("a map", |f| {
            f.damage(EntryKind::SegmentMap);
        }),
        ("all maps", |f| {
            f.entries(EntryKind::SegmentMap)
                .iter()
                .for_each(|(pack, entry)| flip(pack, entry.offset, 1));
        }),
        ("a manifest", |f| {
            f.damage(EntryKind::Manifest);
        }),
        ("a leaf", |f| {
            f.damage(EntryKind::ManifestLeaf);
        }),
        ("all packs", |f| f.packs().iter().for_each(|pack| std::fs::remove_file(pack).unwrap())),
    ];
    for (what, damage) in cases {
        let (fixture, old, new, other) = small();
        let donor = donor(&[&old, &new, &other]);
        damage(&fixture);
        let alone = fixture.repair(None);
        assert!(!alone.is_sound(), "{what}");
        let repaired = fixture.repair(Some(&donor));
        let lost: Vec<_> =
            repaired.findings.iter().filter(|f| f.outcome == Outcome::Lost).collect();
        assert!(lost.is_empty(), "{what}: {lost:#?}");
        for (reference, bytes) in [("web@1", &old), ("web@2", &new), ("other@1", &other)] {
            assert!(export(&fixture.open(), reference).unwrap() == *bytes, "{what}: {reference}");
        }
        fixture.assert_sound(&[]);
    }
}

#[test]
fn a_chunk_that_is_used_in_part_is_repaired_by_a_new_layout() {
    let fixture = Fixture::new();
    let long = disk(1, 1 << 20, 1 << 40);
    fixture.import("long", &long);
    // Every third block: no version uses a chunk whole.
    let mut thin = long.clone();
    for (number, block) in thin.chunks_mut(4096).enumerate() {
        if number % 3 > 0 {
            block.fill(0);
        }
    }
    fixture.import("thin", &thin);
    let id = fixture.open().catalog().version(&"long".parse().unwrap()).unwrap().id;
    fixture.open().catalog().remove_version(&id).unwrap();
    let donor = donor(&[&thin]);
    for (pack, entry) in fixture.entries(EntryKind::Chunk) {
        let mut bytes = std::fs::read(&pack).unwrap();
        bytes[entry.offset as usize..][..entry.stored_len as usize].fill(0);
        std::fs::write(pack, bytes).unwrap();
    }
    let layout = |fixture: &Fixture| {
        fixture.open().catalog().version(&"thin".parse().unwrap()).unwrap().facts.layout
    };
    let before = layout(&fixture);
    let repaired = fixture.repair(Some(&donor));
    assert!(
        repaired.findings.iter().all(|f| matches!(f.outcome, Outcome::Restored(_))),
        "{:#?}",
        repaired.findings
    );
    assert_ne!(layout(&fixture), before);
    fixture.assert_sound(&[("thin", &thin)]);
    // The old chunks' rows are gone: a writer that brings the same bytes is not sent to them.
    fixture.import("long", &long);
    fixture.assert_sound(&[("thin", &thin), ("long", &long)]);
}

#[test]
fn what_has_no_copy_is_lost_and_told_with_its_versions() {
    let (fixture, old, _, other) = small();
    let chunk = fixture
        .entries(EntryKind::Chunk)
        .into_iter()
        .find(|(pack, _)| fixture.entries(EntryKind::Record).iter().any(|(with, _)| with == pack));
    let (pack, entry) = chunk.unwrap();
    flip(&pack, entry.offset + 5, 1);
    let repaired = fixture.repair(None);
    assert_eq!(repaired.findings.len(), 1);
    let finding = &repaired.findings[0];
    assert_eq!(finding.outcome, Outcome::Lost);
    assert!(!finding.touched.is_empty());
    assert_eq!(finding.digest, Some(entry.digest));
    // It is found again, and what it does not touch can be read.
    let touched: Vec<String> = finding.touched.iter().map(|t| t.version.to_string()).collect();
    assert_eq!(fixture.scrub(false).findings.len(), 1);
    for (reference, bytes) in [("web@1", &old), ("other@1", &other)] {
        if !touched.iter().any(|name| name == reference) {
            assert!(export(&fixture.open(), reference).unwrap() == *bytes);
        }
    }
    let error = export(&fixture.open(), &touched[0]).unwrap_err();
    assert!(error.chain().contains(&hex(&entry.digest)), "{}", error.chain());
}

#[test]
fn an_import_gets_through_beside_a_lost_pack() {
    let (fixture, old, ..) = small();
    for pack in fixture.packs() {
        std::fs::remove_file(pack).unwrap();
    }
    let name = ImageName::new("again").unwrap();
    let fresh = disk(77, 1 << 20, 1 << 40);
    fixture.import("again", &fresh);
    assert!(export(&fixture.open(), "again").unwrap() == fresh);
    assert!(fixture.open().catalog().versions(&name).is_ok());
    assert!(export(&fixture.open(), "web@1").is_err() && !old.is_empty());
}
