//! One process that has a mirror open and serves it: doors, and a control socket beside the state.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use mirror::{Binding, Mirror, StateFolder};
use model::device::Device;
use model::progress::Silent;
use model::{Error, Kind, MirrorName, Reference, Result};
use repository::Repository;
use serde::Serialize;

use crate::boot_sets::BootWatch;
use crate::commit::Committer;
use crate::control::{ControlServer, Handler, Request, Response};
use crate::doors::{Door, DoorOptions, Doors};
use crate::holds;
use crate::mirrors::{MirrorStatus, check_repository, control_socket, note_repository};
use crate::tree::MirrorTree;

/// What is to be attached, and how.
#[derive(Clone, Debug)]
pub struct AttachRequest {
    /// The version.
    pub reference: Reference,
    /// The mirror: made, or opened again.
    pub mirror: MirrorName,
    /// Its doors.
    pub doors: DoorOptions,
    /// Record what is read, until the mirror is let go, as a working set of this name.
    pub record: Option<String>,
}

/// What is said once a mirror is served.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ready {
    /// Always `ready`.
    pub event: &'static str,
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
}

struct Shared {
    repository: Repository,
    state: StateFolder,
    mirror: Arc<Mirror>,
    committer: Arc<Committer>,
    doors: Mutex<Option<Doors>>,
    boot_watch: Mutex<Option<BootWatch>>,
    ending: Mutex<Ending>,
    changed: Condvar,
}

/// How far the end has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ending {
    /// Somebody asked to stop; true to throw the mirror away.
    asked: Option<bool>,
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
        let (mirror, is_new) = open_mirror(&repository, &state, request)?;
        let served = Self::serve(repository.clone(), state.clone(), mirror.clone(), request);
        served.inspect_err(|_| {
            // The error that matters is the first; a mirror that was not there before goes again.
            let _ = mirror.close();
            if is_new {
                let _ = throw_away(&state, mirror.name(), &repository);
            }
        })
    }

    fn serve(
        repository: Repository,
        state: StateFolder,
        mirror: Arc<Mirror>,
        request: &AttachRequest,
    ) -> Result<Self> {
        // Before the doors open: what the guest reads first is on its way then.
        let boot_watch = BootWatch::start(&repository, &state, &mirror, request.record.as_deref())?;
        let committer = Arc::new(Committer::new(repository.clone(), mirror.clone()));
        let tree = {
            let (repository, state) = (repository.clone(), state.clone());
            let (mirror, committer) = (mirror.clone(), committer.clone());
            move |device: Arc<dyn Device>| -> Arc<dyn attach::fuse::Tree> {
                Arc::new(MirrorTree::new(repository, state, mirror, committer, device))
            }
        };
        let device: Arc<dyn Device> = mirror.clone();
        let doors = Doors::open(&request.doors, mirror.name(), &device, tree)?;
        let socket = control_socket(&state, mirror.name());
        let shared = Arc::new(Shared {
            repository,
            state,
            mirror,
            committer,
            doors: Mutex::new(Some(doors)),
            boot_watch: Mutex::new(boot_watch),
            ending: Mutex::default(),
            changed: Condvar::new(),
        });
        let control = ControlServer::start(&socket, shared.clone())?;
        Ok(Owner { shared, control: Some(control) })
    }

    /// What to say now that it is served.
    pub fn ready(&self) -> Ready {
        let parent = self.shared.mirror.binding().parent;
        Ready {
            event: "ready",
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

    /// A call that asks the owner to stop, from another thread.
    pub fn stopper(&self) -> impl Fn() + Send + Sync + 'static {
        let shared = self.shared.clone();
        move || shared.ask_to_stop(false)
    }

    /// Waits until somebody asks to stop.
    pub fn wait(&self) {
        let ending = self.shared.ending.lock().unwrap_or_else(PoisonError::into_inner);
        let _asked = self
            .shared
            .changed
            .wait_while(ending, |ending| ending.asked.is_none())
            .unwrap_or_else(PoisonError::into_inner);
    }

    /// Closes the doors, makes everything durable, lets the mirror go; throws it away where that
    /// was asked for, or `discard` says so.
    pub fn stop(mut self, discard: bool) -> Result<()> {
        self.shared.ask_to_stop(discard);
        // The socket goes while the mirror is still held: the next owner's must not be taken away.
        let answers = self.control.take().map(|control| control.answers());
        let closed = self.shared.close(discard);
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
            fetched_bytes: self.repository.chunks().read_len(),
            fetched_plain_bytes: statistics.fetched_bytes,
            host_bytes: statistics.host_bytes,
            served_by: Some(std::process::id()),
            exports: self.doors_list(),
        }
    }

    fn ask_to_stop(&self, discard: bool) {
        let mut ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        ending.asked = Some(discard || ending.asked == Some(true));
        self.changed.notify_all();
    }

    fn close(&self, discard: bool) -> Result<()> {
        let doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner).take();
        let doors_closed = doors.map_or(Ok(()), Doors::close);
        drop(self.boot_watch.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.committer.close();
        let asked = self.ending.lock().unwrap_or_else(PoisonError::into_inner).asked;
        let name = self.mirror.name().clone();
        let mirror_closed = self.mirror.close();
        if discard || asked == Some(true) {
            return throw_away(&self.state, &name, &self.repository).and(doors_closed);
        }
        mirror_closed.and(doors_closed)
    }
}

impl Handler for Shared {
    fn handle(&self, request: Request) -> Result<Response> {
        match request {
            Request::Status => Ok(Response::Status(Box::new(self.status()))),
            Request::Commit(options) => {
                let outcome = self.committer.commit(&options, &Silent)?;
                Ok(Response::Committed(Box::new(outcome)))
            }
            Request::Detach { discard } => {
                self.ask_to_stop(discard);
                let ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
                let done = self
                    .changed
                    .wait_while(ending, |ending| !ending.is_done)
                    .unwrap_or_else(PoisonError::into_inner);
                Ok(match done.failure.clone() {
                    Some((message, hint)) => Response::Failed { message, hint },
                    None => Response::Detaching,
                })
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
    state: &StateFolder,
    request: &AttachRequest,
) -> Result<(Arc<Mirror>, bool)> {
    let name = &request.mirror;
    let chunks = repository.chunks();
    if Mirror::exists(state, name)? {
        check_repository(state, name, repository)?;
        let mirror = Mirror::reopen(state, name, |_| Ok(chunks))?;
        check_bound_to(repository, &mirror, &request.reference)?;
        holds::ensure(state, repository, &mirror)?;
        return Ok((mirror, false));
    }
    let wanted = repository.catalog().version(&request.reference)?;
    let binding = Binding {
        parent: wanted.id.clone(),
        content: wanted.facts.content,
        layout: wanted.facts.layout,
        length: wanted.facts.length,
    };
    let mirror = Mirror::create(state, name, binding, chunks)?;
    note_repository(state, name, repository);
    holds::take(state, name, repository, &wanted.id).inspect_err(|_| {
        let _ = mirror.close();
        let _ = Mirror::discard(state, name);
    })?;
    repository.catalog().count_attach(&wanted.id)?;
    Ok((mirror, true))
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
