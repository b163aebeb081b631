//! Packages: which ones, from where, in which order. Those of Debian and its kin by apt and dpkg, those
//! of Fedora and its kin by dnf and rpm; the recipe's distribution says which.
//!
//! | Module | Holds |
//! |---|---|
//! | `supply` | where the two part: from a recipe to a lock, from a lock to files |
//! | `dnf` | all that is for rpm packages alone |
//! | `sources` | where packages come from |
//! | `apt` | apt in a root of its own: what to install |
//! | `indexes` | what archives have, kept for the next time |
//! | `files` | the packages' files on this host, and an archive made of them |

pub(crate) mod apt;
pub(crate) mod dnf;
pub(crate) mod files;
pub(crate) mod indexes;
pub(crate) mod sources;
pub(crate) mod supply;
