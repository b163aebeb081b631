//! Images from recipes, by stages that are cached versions.
//!
//! | Module | Holds |
//! |---|---|
//! | [`recipe`] | what an image is to be |
//!
//! **Not here**: mirrors' owners, guests.

pub mod recipe;

pub use recipe::{Place, Recipe};
