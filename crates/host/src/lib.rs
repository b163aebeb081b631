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
//! | [`clients`] | processes that a daemon serves mirrors for |
//! | [`records`] | what a daemon serves, as it survives the daemon |
//! | [`doors`] | the doors of a mirror: which there are, which one may write |
//! | [`tree`] | what a FUSE mount shows |
//! | [`control`] | the protocol of the control sockets: requests, responses, both ends |
//! | [`commit`] | a mirror's changes become a version |
//! | [`quiesce`] | a guest whose file systems stand still meanwhile |
//! | [`counts`] | what goes through doors, what is fetched: counted |
//! | [`limits`] | how much of the disk caches may take |
//! | [`metrics`] | the same as Prometheus reads it |
//! | [`scrape`] | answers who asks for metrics |
//! | [`mirrors`] | the mirrors of this host, served or not |
//! | [`report`], `report_picture` | what a boot fetched and waited for, as data and as a picture |
//! | [`stock`] | this host's stock of boot working sets: read from first, synced by the daemon |
//! | `boot_sets` | when a boot working set is brought, and when one is recorded |
//! | [`pins`] | versions that are complete on this host and stay so |
//! | `holds` | what keeps a mirror's version readable in the repository |

mod boot_sets;
pub mod client;
pub mod clients;
pub mod commit;
pub mod control;
pub mod counts;
pub mod daemon;
pub mod doors;
mod holds;
pub mod limits;
pub mod metrics;
pub mod mirrors;
pub mod owner;
pub mod pins;
pub mod quiesce;
pub mod records;
pub mod report;
mod report_picture;
pub mod scrape;
pub mod stock;
pub mod tree;

pub use clients::Client;
pub use commit::{CommitOptions, Outcome};
pub use daemon::{Daemon, DaemonOptions};
pub use doors::{Door, DoorOptions};
pub use owner::{Asked, AttachRequest, Owner, Ready};
