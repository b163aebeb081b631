//! Bake: boots a version until it is ready, and keeps what came of it as a machine.
//!
//! ```text
//! mirror ─► boot ─► ready? ─► give back free memory ─► stop ─► save ─► end ─► publish ─► mirror goes
//!        └──────────── proof: a copy is resumed, what it needs is noted ◄────────┘
//! ```
//!
//! A machine that nobody can resume is worth nothing, so a bake ends with the first copy: it shows
//! that the machine lives, and which of its memory a resume needs.
//!
//! **Failure**: until the last step nothing is in the repository, and after it all is. A process that
//! is killed takes the guest with it, and leaves a mirror that the next bake throws away.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use catalog::VersionRecord;
use env::{Entropy, SystemEntropy};
use guest::growth::Wanted;
use guest::{Accelerator, Growth, Helper, Identity, ScriptedConsole};
use mirror::StateFolder;
use model::machine::{MachineOrigin, MachineShape};
use model::progress::{Cancel, Progress};
use model::{Error, ImageName, Kind, MirrorName, Reference, Result, TagName, VersionKind};
use repository::{MachineRequest, PublishedMachine, Repository};

use crate::disks::{Disks, ServedDisk};
use crate::helper;
use crate::machine_file::{MachineFile, Made};
use crate::monitor::{LiveGuest, Monitor, NewGuest};
use crate::resume::{Machine, ResumeRequest, resume};
use crate::run_folder::{MEMORY, RunFolder};
use crate::working_set;

/// What the mirrors of bakes are named by.
const MIRROR_PREFIX: &str = "bake-";

/// The zstd level of a baked machine: made once and kept many times over, and read no slower.
const COMPRESSION_LEVEL: i32 = 15;

/// How often it is looked whether somebody wants it to stop.
const LOOK: Duration = Duration::from_millis(100);

/// How long the helper may take for its answer once the guest is ready.
const HELPER_MAX: Duration = Duration::from_secs(60);

/// How much a guest may say before it says that it is ready, in bytes.
const LINE_MAX: u64 = 4096;

/// How it is known that a guest is ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ready {
    /// Its console asks who logs in.
    #[default]
    Login,
    /// It writes a line to its port for a helper.
    Port,
    /// The helper that was put into it answers.
    Helper,
    /// QEMU's guest agent in it answers.
    Agent,
}

/// What is to be baked, and how.
pub struct BakeRequest<'a> {
    /// The version to boot.
    pub reference: Reference,
    /// The image that gets the machine; none: the version's, and `-machine`.
    pub image: Option<ImageName>,
    /// A tag for it.
    pub tag: Option<TagName>,
    /// The guest's memory, in bytes.
    pub memory_len: u64,
    /// How it is known that it is ready.
    pub ready: Ready,
    /// How long it may take for that.
    pub timeout: Duration,
    /// Which accelerator; none: the best there is.
    pub accelerator: Option<Accelerator>,
    /// Whether memory that the guest does not use is kept as it is.
    pub keep_free_memory: bool,
    /// Whether Larder's helper is put into the guest: without it, copies stay as they are.
    pub installs_helper: bool,
    /// Told of the progress of storing.
    pub progress: &'a dyn Progress,
    /// Stops it.
    pub cancel: &'a Cancel,
}

/// What was baked.
#[derive(Clone, Debug)]
pub struct Baked {
    /// The versions.
    pub published: PublishedMachine,
    /// Bytes of device state.
    pub state_len: u64,
    /// Whether Larder's helper runs in the guest.
    pub has_helper: bool,
    /// Bytes of free memory that were made zeros.
    pub given_back_len: u64,
    /// From the start of the monitor until the guest was ready.
    pub boot: Duration,
}

