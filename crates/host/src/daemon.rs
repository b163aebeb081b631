//! One process per host that serves many mirrors, and serves them again after it was killed.
//!
//! ```text
//! start: lock ─► what was served (daemon.toml) ─► each mirror taken up by a thread of its own ─┐
//! attach (control socket) ─► owner ─► noted in daemon.toml ─► ready ───────────────────────────┤
//!                                                                                              ▼
//!     stop (SIGTERM, upgrade): released, noted still ◄── thread waits ──► detached: noted no more
//! ```
//!
//! All mirrors share one repository and one state folder, and so bases, fetches and chunks. Each has
//! an owner, with a control socket of its own beside its state, as without a daemon.
//!
//! **Invariants**
//! - One daemon per state folder: it holds the lock of `daemon.lock`.
//! - A mirror that was answered `ready` is noted; one whose detach was answered is not.
//!
//! **Failure**: a mirror that cannot be taken up (its repository is out of reach, its socket's folder
//! is missing, another process has it) is tried again, after 1 s at the latest, until it can or is
//! detached; the log says once why. A panic while a mirror is served ends that mirror.
//!
//! **Not here**: what serving a mirror is (`owner`), the file (`records`), the protocol (`control`).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use env::{File, FileSystem, OpenMode};
use mirror::{Mirror, StateFolder};
use model::{Error, Kind, MirrorName, Result};
use repository::Repository;

use crate::clients::Client;
use crate::control::{
    AttachOrder, ControlServer, DAEMON_CONNECTION_COUNT_MAX, Handler, HostStatus, Request, Response,
};
use crate::counts::Fetches;
use crate::metrics::{self, HostNumbers, MirrorNumbers};
use crate::owner::{Asked, AttachRequest, Owner, OwnerHandle, Ready};
use crate::records::{self, Record};
use crate::stock::{Shelf, StockKeeper};

/// The first pause before a mirror that could not be taken up is tried again; each further one is
/// twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// How long a start waits until each mirror was tried once.
const FIRST_TRY_LIMIT: Duration = Duration::from_secs(30);
/// How long a daemon that ends waits for its last answers to be out.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// What a daemon works with.
pub struct DaemonOptions {
    /// Files of this host.
    pub file_system: Arc<dyn FileSystem>,
    /// Where mirrors are.
    pub state: StateFolder,
    /// The repository's folder, absolute.
    pub repository: PathBuf,
    /// Bytes that the stock of boot working sets may take; without it none is kept.
    pub stock_len_max: Option<u64>,
    /// Opens it.
    pub open_repository: Box<dyn Fn() -> Result<Repository> + Send + Sync>,
}

/// A daemon that runs.
pub struct Daemon {
    shared: Arc<Shared>,
    control: Option<ControlServer>,
    keeper: Option<StockKeeper>,
    _lock: Arc<dyn File>,
}

struct Shared {
    options: DaemonOptions,
    repository: Mutex<Option<Repository>>,
    fetches: Arc<Fetches>,
    shelf: Shelf,
    served: Mutex<Served>,
    changed: Condvar,
    /// Which change of `served` the file holds.
    saved: Mutex<u64>,
}

#[derive(Default)]
struct Served {
    mirrors: BTreeMap<String, Entry>,
    /// Counts changes of what is to be served.
    change_count: u64,
    next_id: u64,
    is_stopping: bool,
    thread_count: usize,
    /// Mirrors that were not tried yet since the start.
    untried_count: usize,
}

struct Entry {
    /// Tells it from an earlier one of the same name.
    id: u64,
    record: Record,
    /// None as long as it could not be taken up.
    owner: Option<OwnerHandle>,
}

/// Where the daemon of a state folder listens.
pub fn daemon_socket(state: &StateFolder) -> PathBuf {
    state.path().join("control")
}

