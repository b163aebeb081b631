//! Listening, the connections, and stopping.
//!
//! ```text
//! start ── listening ──── stop ──────── connections receive no more ── joined, socket removed
//!                                       (after 2 s: are cut off)
//! ```
//!
//! **Invariants**
//! - No thread of a server is alive after `stop` or drop.
//! - A socket file is replaced only where nobody answers behind it, and removed only while it is
//!   still the one that this server made.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use model::device::Device;
use model::{Error, Kind, Result};
use rustix::io::Errno;
use rustix::net::{Shutdown, SocketFlags, accept_with, sockopt};

use super::address::Address;
use super::execute::{Executor, PIECE_LEN};
use super::handshake;
use super::receive::Receiver;
use super::reply::Outlet;
use super::socket::Socket;
use super::transmission;
use crate::socket_file::{self, SocketFile};

/// The most connections at once; further ones are closed.
const CONNECTION_COUNT_MAX: usize = 64;
/// How long a client may take to choose an export.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(30);
/// How long a stopping server lets clients take their last replies.
const STOP_LIMIT: Duration = Duration::from_secs(2);
/// How long accepting rests after a failure, for example without file descriptors.
const ACCEPT_REST: Duration = Duration::from_millis(200);
/// The longest export name and description.
const NAME_LEN_MAX: usize = 1024;
/// Bytes of a receive buffer: a piece of a write and the requests around it.
const RECEIVE_BUFFER_LEN: usize = PIECE_LEN + 64 * 1024;
/// Bytes that the system is asked to keep for a client on a Unix socket: with less than a few
/// replies, the connection's thread sleeps and wakes for each of them.
/// Source: `speed_beside_qemu_nbd`, fio rows: 0.7 to 0.9 of qemu-nbd's speed with the system's 208 KiB,
/// 1.4 to 2.1 with this.
const SEND_BUFFER_LEN: usize = 1 << 20;
const _: () = assert!(RECEIVE_BUFFER_LEN >= handshake::RECEIVE_LEN_MAX);

const OPERATION: &str = "serve over NBD";

/// A device and the name under which clients find it.
#[derive(Clone)]
pub struct Export {
    /// What clients ask for. At most 1024 bytes.
    pub name: String,
    /// The disk.
    pub device: Arc<dyn Device>,
    /// What a listing says of it. At most 1024 bytes.
    pub description: String,
}

/// A listening server. `stop` or dropping it ends it.
pub struct NbdServer {
    address: Address,
    first_name: String,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
    socket_file: Option<SocketFile>,
}

struct Shared {
    exports: Vec<Export>,
    listener: OwnedFd,
    state: Mutex<State>,
    /// A connection ended, or the server stops.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    stopping: bool,
    connections: Vec<Connection>,
}

