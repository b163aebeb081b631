//! A mirror that is open and served: doors, and a control socket beside the state.
//!
//! ```text
//! start ─► serving ─► asked to detach ───────────► doors closed ─► kept, or thrown away
//!                  └► asked to release (restart) ─► doors closed ─► kept, to be served again
//! ```

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use mirror::{Binding, Mirror, Patience, StateFolder};
use model::device::Device;
use model::progress::Silent;
use model::{ContentDigest, Error, Kind, MirrorName, Reference, Result, VersionKind};
use repository::Repository;
use repository::chunks::RepositoryChunks;
use serde::{Deserialize, Serialize};
use store::ChunkStore;

use crate::boot_sets::BootWatch;
use crate::clients::Client;
use crate::commit::Committer;
use crate::control::{CONNECTION_COUNT_MAX, ControlServer, Handler, Request, Response};
use crate::counts::{CountedChunks, CountedDevice, Counts, Fetches};
use crate::doors::{Door, DoorOptions, Doors};
use crate::holds;
use crate::mirrors::{MirrorStatus, Resized, check_repository, control_socket, note_repository};
use crate::stock::{Shelf, StockedChunks};
use crate::tree::{MirrorTree, OpenVersions};

/// What is to be attached, and how.
#[derive(Clone, Debug)]
pub struct AttachRequest {
    /// The version; where none is given, the mirror must be there and is opened as it stands.
    pub reference: Option<Reference>,
    /// The mirror: made, or opened again.
    pub mirror: MirrorName,
    /// Its doors.
    pub doors: DoorOptions,
    /// How long its reads wait while the repository cannot be reached.
    pub patience: Patience,
    /// Record what is read, until the mirror is let go, as a working set of this name.
    pub record: Option<String>,
    /// How many bytes the disk is to have: it grows to that.
    pub length: Option<u64>,
    /// The process that a daemon serves it for; without one, until it is detached.
    pub client: Option<Client>,
}

/// What is said once a mirror is served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ready {
    /// Always `ready`.
    pub event: String,
    /// The mirror.
    pub mirror: String,
    /// The image of the version that its next commit follows.
    pub image: String,
    /// That version's number.
    pub version: u64,
    /// Bytes of the disk.
    pub length_bytes: u64,
    /// The doors.
    pub exports: Vec<Door>,
}

/// A mirror that this process serves.
pub struct Owner {
    shared: Arc<Shared>,
    control: Option<ControlServer>,
    is_new: bool,
}

/// Asks an owner things from elsewhere in its process; outlives it.
#[derive(Clone)]
pub struct OwnerHandle(Arc<Shared>);

struct Shared {
    repository: Repository,
    chunks: Arc<RepositoryChunks>,
    state: StateFolder,
    mirror: Arc<Mirror>,
    committer: Arc<Committer>,
    counts: Arc<Counts>,
    views: Arc<OpenVersions>,
    doors: Mutex<Option<Doors>>,
    boot_watch: Mutex<Option<BootWatch>>,
    ending: Mutex<Ending>,
    changed: Condvar,
}

/// Why an owner ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The mirror is to be served no more.
    Detach {
        /// It is to be thrown away.
        discard: bool,
    },
    /// The mirror will be served again by the process that comes next.
    Release,
}

/// How far the end has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ending {
    /// Somebody asked to stop.
    asked: Option<Asked>,
    is_done: bool,
    /// What went wrong on the way, and a hint.
    failure: Option<(String, Option<String>)>,
}

/// How long an owner that ends waits for its last answers to be out.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

impl Owner {
    /// Makes or opens a mirror and serves it.
    ///
    /// # Errors
    /// `Refused` where another process has the mirror open, or where it holds changes upon another
    /// version than the one asked for.
    pub fn start(
        repository: Repository,
        state: StateFolder,
        request: &AttachRequest,
    ) -> Result<Self> {
        Self::start_counted(repository, state, request, Arc::default(), &Shelf::default())
    }

    /// The same; what it fetches is counted with that of others.
    pub(crate) fn start_counted(
        repository: Repository,
        state: StateFolder,
        request: &AttachRequest,
        fetches: Arc<Fetches>,
        shelf: &Shelf,
    ) -> Result<Self> {
        let chunks = Arc::new(repository.chunks().another());
        let content = content_of(&repository, &state, request);
        let found = content.and_then(|content| shelf.find(&state, content));
        let stocked = Arc::new(StockedChunks::new(chunks.clone(), found));
        let counted = Arc::new(CountedChunks::new(stocked.clone(), fetches));
        let (mirror, is_new) = open_mirror(&repository, counted, &state, request)?;
        mirror.set_patience(request.patience);
        let parts = (repository.clone(), chunks, stocked, state.clone(), mirror.clone());
        let served = Self::serve(parts, request);
        let served =
            served.map(|(shared, control)| Owner { shared, control: Some(control), is_new });
        served.inspect_err(|_| {
            // The error that matters is the first; a mirror that was not there before goes again.
            let _ = mirror.close();
            if is_new {
                let _ = throw_away(&state, mirror.name(), &repository);
            }
        })
    }

