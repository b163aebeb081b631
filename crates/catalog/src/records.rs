//! What goes into a catalog and comes out of it: plain values.

use std::collections::BTreeMap;

use env::Timestamp;
use model::digest::Hook;
use model::name::LabelKey;
use model::{
    ContentDigest, ImageName, LayoutDigest, Realm, TagName, VersionId, VersionKind, VersionNumber,
};

/// A pack's number in one catalog. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId(pub i64);

/// A writer's claim on what it has put but not yet published. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

/// The digest of any entry of a pack: a chunk, a segment map, a part of a manifest.
pub type EntryDigest = [u8; model::digest::DIGEST_LEN];

/// One entry of a pack, as the catalog knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryRecord {
    /// The digest by which it is asked for.
    pub digest: EntryDigest,
    /// Where in the pack its stored bytes start.
    pub offset: u64,
    /// Bytes it takes in the pack.
    pub stored_len: u32,
    /// Bytes it has when unpacked.
    pub plain_len: u32,
    /// How it is stored, as the pack format numbers it.
    pub encoding: u8,
    /// What it is, as the pack format numbers it.
    pub kind: u8,
}

/// A pack that has become durable, about to become visible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPack {
    /// Its name in the store.
    pub name: String,
    /// The realm it belongs to, as all that is in it.
    pub realm: Realm,
    /// Bytes of the whole pack.
    pub stored_len: u64,
    /// Plain bytes of its data chunks.
    pub data_len: u64,
    /// Stored bytes of its data chunks.
    pub data_stored_len: u64,
    /// All its entries.
    pub entries: Vec<EntryRecord>,
    /// The hooks among its block digests, each once.
    pub hooks: Vec<Hook>,
}

/// A pack that the catalog knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackRecord {
    /// Its number.
    pub id: PackId,
    /// Its name in the store.
    pub name: String,
    /// Bytes of the whole pack.
    pub stored_len: u64,
    /// How many entries it came with.
    pub entry_count: u64,
    /// The lease under which it was put, as long as nobody else has come to use it.
    pub lease: Option<LeaseId>,
    /// When collect condemned it, if it did.
    pub condemned: Option<Mark>,
}

/// An instant in the life of a catalog: every lease below this number had begun, the others had not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark(pub i64);

/// Counts the changes to what the catalog's versions and holds refer to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub i64);

/// A working set that the catalog knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootSetRecord {
    /// The content whose reads it tells.
    pub content: ContentDigest,
    /// Its name: `boot`, or what somebody called it.
    pub name: String,
    /// Its entry.
    pub digest: EntryDigest,
    /// From how many boots it was made.
    pub boots: u32,
}

/// A document that is kept with a content: its description, a signature, what a test said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentRecord {
    /// The content that it is about.
    pub content: ContentDigest,
    /// Its name.
    pub name: String,
    /// Its entry.
    pub digest: EntryDigest,
}

/// Something that keeps a layout in the repository: a version or a hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// The version, or the one that is held.
    pub version: VersionId,
    /// Who holds it; `None` for the version itself.
    pub holder: Option<String>,
    /// Its identity.
    pub content: ContentDigest,
    /// The layout.
    pub layout: LayoutDigest,
    /// The entry that tells of its publication.
    pub record: Option<EntryDigest>,
    /// The entries of its content's working sets.
    pub boot_sets: Vec<EntryDigest>,
    /// The documents of its content.
    pub documents: Vec<EntryDigest>,
    /// When it came to be, was laid out anew, or got another working set or document.
    pub revision: Revision,
}

/// A version that must stay readable though it may be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HoldRecord {
    /// Who holds it: unique, in words that tell a person where to look.
    pub holder: String,
    /// The version.
    pub version: VersionId,
    /// Its identity.
    pub content: ContentDigest,
    /// Its layout.
    pub layout: LayoutDigest,
    /// When the hold ends by itself; `None` where it lasts until it is released.
    pub expires: Option<Timestamp>,
}

