//! Resume: a copy of a machine goes on where it was stopped.
//!
//! ```text
//! record ─► can it be? ─► state, memory, disk ─► monitor ─► runs ─► answers
//! ```
//!
//! **Failure**: what cannot work is refused before the monitor starts. A copy that fails leaves its
//! siblings and the machine as they were; its mirror goes, unless it had been there before.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use catalog::VersionRecord;
use env::SystemClock;
use guest::growth::{Grown, MacAddress, Wanted};
use guest::identity::Confirmed;
use guest::{Accelerator, Helper, Identity, pick_accelerator};
use mirror::{Binding, Mirror, Patience, ReadOnlyView, StateFolder};
use model::boot_set::FirstRead;
use model::device::Device;
use model::machine::{MachineOrigin, MachineRecord, MachineShape};
use model::{Error, Kind, MirrorName, Reference, Result, VersionId, VersionKind};
use repository::Repository;

use crate::compatibility::obstacle;
use crate::console::ConsoleDoor;
use crate::disks::{Disks, ServedDisk};
use crate::machine_file::{read_record, read_state};
use crate::memory::MemorySource;
use crate::monitor::{LiveGuest, Monitor, ResumeTimes, SavedGuest};
use crate::run_folder;
use crate::suspend::Suspendable;
use crate::working_set::{self, RecordedReads};

/// How long a guest may take for its first answer.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// How long its helper may take for one thing.
const HELPER_MAX: Duration = Duration::from_secs(120);

/// Bytes that are brought at a time in the background.
const COMPLETION_STEP: u64 = 1 << 20;

/// What is to be resumed, and how.
pub struct ResumeRequest {
    /// The machine.
    pub reference: Reference,
    /// The mirror of its disk.
    pub mirror: MirrorName,
    /// A folder of its own, empty, gone when the guest is: for its console's socket.
    pub folder: PathBuf,
    /// Whether it must answer on its console.
    pub waits_for_answer: bool,
    /// Whether what it reads of its memory is noted, although that is slower.
    pub is_recorded: bool,
    /// Whether it gets a copy of the memory, so that it can be suspended again.
    pub is_suspendable: bool,
    /// Who it is to be; none: who it was.
    pub identity: Option<Identity>,
    /// How large it is to be.
    pub wanted: Wanted,
    /// Whether it gets a network card.
    pub has_network: bool,
}

/// A guest that runs. Dropped, it ends, and its mirror is served no more.
pub struct Resumed {
    /// The guest; it ends before what it stands on.
    pub guest: Box<dyn LiveGuest>,
    /// Its console, to which others are let in at `console_path`.
    pub console: ConsoleDoor,
    /// Where others are let in.
    pub console_path: PathBuf,
    /// The helper in it, where there is one.
    pub helper: Mutex<Option<Helper>>,
    /// Who it says it is, and when it did, counted from the start of the monitor's process.
    pub identity: Option<(Confirmed, Duration)>,
    /// What it was grown to.
    pub grown: Option<Grown>,
    /// The address of its network card.
    pub network: Option<MacAddress>,
    /// The machine.
    pub machine: VersionId,
    /// Its disk.
    pub disk: VersionId,
    /// When it ran.
    pub times: ResumeTimes,
    /// When it answered, counted from the start of the monitor's process, where that was waited for.
    pub answered: Option<Duration>,
    /// True where its memory was mapped from a file on this host that has all of it.
    pub memory_was_here: bool,
    shape: MachineShape,
    has_helper: bool,
    mirror: Option<Arc<Mirror>>,
    served: Mutex<Option<Box<dyn ServedDisk>>>,
    own_memory: Option<Arc<OwnedFd>>,
    /// Goes last: the guest maps it.
    _memory: Arc<MemorySource>,
    recorded: Option<Arc<RecordedReads>>,
}

impl Resumed {
    /// What it has read of its memory so far, where that is noted.
    pub fn recorded(&self) -> Option<Vec<FirstRead>> {
        self.recorded.as_ref().map(|recorded| recorded.reads())
    }

