//! One host's lazy, writable view of one version.
//!
//! | Module | Holds |
//! |---|---|
//! | [`mirror`] | a mirror's life: create, reopen, rebind, close |
//! | [`device`] | its reads and writes |
//! | [`flush`] | its flushes: bytes, then the log |
//! | [`seal`] | its changes, standing still for a commit |
//! | [`view`] | a version to be read without a mirror |
//! | [`state_folder`] | where a host keeps mirrors and bases; what can be told without owning one |
//! | `plan` | where the bytes of a read are |
//! | `extents` | which parts of a disk hold data |
//! | `overlay` | the states of an overlay's blocks |
//! | `live` | the same, as they survive the process |
//! | `log` | the same, as they survive power loss |
//! | [`backing`] | a base's file in the kernel's hands |
//! | `base` | the local copy of a content and its presence |
//! | `room`, `evict` | a limit for bases; who goes when it is reached |
//! | `fetch` | how a base gets what it misses |
//! | `chunks` | chunks that were used a moment ago |
//! | [`patience`] | waiting for a store that cannot be reached |
//! | `flights` | fetches that are under way |
//! | `readahead`, `background` | fetching what will be read next |
//! | `boot`, `recorder` | bringing a boot working set; noting what one is |
//! | [`journal`] | what was fetched and waited for |
//! | `segments` | something kept for each touched segment |
//!
//! **Not here**: doors, the repository, the network: a `store::ChunkStore` is handed in.

mod background;
pub mod backing;
mod base;
mod boot;
mod chunks;
pub mod device;
mod evict;
mod extents;
mod fetch;
mod flights;
pub mod flush;
pub mod journal;
mod live;
mod log;
pub mod mirror;
mod overlay;
pub mod patience;
mod plan;
mod readahead;
mod recorder;
mod room;
pub mod seal;
mod segments;
pub mod state_folder;
pub mod view;

pub use backing::BackingFile;
pub use journal::JournalEntries;
pub use mirror::{Mirror, Statistics};
pub use patience::{Outages, Patience, Reachability};
pub use recorder::Recording;
pub use seal::Sealed;
pub use state_folder::{BaseNumbers, Binding, MirrorSummary, StateFolder};
pub use view::ReadOnlyView;
