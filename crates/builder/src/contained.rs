//! Running things with an image as their root and nothing of the host in sight.
//!
//! ```text
//! larder ─► (nsenter) ─► bwrap ─► what is run, as process 2 of its own
//!            mounts of    │ new mounts, processes, names, IPC, network
//!            a stage      │ / = the image, without devices
//!                         │ /dev, /proc, /run, /tmp = its own; /proc/sys read-only
//!                         └ no right to mount, make devices, load modules, trace, reboot
//! ```
//!
//! **Invariants**
//! - What runs inside ends with the call: its process namespace ends with its first process, which
//!   ends with bwrap, which ends with us.
//! - It has the network only where the step asks for it.
//! - Nothing that it writes reaches the host: its root is the image, entered by pivot_root.
//!
//! **Not here**: limits on memory and processor time.
//!
//! **Source**: bwrap(1), capabilities(7); the rights are those of Docker, less MKNOD and NET_RAW.

use std::path::{Path, PathBuf};
use std::process::Command;

use model::Result;

use crate::tool::{PATH, program};
use crate::tree::Tree;

/// What root may do inside.
const RIGHTS: [&str; 12] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_SETFCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_AUDIT_WRITE",
];

/// What `/tmp` and `/run` may hold in memory each.
const TEMPORARY_LEN_MAX: &str = "536870912";

/// Where something of the host is seen inside, read-only.
pub(crate) const SHOWN: &str = "/run/larder";

/// Where a program of this machine has the image.
pub(crate) const IMAGE: &str = "/image";

/// An image that things are run in.
#[derive(Clone, Debug)]
pub(crate) struct Inside {
    /// Its root.
    pub root: PathBuf,
    /// The process in whose mount namespace that is; ours where there is none.
    pub holder: Option<u32>,
    /// What counts as the time of the build.
    pub epoch: i64,
    /// The most that its files may take, where no disk of their own says so.
    pub room: Option<u64>,
}

/// What a thing that is run may have.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Grants<'a> {
    /// The network.
    pub network: bool,
    /// A folder or file of the host, shown at [`SHOWN`].
    pub shown: Option<&'a Path>,
    /// Our terminal.
    pub terminal: bool,
}

impl Inside {
    /// Makes sure that the folders are there upon which others are laid.
    pub(crate) fn prepare(tree: &Tree) -> Result<()> {
        for (path, mode) in
            [("/dev", 0o755), ("/proc", 0o555), ("/sys", 0o555), ("/run", 0o755), ("/tmp", 0o1777)]
        {
            if !tree.exists(path) {
                tree.make_folder(path, mode, (0, 0))?;
            }
        }
        Ok(())
    }

    /// A command that runs the words that are added to it inside.
    pub(crate) fn command(&self, grants: Grants) -> Command {
        let mut command = self.enter();
        command.arg("--bind").arg(&self.root).arg("/");
        lay(&mut command, "");
        self.confine(&mut command, grants);
        command
    }

    /// A command that runs a program of this machine upon the image, which it has at [`IMAGE`]. Of
    /// this machine it sees programs and what `shown` is, read-only, and nothing else; what it starts
    /// with the image as its root is as contained as what [`Inside::command`] runs.
    pub(crate) fn command_beside(&self, shown: &Path) -> Command {
        let mut command = self.enter();
        programs_of_this_machine(&mut command);
        lay(&mut command, "");
        command.arg("--bind").arg(&self.root).arg(IMAGE);
        lay(&mut command, IMAGE);
        self.confine(&mut command, Grants { shown: Some(shown), ..Grants::default() });
        command
    }

    fn enter(&self) -> Command {
        match self.holder {
            Some(pid) => {
                let mut command = program("nsenter");
                command.arg(format!("--mount=/proc/{pid}/ns/mnt")).args(["--", "bwrap"]);
                command
            }
            None => program("bwrap"),
        }
    }

    fn confine(&self, command: &mut Command, grants: Grants) {
        if let Some(shown) = grants.shown {
            command.arg("--ro-bind").arg(shown).arg(SHOWN);
        }
        command.args(["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]);
        command.args(["--hostname", "build", "--die-with-parent", "--cap-drop", "ALL"]);
        for right in RIGHTS {
            command.args(["--cap-add", right]);
        }
        if !grants.network {
            command.arg("--unshare-net");
        }
        if !grants.terminal {
            command.arg("--new-session");
        }
        command.args(["--clearenv", "--chdir", "/"]);
        for (name, value) in [
            ("PATH", PATH),
            ("HOME", "/root"),
            ("LC_ALL", "C.UTF-8"),
            ("DEBIAN_FRONTEND", "noninteractive"),
            ("DEBCONF_NONINTERACTIVE_SEEN", "true"),
            ("SOURCE_DATE_EPOCH", &self.epoch.to_string()),
        ] {
            command.args(["--setenv", name, value]);
        }
        if grants.terminal
            && let Some(terminal) = std::env::var_os("TERM")
        {
            command.args(["--setenv", "TERM"]).arg(terminal);
        }
        command.arg("--");
    }
}

/// Lays devices, processes and room for what is temporary upon a root.
fn lay(command: &mut Command, root: &str) {
    let at = |path: &str| format!("{root}{path}");
    command.args(["--dev", &at("/dev"), "--proc", &at("/proc")]);
    command.args(["--ro-bind", "/proc/sys", &at("/proc/sys")]);
    command.args(["--ro-bind-try", "/proc/sysrq-trigger", &at("/proc/sysrq-trigger")]);
    command.args(["--size", TEMPORARY_LEN_MAX, "--tmpfs", &at("/run")]);
    command.args(["--perms", "1777", "--size", TEMPORARY_LEN_MAX, "--tmpfs", &at("/tmp")]);
}

/// Lets this machine's programs be seen, read-only.
pub(crate) fn programs_of_this_machine(command: &mut Command) {
    command.args(["--ro-bind", "/usr", "/usr"]);
    for path in ["/bin", "/sbin", "/lib", "/lib64"] {
        match std::fs::read_link(path) {
            Ok(target) => command.arg("--symlink").arg(target).arg(path),
            Err(_) => command.args(["--ro-bind-try", path, path]),
        };
    }
    for path in ["/etc/alternatives", "/etc/ld.so.cache"] {
        command.args(["--ro-bind-try", path, path]);
    }
}
