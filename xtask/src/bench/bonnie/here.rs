//! On this system: an ext4 on a loop device over a file.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use model::{Error, Kind, Result};

use super::{Disks, Load, answer};
use crate::bench::rows::Contender;
use crate::bench::{Session, inputs};
use crate::demo::larder::Larder;
use crate::process::{self, Registered};
use crate::workspace::system_program;

/// How long a server may take until it serves.
const START_MAX: Duration = Duration::from_secs(30);

/// Measures all, in turn.
pub fn run(
    session: &mut Session,
    larder: &Larder,
    disks: &Disks,
    load: Load,
    rounds: u32,
) -> Result<()> {
    let folder = session.folder.path().to_path_buf();
    let door = folder.join("door");
    let at = folder.join("mounted");
    for path in [&door, &at] {
        std::fs::create_dir(path)
            .map_err(|source| Error::io("make", path.display().to_string(), source))?;
    }
    let served = larder.attach_at("--fuse", "disk", "here", &door, &[])?;
    let overlay = Overlay::start(&disks.overlay, &folder.join("overlay-file"))?;
    let files = [
        ("larder FUSE", door.join("mirrors/here")),
        ("qcow2 overlay", overlay.file.clone()),
        ("raw file", disks.raw.clone()),
    ];
    let mut contenders: Vec<Contender<'_>> = Vec::new();
    for (who, file) in &files {
        let at = &at;
        let measure = move || bonnie(file, at, load);
        contenders.push((format!("here, {who}"), Box::new(measure)));
    }
    session.rows.alternate(rounds, &mut contenders)?;
    drop(overlay);
    served.detach()
}

fn bonnie(file: &Path, at: &Path, load: Load) -> Result<Vec<(&'static str, f64)>> {
    inputs::settle();
    let _mounted = Mounted::mount(file, at)?;
    let mut command = system_program("bonnie++");
    command.args(load.arguments(inputs::text(at)?));
    answer::columns(&process::output(&mut command, "")?)
}

/// A mounted file; dropped, it is unmounted.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn mount(file: &Path, at: &'a Path) -> Result<Self> {
        process::run(system_program("mount").args(["-o", "loop"]).arg(file).arg(at))?;
        Ok(Mounted(at))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if let Err(error) = process::run(system_program("umount").arg(self.0)) {
            eprintln!("xtask: {error}");
        }
    }
}

/// A qcow2 overlay as a file, by qemu-storage-daemon; dropped, it ends.
struct Overlay {
    file: PathBuf,
    child: Child,
    _registered: Registered,
}

impl Overlay {
    fn start(overlay: &Path, file: &Path) -> Result<Overlay> {
        let failed = |source| Error::io("show", file.display().to_string(), source);
        std::fs::write(file, "").map_err(failed)?;
        let mut command = system_program("setpriv");
        command.args(["--pdeathsig", "TERM", "--", "qemu-storage-daemon", "--blockdev"]);
        command.arg(format!("driver=file,node-name=file,filename={}", inputs::text(overlay)?));
        command.args(["--blockdev", "driver=qcow2,node-name=disk,file=file", "--export"]);
        command.arg(format!(
            "type=fuse,id=export,node-name=disk,writable=on,mountpoint={}",
            inputs::text(file)?
        ));
        command.stdin(Stdio::null());
        let (child, registered) = process::start(&mut command)?;
        let mut started = Overlay { file: file.to_path_buf(), child, _registered: registered };
        let began = Instant::now();
        while std::fs::metadata(file).map_err(failed)?.len() == 0 {
            let ended = process::wait(&mut started.child, Duration::from_millis(5))?;
            if ended.is_some() || began.elapsed() > START_MAX {
                return Err(Error::new(Kind::Unavailable, "run", process::shown(&command))
                    .because("it ended, or did not serve, at its start"));
            }
        }
        Ok(started)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        process::end(&mut self.child);
    }
}