/// Bakes a version. Durable when it returns.
///
/// # Errors
/// `Unavailable` where the guest was not ready in time, or ended: the reason shows what its console
/// last said. Those of serving, of the monitor, and of storing. Nothing is left of it then.
pub fn bake(
    repository: &Repository,
    state: &StateFolder,
    monitor: &dyn Monitor,
    disks: &dyn Disks,
    request: &BakeRequest,
) -> Result<Baked> {
    let version = repository.catalog().version(&request.reference)?;
    let shape = shape_of(&version, request)?;
    let (image, disk_image) = names_of(&version, request)?;
    disks.sweep(MIRROR_PREFIX)?;
    let name = MirrorName::new(&format!("{MIRROR_PREFIX}{}", &SystemEntropy.name()[..8]))?;
    let disk = disks.serve(&version.id, &name)?;
    let folder = RunFolder::make()?;
    let baked = Oven { folder: &folder, monitor, request, shape, version: &version, disk: &*disk }
        .boot()
        .and_then(|cooled| {
            let request = MachineRequest {
                parent: version.id.clone(),
                disk_image,
                image,
                tag: request.tag.clone(),
                origin: format!("bake {}", version.id),
                progress: request.progress,
                cancel: request.cancel,
                compression_level: Some(COMPRESSION_LEVEL),
            };
            cooled.publish(repository, &*disk, &request)
        });
    let ended = disk.end(true);
    drop(folder);
    let baked = baked?;
    // The machine is there; what is left of its mirror goes with the next bake.
    if let Err(error) = ended {
        tracing::warn!("{}", error.chain());
    }
    if let Err(error) = repository.require_signature(&baked.published.machine) {
        // Who is asked for a signature looks at it first.
        tracing::info!("no copy is resumed to prove it: {}", error.chain());
        return Ok(baked);
    }
    let proof = Proof { repository, state, monitor, disks, request };
    proof.resume_once(&baked).inspect_err(|_| {
        for version in [&baked.published.machine, &baked.published.disk] {
            if let Err(error) = repository.catalog().remove_version(&version.id) {
                tracing::warn!("{}", error.chain());
            }
        }
    })?;
    Ok(baked)
}

/// The first copy of a machine.
struct Proof<'a> {
    repository: &'a Repository,
    state: &'a StateFolder,
    monitor: &'a dyn Monitor,
    disks: &'a dyn Disks,
    request: &'a BakeRequest<'a>,
}

impl Proof<'_> {
    fn resume_once(&self, baked: &Baked) -> Result<()> {
        let Proof { repository, state, monitor, disks, request } = *self;
        let version = &baked.published.machine;
        let unproven = |error: Error| {
            Error::new(error.kind(), "bake", version.id.to_string())
                .because("what was baked could not be resumed")
                .caused_by(error)
        };
        let reference = version.id.clone().into();
        let machine = Machine::find(repository, state, monitor, &reference).map_err(unproven)?;
        let folder = RunFolder::make()?;
        let request = ResumeRequest {
            reference,
            mirror: MirrorName::new(&format!("{MIRROR_PREFIX}{}", &SystemEntropy.name()[..8]))?,
            folder: folder.path().to_path_buf(),
            waits_for_answer: request.ready == Ready::Login,
            is_recorded: true,
            is_suspendable: false,
            // A copy needs what that needs, too.
            identity: match baked.has_helper {
                true => Some(Identity::new("proof", &SystemEntropy)?),
                false => None,
            },
            wanted: Wanted::default(),
            has_network: false,
        };
        let resumed = resume(repository, &machine, monitor, disks, &request).map_err(unproven);
        let ended = resumed.and_then(|resumed| {
            if let Some(reads) = resumed.recorded() {
                working_set::keep(repository, version, &reads);
            }
            resumed.end(true)
        });
        drop(folder);
        ended?;
        machine.complete().wait();
        Ok(())
    }
}

fn shape_of(version: &VersionRecord, request: &BakeRequest) -> Result<MachineShape> {
    let refused = |reason: &str| {
        Error::new(Kind::Invalid, "bake", version.id.to_string()).because(reason.to_string())
    };
    if version.facts.kind != VersionKind::Disk {
        return Err(refused("it is no disk")
            .hint(format!("`larder resume {}` brings a machine to life", version.id)));
    }
    let memory_max_len = Growth::DEFAULT.memory_max_mib << 20;
    if request.memory_len < 1 << 20 || request.memory_len > memory_max_len {
        return Err(refused("a machine has between 1 MiB and 64 GiB of memory"));
    }
    Ok(MachineShape {
        cpus: 1,
        cpus_max: Growth::DEFAULT.cpus_max,
        memory_len: request.memory_len >> 20 << 20,
        memory_slots: Growth::DEFAULT.memory_slots,
        memory_max_len,
    })
}

