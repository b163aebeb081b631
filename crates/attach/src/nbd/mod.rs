//! The NBD door: serves devices to QEMU, libnbd and the kernel over a Unix or a loopback TCP socket.
//!
//! ```text
//! accept ── a thread for each connection ──────────────────────────────────┐
//!           handshake: options until the client names an export            │
//!           transmission: receive buffer → request → device → reply buffer │
//!               what may wait (a fetch, a flush) ─> up to 4 + 1 side threads ┴─> the socket
//! ```
//!
//! | Module | Holds |
//! |---|---|
//! | `address` | where to listen |
//! | `server` | listening, the connections, stopping |
//! | `handshake` | options, until an export is chosen |
//! | `transmission` | the loop that receives requests |
//! | `execute` | one request on the device, and its reply |
//! | `receive`, `reply` | the two buffers of a connection |
//! | `conduit` | pages that go from a file to the client without being copied |
//! | `wire` | the protocol's numbers and layouts |
//!
//! **Invariants**
//! - A reply is written to the socket as a whole: nothing comes between its header and its payload.
//! - A write with FUA, and a flush, is answered after `Device::flush` returned.
//! - Only ranges inside the export reach the device.
//! - Memory of a connection is bounded: two buffers of a little over 1 MiB, one more for each
//!   side thread, and at most 64 waiting requests of at most 64 KiB.
//!
//! **Failure**: a client that breaks the protocol loses its connection, and nothing else. A device
//! that fails gives an NBD error, and the connection goes on. A panic ends one connection. Where a
//! simple (not structured) read of more than 1 MiB fails after its first piece, the protocol leaves
//! no way but to close the connection.
//!
//! **Not here**: TLS, which is why only loopback addresses are accepted; what a device is made of.
//! `NO_HOLE` is accepted and changes nothing: a device has no space set aside for a range.
//!
//! **Source**: `doc/proto.md` of NetworkBlockDevice/nbd: fixed newstyle, structured replies,
//! `base:allocation`; without extended headers.

mod address;
mod conduit;
mod execute;
mod handshake;
mod receive;
mod reply;
mod server;
mod socket;
mod transmission;
mod wire;

pub use address::Address;
pub use server::{Export, NbdServer};
