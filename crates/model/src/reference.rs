//! References: `image` (its latest version), `image@version`, `image:tag`.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use crate::{Error, ImageName, Kind, Result, TagName};

/// The number of a version within its image, from 1. Numbers are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VersionNumber(NonZeroU64);

impl VersionNumber {
    /// The first version of every image.
    pub const FIRST: VersionNumber = VersionNumber(NonZeroU64::MIN);

    /// The number, unless it is 0 or beyond what a database keeps.
    pub fn new(number: u64) -> Option<Self> {
        (number <= i64::MAX as u64).then(|| NonZeroU64::new(number).map(VersionNumber)).flatten()
    }

    /// As an integer.
    pub fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for VersionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl serde::Serialize for VersionNumber {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.get())
    }
}

/// One version of one image, by number: `debian@7`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VersionId {
    /// The image.
    pub image: ImageName,
    /// The version's number in it.
    pub version: VersionNumber,
}

impl fmt::Display for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.image, self.version)
    }
}

/// Which version of an image is meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Selector {
    /// The one with the highest number.
    Latest,
    /// The one with this number.
    Number(VersionNumber),
    /// The one that carries this tag now.
    Tag(TagName),
}

/// What a user types to mean a version.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// The image.
    pub image: ImageName,
    /// Which of its versions.
    pub selector: Selector,
}

impl From<VersionId> for Reference {
    fn from(id: VersionId) -> Self {
        Reference { image: id.image, selector: Selector::Number(id.version) }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.selector {
            Selector::Latest => write!(f, "{}", self.image),
            Selector::Number(number) => write!(f, "{}@{number}", self.image),
            Selector::Tag(tag) => write!(f, "{}:{tag}", self.image),
        }
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some((image, number)) = text.split_once('@') {
            let version = number.parse().ok().and_then(VersionNumber::new).ok_or_else(|| {
                Error::new(Kind::Invalid, "use the reference", format!("`{text}`"))
                    .because("what follows `@` is no version number")
                    .hint("a reference is `image`, `image@version` or `image:tag`")
            })?;
            return Ok(Reference { image: image.parse()?, selector: Selector::Number(version) });
        }
        if let Some((image, tag)) = text.split_once(':') {
            return Ok(Reference { image: image.parse()?, selector: Selector::Tag(tag.parse()?) });
        }
        Ok(Reference { image: text.parse()?, selector: Selector::Latest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_survive_their_text() {
        for text in ["debian", "debian@7", "debian:stable", "a/b@1"] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), text);
        }
        for bad in ["", "@1", "debian@", "debian@0", "debian@x", "debian:", "debian:1", "a@1:b"] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }
}
