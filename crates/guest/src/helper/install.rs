//! How the helper gets into a guest: four small files, written into its disk before it boots.
//!
//! `debugfs` of e2fsprogs writes them, without root, a loop device or a mount. Files work from Debian 11
//! on, where systemd's credentials need systemd 252 for files and 256 for units; and the console
//! would need a password.
//!
//! | File | Why |
//! |---|---|
//! | `/usr/lib/larder/helper` | the helper, a shell script |
//! | `/etc/udev/rules.d/60-larder-helper.rules` | starts it when its port is there, and only then |
//! | `/etc/systemd/system/larder-helper.service` | where systemd is |
//! | `/etc/init.d/larder-helper`, `/etc/rc[2-5].d/` | where it is not |
//!
//! **Invariants**
//! - Without the port nothing runs: a disk that is taken elsewhere, or whose files are removed in any
//!   order, boots as before.
//! - A file that is there already is replaced; nothing else of the disk changes.
//!
//! **Failure**: the disk is not trusted; it is read by child processes with a limit of time. One that was not
//! shut down has its journal replayed first, as at any boot. What was written is read back.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use model::{Error, Kind, Result};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde_json::Value;

/// The helper.
pub const SCRIPT: &str = include_str!("helper.sh");

const UNIT: &str = include_str!("larder-helper.service");
const RULES: &str = include_str!("60-larder-helper.rules");
const INIT: &str = include_str!("larder-helper.init");

const FOLDER: &str = "/usr/lib/larder";
const SCRIPT_PATH: &str = "/usr/lib/larder/helper";
const UNIT_PATH: &str = "/etc/systemd/system/larder-helper.service";
const RULES_PATH: &str = "/etc/udev/rules.d/60-larder-helper.rules";
const INIT_PATH: &str = "/etc/init.d/larder-helper";

/// For how long one of e2fsprogs' programs may run.
const PROGRAM_MAX: Duration = Duration::from_secs(60);

/// How much of what a program says is kept, in bytes.
const OUTPUT_MAX: usize = 1 << 20;

/// Where the root file system of a disk begins, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    /// From the disk's beginning, in bytes.
    pub offset: u64,
}

/// Installs the helper into a disk: a file, or a mirror's file in a mount. The guest must not run.
///
/// Cost: some 100 ms, and some 50 KiB written.
///
/// # Errors
/// `NotFound`: no ext2, ext3 or ext4 root file system is on the disk, or a program is not installed;
/// the hint says which. `Corrupt`: the file system needs a repair. `Unavailable`: a program hung.
pub fn install(disk: &Path) -> Result<Root> {
    let root = find_root(disk)?;
    let target = Target { disk, root };
    target.recover()?;
    let has_systemd =
        target.exists("/lib/systemd/systemd")? || target.exists("/usr/lib/systemd/systemd")?;
    let folder = tempfile::tempdir().map_err(|error| Error::io("make", "a folder", error))?;
    let mut files = vec![(SCRIPT_PATH, SCRIPT, 0o100_755), (RULES_PATH, RULES, 0o100_644)];
    files.push(match has_systemd {
        true => (UNIT_PATH, UNIT, 0o100_644),
        false => (INIT_PATH, INIT, 0o100_755),
    });
    // Making a folder that is there would leave a nameless one in the file system.
    let mut commands = match target.exists(FOLDER)? {
        true => String::new(),
        false => format!("mkdir {FOLDER}\n"),
    };
    for (index, (path, text, mode)) in files.iter().enumerate() {
        let source = folder.path().join(index.to_string());
        fs::write(&source, text).map_err(|error| Error::io("write", shown(&source), error))?;
        commands += &format!(
            "rm {path}\nwrite \"{}\" {path}\nsif {path} mode 0{mode:o}\nsif {path} uid 0\n\
             sif {path} gid 0\n",
            source.display()
        );
    }
    if !has_systemd {
        for level in 2..=5 {
            let link = format!("/etc/rc{level}.d/S99larder-helper");
            commands += &format!("rm {link}\nsymlink {link} ../init.d/larder-helper\n");
        }
    }
    target.change(&folder.path().join("commands"), &commands)?;
    for (path, text, _) in &files {
        let found = target.ask(&format!("cat {path}"))?;
        if found != *text {
            return Err(Error::new(Kind::Unavailable, "install the helper into", shown(disk))
                .because(format!("{path} does not read back as it was written"))
                .hint("the disk may be full or damaged: look with debugfs"));
        }
    }
    Ok(root)
}

/// Takes the helper's files out of a disk. What is not there is no error.
///
/// # Errors
/// As [`install`].
pub fn remove(disk: &Path) -> Result<()> {
    let target = Target { disk, root: find_root(disk)? };
    let folder = tempfile::tempdir().map_err(|error| Error::io("make", "a folder", error))?;
    let mut commands = String::new();
    for path in [RULES_PATH, UNIT_PATH, INIT_PATH, SCRIPT_PATH] {
        commands += &format!("rm {path}\n");
    }
    for level in 2..=5 {
        commands += &format!("rm /etc/rc{level}.d/S99larder-helper\n");
    }
    commands += &format!("rmdir {FOLDER}\n");
    target.change(&folder.path().join("commands"), &commands)
}