    fn serve(
        (repository, chunks, stocked, state, mirror): (
            Repository,
            Arc<RepositoryChunks>,
            Arc<StockedChunks>,
            StateFolder,
            Arc<Mirror>,
        ),
        request: &AttachRequest,
    ) -> Result<(Arc<Shared>, ControlServer)> {
        // Before the doors open: what the guest reads first is on its way then.
        let boot_watch =
            BootWatch::start(&repository, &chunks, &stocked, &state, &mirror, request)?;
        let committer = Arc::new(Committer::new(repository.clone(), mirror.clone()));
        let (views, patience) = (Arc::new(OpenVersions::default()), request.patience);
        let tree = {
            let (repository, state) = (repository.clone(), state.clone());
            let (mirror, committer, views) = (mirror.clone(), committer.clone(), views.clone());
            move |device: Arc<dyn Device>| -> Arc<dyn attach::fuse::Tree> {
                Arc::new(MirrorTree::new(
                    repository, state, mirror, committer, device, patience, views,
                ))
            }
        };
        let counts = Arc::new(Counts::default());
        let device: Arc<dyn Device> = Arc::new(CountedDevice::new(mirror.clone(), counts.clone()));
        let doors = Doors::open(&request.doors, mirror.name(), &device, tree)?;
        let socket = control_socket(&state, mirror.name());
        let shared = Arc::new(Shared {
            repository,
            chunks,
            state,
            mirror,
            committer,
            counts,
            views,
            doors: Mutex::new(Some(doors)),
            boot_watch: Mutex::new(boot_watch),
            ending: Mutex::default(),
            changed: Condvar::new(),
        });
        let control = ControlServer::start(&socket, shared.clone(), CONNECTION_COUNT_MAX)?;
        Ok((shared, control))
    }

    /// True where the mirror was made for this.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// How the same doors are opened again.
    pub fn door_options(&self) -> DoorOptions {
        let doors = self.shared.doors.lock().unwrap_or_else(PoisonError::into_inner);
        doors.as_ref().map(|doors| doors.options().clone()).unwrap_or_default()
    }

    /// A handle for other threads.
    pub fn handle(&self) -> OwnerHandle {
        OwnerHandle(self.shared.clone())
    }

    /// What to say now that it is served.
    pub fn ready(&self) -> Ready {
        let parent = self.shared.mirror.binding().parent;
        Ready {
            event: "ready".into(),
            mirror: self.shared.mirror.name().to_string(),
            image: parent.image.to_string(),
            version: parent.version.get(),
            length_bytes: self.shared.mirror.length(),
            exports: self.shared.doors_list(),
        }
    }

    /// The mirror.
    pub fn mirror(&self) -> &Arc<Mirror> {
        &self.shared.mirror
    }

    /// How the mirror is.
    pub fn status(&self) -> MirrorStatus {
        self.shared.status()
    }

