//! Small inputs, and short words for what the promises say.

use std::time::Duration;

use model::digest::{DIGEST_LEN, Hook};
use model::name::LabelKey;
use model::{
    ContentDigest, ImageName, Kind, LayoutDigest, Realm, Reference, TagName, VersionId,
    VersionKind, VersionNumber,
};

use crate::catalog::Catalog;
use crate::records::{
    Condition, Doomed, EntryDigest, EntryRecord, NewPack, PackId, Publication, VersionFacts,
};

/// Longer than any test of the suite.
pub(super) const LONG: Duration = Duration::from_secs(3600);

/// A small pack of its own name, digests and hooks.
pub fn pack(number: u8) -> NewPack {
    let entry = |index: u8| EntryRecord {
        digest: [number.wrapping_mul(16).wrapping_add(index); DIGEST_LEN],
        offset: (1 << 40) + u64::from(index) * 100,
        stored_len: 100 + u32::from(index),
        plain_len: u32::MAX - u32::from(index),
        encoding: u8::MAX,
        kind: index,
    };
    NewPack {
        name: format!("{:032x}", u128::from(number) << 120 | u128::from(number)),
        realm: Realm::default_realm(),
        stored_len: 1000 + u64::from(number),
        data_len: 4000,
        data_stored_len: 900,
        entries: (0..3).map(entry).collect(),
        hooks: [1, 2].map(|index| Hook(u64::from(number) << 32 | index << 6)).to_vec(),
    }
}

/// A small version for an image that may exist.
pub fn publication(image: &str) -> Publication {
    Publication {
        image: name(image),
        facts: VersionFacts {
            kind: VersionKind::Disk,
            length: 1 << 30,
            data_len: 1 << 20,
            content: ContentDigest([1; DIGEST_LEN]),
            layout: LayoutDigest([2; DIGEST_LEN]),
            parent: None,
            origin: "import disk.raw".to_string(),
        },
        based_on: None,
        condition: Condition::Any,
        tag: None,
        record: None,
    }
}

pub(super) fn publish(catalog: &dyn Catalog, image: &str) -> VersionId {
    let lease = catalog.begin_lease(LONG).unwrap();
    catalog.publish(lease, &publication(image)).unwrap().id
}

pub(super) fn doomed(pack: PackId, of: &NewPack) -> Doomed {
    Doomed { pack, entries: digests(of), hooks: of.hooks.clone() }
}

pub(super) fn digests(pack: &NewPack) -> Vec<EntryDigest> {
    pack.entries.iter().map(|entry| entry.digest).collect()
}

pub(super) fn kind<T>(result: model::Result<T>) -> Kind {
    result.err().expect("an error").kind()
}

pub(super) fn reference(text: &str) -> Reference {
    text.parse().expect("well-formed")
}

pub(super) fn name(text: &str) -> ImageName {
    ImageName::new(text).expect("well-formed")
}

pub(super) fn tag(text: &str) -> TagName {
    TagName::new(text).expect("well-formed")
}

pub(super) fn key(text: &str) -> LabelKey {
    LabelKey::new(text).expect("well-formed")
}

pub(super) fn id(image: &str, version: u64) -> VersionId {
    VersionId { image: name(image), version: VersionNumber::new(version).expect("not 0") }
}