    /// What a suspend needs.
    ///
    /// # Errors
    /// `Refused` where its memory is not a copy of its own, or its disk another process's.
    pub fn suspendable(&self) -> Result<Suspendable<'_>> {
        let refused = |reason: &str| {
            Error::new(Kind::Refused, "suspend", self.machine.to_string())
                .because(reason.to_string())
        };
        let memory = self.own_memory.as_ref().ok_or_else(|| {
            refused("its memory is shared with other copies")
                .hint("resume it with `--suspendable`, which copies the memory first")
        })?;
        let mirror = self.mirror.as_ref();
        let mirror = mirror.ok_or_else(|| {
            refused("its disk is served by this host's daemon")
                .hint("resume it with `--suspendable`: larder then serves the disk itself")
        })?;
        let (guest, shape, has_helper) = (&*self.guest, self.shape, self.has_helper);
        Ok(Suspendable { guest, memory, shape, has_helper, mirror })
    }

    /// Ends guest and monitor, and the serving of its mirror; throws that away if asked to.
    /// Idempotent.
    pub fn end(&self, discard: bool) -> Result<()> {
        self.guest.kill();
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner).take();
        served.map_or(Ok(()), |served| served.end(discard))
    }
}

/// A machine that can be resumed here.
pub struct Machine {
    /// The version.
    pub version: VersionRecord,
    /// Its disk.
    pub disk: VersionRecord,
    /// What is known of it.
    pub record: MachineRecord,
    view: Arc<ReadOnlyView>,
}

impl Machine {
    /// Finds a machine, and makes sure that it can be resumed on this host.
    ///
    /// # Errors
    /// `Invalid` where the version is no machine; `Refused` where this host's monitor cannot resume
    /// it: the hint says what makes one that it can; `NotFound` where its disk is gone; `Corrupt`.
    pub fn find(
        repository: &Repository,
        state: &StateFolder,
        monitor: &dyn Monitor,
        reference: &Reference,
    ) -> Result<Machine> {
        let version = repository.catalog().version(reference)?;
        let subject = version.id.to_string();
        if version.facts.kind != VersionKind::Machine {
            return Err(Error::new(Kind::Invalid, "resume", subject)
                .because("it is a disk that was not booted")
                .hint(format!("`larder bake {}` makes a machine of it", version.id)));
        }
        repository.require_signature(&version)?;
        let binding = Binding {
            parent: version.id.clone(),
            content: version.facts.content,
            layout: version.facts.layout,
            length: version.facts.length,
        };
        let view = Arc::new(ReadOnlyView::open(state, &binding, repository.chunks())?);
        view.set_patience(Patience::Unlimited);
        let record = read_record(&*view, &subject)?;
        let disk = disk_of(repository, &version, &record)?;
        check(monitor, &version, &disk, &record)?;
        Ok(Machine { version, disk, record, view })
    }
}

impl Machine {
    /// Brings all of the machine to this host in the background, so that later copies are resumed from
    /// a file that is complete.
    pub fn complete(&self) -> Completion {
        let stop = Arc::new(AtomicBool::new(false));
        let (view, stopped) = (self.view.clone(), stop.clone());
        let bring = move || {
            let mut at = 0;
            while at < view.length() && !stopped.load(Ordering::Relaxed) {
                let len = COMPLETION_STEP.min(view.length() - at);
                if let Err(error) = view.prefetch(at, len) {
                    return tracing::debug!("the machine stays incomplete: {}", error.chain());
                }
                at += len;
            }
            if let Err(error) = view.close() {
                tracing::debug!("{}", error.chain());
            }
        };
        let thread = std::thread::Builder::new().name("complete".into()).spawn(bring);
        Completion { stop, thread: thread.ok() }
    }
}

