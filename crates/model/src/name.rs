//! Names: checked once, a type from then on.
//!
//! Image names are `[a-z0-9._-]` in components divided by `/`; no component is empty, `.` or `..`,
//! or made of digits alone (those are version numbers), and `mirrors` is reserved, because in a
//! FUSE mount images and versions are folders and files. `stages/KEY` are the stages of builds; no
//! other name begins with `stages`.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Kind, Result};

/// The longest name, in bytes.
pub const NAME_LEN_MAX: usize = 200;

/// What the names of the builder's stages begin with; a key follows.
pub const STAGES: &str = "stages/";

/// The characters of a stage's key: a digest in hexadecimal.
const STAGE_KEY_LEN: usize = 64;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The name, if it is well-formed.
            ///
            /// # Errors
            /// `Invalid`, with the rule that is broken.
            pub fn new(text: &str) -> Result<Self> {
                match $check(text) {
                    Ok(()) => Ok($name(text.to_string())),
                    Err(rule) => Err(Error::new(Kind::Invalid, $what, format!("`{text}`"))
                        .because(rule)
                        .hint(RULES)),
                }
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self> {
                $name::new(text)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
    };
}

const RULES: &str = "names are made of a-z, 0-9, `.`, `_` and `-`";

name! {
    /// The name of an image: a lineage of versions.
    ImageName, "use the image name", check_image
}
name! {
    /// A movable name for a version of one image.
    TagName, "use the tag", check_component
}
name! {
    /// The name of a mirror on one host.
    MirrorName, "use the mirror name", check_component
}
name! {
    /// The key of a label.
    LabelKey, "use the label", check_component
}

/// An image-name prefix inside which blocks are deduplicated and readable.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Realm(String);

impl Realm {
    /// The realm that every image belongs to unless told otherwise.
    pub fn default_realm() -> Self {
        Realm::default()
    }

    /// The realm of the images whose names start with a prefix; the default realm where it is empty.
    ///
    /// # Errors
    /// `Invalid` where the prefix is no well-formed image name.
    pub fn new(prefix: &str) -> Result<Self> {
        if prefix.is_empty() {
            return Ok(Realm::default());
        }
        match check_image(prefix) {
            Ok(()) => Ok(Realm(prefix.to_string())),
            Err(rule) => {
                let error = Error::new(Kind::Invalid, "use the realm", format!("`{prefix}`"));
                Err(error.because(rule).hint(RULES))
            }
        }
    }

    /// The realm's prefix; empty for the default realm.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check_image(text: &str) -> Result<(), &'static str> {
    if text.len() > NAME_LEN_MAX {
        return Err("it is longer than 200 bytes");
    }
    if text == "mirrors" || text.starts_with("mirrors/") {
        return Err("`mirrors` is reserved");
    }
    if text == "stages" || text.strip_prefix(STAGES).is_some_and(|key| !is_stage_key(key)) {
        return Err("`stages` is reserved: what follows is the key of a stage of a build");
    }
    text.split('/').try_for_each(check_component)
}

fn is_stage_key(text: &str) -> bool {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.len() == STAGE_KEY_LEN && text.bytes().all(digit)
}

fn check_component(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("a part of it is empty");
    }
    if text.len() > NAME_LEN_MAX {
        return Err("it is longer than 200 bytes");
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("a part of it is made of digits alone, as version numbers are");
    }
    if text.starts_with(['.', '-']) {
        return Err("a part of it starts with `.` or `-`");
    }
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    if !text.bytes().all(allowed) {
        return Err("it has a character that is not allowed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_realm_is_a_name_or_nothing() {
        assert_eq!(Realm::new("").unwrap(), Realm::default_realm());
        assert_eq!(Realm::new("team/a").unwrap().as_str(), "team/a");
        assert!(Realm::new("Team").is_err());
    }

    #[test]
    fn well_formed_names_are_taken_and_others_refused() {
        for good in ["debian", "debian-12", "a/b.c/d_e", "12.04", "x86"] {
            assert!(ImageName::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "12",
            "a/12",
            "Debian",
            "a b",
            "mirrors",
            "mirrors/x",
            "stages",
            "stages/x",
            "stages/debian/x",
            "..",
            "a/../b",
            ".hidden",
            "-x",
            "ü",
            "a@1",
            "a:b",
            "a\0b",
        ] {
            assert!(ImageName::new(bad).is_err(), "{bad}");
        }
        assert!(ImageName::new(&"a".repeat(201)).is_err());
        assert!(ImageName::new(&format!("{STAGES}{}", "0a".repeat(32))).is_ok());
        assert!(TagName::new("a/b").is_err());
        assert!(TagName::new("stable").is_ok());
    }
}