/// Takes the lock that a daemon holds.
///
/// # Errors
/// `Refused` where a daemon runs.
pub(crate) fn lock(file_system: &dyn FileSystem, state: &StateFolder) -> Result<Arc<dyn File>> {
    let path = state.path().join("daemon.lock");
    let operation = "run the daemon of";
    let subject = || state.path().display().to_string();
    let failed = |error| Error::io(operation, subject(), error);
    file_system.create_folders(state.path()).map_err(failed)?;
    let file = file_system.open(&path, OpenMode::OpenOrCreate).map_err(failed)?;
    if !file.try_lock().map_err(failed)? {
        let text = file_system.read_file(&path, 64).unwrap_or_default();
        let process = String::from_utf8_lossy(&text).trim().to_string();
        return Err(Error::new(Kind::Refused, operation, subject())
            .because(format!("process {process} is its daemon"))
            .hint("a state folder has one daemon: stop that one, or use another `--state`"));
    }
    // For messages only: a full disk must not keep a daemon from starting.
    let text = format!("{}\n", std::process::id());
    let _ = file.set_len(0).and_then(|()| file.write_all_at(text.as_bytes(), 0));
    Ok(file)
}

impl Daemon {
    /// Starts to listen, and takes up what was served before. When it returns each mirror was tried
    /// once.
    ///
    /// # Errors
    /// `Refused` where the state folder has a daemon. Those of opening the repository, unless there
    /// are mirrors to be served: then it is waited for.
    pub fn start(options: DaemonOptions) -> Result<Self> {
        let lock = lock(&*options.file_system, &options.state)?;
        let noted = records::read(&*options.file_system, &options.state)?;
        let socket = daemon_socket(&options.state);
        let shared = Arc::new(Shared {
            options,
            repository: Mutex::default(),
            fetches: Arc::default(),
            shelf: Shelf::default(),
            served: Mutex::default(),
            changed: Condvar::new(),
            saved: Mutex::default(),
        });
        match shared.repository() {
            Err(error) if noted.is_empty() => return Err(error),
            Err(error) => tracing::warn!("{}", error.chain()),
            Ok(_) => {}
        }
        let control =
            ControlServer::start_private(&socket, shared.clone(), DAEMON_CONNECTION_COUNT_MAX)?;
        for record in noted {
            shared.clone().start_taking_up(record)?;
        }
        let served = shared.lock();
        let untried = |served: &mut Served| served.untried_count > 0;
        let tried = shared.changed.wait_timeout_while(served, FIRST_TRY_LIMIT, untried);
        drop(tried.unwrap_or_else(PoisonError::into_inner));
        let keeper = shared.options.stock_len_max.map(|limit_len| {
            let open = shared.clone();
            StockKeeper::start(&shared.options.state, limit_len, move || open.repository())
        });
        Ok(Daemon { shared, control: Some(control), keeper, _lock: lock })
    }

    /// How it is.
    pub fn status(&self) -> HostStatus {
        self.shared.status()
    }

