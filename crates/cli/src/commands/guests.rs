//! What `run`, `bake` and `resume` share: mirrors served to guests, here or by this host's daemon.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use attach::nbd::Address;
use bakery::{Disks, RunFolder, ServedDisk};
use guest::{Accelerator, Drive};
use host::{AttachRequest, DoorOptions, Owner};
use mirror::{Mirror, Patience, StateFolder};
use model::{Error, Kind, MirrorName, Result, VersionId};
use repository::Repository;

use crate::commands::attach::limited_state_folder;
use crate::context::Context;

/// Reads the name of an accelerator.
pub fn parse_accelerator(word: &str) -> Result<Accelerator> {
    Accelerator::parse(word).ok_or_else(|| {
        Error::new(Kind::Invalid, "use the accelerator", format!("`{word}`"))
            .because("it is neither `kvm` nor `tcg`")
    })
}

/// The mirror of a guest: served here, or by this host's daemon.
pub enum Served {
    Here(Box<Owner>),
    ByDaemon,
}

impl Served {
    pub fn start(
        folder: &Path,
        repository: impl FnOnce() -> Result<Repository>,
        state: &StateFolder,
        request: &AttachRequest,
    ) -> Result<Self> {
        if host::client::attach(state, folder, request)?.is_some() {
            return Ok(Served::ByDaemon);
        }
        Self::here(repository()?, state, request)
    }

    /// Serves a mirror from this process.
    pub fn here(
        repository: Repository,
        state: &StateFolder,
        request: &AttachRequest,
    ) -> Result<Self> {
        Ok(Served::Here(Box::new(Owner::start(repository, state.clone(), request)?)))
    }

    /// The mirror, where this process owns it.
    pub fn mirror(&self) -> Option<&Arc<Mirror>> {
        match self {
            Served::Here(owner) => Some(owner.mirror()),
            Served::ByDaemon => None,
        }
    }

    pub fn stop(
        self,
        repository: impl FnOnce() -> Result<Repository>,
        state: &StateFolder,
        mirror: &MirrorName,
        discard: bool,
    ) -> Result<()> {
        match self {
            Served::Here(owner) => owner.stop(discard),
            Served::ByDaemon => host::mirrors::detach(state, mirror, discard, repository).map(drop),
        }
    }
}

/// Serves the disks of machines.
pub struct HostDisks {
    folder: PathBuf,
    repository: Repository,
    state: StateFolder,
    /// Whether this process has to own the mirrors.
    own: bool,
}

impl HostDisks {
    /// Disks that this process owns where `own` is true, otherwise this host's daemon if there is one.
    ///
    /// # Errors
    /// Those of measuring the disk that holds the state folder.
    pub fn new(context: &Context, repository: Repository, own: bool) -> Result<Self> {
        let state = limited_state_folder(context)?;
        Ok(HostDisks { folder: context.repo.path.clone(), repository, state, own })
    }

    /// The host's state folder: all that is served shares what was fetched.
    pub fn state(&self) -> &StateFolder {
        &self.state
    }
}

impl Disks for HostDisks {
    fn serve(&self, version: &VersionId, name: &MirrorName) -> Result<Box<dyn ServedDisk>> {
        let socket = RunFolder::make()?;
        let request = AttachRequest {
            reference: Some(version.clone().into()),
            mirror: name.clone(),
            doors: DoorOptions {
                nbd: Some(Address::Unix(socket.socket())),
                ..DoorOptions::default()
            },
            patience: Patience::Unlimited,
            record: None,
            length: None,
            client: None,
        };
        let served = match self.own {
            true => Served::here(self.repository.clone(), &self.state, &request)?,
            false => {
                let repository = || Ok(self.repository.clone());
                Served::start(&self.folder, repository, &self.state, &request)?
            }
        };
        Ok(Box::new(Disk {
            served: Some(served),
            name: name.clone(),
            socket,
            repository: self.repository.clone(),
            state: self.state.clone(),
        }))
    }

    fn sweep(&self, prefix: &str) -> Result<()> {
        for name in Mirror::list(&self.state)? {
            let is_left = name.as_str().starts_with(prefix)
                && Mirror::inspect(&self.state, &name).is_ok_and(|mirror| mirror.owner.is_none());
            if is_left {
                let repository = || Ok(self.repository.clone());
                // Whoever has just made one will own it in an instant: then this is refused.
                if let Err(error) = host::mirrors::detach(&self.state, &name, true, repository) {
                    tracing::debug!("{}", error.chain());
                }
            }
        }
        Ok(())
    }
}

struct Disk {
    served: Option<Served>,
    name: MirrorName,
    socket: RunFolder,
    repository: Repository,
    state: StateFolder,
}

impl ServedDisk for Disk {
    fn drive(&self) -> Drive {
        let (socket, export) = (self.socket.socket(), self.name.to_string());
        Drive::NbdUnix { socket, export, read_only: false }
    }

    fn mirror(&self) -> Option<&Arc<Mirror>> {
        self.served.as_ref().and_then(Served::mirror)
    }

    fn end(mut self: Box<Self>, discard: bool) -> Result<()> {
        let repository = self.repository.clone();
        match self.served.take() {
            Some(served) => served.stop(|| Ok(repository), &self.state, &self.name, discard),
            None => Ok(()),
        }
    }
}
