//! The protocol of the control sockets: of a mirror's owner, and of a host's daemon.
//!
//! One JSON document a line, each way: a request, then its response. A connection may carry many.
//! A mirror's socket lies in the mirror's folder, so whoever may enter the folder may speak; the
//! daemon's lies in the state folder and belongs to the daemon's user alone.
//!
//! **Failure**: a socket that nobody answers on belongs to an owner that died; the caller goes on
//! as if there were none. A request that is no request gets an error; a line longer than
//! [`LINE_LEN_MAX`] ends the connection.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use model::{Error, Kind, Result};
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use crate::commit::{CommitOptions, Outcome};
use crate::mirrors::{MirrorStatus, Resized};
use crate::owner::Ready;
use crate::records::Record;

/// The longest line, in bytes.
pub const LINE_LEN_MAX: u64 = 64 << 10;

/// The most connections to a mirror's socket at once; further ones are closed.
pub const CONNECTION_COUNT_MAX: usize = 64;

/// The most connections to a daemon's socket at once.
pub const DAEMON_CONNECTION_COUNT_MAX: usize = 256;

/// How long an owner may take to tell how its mirror is.
const STATUS_LIMIT: Duration = Duration::from_secs(10);

/// Connections that may wait to be accepted.
const LISTEN_BACKLOG: i32 = 128;

/// How long accepting rests after a failure, for example without file descriptors.
const ACCEPT_REST: Duration = Duration::from_millis(200);

/// What can be asked. The first five are for a mirror's owner, the others for a host's daemon, which
/// answers `Status` too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// How the mirror is.
    Status,
    /// Make its changes a version.
    Commit(CommitOptions),
    /// The guest is ready: its boot is over, and what it has read is its boot working set.
    Ready,
    /// Stop serving it; throw it away if asked to.
    Detach {
        /// True to throw the mirror and its changes away.
        discard: bool,
    },
    /// Make its disk longer.
    Resize {
        /// Bytes that it is to have.
        length_bytes: u64,
    },
    /// Answer when the mirror is served no more.
    Wait,
    /// Make or open a mirror and serve it.
    Attach(Box<AttachOrder>),
    /// Evict from bases that only the asked process can evict from.
    MakeRoom {
        /// How many bytes are wanted.
        bytes: u64,
    },
    /// Keep the guest of a mirror as a machine. For who runs the guest, at [`guest_socket`].
    ///
    /// [`guest_socket`]: crate::mirrors::guest_socket
    Suspend(SuspendOptions),
    /// What is asked of the owner of one mirror.
    Mirror {
        /// The mirror.
        name: String,
        /// What is asked of its owner.
        request: Box<Request>,
    },
}

/// What is wanted of a suspend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SuspendOptions {
    /// The image that gets the machine; none: the disk's, and `-suspended`.
    pub to: Option<String>,
    /// A tag for the machine.
    pub tag: Option<String>,
    /// True to end the guest afterwards.
    pub end: bool,
}

/// What came of a suspend: the keys that programs read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SuspendOutcome {
    /// The image.
    pub image: String,
    /// The machine's number.
    pub version: u64,
    /// The machine.
    pub machine: String,
    /// Its disk.
    pub disk: String,
    /// The machine's identity.
    pub digest: String,
    /// How long the guest stood still, in milliseconds.
    pub pause_ms: f64,
    /// Bytes of device state.
    pub state_bytes: u64,
    /// Plain bytes of the machine's blocks that the repository did not have.
    pub new_bytes: u64,
    /// Bytes that the repository grew by for the machine's memory and state.
    pub memory_stored_bytes: u64,
    /// Bytes that the repository grew by for its disk.
    pub disk_stored_bytes: u64,
    /// How long all of it took.
    pub seconds: f64,
}

/// What a daemon is to attach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachOrder {
    /// The version, as `image`, `image@version` or `image:tag`.
    pub reference: String,
    /// The folder of the repository that is meant, absolute; the daemon must have opened that one.
    pub repository: PathBuf,
    /// The mirror, its doors and policy.
    pub record: Record,
    /// Bytes that the disk is to have: it grows to that.
    #[serde(default)]
    pub length_bytes: Option<u64>,
}