/// A machine on its way to this host. Dropped, it comes no further.
pub struct Completion {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Completion {
    /// Waits until it is here, or cannot come.
    pub fn wait(mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The disk that a machine stands on.
fn disk_of(
    repository: &Repository,
    version: &VersionRecord,
    record: &MachineRecord,
) -> Result<VersionRecord> {
    let gone = |reason: String| {
        Error::new(Kind::NotFound, "resume", version.id.to_string()).because(reason)
    };
    let parent = version.facts.parent.clone();
    let parent = parent.ok_or_else(|| gone("nobody knows which disk it stands on".to_string()))?;
    match repository.catalog().version(&parent.clone().into()) {
        Ok(disk) if disk.facts.content == record.disk => Ok(disk),
        Ok(_) => Err(gone(format!("{parent} is not the disk that it stands on"))),
        Err(error) if error.kind() == Kind::NotFound => {
            Err(gone(format!("its disk {parent} was removed")))
        }
        Err(error) => Err(error),
    }
}

/// Refuses what this host's monitor cannot resume.
fn check(
    monitor: &dyn Monitor,
    version: &VersionRecord,
    disk: &VersionRecord,
    record: &MachineRecord,
) -> Result<()> {
    let refused = |reason: String| {
        let error = Error::new(Kind::Refused, "resume", version.id.to_string()).because(reason);
        match (record.origin, &disk.facts.parent) {
            (MachineOrigin::Baked, Some(source)) => error.hint(format!(
                "bake it anew on a host like this: `larder bake {source} --to {}`",
                version.id.image
            )),
            _ => error.hint("resume it on a host like the one that it was suspended on"),
        }
    };
    let accelerator = Accelerator::parse(&record.monitor.accelerator);
    let Some(accelerator) = accelerator else {
        let reason = format!("its accelerator `{}` is unknown here", record.monitor.accelerator);
        return Err(refused(reason));
    };
    if accelerator == Accelerator::Kvm && pick_accelerator() != Accelerator::Kvm {
        let reason = "its state is of the accelerator kvm, which does not work on this host";
        return Err(refused(reason.to_string()));
    }
    let host = monitor.facts(accelerator, &record.shape)?;
    let devices = monitor.devices(&record.shape)?;
    match obstacle(record, &host, &devices) {
        Some(reason) => Err(refused(reason)),
        None => Ok(()),
    }
}

/// Refuses what only a helper in the guest could do, where there is none.
fn require_helper(machine: &Machine, request: &ResumeRequest) -> Result<()> {
    let record = &machine.record;
    let refused = |reason: &str| {
        Err(Error::new(Kind::Refused, "resume", machine.version.id.to_string())
            .because(reason.to_string()))
    };
    if request.is_suspendable && request.wanted != Wanted::default() {
        return refused("a guest that was grown cannot be suspended");
    }
    if record.has_helper {
        return Ok(());
    }
    if request.identity.is_some() {
        return refused("no helper in it can give it an identity of its own").map_err(|error| {
            error.hint("`--no-identity` makes a copy that takes itself for the original")
        });
    }
    match request.wanted == Wanted::default() {
        true => Ok(()),
        false => refused("no helper in it can take processors and memory that are added"),
    }
}

/// Resumes a copy of a machine. It has answered when this returns.
///
/// # Errors
/// Those of [`Machine::find`], of serving its disk and of the monitor; `Unavailable` where the guest
/// gives no answer.
pub fn resume(
    repository: &Repository,
    machine: &Machine,
    monitor: &dyn Monitor,
    disks: &dyn Disks,
    request: &ResumeRequest,
) -> Result<Resumed> {
    let subject = machine.version.id.to_string();
    require_helper(machine, request)?;
    let failed = |error| Error::io("resume", subject.clone(), error);
    let mount = request.folder.join(run_folder::MEMORY);
    std::fs::create_dir_all(&mount).map_err(failed)?;
    let Machine { version, view, .. } = machine;
    let (memory, recorded) = match request.is_recorded {
        true => {
            let (memory, reads) = MemorySource::recorded(view, &version.id, &mount)?;
            (memory, Some(reads))
        }
        false if request.is_suspendable => {
            (MemorySource::copied(view, machine.record.shape.memory_len)?, None)
        }
        false => {
            let is_known = working_set::is_known(repository, version);
            (MemorySource::open(view, &version.id, &mount, is_known)?, None)
        }
    };
    let memory = Arc::new(memory);
    if memory.copy().is_none() && !request.is_recorded {
        bring_working_set(repository, version, view, &memory);
    }
    let state = read_state(&*machine.view, &machine.record, &subject)?;
    let served = disks.serve(&machine.disk.id, &request.mirror)?;
    let began = Instant::now();
    let started = monitor.resume(SavedGuest {
        record: &machine.record,
        drive: served.drive(),
        memory: memory.path().to_path_buf(),
        memory_fds: memory.fds().to_vec(),
        is_memory_shared: memory.copy().is_some(),
        state,
    });
    let started = started
        .and_then(|(guest, times)| Birth { machine, request, began }.of(guest, times, &subject));
    let born = match started {
        Ok(born) => born,
        Err(error) => {
            let _ = served.end(true);
            memory.check_brought(&subject)?;
            return Err(error);
        }
    };
    Ok(Resumed {
        guest: born.guest,
        console: born.console,
        console_path: born.console_path,
        helper: Mutex::new(born.helper),
        identity: born.identity,
        grown: born.grown,
        network: born.network,
        machine: machine.version.id.clone(),
        disk: machine.disk.id.clone(),
        times: born.times,
        answered: born.answered,
        memory_was_here: memory.is_complete(),
        shape: machine.record.shape,
        has_helper: machine.record.has_helper,
        mirror: served.mirror().cloned(),
        served: Mutex::new(Some(served)),
        own_memory: memory.copy().cloned(),
        _memory: memory,
        recorded,
    })
}

/// Brings what a resume needs, while the monitor starts.
fn bring_working_set(
    repository: &Repository,
    version: &VersionRecord,
    view: &Arc<ReadOnlyView>,
    memory: &Arc<MemorySource>,
) {
    let (repository, version) = (repository.clone(), version.clone());
    let (view, memory) = (view.clone(), Arc::downgrade(memory));
    let bring = move || {
        let Some(set) = working_set::find(&repository, &version) else { return };
        let Some(memory) = memory.upgrade() else { return };
        if !memory.is_complete() {
            view.prefetch_boot_set(set.clone());
        }
        drop(view);
        let reads: Vec<_> = set.reads().iter().map(|read| read.read).collect();
        memory.warm(&reads);
    };
    if let Err(error) = std::thread::Builder::new().name("working-set".into()).spawn(bring) {
        tracing::debug!(%error, "no working set is brought");
    }
}

/// From a guest that runs to one that has answered, is somebody, and is as large as was wanted.
struct Birth<'a> {
    machine: &'a Machine,
    request: &'a ResumeRequest,
    began: Instant,
}

struct Born {
    guest: Box<dyn LiveGuest>,
    console: ConsoleDoor,
    console_path: PathBuf,
    helper: Option<Helper>,
    identity: Option<(Confirmed, Duration)>,
    grown: Option<Grown>,
    network: Option<MacAddress>,
    times: ResumeTimes,
    answered: Option<Duration>,
}

impl Birth<'_> {
    fn of(&self, mut guest: Box<dyn LiveGuest>, times: ResumeTimes, subject: &str) -> Result<Born> {
        let Birth { machine, request, began } = *self;
        let bug = || Error::new(Kind::Bug, "resume", "a guest without a console");
        let mut console = ConsoleDoor::new(guest.take_console().ok_or_else(bug)?)?;
        let answered = match request.waits_for_answer {
            true => Some(console.ask(ANSWER_MAX).map(|()| began.elapsed())?),
            false => None,
        };
        let port = guest.take_helper().filter(|_| machine.record.has_helper);
        let mut helper = port.map(Helper::new);
        let failed = |error: Error| Error::new(error.kind(), "resume", subject).caused_by(error);
        let identity = match (&request.identity, &mut helper) {
            (Some(identity), Some(helper)) => {
                let confirmed = identity.give(helper, &SystemClock, HELPER_MAX).map_err(failed)?;
                Some((confirmed, began.elapsed()))
            }
            _ => None,
        };
        let network = match request.has_network {
            true => Some(guest.add_network().map_err(failed)?),
            false => None,
        };
        let grown = match &mut helper {
            Some(helper) if request.wanted != Wanted::default() => {
                Some(guest.grow(helper, request.wanted, HELPER_MAX).map_err(failed)?)
            }
            _ => None,
        };
        let console_path = request.folder.join("console");
        console.open(&console_path)?;
        Ok(Born { guest, console, console_path, helper, identity, grown, network, times, answered })
    }
}
