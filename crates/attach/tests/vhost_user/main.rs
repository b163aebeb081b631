//! The vhost-user-blk door, from outside: a guest of our own, hostile bytes, servers that are killed.

mod client;
mod garbage;
mod life;
mod model_check;

use std::path::PathBuf;
use std::sync::Arc;

use attach::vhost_user::VhostUserServer;
use client::Guest;
use model::device::Device;

/// A server of one device named `disk`, in a folder of its own.
struct Served {
    server: VhostUserServer,
    _folder: tempfile::TempDir,
}

impl Served {
    fn new(device: Arc<dyn Device>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vhost.sock");
        let server = VhostUserServer::start(&path, "disk", device).unwrap();
        Served { server, _folder: folder }
    }

    fn guest(&self) -> Guest {
        let mut guest = Guest::new();
        guest.connect(&self.path()).unwrap();
        guest
    }

    fn server(&self) -> &VhostUserServer {
        &self.server
    }

    fn path(&self) -> PathBuf {
        self.server.path().to_path_buf()
    }
}
