//! qcow2, QEMU's disk format: a reader of versions 2 and 3, and a writer of version 3.
//!
//! ```text
//! header -> L1 table -> L2 tables -> clusters: data | compressed | zeros | nothing
//! ```
//!
//! | Module | Holds |
//! |---|---|
//! | `fault` | what can be wrong with a qcow2 |
//! | `header` | the header, checked against the file's length |
//! | `entry` | the two words of an L2 entry and what they mean |
//! | `walker` | the pieces of data of a disk, in address order |
//! | `inflate` | compressed clusters |
//! | `reader` | [`Qcow2Source`] |
//! | `writer` | [`Qcow2Sink`] |
//!
//! **Invariants**: no host cluster of data is used by more of the disk than the file has room for,
//! so a small file cannot claim a large disk's worth of work (compression aside, which is bounded
//! by its algorithms).
//!
//! **Not here**: internal snapshots and bitmaps (ignored), encryption, external data files (both
//! refused), and chains of backing files, which `qemu-img` flattens when they are allowed.
//!
//! **Source**: QEMU `docs/interop/qcow2.txt`.

mod entry;
mod fault;
mod header;
mod inflate;
mod reader;
mod walker;
mod writer;

pub(super) use reader::Qcow2Source;
pub(super) use writer::Qcow2Sink;
