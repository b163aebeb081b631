//! What a version is, told once: what signatures sign.

use serde::{Deserialize, Serialize};

use crate::{ContentDigest, VersionKind};

/// Everything that is known of a content and that somebody may vouch for.
///
/// It names no image and no version: whatever has the content, in any repository, is described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The identity of what is described.
    pub content: ContentDigest,
    /// Bytes that a guest sees.
    pub length: u64,
    /// What it holds.
    pub kind: VersionKind,
    /// How it was built; `None` where it came from elsewhere.
    pub build: Option<BuildDescription>,
    /// The packages in it, as far as they are known.
    pub packages: Vec<PackageDescription>,
    /// What tests found.
    pub tests: Vec<TestDescription>,
}

/// How a content was built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildDescription {
    /// Digest of the recipe, in hexadecimal.
    pub recipe: String,
    /// Digest of the lock, in hexadecimal.
    pub lock: String,
    /// The builder, and its version.
    pub builder: String,
    /// Its stages, from the first.
    pub stages: Vec<StageDescription>,
}

/// One stage of a build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageDescription {
    /// Its name in the recipe.
    pub name: String,
    /// Its key, in hexadecimal.
    pub key: String,
}

/// A package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackageDescription {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its architecture.
    pub architecture: String,
    /// Digest of its file, as `sha256:` and hexadecimal; empty where it is not known.
    pub digest: String,
}

/// A test, and what it found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestDescription {
    /// Its name.
    pub name: String,
    /// Whether it passed.
    pub passed: bool,
}