/// What the owner answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// How the mirror is.
    Status(Box<MirrorStatus>),
    /// The version that was made.
    Committed(Box<Outcome>),
    /// Noted that the guest is ready.
    Ready,
    /// The disk is longer now.
    Resized(Box<Resized>),
    /// It has stopped serving; the connection ends.
    Detaching,
    /// It has stopped serving, for now: its daemon ends, and the next one serves it again.
    Released,
    /// The mirror is served.
    Attached(Box<Ready>),
    /// The guest was kept as a machine.
    Suspended(Box<SuspendOutcome>),
    /// How the daemon is.
    Host(Box<HostStatus>),
    /// Bytes that were given back.
    Room {
        /// How many.
        freed_bytes: u64,
    },
    /// It did not work.
    Failed {
        /// The error, on one line.
        message: String,
        /// What the user can do.
        hint: Option<String>,
    },
}

/// How a host's daemon is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    /// Its version.
    pub version: String,
    /// Its process.
    pub process: u32,
    /// The folder of its repository.
    pub repository: PathBuf,
    /// Mirrors that it serves.
    pub served_count: usize,
    /// Mirrors that it will serve as soon as it can.
    pub waiting_count: usize,
}

/// What answers requests.
pub trait Handler: Send + Sync {
    /// Answers one request.
    fn handle(self: Arc<Self>, request: Request) -> Result<Response>;
}

/// Asks whoever listens on a socket. `None` where nobody does.
///
/// # Errors
/// What the owner fails with; `Unavailable` where it goes away in between.
pub fn ask(socket: &Path, request: &Request) -> Result<Option<Response>> {
    let failed = |error| Error::io("speak with the owner of", socket.display().to_string(), error);
    let near = NearPath::of(socket);
    let mut stream = match near.and_then(|near| UnixStream::connect(&near.path)) {
        Ok(stream) => stream,
        Err(error) if is_nobody(&error) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if *request == Request::Status {
        stream.set_read_timeout(Some(STATUS_LIMIT)).map_err(failed)?;
    }
    let mut line = encode(request)?;
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(failed)?;
    let mut reader = BufReader::new(stream);
    let mut answer = String::new();
    (&mut reader).take(LINE_LEN_MAX).read_line(&mut answer).map_err(failed)?;
    let response: Response = serde_json::from_str(&answer).map_err(|error| {
        Error::new(Kind::Unavailable, "speak with the owner of", socket.display().to_string())
            .because("it went away or is another larder")
            .caused_by(error)
    })?;
    match response {
        Response::Failed { message, hint } => {
            let whom = match request {
                Request::Suspend(_) => "whoever runs the guest",
                Request::Attach(_) | Request::Mirror { .. } => "the host's daemon",
                _ => "the mirror's owner",
            };
            let error = Error::new(Kind::Unavailable, "ask", whom).because(message);
            Err(match hint {
                Some(hint) => error.hint(hint),
                None => error,
            })
        }
        Response::Detaching => {
            // The end of the connection says that it is done.
            let _ = reader.read_to_string(&mut answer);
            Ok(Some(Response::Detaching))
        }
        other => Ok(Some(other)),
    }
}

/// True where nobody listens: there is no socket, or a dead owner's.
fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
}

/// A path by which a socket is reached, however long its own is: the system takes some 100 bytes, a
/// state folder and the name of a mirror may have more. Holds while this value lives.
pub(crate) struct NearPath {
    pub(crate) path: PathBuf,
    _folder: Option<File>,
}

impl NearPath {
    /// What `sockaddr_un` holds, without the byte that ends it.
    const LEN_MAX: usize = 107;

    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        if path.as_os_str().len() <= NearPath::LEN_MAX {
            return Ok(NearPath { path: path.to_path_buf(), _folder: None });
        }
        let folder = File::open(folder)?;
        let path = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
        Ok(NearPath { path, _folder: Some(folder) })
    }
}

/// A control socket that is served.
pub struct ControlServer {
    path: PathBuf,
    listener: Arc<UnixListener>,
    is_stopped: Arc<AtomicBool>,
    answers: Arc<Answers>,
    thread: Option<JoinHandle<()>>,
}

/// The requests that are being answered.
#[derive(Debug, Default)]
pub struct Answers {
    count: Mutex<usize>,
    ended: Condvar,
}

/// One request that is being answered.
struct Answer<'a>(&'a Answers);

