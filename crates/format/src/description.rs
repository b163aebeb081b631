//! Descriptions: one text for one description, which signatures sign as it stands.
//!
//! The text is TOML, in a fixed order of keys: [`encode_description`] of what [`decode_description`]
//! read is the same text, or it is refused. See `docs/formats/description.md`.
//!
//! **Source**: TOML 1.0, <https://toml.io/en/v1.0.0>.

use model::description::{BuildDescription, Description, PackageDescription, TestDescription};
use model::{Error, Kind, Result, VersionKind};
use serde::{Deserialize, Serialize};

use crate::entry::PLAIN_LEN_MAX;

/// The format number that [`encode_description`] writes.
pub const DESCRIPTION_FORMAT: u32 = 1;

const DECODE: &str = "read the description";
const SUBJECT: &str = "of a version";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    format: u32,
    content: String,
    length: u64,
    kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    build: Option<BuildDescription>,
    #[serde(default, skip_serializing_if = "Vec::is_empty", rename = "package")]
    packages: Vec<PackageDescription>,
    #[serde(default, skip_serializing_if = "Vec::is_empty", rename = "test")]
    tests: Vec<TestDescription>,
}

#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

/// The text of a description.
///
/// # Errors
/// `Invalid` where it has more than 4 MiB, or a length beyond 2^63.
pub fn encode_description(description: &Description) -> Result<String> {
    let Description { content, length, kind, build, packages, tests } = description.clone();
    let text = Text {
        format: DESCRIPTION_FORMAT,
        content: content.to_string(),
        length,
        kind: kind.word().to_string(),
        build,
        packages,
        tests,
    };
    let failed = || Error::new(Kind::Invalid, "write the description", SUBJECT);
    let text = toml::to_string(&text).map_err(|error| failed().caused_by(error))?;
    match text.len() <= PLAIN_LEN_MAX {
        true => Ok(text),
        false => Err(failed().because(format!("it has more than {PLAIN_LEN_MAX} bytes"))),
    }
}

/// The description of a text.
///
/// # Errors
/// `Refused` for a newer format; `Corrupt` for any text that [`encode_description`] does not write.
pub fn decode_description(bytes: &[u8]) -> Result<Description> {
    let corrupt = |reason: String| Error::new(Kind::Corrupt, DECODE, SUBJECT).because(reason);
    let text = std::str::from_utf8(bytes).map_err(|_| corrupt("it is no text".into()))?;
    let unread = |error: toml::de::Error| corrupt(error.message().to_string());
    // The number first: a newer format may have keys that this code does not know.
    let FormatOnly { format } = toml::from_str(text).map_err(unread)?;
    if format != DESCRIPTION_FORMAT {
        let reason = format!("it has format {format}; this larder knows {DESCRIPTION_FORMAT}");
        return Err(Error::new(Kind::Refused, DECODE, SUBJECT)
            .because(reason)
            .hint("use a newer larder"));
    }
    let Text { content, length, kind, build, packages, tests, .. } =
        toml::from_str(text).map_err(unread)?;
    let kind = VersionKind::from_word(&kind)
        .ok_or_else(|| corrupt(format!("`{kind}` is no kind of version")))?;
    let content = content.parse()?;
    let description = Description { content, length, kind, build, packages, tests };
    match encode_description(&description)? == text {
        true => Ok(description),
        false => Err(corrupt("it is not written as descriptions are".into())),
    }
}
