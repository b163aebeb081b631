//! Records: what a publication tells of itself, in the pack that it wrote last.
//!
//! ```text
//! | LREC | format | realm | image | facts of the version |
//! facts  | number | kind, 0 x 7 | length | data length | content | layout | created
//!        | parent number, parent image | origin |            texts: u32 length, UTF-8
//! ```
//!
//! **Invariant**: one record has one encoding.

use model::digest::DIGEST_LEN;
use model::{
    ContentDigest, ImageName, LayoutDigest, NamedVersion, PublicationRecord, Realm, VersionId,
    VersionNumber,
};

use crate::FormatError;
use crate::cursor::Cursor;
use crate::manifest::{kind_code, kind_from_code};

/// The format number that [`encode_record`] writes.
pub const RECORD_FORMAT: u32 = 1;

/// The most bytes of an origin that are written down; the rest is cut off.
pub const ORIGIN_LEN_MAX: usize = 64 << 10;

const WHAT: &str = "record";
const MAGIC: [u8; 4] = *b"LREC";

/// Encodes a record. What it names as its own record, and its attaches, are not in it.
pub fn encode_record(record: &PublicationRecord) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&RECORD_FORMAT.to_le_bytes());
    push_text(&mut bytes, record.realm.as_str());
    push_text(&mut bytes, record.image.as_str());
    push_facts(&mut bytes, &record.version);
    bytes
}

/// The digest that names a record in its pack: BLAKE3 over its bytes.
pub fn record_digest(bytes: &[u8]) -> [u8; DIGEST_LEN] {
    *blake3::hash(bytes).as_bytes()
}

/// Decodes a record. Whoever fetched it compares its digest first.
///
/// # Errors
/// Where the bytes are no record, or a newer Larder wrote them.
pub fn decode_record(bytes: &[u8]) -> Result<PublicationRecord, FormatError> {
    let mut cursor = Cursor::new(WHAT, bytes);
    cursor.preamble(MAGIC, RECORD_FORMAT)?;
    let realm = cursor.text("realm", Realm::new)?;
    let image = cursor.text("image", ImageName::new)?;
    let version = take_facts(&mut cursor)?;
    cursor.end()?;
    Ok(PublicationRecord { realm, image, version })
}

/// Appends the facts of a version: all but its record and how often it was attached.
pub(crate) fn push_facts(bytes: &mut Vec<u8>, version: &NamedVersion) {
    bytes.extend_from_slice(&version.number.get().to_le_bytes());
    bytes.extend_from_slice(&[kind_code(version.kind), 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend_from_slice(&version.length.to_le_bytes());
    bytes.extend_from_slice(&version.data_len.to_le_bytes());
    bytes.extend_from_slice(&version.content.0);
    bytes.extend_from_slice(&version.layout.0);
    bytes.extend_from_slice(&version.created_micros.to_le_bytes());
    let parent = version.parent.as_ref();
    bytes.extend_from_slice(&parent.map_or(0, |parent| parent.version.get()).to_le_bytes());
    push_text(bytes, parent.map_or("", |parent| parent.image.as_str()));
    push_text(bytes, cut(&version.origin, ORIGIN_LEN_MAX));
}

/// Reads what [`push_facts`] wrote.
pub(crate) fn take_facts(cursor: &mut Cursor<'_>) -> Result<NamedVersion, FormatError> {
    let number = take_number(cursor, "number")?;
    let [code, reserved @ ..] = cursor.array::<8>()?;
    if reserved != [0; 7] {
        return Err(cursor.unsound_before(7, "reserved", 1));
    }
    let kind = kind_from_code(code).ok_or(cursor.unsound_before(8, "kind", code.into()))?;
    let length = take_len(cursor, "length")?;
    let data_len = take_len(cursor, "data length")?;
    let content = ContentDigest(cursor.array()?);
    let layout = LayoutDigest(cursor.array()?);
    let created_micros = cursor.u64()?.cast_signed();
    let parent = match cursor.u64()? {
        0 => cursor.text("parent image", |text| match text {
            "" => Ok(None),
            _ => Err(()),
        })?,
        number => {
            let version = VersionNumber::new(number)
                .ok_or_else(|| cursor.unsound_before(8, "parent number", number))?;
            Some(VersionId { image: cursor.text("parent image", ImageName::new)?, version })
        }
    };
    let origin = cursor.text("origin", |text| match text.len() <= ORIGIN_LEN_MAX {
        true => Ok(text.to_string()),
        false => Err(()),
    })?;
    Ok(NamedVersion {
        number,
        kind,
        length,
        data_len,
        content,
        layout,
        parent,
        origin,
        created_micros,
        record: None,
        attach_count: 0,
    })
}

/// A version number, which is not 0.
pub(crate) fn take_number(
    cursor: &mut Cursor<'_>,
    field: &'static str,
) -> Result<VersionNumber, FormatError> {
    let number = cursor.u64()?;
    VersionNumber::new(number).ok_or_else(|| cursor.unsound_before(8, field, number))
}

/// A count of bytes that a catalog can keep.
fn take_len(cursor: &mut Cursor<'_>, field: &'static str) -> Result<u64, FormatError> {
    match cursor.u64()? {
        len if len <= i64::MAX as u64 => Ok(len),
        len => Err(cursor.unsound_before(8, field, len)),
    }
}

/// Appends a text: its length, then its bytes.
pub(crate) fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
}

/// The start of a text, at most that many bytes, no character cut in two.
fn cut(text: &str, len_max: usize) -> &str {
    &text[..text.floor_char_boundary(len_max)]
}

impl Cursor<'_> {
    /// A text that `parse` accepts.
    pub(crate) fn text<T, E>(
        &mut self,
        field: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<T, FormatError> {
        let len = self.u32()? as usize;
        let parsed = std::str::from_utf8(self.take(len)?).ok().and_then(|text| parse(text).ok());
        parsed.ok_or_else(|| self.unsound_before(len + 4, field, len as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_that_is_too_long_is_cut_between_two_characters() {
        let text = "é".repeat(ORIGIN_LEN_MAX);
        assert_eq!(cut(&text, ORIGIN_LEN_MAX).len(), ORIGIN_LEN_MAX);
        assert_eq!(cut(&text, ORIGIN_LEN_MAX - 1).len(), ORIGIN_LEN_MAX - 2);
        assert_eq!(cut("short", ORIGIN_LEN_MAX), "short");
    }
}