/// The images of the machine and of its disk.
fn names_of(version: &VersionRecord, request: &BakeRequest) -> Result<(ImageName, ImageName)> {
    let image = match &request.image {
        Some(image) => image.clone(),
        None => ImageName::new(&format!("{}-machine", version.id.image))?,
    };
    let disk_image = ImageName::new(&format!("{image}/disk"))?;
    Ok((image, disk_image))
}

/// What a guest is booted in.
struct Oven<'a> {
    monitor: &'a dyn Monitor,
    request: &'a BakeRequest<'a>,
    shape: MachineShape,
    version: &'a VersionRecord,
    disk: &'a dyn ServedDisk,
    folder: &'a RunFolder,
}

/// A guest that was booted, stopped, saved and ended.
struct Cooled {
    machine: MachineFile,
    shape: MachineShape,
    monitor: model::machine::MonitorFacts,
    has_helper: bool,
    given_back_len: u64,
    boot: Duration,
}

impl Oven<'_> {
    /// True where the helper was put into the disk.
    fn install_helper(&self) -> Result<bool> {
        match (self.request.installs_helper, self.disk.mirror()) {
            (true, Some(mirror)) => {
                let mount = self.folder.path().join(MEMORY);
                let failed = |error| Error::io("make", mount.display().to_string(), error);
                std::fs::create_dir_all(&mount).map_err(failed)?;
                helper::install_into(mirror, &mount)
            }
            _ => Ok(false),
        }
    }

    fn boot(&self) -> Result<Cooled> {
        let is_installed = self.install_helper()?;
        if self.request.ready == Ready::Helper && !is_installed {
            return Err(Error::new(Kind::Invalid, "bake", self.version.id.to_string())
                .because("there is no helper in it whose answer could be waited for")
                .hint("say with `--ready` how else it tells that it is ready"));
        }
        let machine = MachineFile::new(self.shape.memory_len)?;
        let began = Instant::now();
        let mut guest = self.monitor.boot(NewGuest {
            shape: self.shape,
            accelerator: self.request.accelerator,
            drive: self.disk.drive(),
            memory: machine.memory(),
            can_give_back: !self.request.keep_free_memory,
        })?;
        let bug = || Error::new(Kind::Bug, "bake", "a guest without a console");
        let mut console = ScriptedConsole::new(guest.take_console().ok_or_else(bug)?)?;
        let helper = self.wait_until_ready(&mut *guest, &mut console, is_installed)?;
        let boot = began.elapsed();
        let has_helper = helper.is_some_and(|mut helper| match self.settle(&mut helper) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!("no helper: {}", error.chain());
                false
            }
        });
        let given_back_len = guest.give_back_free_memory()?;
        self.check_running(&*guest, &console)?;
        guest.stop()?;
        let monitor = guest.save(machine.state_writer()?)?;
        // From here on nothing changes any more, neither memory nor disk.
        guest.kill();
        Ok(Cooled { machine, shape: self.shape, monitor, has_helper, given_back_len, boot })
    }

    /// Speaks with the helper for the first time. What the guest keeps of its disk is read again from
    /// there when it is needed: a machine without it takes fewer bytes.
    fn settle(&self, helper: &mut Helper) -> Result<()> {
        helper.ping(HELPER_MAX)?;
        match self.request.keep_free_memory {
            true => Ok(()),
            false => helper.drop_caches(HELPER_MAX),
        }
    }

    /// Waits until the guest is ready. The helper, where one was put into it.
    fn wait_until_ready(
        &self,
        guest: &mut dyn LiveGuest,
        console: &mut ScriptedConsole,
        is_installed: bool,
    ) -> Result<Option<Helper>> {
        let port = guest.take_helper();
        let (mut line, mut helper) = match (self.request.ready, port) {
            (Ready::Port, Some(port)) => (Some(first_line(port)?), None),
            (Ready::Agent, port) => {
                let agent = guest.take_guest_agent().map(agent_answer).transpose()?;
                (agent, port.filter(|_| is_installed).map(Helper::new))
            }
            (_, Some(port)) if is_installed => (None, Some(Helper::new(port))),
            _ => (None, None),
        };
        let deadline = Instant::now() + self.request.timeout;
        loop {
            let is_ready = match (&mut line, &mut helper) {
                (Some(line), _) => line.recv_timeout(LOOK).is_ok_and(|line| !line.is_empty()),
                (None, Some(helper)) if self.request.ready == Ready::Helper => {
                    helper.ping(LOOK).is_ok()
                }
                _ => console.wait_for("login: ", LOOK).is_ok(),
            };
            if is_ready {
                return Ok(helper);
            }
            self.request.cancel.check("bake", &self.version.id.to_string())?;
            self.check_running(guest, console)?;
            if Instant::now() > deadline {
                let limit = self.request.timeout.as_secs();
                return Err(self
                    .not_ready(&format!("it was not ready within {limit} s"), console)
                    .hint(
                        "give it more time with `--timeout`, or say with `--ready` how it tells",
                    ));
            }
        }
    }

    fn check_running(&self, guest: &dyn LiveGuest, console: &ScriptedConsole) -> Result<()> {
        match guest.wait(Some(Duration::ZERO)) {
            None => Ok(()),
            Some(_) => Err(self.not_ready("the guest ended or rebooted", console)),
        }
    }

    fn not_ready(&self, why: &str, console: &ScriptedConsole) -> Error {
        const LINES: usize = 4;
        let said = console.last_lines(LINES);
        let said = match said.is_empty() {
            true => "nothing".to_string(),
            false => said.lines().map(str::trim).collect::<Vec<_>>().join(" | "),
        };
        Error::new(Kind::Unavailable, "bake", self.version.id.to_string())
            .because(format!("{why}; its console last said: {said}"))
    }
}

