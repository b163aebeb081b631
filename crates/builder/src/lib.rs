//! Images from recipes, by stages that are cached versions.
//!
//! ```text
//! recipe ─► lock ─► stage 1 ─► stage 2 ─► ... ─► image
//!            apt     mmdebstrap, mke2fs   in place, in a mirror of its parent
//!                    └── each is the version stages/KEY: built once, shared by recipes
//! ```
//!
//! | Module | Holds |
//! |---|---|
//! | [`recipe`] | what an image is to be |
//! | [`lock`] | which packages exactly |
//! | [`mod@build`] | the verb: resolve, lock, make what is not there |
//! | [`stages`] | stages that were built |
//! | [`apt_settings`] | where this machine's own packages come from |
//! | `resolve`, `packages` | from a recipe to a lock, by apt |
//! | `key` | what a stage is made of, as a name |
//! | `first`, `disk`, `file_system` | a stage without a parent: from packages to a disk |
//! | `boot` | the boot partition: kernel, initrd, loader |
//! | `packaged` | a stage's packages apart from the rest of it |
//! | `anew` | the same without root: the disk is made anew |
//! | [`rootless`] | an ordinary user's namespace |
//! | `derive`, `attached` | a stage upon another: its parent's files, mounted and committed |
//! | `steps`, `users`, `clean` | what a stage does to its files; what it must not leave |
//! | `contextualization` | what machines of an image learn who they are from |
//! | [`gate`] | versions booted and looked at |
//! | `vouch` | what is said of a version: tested, described, tagged, signed |
//! | `architecture` | whether programs of an image run here |
//! | `contained` | running things in an image, with nothing of the host in sight |
//! | `tree` | an image's files, reached so that no link leads out |
//! | [`direct`] | the kernel of a disk without a loader |
//! | [`difference`] | what changed between two versions |
//! | `room` | how much the files of a first stage may take |
//! | `tool` | running other programs |
//! | `work` | the folder of a build under way; what killed ones have left |
//!
//! **Invariants**
//! 1. A stage is made of what is in its key and of nothing else, as far as its steps stay off the
//!    network.
//! 2. A build that ends, however it ends, leaves no mount, no loop device and no process.
//!
//! **Not here**: mirrors' owners.

mod anew;
pub mod apt_settings;
mod architecture;
mod attached;
mod boot;
pub mod build;
mod clean;
mod contained;
mod contextualization;
mod derive;
pub mod difference;
pub mod direct;
mod disk;
mod file_system;
mod first;
pub mod gate;
mod key;
pub mod lock;
mod packaged;
mod packages;
pub mod recipe;
mod resolve;
mod room;
pub mod rootless;
pub mod stages;
mod steps;
mod tool;
mod tree;
mod users;
mod vouch;
mod work;

pub use build::{BuildRequest, Built, BuiltStage, Event, build, check};
pub use lock::Lock;
pub use recipe::{Place, Recipe};
