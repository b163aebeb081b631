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
//! | [`qmp`] | QEMU's control channel: commands, replies, events |
//! | [`console`] | a console that a program reads and types on |
//! | [`helper`] | the helper in the guest: installed into a disk, spoken to over a port |
//! | [`identity`] | what makes one copy of a machine another: given, and confirmed by the guest |
//! | [`growth`] | processors, memory, disks and network cards for a guest that runs |
//! | [`screen`] | the text in what a console sends: escape sequences taken out |
//!
//! **Not here**: mirrors and doors (a guest is given a socket or a file), seeds, baked machines.

pub mod accelerator;
pub mod arguments;
pub mod config;
pub mod console;
pub mod growth;
pub mod guest;
pub mod helper;
pub mod identity;
pub mod qmp;
pub mod screen;

pub use accelerator::{Accelerator, pick_accelerator};
pub use config::{Console, Drive, Growth, GuestConfig, MemoryFile, Network};
pub use console::{ScriptedConsole, Seen};
pub use guest::Guest;
pub use helper::Helper;
pub use identity::Identity;
pub use qmp::{Event, Qmp};