impl Cooled {
    fn publish(
        self,
        repository: &Repository,
        disk: &dyn ServedDisk,
        request: &MachineRequest,
    ) -> Result<Baked> {
        let mirror = disk.mirror().ok_or_else(|| {
            Error::new(Kind::Bug, "bake", request.parent.to_string())
                .because("its mirror is served by another process")
        })?;
        let sealed = mirror.seal()?;
        let mut state_len = 0;
        let mut source = |disk| {
            let Cooled { machine, shape, monitor, has_helper, .. } = &self;
            let made = Made { origin: MachineOrigin::Baked, has_helper: *has_helper };
            let record = machine.finish(made, *shape, monitor.clone(), disk)?;
            state_len = record.state.len;
            machine.source()
        };
        let published = repository.publish_machine(&sealed, &mut source, request)?;
        let Cooled { given_back_len, has_helper, boot, .. } = self;
        Ok(Baked { published, state_len, has_helper, given_back_len, boot })
    }
}

/// The first line that QEMU's guest agent answers. What is sent before it listens waits for it.
fn agent_answer(mut stream: UnixStream) -> Result<mpsc::Receiver<String>> {
    stream
        .write_all(b"{\"execute\":\"guest-ping\"}\n")
        .map_err(|error| Error::io("speak with", "the guest's agent", error))?;
    first_line(stream)
}

/// The first line that comes on a stream; an empty one where it ends.
fn first_line(stream: UnixStream) -> Result<mpsc::Receiver<String>> {
    let (sender, receiver) = mpsc::channel();
    let read = move || {
        let mut line = String::new();
        // What is not text is no line; the sender that goes tells that.
        if BufReader::new(stream).take(LINE_MAX).read_line(&mut line).is_ok() {
            let _ = sender.send(line);
        }
    };
    std::thread::Builder::new()
        .name("helper-port".into())
        .spawn(read)
        .map_err(|error| Error::io("read", "the helper's port", error))?;
    Ok(receiver)
}