/// A pack to be removed, with the keys of its rows as its own index tells them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doomed {
    /// The pack.
    pub pack: PackId,
    /// The digests of its entries.
    pub entries: Vec<EntryDigest>,
    /// Its hooks.
    pub hooks: Vec<Hook>,
}

/// Where an entry lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The pack's number.
    pub pack: PackId,
    /// The pack's name in the store.
    pub pack_name: String,
    /// The entry in it.
    pub entry: EntryRecord,
}

/// What a version is, apart from its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionFacts {
    /// What it holds.
    pub kind: VersionKind,
    /// Bytes that a guest sees.
    pub length: u64,
    /// Bytes of it that are no hole.
    pub data_len: u64,
    /// Its identity.
    pub content: ContentDigest,
    /// The root of its layout here.
    pub layout: LayoutDigest,
    /// The version that it was made from.
    pub parent: Option<VersionId>,
    /// Where it came from, in words: `import disk.qcow2`, `commit web1`.
    pub origin: String,
}

/// A version about to be published.
#[derive(Clone, Debug)]
pub struct Publication {
    /// The image it is the next version of; made if there is none.
    pub image: ImageName,
    /// What it is.
    pub facts: VersionFacts,
    /// The version whose layout this one keeps parts of, and that layout. Publishing fails with
    /// `Stale` when the version is gone or has been laid out anew since.
    pub based_on: Option<(VersionId, LayoutDigest)>,
    /// What the image must be like.
    pub condition: Condition,
    /// A tag for it, if wanted.
    pub tag: Option<TagName>,
    /// The entry that tells of this publication, for whoever makes the catalog anew from packs.
    pub record: Option<EntryDigest>,
}

/// What an image must be like for a version to be published in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It may be there or not.
    Any,
    /// There must be no image of the name: `Exists` otherwise.
    NewImage,
    /// Its latest version must be this one: `Stale` otherwise.
    LatestIs(VersionNumber),
}

/// A version as the catalog knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionRecord {
    /// Which one.
    pub id: VersionId,
    /// What it is.
    pub facts: VersionFacts,
    /// When it was published.
    pub created: Timestamp,
    /// Tags it carries now.
    pub tags: Vec<TagName>,
    /// The image's labels.
    pub labels: BTreeMap<LabelKey, String>,
    /// How often it was attached.
    pub attach_count: u64,
    /// The image's latest version.
    pub latest: VersionNumber,
}

/// An image as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRecord {
    /// Its name.
    pub name: ImageName,
    /// The numbers of its versions, ascending.
    pub versions: Vec<VersionNumber>,
    /// Its tags, each with the version that carries it.
    pub tags: BTreeMap<TagName, VersionNumber>,
    /// Its labels.
    pub labels: BTreeMap<LabelKey, String>,
    /// Bytes that a guest sees of the latest version.
    pub length: u64,
    /// When the latest version was published.
    pub created: Timestamp,
}

/// Which images a list shows.
#[derive(Clone, Debug, Default)]
pub struct ImageFilter {
    /// Labels that an image must carry, all of them.
    pub labels: Vec<(LabelKey, String)>,
    /// Text that must occur in the name, a tag, a label, or where a version came from; in any case.
    pub search: Option<String>,
}

/// What a catalog knows of how much there is. Sizes in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CatalogStatistics {
    /// Images.
    pub image_count: u64,
    /// Versions.
    pub version_count: u64,
    /// Sum of the versions' lengths.
    pub logical_len: u64,
    /// Sum of the versions' data.
    pub data_len: u64,
    /// Plain bytes of the distinct data chunks.
    pub unique_len: u64,
    /// Stored bytes of the distinct data chunks.
    pub unique_stored_len: u64,
    /// Packs.
    pub pack_count: u64,
    /// Bytes of all packs.
    pub pack_len: u64,
    /// Entries of all packs.
    pub entry_count: u64,
    /// Hooks.
    pub hook_count: u64,
    /// Bytes that the catalog itself takes on disk.
    pub catalog_len: u64,
}
