//! Disks in other people's formats: read as [`DiskSource`]s, written as [`DiskSink`]s.
//!
//! ```text
//!             +- raw, block device, stdin ---------------------------> RawSource, StreamSource
//! open_source +- qcow2 v2, v3 ------------ header, tables ----------> Qcow2Source
//!             +- vmdk, vdi, vhdx, vpc ... - confined qemu-img - temp -> RawSource
//!
//!             +- raw ----- temp file, fsync, rename ----------------> RawSink
//! create_sink +- raw ----- block device in place, or a pipe --------> DeviceSink, StreamSink
//!             +- qcow2 --- temp file, fsync, rename ----------------> Qcow2Sink
//! ```
//!
//! | Module | Holds |
//! |---|---|
//! | [`kind`](InputFormat) | the names of formats, and how one is recognised |
//! | `open` | from a path to a source |
//! | `raw` | files and block devices, holes skipped by asking for them |
//! | `stream` | pipes, both ways |
//! | `qcow2` | reader and writer |
//! | `qemu_img` | the confined child that converts what we cannot read |
//! | `create` | from a path to a sink |
//! | `destination` | a file that appears whole or not at all |
//! | `raw_sink` | raw files and block devices |
//!
//! **Invariants**: no file is opened but the one that was named (unless
//! [`OpenOptions::allow_backing`] says so); no table is believed before it is checked against the
//! file's length; memory does not grow with the disk, except for first-level tables (32 MiB at
//! most).
//!
//! **Failure**: a disk file is untrusted. Its bytes can make an error, never a panic, and never
//! work or memory out of proportion to its own length.
//!
//! **Source**: `docs/formats/foreign.md`; QEMU's `docs/interop/qcow2.txt`.

mod create;
mod destination;
mod early_sync;
mod kind;
mod open;
mod qcow2;
mod qemu_img;
mod raw;
mod raw_sink;
mod stream;

#[cfg(test)]
mod tests;

#[cfg(doc)]
use model::source::{DiskSink, DiskSource};

pub use create::create_sink;
pub use kind::{InputFormat, OutputFormat, UnknownFormat};
pub use open::{OpenOptions, open_source};
