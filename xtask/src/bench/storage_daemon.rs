//! qemu-storage-daemon's vhost-user-blk export: the peer of a mirror's vhost-user door.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use model::{Error, Kind, Result};

use super::inputs;
use crate::process::{self, Registered};
use crate::workspace::system_program;

/// How long it may take until it serves.
const START_MAX: Duration = Duration::from_secs(30);

/// A running qemu-storage-daemon; dropped, it ends.
pub struct StorageDaemon {
    child: Child,
    _registered: Registered,
}

impl StorageDaemon {
    /// Serves a file of a format of QEMU's, writable, at a socket.
    pub fn start(disk: &Path, format: &str, socket: &Path) -> Result<StorageDaemon> {
        let mut command = system_program("setpriv");
        command.args(["--pdeathsig", "TERM", "--", "qemu-storage-daemon", "--blockdev"]);
        command.arg(format!("driver=file,node-name=file,filename={}", inputs::text(disk)?));
        command.arg("--blockdev").arg(format!("driver={format},node-name=disk,file=file"));
        command.arg("--export").arg(format!(
            "type=vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=unix,addr.path={}",
            inputs::text(socket)?
        ));
        command.stdin(Stdio::null()).stderr(Stdio::null());
        let (child, registered) = process::start(&mut command)?;
        let mut started = StorageDaemon { child, _registered: registered };
        let began = Instant::now();
        // One client at a time: a connection to see whether it is there would stand in the way.
        while !socket.exists() {
            let ended = process::wait(&mut started.child, Duration::from_millis(5))?;
            if ended.is_some() || began.elapsed() > START_MAX {
                return Err(Error::new(Kind::Unavailable, "run", process::shown(&command))
                    .because("it ended, or did not serve, at its start"));
            }
        }
        Ok(started)
    }
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        process::end(&mut self.child);
    }
}
