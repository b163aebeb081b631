//! The seams through which time, randomness and disks come in, so that tests can stand in for them.
//!
//! | Module | Holds |
//! |---|---|
//! | [`clock`] | what time it is |
//! | [`entropy`] | random bytes |
//! | [`file_system`] | files and folders: the trait |
//! | [`memory`] | how much of it the process keeps that nothing uses |
//! | [`priority`] | how much a thread matters beside others |
//! | [`real`] | the machine's own |
//! | [`simulated`] | a disk that forgets and reorders what was not synced, fills up and fails on demand |
//!
//! Only this crate knows the time and opens files for Larder's own state.

pub mod clock;
pub mod entropy;
pub mod file_system;
pub mod memory;
pub mod priority;
pub mod real;
pub mod simulated;

pub use clock::{Clock, ManualClock, SystemClock, Timestamp};
pub use entropy::{Entropy, SeededEntropy, SystemEntropy};
pub use file_system::{File, FileSystem, OpenMode, Space};
pub use real::RealFileSystem;
