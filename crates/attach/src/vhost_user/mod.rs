//! The vhost-user-blk door: a virtio block device for a guest whose memory is shared with us.
//!
//! ```text
//! QEMU ── socket: memory, rings, eventfds ──> session ── starts and stops ──> a thread per ring
//! guest ─ ring in shared memory, kick ──────> ring ── chain ── request ── device ── used, call
//!       what may wait (a fetch, a flush), long ones together ──> up to 4 side threads ──┘
//! ```
//!
//! | Module | Holds |
//! |---|---|
//! | `server` | listening, one connection after the other, stopping |
//! | `session` | the messages of one connection |
//! | `ring` | one queue: taking requests, giving answers, waiting |
//! | `inflight` | the shared region that remembers what is under way |
//! | `chain` | descriptors to segments |
//! | `request` | segments to a request |
//! | `execute` | one request on the device |
//! | `backchannel` | telling the front end that the disk has become longer |
//! | `memory` | the guest's memory, mapped |
//! | `config` | features, and what the guest reads about the disk |
//!
//! **Invariants**
//! - One connection at a time: a further client waits until the one before has ended, and all that
//!   it had under way is done. So no late write of one meets a write of the next.
//! - A request is in the in-flight region from before it is executed until it is in the used ring:
//!   a server that starts after a `kill -9` does it again, and loses none.
//! - Only ranges inside the disk reach the device, only ranges inside the guest's memory are touched.
//! - Memory of a connection is bounded: a buffer of 1 MiB for each of at most 16 rings and 4 side
//!   threads, and 68 requests of at most 1024 segments.
//!
//! **Failure**: a request that can be answered gets `IOERR` or `UNSUPP`. A ring whose descriptors
//! are no chain stops until the guest resets the device. A message that breaks the protocol, and a
//! panic, end the connection. Whoever shares a guest's memory and then cuts its file shorter ends
//! this process; a guest cannot.
//!
//! **Not here**: live migration's dirty log, packed rings, a guest's IOMMU.
//!
//! **Source**: virtio 1.2, 2.7 and 5.2; `docs/interop/vhost-user.rst` of QEMU.

mod backchannel;
mod chain;
mod config;
mod execute;
mod inflight;
mod memory;
mod request;
mod ring;
mod server;
mod session;

pub use server::VhostUserServer;