impl Answers {
    /// Waits until every request that was read is answered, or until `limit` has passed: an owner
    /// that ends would take its last answers with it.
    pub fn wait(&self, limit: Duration) {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        let _ended = self.ended.wait_timeout_while(count, limit, |count| *count > 0);
    }

    fn begin(&self) -> Answer<'_> {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Answer(self)
    }
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        *self.0.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.ended.notify_all();
    }
}

impl ControlServer {
    /// Listens on `path` and hands requests to `handler`. The caller holds the mirror's lock, so a
    /// socket that lies there is a dead owner's and is replaced.
    pub fn start(
        path: &Path,
        handler: Arc<dyn Handler>,
        connection_count_max: usize,
    ) -> Result<Self> {
        Self::listen(path, handler, connection_count_max, Who::Umask)
    }

    /// The same for the user of this process alone.
    pub fn start_private(
        path: &Path,
        handler: Arc<dyn Handler>,
        connection_count_max: usize,
    ) -> Result<Self> {
        Self::listen(path, handler, connection_count_max, Who::OwnUser)
    }

    fn listen(
        path: &Path,
        handler: Arc<dyn Handler>,
        connection_count_max: usize,
        who: Who,
    ) -> Result<Self> {
        let failed = |error| Error::io("listen on", path.display().to_string(), error);
        if path.exists() {
            std::fs::remove_file(path).map_err(failed)?;
        }
        let near = NearPath::of(path).map_err(failed)?;
        let listener = Arc::new(bind(&near.path, who).map_err(failed)?);
        let is_stopped = Arc::new(AtomicBool::new(false));
        let answers = Arc::new(Answers::default());
        let thread = std::thread::spawn({
            let (listener, is_stopped) = (listener.clone(), is_stopped.clone());
            let answers = answers.clone();
            move || accept_all(&listener, &handler, &answers, &is_stopped, connection_count_max)
        });
        let (path, thread) = (path.to_path_buf(), Some(thread));
        Ok(ControlServer { path, listener, is_stopped, answers, thread })
    }

    /// The requests that are being answered, also after this server is gone.
    pub fn answers(&self) -> Arc<Answers> {
        self.answers.clone()
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Release);
        // Wakes the listener, also when its folder is gone by now.
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Who may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    /// Whom the umask lets.
    Umask,
    /// The user of this process.
    OwnUser,
}

/// A socket at a path, however long that is, for the user of this process alone.
pub(crate) fn listen_private(path: &Path) -> io::Result<UnixListener> {
    bind(&NearPath::of(path)?.path, Who::OwnUser)
}

fn bind(path: &Path, who: Who) -> io::Result<UnixListener> {
    if who == Who::Umask {
        return UnixListener::bind(path);
    }
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Before it has a name, so that there is no moment in which others may connect.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, LISTEN_BACKLOG)?;
    Ok(socket.into())
}

fn accept_all(
    listener: &UnixListener,
    handler: &Arc<dyn Handler>,
    answers: &Arc<Answers>,
    is_stopped: &AtomicBool,
    connection_count_max: usize,
) {
    let connections = Arc::new(());
    for stream in listener.incoming() {
        if is_stopped.load(Ordering::Acquire) {
            break;
        }
        let served = stream.and_then(|stream| {
            let (handler, answers) = (handler.clone(), answers.clone());
            let connection = connections.clone();
            if Arc::strong_count(&connections) > connection_count_max + 1 {
                return Ok(());
            }
            let serve = move || {
                let _connection = connection;
                serve(stream, &handler, &answers);
            };
            std::thread::Builder::new().name("control".into()).spawn(serve).map(drop)
        });
        if let Err(error) = served {
            tracing::warn!(%error, "cannot accept on the control socket");
            // What is missing now may be there again in a moment; without a rest this would spin.
            std::thread::park_timeout(ACCEPT_REST);
        }
    }
}

