//! Listening, one connection after the other, and stopping.
//!
//! **Invariants**: no thread of a server is alive after `stop` or drop. A connection is taken only
//! after everything of the one before is done.

use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use model::device::Device;
use model::{Error, Result};
use rustix::net::Shutdown;
use vhost::vhost_user::BackendReqHandler;

use super::backchannel::Backchannel;
use super::execute::Disk;
use super::session::Session;
use crate::socket_file::{self, SocketFile};

/// How long accepting rests after a failure, for example without file descriptors.
const ACCEPT_REST: Duration = Duration::from_millis(200);

/// A listening server of one disk. `stop` or dropping it ends it.
pub struct VhostUserServer {
    path: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    socket_file: Option<SocketFile>,
}

struct Shared {
    disk: Arc<Disk>,
    listener: UnixListener,
    state: Mutex<State>,
    /// The server stops.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    is_stopping: bool,
    connection: Option<Arc<UnixStream>>,
    backchannel: Option<Backchannel>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VhostUserServer {
    /// Listens on a Unix socket, and serves the device to one guest at a time on threads of its
    /// own. A guest that asks for the disk's serial gets the first 20 bytes of `name`.
    ///
    /// Order: a client that connects after this returned is served, once the one before is gone.
    ///
    /// # Errors
    /// `Refused` where the path is in use, or is a file that is no socket; otherwise what the
    /// system says.
    pub fn start(path: &Path, name: &str, device: Arc<dyn Device>) -> Result<VhostUserServer> {
        let listener = socket_file::listen(path)?;
        let socket_file = SocketFile::note(path);
        let shared = Arc::new(Shared {
            disk: Arc::new(Disk::new(device, name)),
            listener,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let for_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("vhost-user".into())
            .spawn(move || accept(&for_thread))
            .map_err(|e| Error::io("serve over vhost-user", path.display().to_string(), e))?;
        tracing::info!("serving vhost-user-blk on {}", path.display());
        Ok(VhostUserServer { path: path.into(), shared, thread: Some(thread), socket_file })
    }

    /// The socket that it listens on.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells the front end that the disk has become longer. True where it was told, and so its guest
    /// is; otherwise it learns of it when it connects again.
    pub fn announce_length(&self) -> bool {
        let state = self.shared.lock();
        let Some(backchannel) = &state.backchannel else { return false };
        let told = backchannel.announce();
        if let Err(error) = &told {
            tracing::debug!("a vhost-user front end does not hear of a new length: {error}");
        }
        told.is_ok()
    }

    /// Stops accepting, answers what is under way, ends the connection, joins all threads and
    /// removes the socket file.
    ///
    /// Cost: waits for calls to the device that are under way.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        {
            let mut state = self.shared.lock();
            state.is_stopping = true;
            if let Some(connection) = &state.connection {
                let _ = connection.shutdown(std::net::Shutdown::Both);
            }
        }
        self.shared.changed.notify_all();
        // Wakes the thread that accepts.
        let _ = rustix::net::shutdown(&self.shared.listener, Shutdown::Both);
        let _ = thread.join();
        if let Some(file) = self.socket_file.take() {
            file.remove();
        }
        tracing::info!("stopped serving vhost-user-blk on {}", self.path.display());
    }
}

impl Drop for VhostUserServer {
    fn drop(&mut self) {
        self.end();
    }
}

/// Serves connections until the server stops.
fn accept(shared: &Shared) {
    loop {
        let accepted = shared.listener.accept();
        let mut state = shared.lock();
        if state.is_stopping {
            return;
        }
        let connection = accepted.and_then(|(stream, _)| Ok((stream.try_clone()?, stream)));
        match connection {
            Ok((ours, stream)) => {
                let ours = Arc::new(ours);
                state.connection = Some(ours.clone());
                drop(state);
                if catch_unwind(AssertUnwindSafe(|| serve(shared, stream, ours))).is_err() {
                    tracing::error!("a panic in a vhost-user connection; closing it");
                }
                let mut state = shared.lock();
                (state.connection, state.backchannel) = (None, None);
            }
            Err(error) => {
                tracing::warn!("a vhost-user connection could not be accepted: {error}");
                let rested = shared.changed.wait_timeout(state, ACCEPT_REST);
                drop(rested.unwrap_or_else(PoisonError::into_inner));
            }
        }
    }
}

/// Serves one connection from its first message to its last.
fn serve(shared: &Shared, stream: UnixStream, ours: Arc<UnixStream>) {
    let session = Arc::new(Mutex::new(Session::new(shared.disk.clone(), ours.clone())));
    let mut messages = BackendReqHandler::from_stream(stream, session);
    loop {
        // Where it cannot be looked at, handling it says why.
        if let Some(brought) = Backchannel::look(&ours).unwrap_or_default() {
            shared.lock().backchannel = Some(brought);
        }
        if let Err(error) = messages.handle_request() {
            tracing::debug!("a vhost-user connection ended: {error}");
            return;
        }
    }
}
