//! Packages of Debian and its kin: which ones, from where, in which order; by apt and dpkg.
//!
//! | Module | Holds |
//! |---|---|
//! | `sources` | where packages come from |
//! | `apt` | apt in a root of its own: what to install |
//! | `indexes` | what archives have, kept for the next time |
//! | `files` | the packages' files on this host, and an archive made of them |

pub(crate) mod apt;
pub(crate) mod files;
pub(crate) mod indexes;
pub(crate) mod sources;
