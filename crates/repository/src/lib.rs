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
//! | [`machine`] | a booted guest: its disk and its memory become two versions at once |
//! | [`names`] | the names once more, beside the packs |
//! | [`blob`] | write, append and read: versions as byte ranges |
//! | [`mod@collect`] | removing what nothing refers to: a plan, then the deed |
//! | [`mod@stock`] | boot working sets that a host keeps, in a repository of its own |
//! | [`difference`] | which blocks two versions share |
//! | [`documents`] | what is kept with a content: its description, signatures, what tests said |
//! | [`signing`] | describing, signing, verifying |
//! | [`statistics`], [`sizes`] | how much there is; what one version takes |
//! | [`scrub`](mod@scrub) | reads everything back; repairs; makes a lost catalog anew |
//! | [`chunks`] | the [`store::ChunkStore`] of a repository: looks up, reads, verifies |
//! | [`turns`] | how much heavy work is under way at once; what steps back behind guests |
//! | `touched` | which versions damage touches, for the error of a read |
//! | `walk` | what roots refer to, each distinct part once |
//! | `rebuild` | a version made out of another: what is kept, what is laid out anew |
//! | `ranges` | windows of a version, read and verified on all cores |
//! | [`duplicates`], [`lists`] | what is known already; in public for benches of the index alone |
//! | `windows`, `layout`, `packer`, `lease` | the pipeline of whoever writes |
//!
//! **Invariants**
//! 1. Nothing refers to bytes that are not durable: pack, then catalog row, then version.
//! 2. A writer that fails leaves nothing behind but what another writer may have come to use.
//! 3. Memory is bounded whatever the size of the image or the repository.

pub mod blob;
pub mod boot_set;
pub mod chunks;
pub mod collect;
pub mod commit;
pub mod create;
pub mod difference;
pub mod documents;
pub mod duplicates;
pub mod export;
pub mod import;
mod layout;
mod lease;
pub mod lists;
pub mod machine;
pub mod names;
mod packer;
mod ranges;
mod rebuild;
pub mod repository;
pub mod scrub;
pub mod settings;
pub mod signing;
pub mod sizes;
pub mod statistics;
pub mod stock;
mod touched;
pub mod turns;
mod walk;
mod windows;

pub use blob::read::Reader;
pub use blob::write::{WriteRequest, Written};
pub use boot_set::{BootSetSizes, FoundBootSet};
pub use chunks::RepositoryChunks;
pub use collect::{CollectLimits, CollectPlan, CollectRequest, Collected};
pub use commit::{CommitRequest, Committed};
pub use difference::BlockDifference;
pub use export::Exported;
pub use import::{ImportRequest, Imported};
pub use machine::{MachineRequest, PublishedMachine};
pub use repository::Repository;
pub use scrub::rebuild::{RebuildRequest, Rebuilt, rebuild};
pub use scrub::{ScrubRequest, Scrubbed};
pub use settings::Settings;
pub use signing::{Checked, SigningKey, TrustedKey, Verdict};
pub use sizes::VersionSizes;
pub use statistics::Statistics;
pub use stock::{Stock, StockedSet, SyncRequest, Synced, Wanted};
