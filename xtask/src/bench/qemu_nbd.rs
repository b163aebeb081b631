//! qemu-nbd on a disk file: the peer of a mirror's NBD door.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use model::{Error, Kind, Result};

use crate::process::{self, Registered};
use crate::workspace::system_program;

/// How long it may take until it serves.
const START_MAX: Duration = Duration::from_secs(30);

/// A running qemu-nbd; dropped, it ends.
pub struct QemuNbd {
    socket: PathBuf,
    child: Child,
    _registered: Registered,
}

impl QemuNbd {
    /// Serves a file of a format of QEMU's, writable, with QEMU's own defaults, and returns once it
    /// does.
    pub fn start(disk: &Path, format: &str, socket: &Path) -> Result<QemuNbd> {
        let mut command = system_program("setpriv");
        command.args(["--pdeathsig", "TERM", "--", "qemu-nbd"]);
        command.arg(format!("--format={format}"));
        command.args(["--persistent", "--shared=8", "--discard=unmap"]);
        command.arg(format!("--socket={}", socket.display())).arg(disk);
        // It complains of the connection that only looks whether it is there.
        command.stdin(Stdio::null()).stderr(Stdio::null());
        let (child, registered) = process::start(&mut command)?;
        let mut started = QemuNbd { socket: socket.to_path_buf(), child, _registered: registered };
        let began = Instant::now();
        // It says nothing when it listens; until then there is no socket, or one nobody answers.
        while UnixStream::connect(socket).is_err() {
            let ended = process::wait(&mut started.child, Duration::from_millis(5))?;
            if ended.is_some() || began.elapsed() > START_MAX {
                return Err(Error::new(Kind::Unavailable, "run", process::shown(&command))
                    .because("it ended, or did not serve, at its start"));
            }
        }
        Ok(started)
    }

    /// Where it serves, under the empty name.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        process::end(&mut self.child);
    }
}
