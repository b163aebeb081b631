//! The doors of a mirror: which there are, which one may write.
//!
//! **Invariant**: at most one door writes: of those that were asked for, the first in the order
//! vhost-user, NBD, FUSE. The others read only.

use std::path::PathBuf;
use std::sync::Arc;

use attach::fuse::{FuseMount, Tree};
use attach::nbd::{Address, Export, NbdServer};
use attach::vhost_user::VhostUserServer;
use model::device::{Device, Extent, Take};
use model::{Error, Kind, MirrorName, Result};
use serde::{Deserialize, Serialize};

/// Which doors are wanted.
#[derive(Clone, Debug, Default)]
pub struct DoorOptions {
    /// A vhost-user-blk server on this Unix socket.
    pub vhost_user: Option<PathBuf>,
    /// An NBD server on this address.
    pub nbd: Option<Address>,
    /// A FUSE mount on this folder.
    pub fuse: Option<PathBuf>,
    /// No door writes.
    pub read_only: bool,
}

/// A door that is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Door {
    /// `vhost-user`, `nbd` or `fuse`.
    pub door: String,
    /// Where it is: the path of a socket, an NBD URI or the path of a raw file.
    pub address: String,
    /// True where it takes writes.
    pub writable: bool,
}

/// When whoever uses a door learns of a new length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sight {
    /// `vhost-user`, `nbd` or `fuse`.
    pub door: String,
    /// True where it sees it now; otherwise it does when it connects again.
    pub sees_it: bool,
}

/// The doors of one mirror. They close when dropped.
pub struct Doors {
    vhost_user: Option<VhostUserServer>,
    nbd: Option<NbdServer>,
    fuse: Option<FuseMount>,
    list: Vec<Door>,
    options: DoorOptions,
}

impl Doors {
    /// Opens the doors that are wanted.
    pub fn open(
        options: &DoorOptions,
        name: &MirrorName,
        device: &Arc<dyn Device>,
        tree: impl FnOnce(Arc<dyn Device>) -> Arc<dyn Tree>,
    ) -> Result<Self> {
        let mut doors = Doors {
            vhost_user: None,
            nbd: None,
            fuse: None,
            list: Vec::new(),
            options: options.clone(),
        };
        let mut may_write = !options.read_only;
        let mut next_device = || {
            let writable = std::mem::replace(&mut may_write, false);
            let device: Arc<dyn Device> = match writable {
                true => device.clone(),
                false => Arc::new(ReadOnly(device.clone())),
            };
            (device, writable)
        };
        if let Some(path) = &options.vhost_user {
            let (device, writable) = next_device();
            let server = VhostUserServer::start(path, name.as_str(), device)?;
            let address = server.path().display().to_string();
            doors.list.push(Door { door: "vhost-user".into(), address, writable });
            doors.vhost_user = Some(server);
        }
        if let Some(address) = &options.nbd {
            let (device, writable) = next_device();
            let export = Export {
                name: name.to_string(),
                device,
                description: format!("larder mirror {name}"),
            };
            let server = NbdServer::start(address, vec![export])?;
            doors.list.push(Door { door: "nbd".into(), address: server.uri(), writable });
            doors.options.nbd = Some(server.address().clone());
            doors.nbd = Some(server);
        }
        if let Some(folder) = &options.fuse {
            let (device, writable) = next_device();
            let mount = FuseMount::mount(folder, tree(device))?;
            let path = mount.folder().join("mirrors").join(name.as_str());
            let address = path.display().to_string();
            doors.list.push(Door { door: "fuse".into(), address, writable });
            doors.fuse = Some(mount);
        }
        Ok(doors)
    }

    /// The doors that are open.
    pub fn list(&self) -> &[Door] {
        &self.list
    }

    /// How the same doors are opened again: with the port that was found.
    pub fn options(&self) -> &DoorOptions {
        &self.options
    }

    /// Tells those who use the doors that the disk has become longer, as far as a door can: a
    /// vhost-user front end that listens is told, who looks at a FUSE file sees it within a second,
    /// NBD has no word for it.
    pub fn announce_length(&self) -> Vec<Sight> {
        let sight = |door: &Door| {
            let sees_it = match door.door.as_str() {
                "vhost-user" => {
                    self.vhost_user.as_ref().is_some_and(VhostUserServer::announce_length)
                }
                door => door == "fuse",
            };
            Sight { door: door.door.clone(), sees_it }
        };
        self.list.iter().map(sight).collect()
    }

    /// Closes all doors; no request is under way when it returns. `give_up` is called once clients
    /// that come back get no answer any more: it ends what still waits.
    pub fn close(mut self, give_up: impl FnOnce()) -> Result<()> {
        if let Some(server) = &mut self.nbd {
            server.cut_off();
        }
        give_up();
        if let Some(server) = self.vhost_user.take() {
            server.stop();
        }
        if let Some(server) = self.nbd {
            server.stop();
        }
        match self.fuse {
            Some(mount) => mount.unmount(),
            None => Ok(()),
        }
    }
}

/// A device of which only the reading half is shown.
struct ReadOnly(Arc<dyn Device>);

impl ReadOnly {
    fn refuse(operation: &'static str) -> Result<()> {
        Err(Error::new(Kind::Refused, operation, "the disk").because("this door is read-only"))
    }
}

impl Device for ReadOnly {
    fn length(&self) -> u64 {
        self.0.length()
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.0.read(offset, buffer)
    }

    fn write(&self, _offset: u64, _bytes: &[u8]) -> Result<()> {
        Self::refuse("write")
    }

    fn write_zeroes(&self, _offset: u64, _len: u64) -> Result<()> {
        Self::refuse("write zeros")
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        Self::refuse("discard")
    }

    fn flush(&self) -> Result<()> {
        self.0.flush()
    }

    fn prefetch(&self, offset: u64, len: u64) -> Result<()> {
        self.0.prefetch(offset, len)
    }

    fn extents(&self, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>> {
        self.0.extents(offset, len, max)
    }

    fn may_wait(&self, offset: u64, len: u64) -> bool {
        self.0.may_wait(offset, len)
    }

    fn take_from_file(&self, offset: u64, len: usize, take: &mut Take<'_>) -> usize {
        self.0.take_from_file(offset, len, take)
    }
}
