//! Guests: QEMU as a child process, its console, its control channel, its accelerators.
//!
//! ```text
//!   GuestConfig --plan--> arguments --spawn--> QEMU ---- QMP (socket pair)     -> Qmp
//!   (what is wanted)      (pure)                 |  `--- console (socket pair) -> ScriptedConsole
//!                                                `------ exit ---------------> Guest::wait
//! ```
//!
//! | Module | Holds |
//! |---|---|
//! | [`accelerator`] | KVM where it really runs guests, else TCG |
//! | [`config`] | what a guest is made of: memory, CPUs, drives, console |
//! | [`arguments`] | from a configuration to QEMU's command line, without I/O |
//! | [`guest`](mod@guest) | a running QEMU: started, waited for, powered down, killed |
//! | [`guest_agent`] | QEMU's agent in a guest: file systems that stand still for a moment |
//! | [`qmp`] | QEMU's control channel: commands, replies, events |
//! | `lines` | lines that QEMU or a guest sends, with limits |
//! | `small_pages` | a guest's memory that is read from its file page by page |
//! | [`console`] | a console that a program reads and types on |
//! | [`helper`] | the helper in the guest: installed into a disk, spoken to over a port |
//! | [`identity`] | what makes one copy of a machine another: given, and confirmed by the guest |
//! | [`growth`] | processors, memory, disks and network cards for a guest that runs |
//! | [`disk_files`] | files put into a disk before it boots |
//! | [`kernel_names`] | where distributions put a kernel and its initrd |
//! | [`ec2_metadata`] | EC2's metadata, served to one guest by QEMU's own network |
//! | [`seed`] | who a booting guest is to be, in the forms that guests read |
//! | [`screen`] | the text in what a console sends: escape sequences taken out |
//!
//! **Not here**: mirrors and doors (a guest is given a socket or a file), baked machines.

pub mod accelerator;
pub mod arguments;
pub mod config;
pub mod console;
pub mod disk_files;
pub mod ec2_metadata;
pub mod growth;
pub mod guest;
pub mod guest_agent;
pub mod helper;
pub mod identity;
pub mod kernel_names;
mod lines;
pub mod qmp;
pub mod screen;
pub mod seed;
mod small_pages;

pub use accelerator::{Accelerator, pick_accelerator};
pub use config::{Console, Drive, Growth, GuestConfig, MemoryFile, Network};
pub use console::{ScriptedConsole, Seen};
pub use guest::Guest;
pub use guest_agent::{Frozen, GuestAgent};
pub use helper::Helper;
pub use identity::Identity;
pub use qmp::{Event, Qmp};
