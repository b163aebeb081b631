//! One host's lazy, writable view of one version.
//!
//! | Module | Holds |
//! |---|---|
//! | [`mirror`] | a mirror's life: create, reopen, rebind, close |
//! | [`device`] | its reads and writes |
//! | [`flush`] | its flushes: bytes, then the log |
//! | [`grow`] | its disk, made longer |
//! | [`seal`] | its changes, standing still for a commit |
//! | [`view`] | a version to be read without a mirror |
//! | [`state_folder`] | where a host keeps mirrors and bases; what can be told without owning one |
//! | `plan` | where the bytes of a read are |
//! | `extents` | which parts of a disk hold data |
//! | `overlay`, `states` | the states of an overlay's blocks; which of them are in memory |
//! | `live` | the same, as they survive the process |
//! | `log` | the same, as they survive power loss |
//! | [`backing`] | a base's file in the kernel's hands |
//! | `base`, `presence` | the local copy of a content; which of its blocks are here |
//! | `room`, `evict` | a limit for bases; who goes when it is reached |
//! | [`pins`] | bases that stay |
//! | `fetch`, `reads` | how a base gets what it misses; how it is read |
//! | [`patience`] | waiting for a store that cannot be reached |
//! | `flights`, `pace`, `at_once` | fetches that are under way; how many those are |
//! | `readahead`, `background` | fetching what will be read next |
//! | `boot`, `recorder` | bringing a boot working set; noting what one is |
//! | [`journal`] | what was fetched and waited for |
//! | `segments` | something kept for each touched segment |
//!
//! **Not here**: doors, the repository, the network: a `store::ChunkStore` is handed in.

mod at_once;
mod background;
pub mod backing;
mod base;
mod boot;
pub mod device;
mod evict;
mod extents;
mod fetch;
mod flights;
pub mod flush;
pub mod grow;
pub mod journal;
mod live;
mod log;
pub mod mirror;
mod overlay;
mod pace;
pub mod patience;
pub mod pins;
mod plan;
mod presence;
mod readahead;
mod reads;
mod recorder;
mod room;
pub mod seal;
mod segments;
pub mod state_folder;
mod states;
pub mod view;

pub use backing::BackingFile;
pub use journal::JournalEntries;
pub use mirror::{Mirror, Statistics};
pub use patience::{Outages, Patience, Reachability};
pub use pins::PinFile;
pub use recorder::Recording;
pub use seal::Sealed;
pub use state_folder::{BaseNumbers, Binding, MirrorSummary, StateFolder};
pub use view::ReadOnlyView;