fn serve(mut stream: UnixStream, handler: &Arc<dyn Handler>, answers: &Answers) {
    let Ok(copy) = stream.try_clone() else { return };
    let mut reader = BufReader::new(copy);
    loop {
        let mut line = String::new();
        match (&mut reader).take(LINE_LEN_MAX).read_line(&mut line) {
            Ok(count) if count > 0 && line.ends_with('\n') => {}
            _ => return,
        }
        let _answering = answers.begin();
        let answer = serde_json::from_str(&line)
            .map_err(|error| {
                Error::new(Kind::Invalid, "read", "the request").because(error.to_string())
            })
            .and_then(|request| handler.clone().handle(request));
        let response = answer.unwrap_or_else(|error| Response::Failed {
            message: error.chain(),
            hint: error.hint_text().map(str::to_string),
        });
        let Ok(mut text) = encode(&response) else { return };
        text.push('\n');
        let is_over = matches!(response, Response::Detaching | Response::Released);
        if stream.write_all(text.as_bytes()).is_err() || is_over {
            return;
        }
    }
}

fn encode(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|error| Error::new(Kind::Bug, "write", "a control message").caused_by(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Refuses;
    impl Handler for Refuses {
        fn handle(self: Arc<Self>, request: Request) -> Result<Response> {
            match request {
                Request::Detach { .. } => Ok(Response::Detaching),
                _ => Err(Error::new(Kind::Refused, "do", "it").because("no").hint("ask again")),
            }
        }
    }

    #[test]
    fn a_crowd_of_connections_is_turned_away_and_the_next_is_served() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let _server = ControlServer::start(&path, Arc::new(Refuses), CONNECTION_COUNT_MAX).unwrap();
        let crowd: Vec<UnixStream> =
            (0..CONNECTION_COUNT_MAX + 8).map(|_| UnixStream::connect(&path).unwrap()).collect();
        // Those that were turned away are at their end without having said anything.
        let mut byte = [0];
        assert_eq!((&crowd[CONNECTION_COUNT_MAX + 7]).read(&mut byte).unwrap(), 0);
        drop(crowd);
        let served = || ask(&path, &Request::Status).is_err_and(|e| e.hint_text().is_some());
        while !served() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_line_that_is_too_long_ends_its_connection() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let _server = ControlServer::start(&path, Arc::new(Refuses), CONNECTION_COUNT_MAX).unwrap();
        let mut stream = UnixStream::connect(&path).unwrap();
        // It may be closed before all is written.
        let _ = stream.write_all(&vec![b' '; LINE_LEN_MAX as usize + 1]);
        assert!(!matches!(stream.read(&mut [0]), Ok(1..)));
        assert!(ask(&path, &Request::Status).is_err_and(|e| e.hint_text().is_some()));
    }

    #[test]
    fn a_socket_is_reached_however_long_the_path_of_its_folder_is() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("x".repeat(120));
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("control");
        let server = ControlServer::start(&path, Arc::new(Refuses), CONNECTION_COUNT_MAX).unwrap();
        assert!(ask(&path, &Request::Status).is_err_and(|e| e.hint_text().is_some()));
        drop(server);
        assert!(ask(&path, &Request::Status).unwrap().is_none());
    }

    #[test]
    fn errors_come_back_with_their_hint_and_rubbish_gets_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        assert!(ask(&path, &Request::Status).unwrap().is_none());
        let server = ControlServer::start(&path, Arc::new(Refuses), CONNECTION_COUNT_MAX).unwrap();
        let error = ask(&path, &Request::Status).unwrap_err();
        assert_eq!(error.hint_text(), Some("ask again"));
        assert_eq!(error.chain(), "ask the mirror's owner: do it: no");
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(b"{\"burn\":1}\n").unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        assert!(line.contains("failed"), "{line}");
        drop(server);
        assert!(!path.exists());
        let server = ControlServer::start(&path, Arc::new(Refuses), CONNECTION_COUNT_MAX).unwrap();
        std::fs::remove_file(&path).unwrap();
        drop(server);
    }

    #[test]
    fn a_private_socket_is_for_its_user_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let _server = ControlServer::start_private(&path, Arc::new(Refuses), 4).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(ask(&path, &Request::Status).is_err_and(|e| e.hint_text().is_some()));
    }

    #[test]
    fn a_socket_may_lie_deeper_than_an_address_can_say() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let path = deep.join("control");
        let server = ControlServer::start(&path, Arc::new(Refuses), CONNECTION_COUNT_MAX).unwrap();
        assert!(path.exists());
        let error = ask(&path, &Request::Status).unwrap_err();
        assert_eq!(error.hint_text(), Some("ask again"));
        drop(server);
        assert!(!path.exists());
        assert!(ask(&path, &Request::Status).unwrap().is_none());
    }
}
