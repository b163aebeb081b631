use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use bakery::monitor::LiveGuest;
use bakery::{QemuGuest, Resumed, Suspendable};
use host::control::{
    CONNECTION_COUNT_MAX, ControlServer, Handler, Request, Response, SuspendOptions,
    SuspendOutcome, ask,
};
use host::mirrors::guest_socket;
use mirror::{Mirror, StateFolder};
use model::machine::MachineShape;
use model::{Error, ImageName, Kind, MirrorName, Result, TagName};
use repository::Repository;

use crate::arguments::Format;
use crate::commands::attach::state_folder;
use crate::context::Context;
use crate::output::{human_len, print_facts, print_json};

/// Keep a running guest, memory and disk, as a machine.
///
/// It stands still for an instant and goes on. The guest is one of `larder run`, or of `larder resume --suspendable`, and is named by its mirror.
/// `larder resume` brings the machine back, here or wherever the repository is copied to.
#[derive(Debug, clap::Args)]
pub struct Suspend {
    /// The mirror of the guest's disk.
    name: MirrorName,
    /// The image that gets the machine; without this, the disk's image, and `-suspended`.
    #[arg(long, value_name = "IMAGE")]
    to: Option<ImageName>,
    /// A tag for the machine.
    #[arg(long)]
    tag: Option<TagName>,
    /// End the guest once it is kept.
    #[arg(long)]
    end: bool,
}

impl Suspend {
    pub fn run(self, context: &Context) -> Result<()> {
        let options = SuspendOptions {
            to: self.to.map(|image| image.to_string()),
            tag: self.tag.map(|tag| tag.to_string()),
            end: self.end,
        };
        let state = state_folder(context);
        let outcome = match ask(&guest_socket(&state, &self.name), &Request::Suspend(options))? {
            Some(Response::Suspended(outcome)) => outcome,
            Some(_) => return Err(Error::new(Kind::Bug, "suspend", self.name.as_str())),
            None => {
                return Err(Error::new(Kind::NotFound, "suspend", self.name.as_str())
                    .because("no guest of `larder run` or `larder resume` has this mirror")
                    .hint("`larder mirrors` shows the mirrors of this host"));
            }
        };
        if context.format == Format::Json {
            let document = serde_json::to_value(&*outcome)
                .map_err(|error| Error::new(Kind::Bug, "print", "the result").caused_by(error))?;
            return print_json(&document);
        }
        print_facts(&[
            ("machine", outcome.machine.clone()),
            ("disk", outcome.disk.clone()),
            ("pause", format!("{:.1} ms", outcome.pause_ms)),
            ("new", human_len(outcome.new_bytes)),
            ("stored", human_len(outcome.memory_stored_bytes)),
            ("stored of the disk", human_len(outcome.disk_stored_bytes)),
            ("time", format!("{:.2} s", outcome.seconds)),
        ])
    }
}

/// What can be suspended, and what stands in the way.
pub trait Guest: Send + Sync {
    /// The guest.
    fn live(&self) -> &dyn LiveGuest;
    /// What a suspend needs.
    fn suspendable(&self) -> Result<Suspendable<'_>>;
    /// The image that gets the machine, where nobody says.
    fn image(&self) -> Result<ImageName>;
}

impl Guest for Resumed {
    fn live(&self) -> &dyn LiveGuest {
        &*self.guest
    }

    fn suspendable(&self) -> Result<Suspendable<'_>> {
        Resumed::suspendable(self)
    }

    fn image(&self) -> Result<ImageName> {
        Ok(self.machine.image.clone())
    }
}

/// A guest of `larder run`.
pub struct RunGuest {
    /// The guest.
    pub guest: QemuGuest,
    /// Its memory.
    pub memory: Arc<OwnedFd>,
    /// Processors and memory; what stands in the way of a suspend.
    pub shape: std::result::Result<MachineShape, String>,
    /// The mirror of its disk, where this process owns it.
    pub mirror: Option<Arc<Mirror>>,
}

impl Guest for RunGuest {
    fn live(&self) -> &dyn LiveGuest {
        &self.guest
    }

    fn suspendable(&self) -> Result<Suspendable<'_>> {
        let refused = |reason: &str| {
            Error::new(Kind::Refused, "suspend", "the guest").because(reason.to_string())
        };
        let shape = self.shape.as_ref().map_err(|reason| refused(reason))?;
        let mirror = self.mirror.as_ref();
        let mirror = mirror.ok_or_else(|| {
            refused("its disk is served by this host's daemon").hint(
                "`larder commit` keeps its disk now; to keep its memory too, end it and start it \
                 with `larder run --suspendable`",
            )
        })?;
        let (guest, memory) = (&self.guest, &self.memory);
        Ok(Suspendable { guest, memory, shape: *shape, has_helper: false, mirror })
    }

    fn image(&self) -> Result<ImageName> {
        let mirror = self.suspendable()?.mirror;
        ImageName::new(&format!("{}-suspended", mirror.binding().parent.image))
    }
}

/// Listens for who wants a guest suspended, until it is dropped.
pub fn listen(
    state: &StateFolder,
    name: &MirrorName,
    repository: Repository,
    guest: Arc<dyn Guest>,
) -> Result<ControlServer> {
    let handler = Arc::new(GuestDoor { repository, guest });
    ControlServer::start(&guest_socket(state, name), handler, CONNECTION_COUNT_MAX)
}

struct GuestDoor {
    repository: Repository,
    guest: Arc<dyn Guest>,
}

impl Handler for GuestDoor {
    fn handle(self: Arc<Self>, request: Request) -> Result<Response> {
        match request {
            Request::Suspend(options) => {
                let outcome = self.suspend(&options)?;
                Ok(Response::Suspended(Box::new(outcome)))
            }
            _ => Err(Error::new(Kind::Invalid, "ask", "the guest")
                .because("it can be suspended, and nothing else")),
        }
    }
}

impl GuestDoor {
    fn suspend(&self, options: &SuspendOptions) -> Result<SuspendOutcome> {
        let began = Instant::now();
        let running = self.guest.suspendable()?;
        let image = match &options.to {
            Some(image) => ImageName::new(image)?,
            None => self.guest.image()?,
        };
        let tag = options.tag.as_deref().map(TagName::new).transpose()?;
        let suspended = bakery::suspend(&self.repository, &running, &image, tag)?;
        if options.end {
            self.guest.live().kill();
        }
        let published = &suspended.published;
        Ok(SuspendOutcome {
            image: published.machine.id.image.to_string(),
            version: published.machine.id.version.get(),
            machine: published.machine.id.to_string(),
            disk: published.disk.id.to_string(),
            digest: published.machine.facts.content.to_string(),
            pause_ms: suspended.pause.as_secs_f64() * 1000.0,
            state_bytes: suspended.state_len,
            new_bytes: published.new_len,
            memory_stored_bytes: published.stored_len,
            disk_stored_bytes: published.disk_stored_len,
            seconds: began.elapsed().as_secs_f64(),
        })
    }
}