    /// Waits until somebody asks to stop.
    pub fn wait(&self) -> Asked {
        let mut ending = self.shared.ending.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match ending.asked {
                Some(asked) => return asked,
                None => {
                    let changed = self.shared.changed.wait(ending);
                    ending = changed.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Ends it as a detach does, see [`Owner::end`].
    pub fn stop(self, discard: bool) -> Result<()> {
        self.end(Asked::Detach { discard })
    }

    /// Closes the doors, makes everything durable, lets the mirror go; throws it away where that
    /// was asked for, here or before.
    pub fn end(mut self, asked: Asked) -> Result<()> {
        self.shared.ask_to_stop(asked);
        // The socket goes while the mirror is still held: the next owner's must not be taken away.
        let answers = self.control.take().map(|control| control.answers());
        let closed = self.shared.close();
        {
            let mut ending = self.shared.ending.lock().unwrap_or_else(PoisonError::into_inner);
            let told = |error: &Error| (error.chain(), error.hint_text().map(str::to_string));
            ending.failure = closed.as_ref().err().map(told);
            ending.is_done = true;
            self.shared.changed.notify_all();
        }
        if let Some(answers) = answers {
            answers.wait(ANSWER_LIMIT);
        }
        closed
    }
}

impl OwnerHandle {
    /// How the mirror is.
    pub fn status(&self) -> MirrorStatus {
        self.0.status()
    }

    /// The mirror.
    pub fn mirror(&self) -> &Arc<Mirror> {
        &self.0.mirror
    }

    /// What went through its doors since it is served.
    pub fn counts(&self) -> Arc<Counts> {
        self.0.counts.clone()
    }

    /// Asks the owner to stop.
    pub fn ask_to_stop(&self, asked: Asked) {
        self.0.ask_to_stop(asked);
    }

    /// Answers a request as the mirror's own socket does.
    pub fn handle(&self, request: Request) -> Result<Response> {
        self.0.clone().handle(request)
    }
}

impl Shared {
    fn doors_list(&self) -> Vec<Door> {
        let doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        doors.as_ref().map_or_else(Vec::new, |doors| doors.list().to_vec())
    }

    fn status(&self) -> MirrorStatus {
        let statistics = self.mirror.statistics();
        MirrorStatus {
            name: self.mirror.name().to_string(),
            base: self.mirror.binding().parent.to_string(),
            length_bytes: self.mirror.length(),
            dirty_bytes: statistics.dirty_bytes,
            fetched_bytes: self.chunks.read_len(),
            fetched_plain_bytes: statistics.fetched_bytes,
            host_bytes: statistics.host_bytes,
            served_by: Some(std::process::id()),
            exports: self.doors_list(),
        }
    }

    fn ask_to_stop(&self, asked: Asked) {
        let mut ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        // Of several who ask, whoever wants most of it gone is heard.
        let rank = |asked: Asked| match asked {
            Asked::Release => 0,
            Asked::Detach { discard: false } => 1,
            Asked::Detach { discard: true } => 2,
        };
        if ending.asked.is_none_or(|before| rank(before) < rank(asked)) {
            ending.asked = Some(asked);
        }
        self.changed.notify_all();
    }

    /// Makes the disk longer and tells whoever can be told.
    fn resize(&self, length: u64) -> Result<Resized> {
        let before_bytes = self.mirror.grow(length)?;
        let doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Resized {
            mirror: self.mirror.name().to_string(),
            length_bytes: length,
            before_bytes,
            doors: doors.as_ref().map_or_else(Vec::new, Doors::announce_length),
        })
    }

    fn close(&self) -> Result<()> {
        let doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner).take();
        let give_up = || {
            self.mirror.give_up();
            self.views.give_up();
        };
        let doors_closed = doors.map_or(Ok(()), |doors| doors.close(give_up));
        drop(self.boot_watch.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.committer.close();
        let asked = self.ending.lock().unwrap_or_else(PoisonError::into_inner).asked;
        let name = self.mirror.name().clone();
        let mirror_closed = self.mirror.close();
        if asked == Some(Asked::Detach { discard: true }) {
            return throw_away(&self.state, &name, &self.repository).and(doors_closed);
        }
        mirror_closed.and(doors_closed)
    }

    /// Waits for the end; what came of it.
    fn wait_for_end(&self) -> Response {
        let ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        let done = self
            .changed
            .wait_while(ending, |ending| !ending.is_done)
            .unwrap_or_else(PoisonError::into_inner);
        match (&done.failure, done.asked) {
            (Some((message, hint)), _) => {
                Response::Failed { message: message.clone(), hint: hint.clone() }
            }
            (None, Some(Asked::Release)) => Response::Released,
            (None, _) => Response::Detaching,
        }
    }
}

impl Handler for Shared {
    fn handle(self: Arc<Self>, request: Request) -> Result<Response> {
        match request {
            Request::Status => Ok(Response::Status(Box::new(self.status()))),
            Request::Commit(options) => {
                let outcome = self.committer.commit(&options, &Silent)?;
                Ok(Response::Committed(Box::new(outcome)))
            }
            Request::Ready => {
                let watch = self.boot_watch.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(watch) = &*watch {
                    watch.is_ready();
                }
                Ok(Response::Ready)
            }
            Request::Resize { length_bytes } => {
                self.resize(length_bytes).map(|resized| Response::Resized(Box::new(resized)))
            }
            Request::Detach { discard } => {
                self.ask_to_stop(Asked::Detach { discard });
                Ok(self.wait_for_end())
            }
            Request::Wait => Ok(self.wait_for_end()),
            Request::MakeRoom { bytes } => {
                Ok(Response::Room { freed_bytes: self.state.make_room(bytes)? })
            }
            Request::Suspend(_) => {
                Err(Error::new(Kind::Invalid, "ask", self.mirror.name().as_str())
                    .because("that is for whoever runs its guest; this is the mirror's owner"))
            }
            Request::Attach(_) | Request::Mirror { .. } => {
                Err(Error::new(Kind::Invalid, "ask", self.mirror.name().as_str())
                    .because("that is for a host's daemon; this is one mirror's owner"))
            }
        }
    }
}

/// Throws a mirror away. Its hold goes first: a mirror without one gets it again when it is opened.
fn throw_away(state: &StateFolder, name: &MirrorName, repository: &Repository) -> Result<()> {
    if let Err(error) = holds::release(state, name, repository.catalog()) {
        tracing::warn!("{}", error.chain());
    }
    Mirror::discard(state, name)
}

/// Makes a mirror, or opens the one there is. True where it was made.
fn open_mirror(
    repository: &Repository,
    chunks: Arc<dyn ChunkStore>,
    state: &StateFolder,
    request: &AttachRequest,
) -> Result<(Arc<Mirror>, bool)> {
    let name = &request.mirror;
    if Mirror::exists(state, name)? {
        check_repository(state, name, repository)?;
        let mirror = Mirror::reopen(state, name, |_| Ok(chunks))?;
        if let Some(reference) = &request.reference {
            check_bound_to(repository, &mirror, reference)?;
        }
        request.length.map_or(Ok(0), |length| mirror.grow(length))?;
        holds::ensure(state, repository, &mirror)?;
        return Ok((mirror, false));
    }
    let Some(reference) = &request.reference else {
        return Err(Error::new(Kind::NotFound, "open the mirror", name.as_str())
            .because("no such mirror here"));
    };
    let wanted = repository.catalog().version(reference)?;
    repository.require_signature(&wanted)?;
    if wanted.facts.kind != VersionKind::Disk {
        return Err(Error::new(Kind::Invalid, "attach", wanted.id.to_string())
            .because("it is no disk, but a machine that was booted already")
            .hint(format!("`larder resume {}` brings it to life", wanted.id)));
    }
    let binding = Binding {
        parent: wanted.id.clone(),
        content: wanted.facts.content,
        layout: wanted.facts.layout,
        length: wanted.facts.length,
    };
    let mirror = Mirror::create(state, name, binding, chunks)?;
    note_repository(state, name, repository);
    let grown = request.length.map_or(Ok(0), |length| mirror.grow(length));
    grown.and_then(|_| holds::take(state, name, repository, &wanted.id)).inspect_err(|_| {
        let _ = mirror.close();
        let _ = Mirror::discard(state, name);
    })?;
    repository.catalog().count_attach(&wanted.id)?;
    Ok((mirror, true))
}

/// The content that a mirror reads, as far as that is known before it is open.
fn content_of(
    repository: &Repository,
    state: &StateFolder,
    request: &AttachRequest,
) -> Option<ContentDigest> {
    if Mirror::exists(state, &request.mirror).ok()? {
        return Some(Mirror::inspect(state, &request.mirror).ok()?.binding.content);
    }
    let version = repository.catalog().version(request.reference.as_ref()?).ok()?;
    Some(version.facts.content)
}

/// A mirror that is opened again must be of the version that was asked for: its changes cannot be
/// put upon another.
fn check_bound_to(repository: &Repository, mirror: &Mirror, reference: &Reference) -> Result<()> {
    let parent = mirror.binding().parent;
    let wanted = match repository.catalog().version(reference) {
        Ok(version) => version.id,
        // Its version was removed: what was written to it can be read and saved all the same.
        Err(error) if error.kind() == Kind::NotFound && *reference == parent.clone().into() => {
            parent.clone()
        }
        Err(error) => return Err(error),
    };
    let refuse = |reason: String| {
        Err(Error::new(Kind::Refused, "attach", mirror.name().as_str()).because(reason).hint(
            format!(
                "attach {parent}, or throw it away: `larder detach {} --discard`",
                mirror.name()
            ),
        ))
    };
    if parent != wanted {
        return refuse(format!("this mirror is of {parent}, not of {wanted}"));
    }
    // The base may have been removed since; as long as it is there it must be the same.
    match repository.catalog().version(&mirror.base().into()) {
        Ok(base) if base.facts.content != mirror.binding().content => {
            refuse(format!("it was made from another {}, of another repository", mirror.base()))
        }
        Err(error) if error.kind() != Kind::NotFound => Err(error),
        _ => Ok(()),
    }
}
