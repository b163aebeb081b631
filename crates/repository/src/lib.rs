//! A repository: the catalog (names) and the store (bytes) together, and the verbs upon them.
//!
//! ```text
//!  import ─┐                                                     ┌─ chunks ──► mirrors, exports
//!          ├─► windows ─► layout (dedup) ─► packer ─► packs ─────┤
//!  commit ─┘   read,hash   decide           compress  durable    └─ publish ─► a version exists
//! ```
//!
//! | Module | Holds |
//! |---|---|
//! | [`repository`](mod@repository) | opening and making one; its settings and parts |
//! | [`import`], [`export`], [`commit`], [`create`] | one verb each |
//! | [`mod@collect`] | removing what nothing refers to: a plan, then the deed |
//! | [`statistics`] | how much there is |
//! | [`chunks`] | the [`store::ChunkStore`] of a repository: looks up, reads, verifies |
//! | `windows`, `layout`, `duplicates`, `packer`, `lease` | the pipeline of whoever writes |
//!
//! **Invariants**
//! 1. Nothing refers to bytes that are not durable: pack, then catalog row, then version.
//! 2. A writer that fails leaves nothing behind but what another writer may have come to use.
//! 3. Memory is bounded whatever the size of the image or the repository.

pub mod boot_set;
pub mod chunks;
pub mod collect;
pub mod commit;
pub mod create;
mod duplicates;
pub mod export;
pub mod import;
mod layout;
mod lease;
mod lists;
mod packer;
pub mod repository;
pub mod settings;
pub mod statistics;
mod windows;

pub use boot_set::{BootSetSizes, FoundBootSet};
pub use chunks::RepositoryChunks;
pub use collect::{CollectLimits, CollectPlan, CollectRequest, Collected};
pub use commit::{CommitRequest, Committed};
pub use export::Exported;
pub use import::{ImportRequest, Imported};
pub use repository::Repository;
pub use settings::Settings;
pub use statistics::Statistics;
