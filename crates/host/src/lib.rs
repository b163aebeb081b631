//! The owner of mirrors on a host.
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
//! | [`owner`] | one process that has a mirror open and serves it |
//! | [`doors`] | the doors of a mirror: which there are, which one may write |
//! | [`tree`] | what a FUSE mount shows |
//! | [`control`] | the protocol of a mirror's control socket: requests, responses, both ends |
//! | [`commit`] | a mirror's changes become a version |
//! | [`mirrors`] | the mirrors of this host, served or not |
//! | [`report`], `report_picture` | what a boot fetched and waited for, as data and as a picture |
//! | `boot_sets` | when a boot working set is brought, and when one is recorded |
//! | `holds` | what keeps a mirror's version readable in the repository |

mod boot_sets;
pub mod commit;
pub mod control;
pub mod doors;
mod holds;
pub mod mirrors;
pub mod owner;
pub mod report;
mod report_picture;
pub mod tree;

pub use commit::{CommitOptions, Outcome};
pub use doors::{Door, DoorOptions};
pub use owner::{AttachRequest, Owner, Ready};
