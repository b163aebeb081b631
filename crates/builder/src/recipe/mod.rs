//! Recipes: what an image is to be, in TOML.
//!
//! ```text
//! text --read--> Recipe --check--> Recipe whose stages form a chain --> lock, build
//!        │                 │
//!        └ line, column, the nearest key    └ the line of what cannot be
//! ```
//!
//! | Module | Holds |
//! |---|---|
//! | `content` | what a recipe says, as types |
//! | `read` | from text to these types; errors that say where |
//! | `check` | what types cannot say: parents, cycles, units |
//! | [`keys`] | every key with its words: the schema and the documentation come from there |
//! | [`schema`] | the same for editors |
//!
//! **Invariants**: a [`Recipe`] that left [`Recipe::read`] has at least one stage; its stages, in the
//! order of the file, are a chain in which each stands on an earlier one, and the last is the image.

pub(crate) mod check;
mod content;
pub mod keys;
mod read;
pub mod schema;

pub(crate) use check::{duration, len};
pub use content::{
    Archive, Boot, CONTEXTUALIZATION, Contents, Contextualization, DISTRIBUTIONS, Disk,
    Distribution, Family, FileEntry, Partition, Recipe, RunStep, SEEDS, Services, Sign, Stage,
    System, Test, User,
};
pub use read::Place;
