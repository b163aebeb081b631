//! Names: everything that a repository's packs do not say, as one object beside them.
//!
//! ```text
//! header  | LNAM | format | created | repository |
//! body    | image count | images ... | hold count | holds ... |
//!         | document count | documents ... |
//! image   | name | last version | labels | tags | versions |
//! end     | BLAKE3 over all before |
//! ```
//!
//! **Invariants**: one set of names has one encoding: images, labels, tags, versions, holds
//! and documents ascend, each once.
//!
//! **Failure**: a changed byte breaks the checksum. Counts are not believed: memory grows with the
//! bytes that were really there.

use std::collections::BTreeMap;

use model::digest::DIGEST_LEN;
use model::name::LabelKey;
use model::{
    ContentDigest, ImageName, LayoutDigest, NamedDocument, NamedHold, NamedImage, NamedVersion,
    Names, TagName, VersionId,
};

use crate::FormatError;
use crate::cursor::Cursor;
use crate::record::{push_facts, push_text, take_facts, take_number};

/// The format number that [`encode_names`] writes.
pub const NAMES_FORMAT: u32 = 2;

/// The most bytes of the object: 1 GiB.
pub const NAMES_LEN_MAX: u64 = 1 << 30;

/// How many bytes [`decode_names_header`] needs at most.
pub const NAMES_HEADER_LEN_MAX: usize = 16 + 4 + REPOSITORY_LEN_MAX;

const REPOSITORY_LEN_MAX: usize = 256;
const WHAT: &str = "names";
const MAGIC: [u8; 4] = *b"LNAM";

/// What the first bytes say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamesHeader {
    /// When it was written: microseconds since 1970-01-01 UTC.
    pub created_micros: i64,
    /// The repository whose names these are.
    pub repository: String,
}

/// Encodes all names of a repository.
///
/// Shape: images, versions, holds and documents ascend; the repository's name has at most 256 bytes.
pub fn encode_names(header: &NamesHeader, names: &Names) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&NAMES_FORMAT.to_le_bytes());
    bytes.extend_from_slice(&header.created_micros.to_le_bytes());
    push_text(&mut bytes, &header.repository);
    push_count(&mut bytes, names.images.len());
    names.images.iter().for_each(|image| push_image(&mut bytes, image));
    push_count(&mut bytes, names.holds.len());
    names.holds.iter().for_each(|hold| push_hold(&mut bytes, hold));
    push_count(&mut bytes, names.documents.len());
    names.documents.iter().for_each(|document| push_document(&mut bytes, document));
    let checksum = blake3::hash(&bytes);
    bytes.extend_from_slice(checksum.as_bytes());
    bytes
}

/// Decodes what comes before the names. Its checksum lies at the object's end, so it is not checked.
///
/// # Errors
/// Where the bytes are no names, or a newer Larder wrote them.
pub fn decode_names_header(bytes: &[u8]) -> Result<NamesHeader, FormatError> {
    take_header(&mut Cursor::new(WHAT, bytes))
}

/// Decodes all names.
///
/// # Errors
/// Where the bytes are no names, a newer Larder wrote them, or one of them was changed.
pub fn decode_names(bytes: &[u8]) -> Result<(NamesHeader, Names), FormatError> {
    // The header first: in a newer format the checksum may lie elsewhere.
    decode_names_header(bytes)?;
    let (checked, checksum) = bytes
        .split_last_chunk::<DIGEST_LEN>()
        .ok_or(FormatError::Truncated { what: WHAT, offset: bytes.len() as u64 })?;
    if blake3::hash(checked).as_bytes() != checksum {
        return Err(FormatError::Checksum { what: WHAT });
    }
    let mut cursor = Cursor::new(WHAT, checked);
    let header = take_header(&mut cursor)?;
    let mut names = Names::default();
    for _ in 0..cursor.u32()? {
        let image = take_image(&mut cursor)?;
        require_after(&cursor, names.images.last().map(|last| &last.name), &image.name, "image")?;
        names.images.push(image);
    }
    for _ in 0..cursor.u32()? {
        let hold = take_hold(&mut cursor)?;
        require_after(&cursor, names.holds.last().map(|last| &last.holder), &hold.holder, "hold")?;
        names.holds.push(hold);
    }
    for _ in 0..cursor.u32()? {
        let document = take_document(&mut cursor)?;
        let last = names.documents.last().map(|last| (last.content, last.name.as_str()));
        let next = (document.content, document.name.as_str());
        require_after(&cursor, last.as_ref(), &next, "document")?;
        names.documents.push(document);
    }
    cursor.end()?;
    Ok((header, names))
}

fn take_header(cursor: &mut Cursor<'_>) -> Result<NamesHeader, FormatError> {
    cursor.preamble(MAGIC, NAMES_FORMAT)?;
    let created_micros = cursor.u64()?.cast_signed();
    let repository = cursor.text("repository", |text| match text.len() <= REPOSITORY_LEN_MAX {
        true => Ok(text.to_string()),
        false => Err(()),
    })?;
    Ok(NamesHeader { created_micros, repository })
}