struct Connection {
    /// Gone when the connection has ended.
    socket: Weak<Socket>,
    thread: JoinHandle<()>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NbdServer {
    /// Listens, and serves the exports on threads of its own. The first export is also the default
    /// one, which clients get that ask for the empty name.
    ///
    /// Order: a client that connects after this returned is served.
    ///
    /// # Errors
    /// `Invalid` without an export, or with a name or description that is too long or taken;
    /// `Refused` where the address is not loopback, is in use, or is a file that is no socket;
    /// otherwise what the system says.
    pub fn start(address: &Address, exports: Vec<Export>) -> Result<NbdServer> {
        check_exports(&exports)?;
        let (listener, address) = listen(address)?;
        let socket_file = match &address {
            Address::Unix(path) => SocketFile::note(path),
            Address::Tcp(_) => None,
        };
        let first_name = exports[0].name.clone();
        let shared = Arc::new(Shared {
            exports,
            listener,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let for_thread = Arc::clone(&shared);
        let accepting = std::thread::Builder::new()
            .name("nbd-accept".into())
            .spawn(move || accept(&for_thread))
            .map_err(|error| Error::io(OPERATION, address.to_string(), error))?;
        tracing::info!("serving NBD on {address}");
        Ok(NbdServer { address, first_name, shared, accepting: Some(accepting), socket_file })
    }

    /// Where it listens; with the actual port where port 0 was asked for.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The NBD URI of the first export, as QEMU and libnbd understand it.
    pub fn uri(&self) -> String {
        self.address.uri(&self.first_name)
    }

    /// Stops accepting, lets requests that are being executed be answered, ends all connections,
    /// joins all threads and removes the socket file.
    ///
    /// Cost: waits for calls to the devices that are under way; up to 2 s for clients that do not
    /// take their replies.
    pub fn stop(self) {
        drop(self);
    }

    /// The first half of `stop`: lets requests that are being executed be answered, for up to 2 s,
    /// then cuts all connections off. From then on nobody gets an answer; a client that connects
    /// again, to a server that comes later, asks again. Calls to the devices may still be under way.
    pub fn cut_off(&mut self) {
        let Some(accepting) = self.accepting.take() else {
            return;
        };
        self.shared.lock().stopping = true;
        self.shared.changed.notify_all();
        // Wakes the thread that accepts.
        let _ = rustix::net::shutdown(&self.shared.listener, Shutdown::Both);
        let _ = accepting.join();
        if let Some(file) = self.socket_file.take() {
            file.remove();
        }
        let mut state = self.shared.lock();
        let each = |state: &State, f: fn(&Socket)| {
            state.connections.iter().filter_map(|c| c.socket.upgrade()).for_each(|s| f(&s));
        };
        each(&state, Socket::stop_receiving);
        let deadline = Instant::now() + STOP_LIMIT;
        while !state.connections.iter().all(|c| c.socket.strong_count() == 0) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        each(&state, Socket::close);
    }

    fn end(&mut self) {
        self.cut_off();
        let connections = std::mem::take(&mut self.shared.lock().connections);
        if !connections.is_empty() {
            tracing::debug!("waiting for {} connections on {}", connections.len(), self.address);
        }
        for connection in connections {
            // Panics are caught inside.
            let _ = connection.thread.join();
        }
        tracing::info!("stopped serving NBD on {}", self.address);
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        self.end();
    }
}

fn check_exports(exports: &[Export]) -> Result<()> {
    let invalid = |name: &str, reason: &str| {
        Err(Error::new(Kind::Invalid, OPERATION, format!("`{name}`")).because(reason))
    };
    if exports.is_empty() {
        return invalid("", "there is no export");
    }
    for (index, export) in exports.iter().enumerate() {
        let texts = [&export.name, &export.description];
        if texts.iter().any(|text| text.len() > NAME_LEN_MAX || text.contains('\0')) {
            return invalid(&export.name, "a name has a NUL or is longer than 1024 bytes");
        }
        if exports[..index].iter().any(|other| other.name == export.name) {
            return invalid(&export.name, "two exports have this name");
        }
        if i64::try_from(export.device.length()).is_err() {
            return invalid(&export.name, "the disk is longer than NBD can say");
        }
    }
    Ok(())
}

/// Listens; the address comes back with the actual port.
fn listen(address: &Address) -> Result<(OwnedFd, Address)> {
    let failed = |error| Error::io("listen on", address.to_string(), error);
    match address {
        Address::Unix(path) => Ok((socket_file::listen(path)?.into(), address.clone())),
        Address::Tcp(wanted) => {
            if !wanted.ip().is_loopback() {
                return Err(Error::new(Kind::Refused, "listen on", address.to_string())
                    .because("it is not a loopback address, and NBD is served without TLS")
                    .hint("listen on 127.0.0.1, or on a Unix socket, and forward it with ssh"));
            }
            let listener = TcpListener::bind(wanted).map_err(|error| match error.kind() {
                io::ErrorKind::AddrInUse => {
                    socket_file::in_use(address.to_string()).caused_by(error)
                }
                _ => failed(error),
            })?;
            let actual = listener.local_addr().map_err(failed)?;
            Ok((listener.into(), Address::Tcp(actual)))
        }
    }
}

/// Accepts connections until the server stops.
fn accept(shared: &Arc<Shared>) {
    loop {
        let accepted = accept_with(&shared.listener, SocketFlags::CLOEXEC);
        let mut state = shared.lock();
        if state.stopping {
            return;
        }
        match accepted {
            Ok(fd) => connect(shared, &mut state, fd),
            Err(Errno::INTR | Errno::CONNABORTED) => (),
            Err(error) => {
                tracing::warn!("an NBD connection could not be accepted: {error}");
                let rested = shared.changed.wait_timeout(state, ACCEPT_REST);
                drop(rested.unwrap_or_else(PoisonError::into_inner));
            }
        }
    }
}

/// Gives an accepted connection its thread.
fn connect(shared: &Arc<Shared>, state: &mut State, fd: OwnedFd) {
    let mut kept = Vec::with_capacity(state.connections.len() + 1);
    for connection in state.connections.drain(..) {
        if connection.thread.is_finished() {
            let _ = connection.thread.join();
        } else {
            kept.push(connection);
        }
    }
    state.connections = kept;
    let serving = state.connections.iter().filter(|c| c.socket.strong_count() > 0).count();
    if serving >= CONNECTION_COUNT_MAX {
        tracing::warn!("an NBD connection was closed: there are {serving} already");
        return;
    }
    if sockopt::set_tcp_nodelay(&fd, true).is_err() {
        // A Unix socket: it has nothing to delay, and does not grow its buffer by itself. The
        // system may grant less.
        let _ = sockopt::set_socket_send_buffer_size(&fd, SEND_BUFFER_LEN);
    }
    let socket = Arc::new(Socket::new(fd));
    let weak = Arc::downgrade(&socket);
    let shared = Arc::clone(shared);
    let thread = std::thread::Builder::new().name("nbd".into()).spawn(move || {
        match catch_unwind(AssertUnwindSafe(|| serve(&shared, &socket))) {
            Ok(Ok(())) => (),
            Ok(Err(error)) => tracing::debug!("an NBD connection ended: {error}"),
            Err(_) => tracing::error!("a panic in an NBD connection; closing it"),
        }
        socket.close();
        // Under the lock, so that whoever stops the server does not miss it.
        let state = shared.lock();
        drop(socket);
        shared.changed.notify_all();
        drop(state);
    });
    match thread {
        Ok(thread) => state.connections.push(Connection { socket: weak, thread }),
        Err(error) => tracing::warn!("an NBD connection got no thread: {error}"),
    }
}

/// Serves one connection from its first byte to its last.
fn serve(shared: &Shared, socket: &Arc<Socket>) -> io::Result<()> {
    let mut receiver = Receiver::new(RECEIVE_BUFFER_LEN);
    receiver.set_deadline(Some(Instant::now() + HANDSHAKE_LIMIT));
    let Some(choice) = handshake::negotiate(&shared.exports, socket, &mut receiver)? else {
        return Ok(());
    };
    receiver.set_deadline(None);
    socket.set_timeout(None)?;
    let executor = Executor {
        device: Arc::clone(&shared.exports[choice.export].device),
        length: choice.length,
        structured: choice.structured,
        allocation: choice.allocation,
        outlet: Outlet::new(Arc::clone(socket)),
    };
    transmission::serve(Arc::new(executor), socket, &mut receiver)
}
