//! The owners of mirrors on a host, alone or many in a daemon.
//!
//! ```text
//!   guest ──nbd──┐                      ┌── control socket ◄── larder commit, detach, mirrors
//!   guest ─fuse──┴─► doors ─► mirror ◄──┤
//!                              │        └── commit: seal ─► repository ─► finish
//!                              ▼
//!                          repository
//! ```
//!
//! | Module | Holds |
//! |---|---|
//! | [`owner`] | a mirror that is open and served |
//! | [`daemon`] | one process that serves many mirrors, and serves them again after it was killed |
//! | [`client`] | attaching by a daemon |
//! | [`records`] | what a daemon serves, as it survives the daemon |
//! | [`doors`] | the doors of a mirror: which there are, which one may write |
//! | [`tree`] | what a FUSE mount shows |
//! | [`control`] | the protocol of the control sockets: requests, responses, both ends |
//! | [`commit`] | a mirror's changes become a version |
//! | [`counts`] | what goes through doors, what is fetched: counted |
//! | [`metrics`] | the same as Prometheus reads it |
//! | [`scrape`] | answers who asks for metrics |
//! | [`mirrors`] | the mirrors of this host, served or not |
//! | [`report`], `report_picture` | what a boot fetched and waited for, as data and as a picture |
//! | [`stock`] | this host's stock of boot working sets: read from first, synced by the daemon |
//! | `boot_sets` | when a boot working set is brought, and when one is recorded |
//! | `holds` | what keeps a mirror's version readable in the repository |

mod boot_sets;
pub mod client;
pub mod commit;
pub mod control;
pub mod counts;
pub mod daemon;
pub mod doors;
mod holds;
pub mod metrics;
pub mod mirrors;
pub mod owner;
pub mod records;
pub mod report;
mod report_picture;
pub mod scrape;
pub mod stock;
pub mod tree;

pub use commit::{CommitOptions, Outcome};
pub use daemon::{Daemon, DaemonOptions};
pub use doors::{Door, DoorOptions};
pub use owner::{Asked, AttachRequest, Owner, Ready};