fn push_count(bytes: &mut Vec<u8>, count: usize) {
    bytes.extend_from_slice(&(count as u32).to_le_bytes());
}

fn push_image(bytes: &mut Vec<u8>, image: &NamedImage) {
    push_text(bytes, image.name.as_str());
    bytes.extend_from_slice(&image.last_version.to_le_bytes());
    push_count(bytes, image.labels.len());
    for (key, value) in &image.labels {
        push_text(bytes, key.as_str());
        push_text(bytes, value);
    }
    push_count(bytes, image.tags.len());
    for (tag, number) in &image.tags {
        push_text(bytes, tag.as_str());
        bytes.extend_from_slice(&number.get().to_le_bytes());
    }
    push_count(bytes, image.versions.len());
    for version in &image.versions {
        push_facts(bytes, version);
        bytes.extend_from_slice(&version.record.unwrap_or([0; DIGEST_LEN]));
        bytes.extend_from_slice(&version.attach_count.to_le_bytes());
    }
}

fn take_image(cursor: &mut Cursor<'_>) -> Result<NamedImage, FormatError> {
    let name = cursor.text("image", ImageName::new)?;
    let last_version = cursor.u64()?;
    let mut labels = BTreeMap::new();
    for _ in 0..cursor.u32()? {
        let key = cursor.text("label", LabelKey::new)?;
        let value = cursor.text("label's value", |text| Ok::<_, ()>(text.to_string()))?;
        require_after(cursor, labels.keys().next_back(), &key, "label")?;
        labels.insert(key, value);
    }
    let mut tags = BTreeMap::new();
    for _ in 0..cursor.u32()? {
        let tag = cursor.text("tag", TagName::new)?;
        let number = take_number(cursor, "tag's version")?;
        require_after(cursor, tags.keys().next_back(), &tag, "tag")?;
        tags.insert(tag, number);
    }
    let mut versions: Vec<NamedVersion> = Vec::new();
    for _ in 0..cursor.u32()? {
        let version = take_facts(cursor)?;
        let record = Some(cursor.array()?).filter(|digest| *digest != [0; DIGEST_LEN]);
        let attach_count = cursor.u64()?;
        if attach_count > i64::MAX as u64 {
            return Err(cursor.unsound_before(8, "attach count", attach_count));
        }
        let last = versions.last().map(|last| &last.number);
        require_after(cursor, last, &version.number, "version")?;
        versions.push(NamedVersion { record, attach_count, ..version });
    }
    let newest = versions.last().map_or(0, |last| last.number.get());
    if last_version < newest || last_version > i64::MAX as u64 {
        return Err(cursor.unsound_before(0, "last version", last_version));
    }
    Ok(NamedImage { name, last_version, labels, tags, versions })
}

fn push_hold(bytes: &mut Vec<u8>, hold: &NamedHold) {
    push_text(bytes, &hold.holder);
    push_text(bytes, hold.version.image.as_str());
    bytes.extend_from_slice(&hold.version.version.get().to_le_bytes());
    bytes.extend_from_slice(&hold.content.0);
    bytes.extend_from_slice(&hold.layout.0);
    bytes.extend_from_slice(&hold.expires_micros.unwrap_or(i64::MAX).to_le_bytes());
}

fn take_hold(cursor: &mut Cursor<'_>) -> Result<NamedHold, FormatError> {
    let holder = cursor.text("holder", |text| Ok::<_, ()>(text.to_string()))?;
    let image = cursor.text("held image", ImageName::new)?;
    let version = take_number(cursor, "held version")?;
    let content = ContentDigest(cursor.array()?);
    let layout = LayoutDigest(cursor.array()?);
    let expires_micros = Some(cursor.u64()?.cast_signed()).filter(|micros| *micros != i64::MAX);
    let version = VersionId { image, version };
    Ok(NamedHold { holder, version, content, layout, expires_micros })
}

fn push_document(bytes: &mut Vec<u8>, document: &NamedDocument) {
    bytes.extend_from_slice(&document.content.0);
    push_text(bytes, &document.name);
    bytes.extend_from_slice(&document.digest);
}

fn take_document(cursor: &mut Cursor<'_>) -> Result<NamedDocument, FormatError> {
    let content = ContentDigest(cursor.array()?);
    let name = cursor.text("document", |text| Ok::<_, ()>(text.to_string()))?;
    Ok(NamedDocument { content, name, digest: cursor.array()? })
}

/// Refuses what does not come behind what came before it.
fn require_after<T: Ord>(
    cursor: &Cursor<'_>,
    last: Option<&T>,
    next: &T,
    field: &'static str,
) -> Result<(), FormatError> {
    match last.is_none_or(|last| last < next) {
        true => Ok(()),
        false => Err(cursor.unsound_before(0, field, 0)),
    }
}