    /// A call that tells all numbers about it, as Prometheus reads them.
    pub fn metrics(&self) -> impl Fn() -> String + Send + Sync + 'static {
        let shared = self.shared.clone();
        move || shared.metrics()
    }

    /// Stops serving, without detaching: the next daemon of the state folder serves the same mirrors
    /// at the same doors. Guests that reconnect stall until then.
    pub fn stop(mut self) {
        drop(self.keeper.take());
        let answers = self.control.take().map(|control| control.answers());
        let mut served = self.shared.lock();
        served.is_stopping = true;
        for owner in served.mirrors.values().filter_map(|entry| entry.owner.as_ref()) {
            owner.ask_to_stop(Asked::Release);
        }
        self.shared.changed.notify_all();
        let alive = |served: &mut Served| served.thread_count > 0;
        let ended = self.shared.changed.wait_while(served, alive);
        drop(ended.unwrap_or_else(PoisonError::into_inner));
        if let Some(answers) = answers {
            answers.wait(ANSWER_LIMIT);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Served> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The repository, opened now if it was not.
    fn repository(&self) -> Result<Repository> {
        let mut open = self.repository.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(repository) = &*open {
            return Ok(repository.clone());
        }
        let repository = (self.options.open_repository)()?;
        Ok(open.insert(repository).clone())
    }

    fn status(&self) -> HostStatus {
        let served = self.lock();
        let served_count = served.mirrors.values().filter(|entry| entry.owner.is_some()).count();
        HostStatus {
            version: env!("CARGO_PKG_VERSION").to_string(),
            process: std::process::id(),
            repository: self.options.repository.clone(),
            served_count,
            waiting_count: served.mirrors.len() - served_count,
        }
    }

    fn metrics(&self) -> String {
        let owners: Vec<OwnerHandle> =
            self.lock().mirrors.values().filter_map(|entry| entry.owner.clone()).collect();
        let status = self.status();
        let mut mirrors = Vec::new();
        let mut overlay_bytes = 0;
        for owner in owners {
            overlay_bytes += owner.mirror().statistics().overlay_file_bytes;
            mirrors.push(MirrorNumbers { status: owner.status(), counts: owner.counts() });
        }
        metrics::text(HostNumbers {
            served_count: status.served_count,
            waiting_count: status.waiting_count,
            bases: self.options.state.base_numbers().unwrap_or_default(),
            chunks: self.options.state.chunk_cache().map(|c| c.numbers()).unwrap_or_default(),
            overlay_bytes,
            outages: self.options.state.reachability().outages(),
            fetches: self.fetches.clone(),
            mirrors,
        })
    }

    /// Makes what is to be served durable, as it is now or later. Several who come at once share a
    /// write.
    fn save(&self) -> Result<()> {
        let change = self.lock().change_count;
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        if *saved >= change {
            return Ok(());
        }
        let (records, change) = {
            let served = self.lock();
            let records: Vec<Record> =
                served.mirrors.values().map(|entry| entry.record.clone()).collect();
            (records, served.change_count)
        };
        records::write(&*self.options.file_system, &self.options.state, &records)?;
        *saved = change;
        Ok(())
    }

    /// Runs a part of a mirror's life on a thread of its own, which `stop` waits for.
    fn spawn(self: &Arc<Self>, work: impl FnOnce(&Shared) + Send + 'static) -> Result<()> {
        struct Counted(Arc<Shared>);
        impl Drop for Counted {
            fn drop(&mut self) {
                self.0.lock().thread_count -= 1;
                self.0.changed.notify_all();
            }
        }
        self.lock().thread_count += 1;
        let counted = Counted(self.clone());
        let thread = std::thread::Builder::new().name("serve".into());
        thread
            .spawn(move || work(&counted.0))
            .map(drop)
            .map_err(|error| Error::io("start", "a thread for a mirror", error))
    }

    fn start_taking_up(self: Arc<Self>, record: Record) -> Result<()> {
        let id = {
            let mut served = self.lock();
            served.untried_count += 1;
            served.insert(record, None)
        };
        self.spawn(move |shared| shared.take_up(id))
    }

    /// Tries to serve a mirror until it is served, or is not to be any more.
    fn take_up(&self, id: u64) {
        let (mut pause, mut told, mut is_first) = (PAUSE_MIN, String::new(), true);
        loop {
            let record = self.lock().record(id);
            let outcome = record.as_ref().map(|record| self.serve_again(record));
            if let (Some(record), Some(Err(error))) = (&record, &outcome)
                && error.chain() != told
            {
                told = error.chain();
                tracing::warn!(mirror = record.mirror, error = told, "cannot be served yet");
            }
            let owner = match &outcome {
                Some(Ok(Some(owner))) => Some(owner.handle()),
                _ => None,
            };
            self.note_try(id, owner, std::mem::take(&mut is_first));
            match outcome {
                None => return,
                Some(Ok(Some(owner))) => return self.serve(owner, id),
                Some(Ok(None)) => {
                    tracing::warn!(id, "a mirror was thrown away and is not served again");
                    return self.forget(id);
                }
                Some(Err(_)) => {}
            }
            let goes_on = |served: &mut Served| !served.is_stopping && served.record(id).is_some();
            let waited = self.changed.wait_timeout_while(self.lock(), pause, goes_on);
            let mut served = waited.unwrap_or_else(PoisonError::into_inner).0;
            if !goes_on(&mut served) {
                return;
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Notes what came of trying to take a mirror up.
    fn note_try(&self, id: u64, owner: Option<OwnerHandle>, is_first: bool) {
        let mut served = self.lock();
        if let Some(entry) = served.mirrors.values_mut().find(|entry| entry.id == id) {
            entry.owner = owner;
        }
        served.untried_count -= usize::from(is_first);
        self.changed.notify_all();
    }

    /// Opens a mirror again, at the doors that it had. None where it is gone.
    fn serve_again(&self, record: &Record) -> Result<Option<Owner>> {
        let request = record.request(None)?;
        if !Mirror::exists(&self.options.state, &request.mirror)? {
            return Ok(None);
        }
        self.start_owner(&request).map(Some)
    }

    fn start_owner(&self, request: &AttachRequest) -> Result<Owner> {
        let repository = self.repository()?;
        let (state, fetches) = (self.options.state.clone(), self.fetches.clone());
        Owner::start_counted(repository, state, request, fetches, &self.shelf)
    }

    /// Serves a mirror until somebody asks its owner to stop.
    fn serve(&self, owner: Owner, id: u64) {
        let name = owner.mirror().name().clone();
        let (record, is_stopping) = {
            let served = self.lock();
            (served.record(id), served.is_stopping)
        };
        let mut asked = Asked::Release;
        if let Some(record) = record.filter(|_| !is_stopping) {
            tracing::info!(mirror = %name, "serving");
            let _watch = record.client.map(|client| watch(client, owner.handle()));
            asked = owner.wait();
        }
        if asked != Asked::Release {
            self.forget(id);
        }
        match owner.end(asked) {
            Ok(()) => tracing::info!(mirror = %name, ?asked, "no longer serving"),
            Err(error) => tracing::error!(mirror = %name, "{}", error.chain()),
        }
    }

    /// Notes that a mirror is not to be served any more.
    fn forget(&self, id: u64) {
        self.lock().remove(id);
        self.changed.notify_all();
        if let Err(error) = self.save() {
            tracing::error!("{}", error.chain());
        }
    }

    fn attach(self: &Arc<Self>, order: AttachOrder) -> Result<Ready> {
        let name = order.record.name()?;
        self.check_repository(&order.repository)?;
        let mut request = order.record.request(Some(order.reference.parse()?))?;
        request.length = order.length_bytes;
        let crate::DoorOptions { vhost_user, nbd, fuse, .. } = &request.doors;
        if vhost_user.is_none() && nbd.is_none() && fuse.is_none() {
            return Err(
                Error::new(Kind::Invalid, "attach", name.as_str()).because("no door is named")
            );
        }
        self.make_way(&name)?;
        let owner = self.start_owner(&request)?;
        let (ready, is_new) = (owner.ready(), owner.is_new());
        // With the port that was found.
        request.doors = owner.door_options();
        let noted = Record::new(&request).and_then(|record| {
            let id = self.lock().insert(record, Some(owner.handle()));
            self.save().inspect_err(|_| self.lock().remove(id)).map(|()| id)
        });
        match noted {
            Ok(id) => {
                self.spawn(move |shared| shared.serve(owner, id))?;
                Ok(ready)
            }
            Err(error) => {
                // The error that matters is the first.
                let _ = owner.stop(is_new);
                Err(error)
            }
        }
    }

    /// Refuses while the mirror is served; one that waits to be taken up waits no more.
    fn make_way(&self, name: &MirrorName) -> Result<()> {
        let mut served = self.lock();
        let refused =
            |reason: &str| Err(Error::new(Kind::Refused, "attach", name.as_str()).because(reason));
        if served.is_stopping {
            return refused("the daemon is ending");
        }
        let Some(entry) = served.mirrors.get(name.as_str()) else { return Ok(()) };
        match (&entry.owner, entry.id) {
            (Some(_), _) => refused("the daemon serves it already").map_err(|error: Error| {
                error.hint(format!("`larder mirrors` says where; `larder detach {name}` ends that"))
            }),
            (None, id) => {
                served.remove(id);
                self.changed.notify_all();
                Ok(())
            }
        }
    }

    /// A daemon has one repository; who names another means other versions.
    fn check_repository(&self, named: &Path) -> Result<()> {
        let own = &self.options.repository;
        let same = |path: &Path| path.canonicalize().ok() == own.canonicalize().ok();
        match named == own || same(named) {
            true => Ok(()),
            false => {
                Err(Error::new(Kind::Refused, "use the repository", named.display().to_string())
                    .because(format!("this host's daemon serves {}", own.display()))
                    .hint("name that one with `--repo`, or another state folder with `--state`"))
            }
        }
    }

    fn ask_mirror(&self, name: &str, request: Request) -> Result<Response> {
        let (id, owner) = match self.lock().mirrors.get(name) {
            Some(entry) => (entry.id, entry.owner.clone()),
            None => {
                return Err(Error::new(Kind::NotFound, "ask for the mirror", name)
                    .because("this host's daemon does not serve it"));
            }
        };
        match (owner, request) {
            (Some(owner), request) => owner.handle(request),
            (None, Request::Detach { discard: false }) => {
                self.forget(id);
                Ok(Response::Detaching)
            }
            (None, _) => Err(Error::new(Kind::Unavailable, "ask for the mirror", name)
                .because("the daemon could not open it yet; its log says why")
                .hint("try again")),
        }
    }
}

/// Ends the serving when its client ends, for as long as the returned end of a pipe is kept.
fn watch(client: Client, owner: OwnerHandle) -> Option<io::PipeWriter> {
    let name = owner.mirror().name().to_string();
    let (until, keep) = io::pipe().inspect_err(|error| not_watched(&name, error)).ok()?;
    let thread = std::thread::Builder::new().name("client".into());
    let watching = thread.spawn(move || match client.outlived(until) {
        Ok(true) => {
            let process = client.process;
            tracing::info!(mirror = %owner.mirror().name(), process, "its client has ended");
            owner.ask_to_stop(Asked::Detach { discard: client.discard });
        }
        Ok(false) => {}
        Err(error) => not_watched(owner.mirror().name().as_str(), &error),
    });
    watching.map(|_| keep).inspect_err(|error| not_watched(&name, error)).ok()
}

fn not_watched(mirror: &str, error: &io::Error) {
    tracing::warn!(mirror, %error, "served until it is detached: its client cannot be watched");
}

impl Served {
    fn insert(&mut self, record: Record, owner: Option<OwnerHandle>) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.change_count += 1;
        self.mirrors.insert(record.mirror.clone(), Entry { id, record, owner });
        id
    }

    fn remove(&mut self, id: u64) {
        self.mirrors.retain(|_, entry| entry.id != id);
        self.change_count += 1;
    }

    fn record(&self, id: u64) -> Option<Record> {
        self.mirrors.values().find(|entry| entry.id == id).map(|entry| entry.record.clone())
    }
}

impl Handler for Shared {
    fn handle(self: Arc<Self>, request: Request) -> Result<Response> {
        match request {
            Request::Status => Ok(Response::Host(Box::new(self.status()))),
            Request::Attach(order) => {
                self.attach(*order).map(|ready| Response::Attached(Box::new(ready)))
            }
            Request::Mirror { name, request } => self.ask_mirror(&name, *request),
            Request::MakeRoom { bytes } => {
                Ok(Response::Room { freed_bytes: self.options.state.make_room(bytes)? })
            }
            Request::Commit(_)
            | Request::Ready
            | Request::Detach { .. }
            | Request::Resize { .. }
            | Request::Suspend(_)
            | Request::Wait => Err(Error::new(Kind::Invalid, "ask", "the host's daemon")
                .because("which mirror is meant?")
                .hint("{\"mirror\":{\"name\":NAME,\"request\":REQUEST}}")),
        }
    }
}
