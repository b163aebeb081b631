//! The NBD door, from outside: real clients, raw bytes, stopping, speed.

mod clients;
mod file_device;
mod garbage;
mod handed_on;
mod life;
mod model_check;
mod raw_client;
mod speed;
mod waiting;

use std::sync::Arc;

use attach::nbd::{Address, Export, NbdServer};
use model::device::Device;

/// A server of one device named `disk`, on a socket in a folder of its own.
struct Served {
    server: NbdServer,
    _folder: tempfile::TempDir,
}

impl Served {
    fn unix(device: Arc<dyn Device>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = Address::Unix(folder.path().join("nbd.sock"));
        let server = NbdServer::start(&address, vec![export("disk", device)]).unwrap();
        Served { server, _folder: folder }
    }

    fn tcp(device: Arc<dyn Device>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = "127.0.0.1:0".parse().unwrap();
        let server = NbdServer::start(&address, vec![export("disk", device)]).unwrap();
        Served { server, _folder: folder }
    }

    fn uri(&self) -> String {
        self.server.uri()
    }
}

fn export(name: &str, device: Arc<dyn Device>) -> Export {
    Export { name: name.into(), device, description: format!("the disk {name}") }
}

/// Waits for a condition that another process or thread brings about; fails after 20 s.
fn wait_until(condition: impl Fn() -> bool) {
    let begin = std::time::Instant::now();
    while !condition() {
        assert!(begin.elapsed().as_secs() < 20, "waited in vain");
        std::thread::park_timeout(std::time::Duration::from_millis(2));
    }
}
