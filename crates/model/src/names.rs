//! Names as values: everything that a repository's packs do not say, fit to be written down.

use std::collections::BTreeMap;

use crate::digest::DIGEST_LEN;
use crate::name::LabelKey;
use crate::{
    ContentDigest, ImageName, LayoutDigest, Realm, TagName, VersionId, VersionKind, VersionNumber,
};

/// A version in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedVersion {
    /// Its number in its image.
    pub number: VersionNumber,
    /// What it holds.
    pub kind: VersionKind,
    /// Bytes that a guest sees.
    pub length: u64,
    /// Bytes of it that are no hole.
    pub data_len: u64,
    /// Its identity.
    pub content: ContentDigest,
    /// The root of its layout.
    pub layout: LayoutDigest,
    /// The version that it was made from.
    pub parent: Option<VersionId>,
    /// Where it came from, in words.
    pub origin: String,
    /// When it was published: microseconds since 1970-01-01 UTC.
    pub created_micros: i64,
    /// The entry that tells of its publication.
    pub record: Option<[u8; DIGEST_LEN]>,
    /// How often it was attached.
    pub attach_count: u64,
}

/// An image in full; also one whose versions were all removed, for the sake of its numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedImage {
    /// Its name.
    pub name: ImageName,
    /// The highest version number ever given under this name.
    pub last_version: u64,
    /// Its labels.
    pub labels: BTreeMap<LabelKey, String>,
    /// Its tags, each with the version that carries it.
    pub tags: BTreeMap<TagName, VersionNumber>,
    /// Its versions, ascending.
    pub versions: Vec<NamedVersion>,
}

/// A hold in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedHold {
    /// Who holds it.
    pub holder: String,
    /// The version.
    pub version: VersionId,
    /// Its identity.
    pub content: ContentDigest,
    /// Its layout.
    pub layout: LayoutDigest,
    /// When it ends by itself, in microseconds since 1970-01-01 UTC; `None` where it does not.
    pub expires_micros: Option<i64>,
}

/// A document that is kept with a content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedDocument {
    /// The content that it is about.
    pub content: ContentDigest,
    /// Its name.
    pub name: String,
    /// Its entry.
    pub digest: [u8; DIGEST_LEN],
}

/// All names of a repository, as of one instant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Images, by name.
    pub images: Vec<NamedImage>,
    /// Holds, by holder.
    pub holds: Vec<NamedHold>,
    /// Documents, by content and name.
    pub documents: Vec<NamedDocument>,
}

/// What a publication tells of itself, for whoever makes the names anew from packs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicationRecord {
    /// The realm of the image.
    pub realm: Realm,
    /// The image that gets the version.
    pub image: ImageName,
    /// The version. Its number is the one it expects: another writer may be quicker. It names no
    /// record, and was never attached.
    pub version: NamedVersion,
}