/// Finds the root file system of a disk: the whole disk, or the first partition with one.
///
/// # Errors
/// As [`install`].
pub fn find_root(disk: &Path) -> Result<Root> {
    if disk.as_os_str().as_encoded_bytes().contains(&b'?') {
        return Err(Error::new(Kind::Invalid, "find the root file system of", shown(disk))
            .because("e2fsprogs take what follows a question mark for an option"));
    }
    for offset in offsets(disk)? {
        let target = Target { disk, root: Root { offset } };
        if has_ext(disk, offset)?
            && target.exists("/etc/passwd")?
            && (target.exists("/sbin/init")? || target.exists("/usr/sbin/init")?)
        {
            return Ok(target.root);
        }
    }
    Err(Error::new(Kind::NotFound, "find the root file system of", shown(disk))
        .because("no partition is an ext2, ext3 or ext4 with an init in it")
        .hint("the helper can be installed beforehand: see docs/guest-helper.md"))
}

/// Where file systems may begin.
fn offsets(disk: &Path) -> Result<Vec<u64>> {
    let mut offsets = vec![0];
    // A disk without partitions is refused by sfdisk, and is no error.
    let Ok(text) = run("sfdisk", &["--json".into(), disk.into()], disk) else { return Ok(offsets) };
    let table: Value = serde_json::from_str(&text).unwrap_or_default();
    let sector = table["partitiontable"]["sectorsize"].as_u64().unwrap_or(512);
    let partitions = table["partitiontable"]["partitions"].as_array();
    for partition in partitions.into_iter().flatten().take(128) {
        offsets.extend(partition["start"].as_u64().and_then(|start| start.checked_mul(sector)));
    }
    Ok(offsets)
}

/// Whether the superblock of an ext file system is there.
fn has_ext(disk: &Path, offset: u64) -> Result<bool> {
    use std::os::unix::fs::FileExt;
    let failed = |error| Error::io("read", shown(disk), error);
    let file = fs::File::open(disk).map_err(failed)?;
    let mut magic = [0; 2];
    match file.read_exact_at(&mut magic, offset.saturating_add(1080)) {
        Ok(()) => Ok(magic == [0x53, 0xef]),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

/// A file system in a disk.
pub(crate) struct Target<'a> {
    pub(crate) disk: &'a Path,
    pub(crate) root: Root,
}

impl Target<'_> {
    /// The name by which e2fsprogs know it.
    fn name(&self) -> OsString {
        let mut name = self.disk.as_os_str().to_owned();
        name.push(format!("?offset={}", self.root.offset));
        name
    }

    pub(crate) fn ask(&self, command: &str) -> Result<String> {
        run("debugfs", &["-R".into(), command.into(), self.name()], self.disk)
    }

    pub(crate) fn exists(&self, path: &str) -> Result<bool> {
        // A symbolic link is not followed at the end of a path, which is enough here.
        Ok(self.ask(&format!("stat {path}"))?.contains("Inode:"))
    }

    fn needs_recovery(&self) -> Result<bool> {
        Ok(self.ask("features")?.split_ascii_whitespace().any(|word| word == "needs_recovery"))
    }

    /// Replays the journal of a disk that was not shut down, as a boot does.
    pub(crate) fn recover(&self) -> Result<()> {
        if !self.needs_recovery()? {
            return Ok(());
        }
        let words = ["-p".into(), "-E".into(), "journal_only".into(), self.name()];
        run("e2fsck", &words, self.disk)?;
        if self.needs_recovery()? {
            return Err(Error::new(Kind::Corrupt, "replay the journal of", shown(self.disk))
                .hint("boot the version once, or repair it with e2fsck"));
        }
        Ok(())
    }

    pub(crate) fn change(&self, script: &Path, commands: &str) -> Result<()> {
        fs::write(script, commands).map_err(|error| Error::io("write", shown(script), error))?;
        let words = ["-w".into(), "-f".into(), script.into(), self.name()];
        run("debugfs", &words, self.disk).map(drop)
    }
}

/// Runs a program to its end, or to the limit, and returns what it printed. It sees no input, and says
/// nothing to the terminal.
fn run(program: &'static str, arguments: &[OsString], disk: &Path) -> Result<String> {
    let failed = |error: std::io::Error| {
        let missing = error.kind() == std::io::ErrorKind::NotFound;
        let error = Error::io("run", program, error);
        match missing {
            true => error.hint("install e2fsprogs and fdisk"),
            false => error,
        }
    };
    let path = std::env::var("PATH").unwrap_or_default();
    let mut child = Command::new(program)
        .args(arguments)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .env("LC_ALL", "C")
        .env("DEBUGFS_PAGER", "cat")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let handle = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
    let stdout = child.stdout.take();
    let (sender, receiver) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(stdout) = stdout {
            let _read = stdout.take(OUTPUT_MAX as u64).read_to_end(&mut bytes);
        }
        let _gone = sender.send(bytes);
    });
    let bytes = receiver.recv_timeout(PROGRAM_MAX);
    if bytes.is_err()
        && let Some(handle) = handle
    {
        let _ended = rustix::process::pidfd_send_signal(handle, Signal::KILL);
    }
    let status = child.wait().map_err(failed)?;
    let _joined = reader.join();
    let bytes = bytes.map_err(|_| {
        Error::new(Kind::Unavailable, "read the file system of", shown(disk))
            .because(format!("{program} did not end within {} s", PROGRAM_MAX.as_secs()))
    })?;
    // e2fsck says with 1 that it repaired something.
    if status.success() || (program == "e2fsck" && status.code() == Some(1)) {
        return Ok(String::from_utf8_lossy(&bytes).into_owned());
    }
    Err(Error::new(Kind::Corrupt, "read the file system of", shown(disk))
        .because(format!("{program} ended with {status}")))
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
