//! Machines: guests that have already booted, kept as versions, resumed in milliseconds.
//!
//! ```text
//! bake:    mirror ─► guest boots ─► ready ─► stop ─┬─ disk: changes ───────────► version ┐ at once
//!                                                  └─ memory, state, record ──► machine ┘
//! resume:  machine ─► file that is mapped privately ─┐
//!          disk ────► mirror, served ────────────────┴─► guest goes on where it was stopped
//! ```
//!
//! | Module | Holds |
//! |---|---|
//! | [`mod@bake`] | boots a version until it is ready and keeps what came of it |
//! | [`mod@resume`] | brings copies of a machine to life |
//! | [`mod@suspend`] | keeps a guest that runs as a machine |
//! | [`compatibility`] | whether a machine can be resumed on this host |
//! | [`monitor`] | what a machine monitor does for a machine: all that knows QEMU stands behind it |
//! | [`qemu`] | QEMU |
//! | [`machine_file`] | a machine as a file: memory, state, record |
//! | [`memory`] | the file whose pages a resumed guest maps |
//! | [`working_set`] | what a resume needs: noted once, brought ever after |
//! | [`console`] | the console of a resumed guest: asked, then handed on |
//! | [`helper`] | the helper gets into a disk that is about to be baked |
//! | [`disks`] | who serves the disks of guests |
//! | [`run_folder`] | a private folder for one guest's sockets and mounts |
//!
//! **Invariants**
//! 1. There is a machine and its disk, or neither, whatever ends the process and when.
//! 2. A monitor ends with the process that started it.
//! 3. A resume that cannot work is refused before a monitor starts.
//! 4. What a resumed guest writes, gives back or throws away never reaches the file that it was resumed
//!    from.
//!
//! **Not here**: the control sockets of mirrors (`host`): who serves a guest's disk is handed in.

pub mod bake;
pub mod compatibility;
pub mod console;
pub mod disks;
pub mod helper;
pub mod machine_file;
pub mod memory;
pub mod monitor;
pub mod qemu;
pub mod resume;
pub mod run_folder;
pub mod suspend;
pub mod working_set;

pub use bake::{BakeRequest, Baked, Ready, bake};
pub use disks::{Disks, ServedDisk};
pub use monitor::Monitor;
pub use qemu::{Qemu, QemuGuest};
pub use resume::{Machine, ResumeRequest, Resumed, resume};
pub use run_folder::RunFolder;
pub use suspend::{Suspendable, Suspended, suspend};
