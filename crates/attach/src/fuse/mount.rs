//! Mounting, unmounting, and what a killed server left behind.
//!
//! ```text
//! mount:    clear dead mounts of ours -> check the folder -> fusermount3, or mount(2) as root
//! unmount:  is it still ours there? -> umount -> busy? detach: open files go on until closed
//! ```
//!
//! Mounting goes through `fusermount3` where it is installed and anyone may enter the mount, for
//! its helper process then unmounts as soon as this process is gone, however it ended. Without it
//! root mounts with mount(2) and needs no other program.
//!
//! `fuser` gets the finished descriptor: its own unmounting would unmount whatever is mounted on
//! the folder by then, which may be another's.
//!
//! **Source**: `Documentation/filesystems/fuse`; fusermount3(1).

use std::ffi::{CString, OsStr};
use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use fuser::{Config, INodeNo, Session, SessionACL};
use model::{Error, Kind, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::core::{Core, Dropped};
use super::door::{Door, Owner, REQUEST_LEN_MAX};
use super::mount_table;
use super::tree::Tree;
use super::workers::EVENT_THREAD_COUNT;

const SOURCE: &str = "larder";
const KIND: &str = "fuse.larder";
const DEVICE: &str = "/dev/fuse";
const OPERATION: &str = "mount on";
/// How many dead mounts, one upon the other, are cleared away.
const DEAD_MAX: usize = 16;
/// How long an unmount waits for the serving threads: where another mount namespace holds a copy
/// of the mount, they go on.
const END_MAX: Duration = Duration::from_secs(5);

/// A mount that shows a [`Tree`], until it is dropped.
pub struct FuseMount {
    folder: PathBuf,
    device: String,
    connection: OwnedFd,
    ended: Receiver<()>,
    helper: Option<Helper>,
    over: bool,
}

impl fmt::Debug for FuseMount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FuseMount").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// `fusermount3`, which unmounts when its socket closes and the mount is dead.
struct Helper {
    child: Child,
    socket: Option<UnixStream>,
}

impl Drop for Helper {
    fn drop(&mut self) {
        // Ended before its socket closes, where we may: it would unmount what is on the folder now.
        if let Err(error) = self.child.kill() {
            tracing::debug!(%error, "fusermount3 ends by itself");
        }
        drop(self.socket.take());
        if let Err(error) = self.child.wait() {
            tracing::debug!(%error, "fusermount3 could not be waited for");
        }
    }
}

impl FuseMount {
    /// Mounts a tree on an empty folder and serves it until this is dropped.
    ///
    /// Files and folders belong to the owner and the group of `folder`. Others may enter only
    /// where the caller is root, or `/etc/fuse.conf` says `user_allow_other`. A dead mount that a
    /// killed server left there is cleared away first.
    ///
    /// # Errors
    /// `NotFound` where the folder is missing, `Invalid` where it is none, `Refused` where it is
    /// not empty or mounting is not allowed, `Unavailable` where there is no FUSE.
    pub fn mount(folder: &Path, tree: Arc<dyn Tree>) -> Result<FuseMount> {
        let folder = canonical(folder)?;
        clear_dead(&folder)?;
        let mut owner = check_folder(&folder)?;
        if tree.versions_are_mapped() {
            owner.version_mode = 0o660;
        }
        let read_ahead_len = tree.read_ahead_len_max().unwrap_or(REQUEST_LEN_MAX);
        let acl = access();
        let (fd, helper) = attach(&folder, acl, tree.is_read_only())?;
        let mut config = Config::default();
        config.acl = acl;
        config.n_threads = Some(EVENT_THREAD_COUNT);
        config.clone_fd = true;
        let (door, dropped) = Door::new(Core::new(tree), owner);
        let connection = fd.try_clone();
        let started = Session::from_fd(door, fd, acl, config)
            .and_then(|session| serve(session, dropped, &folder))
            .and_then(|ended| Ok((ended, mounted_device(&folder)?, connection?)));
        let (ended, device, connection) = match started {
            Ok(started) => started,
            Err(error) => {
                let _ = detach(&folder, true);
                return Err(failed(&folder, error));
            }
        };
        set_readahead(&device, read_ahead_len);
        Ok(FuseMount { folder, device, connection, ended, helper, over: false })
    }

    /// Unmounts from a folder what a killed server left there, if it did. For who throws folders away.
    ///
    /// # Errors
    /// `Refused` or `Unavailable` where the kernel does not let go.
    pub fn clear_dead(folder: &Path) -> Result<()> {
        clear_dead(&canonical(folder)?)
    }

    /// The folder that the tree is mounted on, in canonical form.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Unmounts. Files that are still open are served until they are closed, as long as the
    /// process lives; the folder is free at once.
    ///
    /// # Errors
    /// `Refused` or `Unavailable` where the kernel does not let go; dropping tries again.
    pub fn unmount(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if self.over {
            return Ok(());
        }
        let subject = || self.folder.display().to_string();
        let top = mount_table::topmost(&self.folder)
            .map_err(|error| Error::io("unmount", subject(), error))?;
        // Somebody else may have unmounted it, and mounted another thing there. The number of a
        // device is its own only as long as its connection lives.
        if is_alive(&self.connection) && top.is_some_and(|top| top.device == self.device) {
            let waits = match detach(&self.folder, false) {
                Ok(()) => true,
                Err(_) => {
                    detach(&self.folder, true)
                        .map_err(|error| Error::io("unmount", subject(), error))?;
                    false
                }
            };
            if waits && self.ended.recv_timeout(END_MAX).is_err() {
                tracing::debug!(folder = %self.folder.display(), "a copy of the mount lives on");
            }
        }
        self.over = true;
        drop(self.helper.take());
        Ok(())
    }
}

impl Drop for FuseMount {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!(error = error.chain(), "a mount was left behind");
        }
    }
}

fn failed(folder: &Path, error: io::Error) -> Error {
    Error::io(OPERATION, folder.display().to_string(), error)
}

/// The folder's canonical path, found without touching the folder: it may be a dead mount.
fn canonical(folder: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(folder).map_err(|error| failed(folder, error))?;
    let missing = |error: io::Error| {
        let hint = format!("make the folder first: mkdir -p {}", folder.display());
        failed(folder, error).hint(hint)
    };
    let plain = !absolute.is_symlink();
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) if plain => {
            Ok(parent.canonicalize().map_err(missing)?.join(name))
        }
        _ => absolute.canonicalize().map_err(missing),
    }
}

/// Detaches mounts on the folder that are ours and whose server is gone.
fn clear_dead(folder: &Path) -> Result<()> {
    for _ in 0..DEAD_MAX {
        let top = mount_table::topmost(folder).map_err(|error| failed(folder, error))?;
        let Some(top) = top else { return Ok(()) };
        let ours = top.source == SOURCE && top.kind == KIND;
        // Opened, not looked at: the kernel may still know what a dead folder looked like.
        let dead = |error: io::Error| error.raw_os_error() == Some(Errno::NOTCONN.raw_os_error());
        if !ours || !File::open(folder).is_err_and(dead) {
            return Ok(());
        }
        tracing::info!(folder = %folder.display(), "clearing away the mount of a killed server");
        detach(folder, true).map_err(|error| failed(folder, error))?;
    }
    Ok(())
}

fn check_folder(folder: &Path) -> Result<Owner> {
    let metadata = std::fs::metadata(folder).map_err(|error| {
        let missing = error.kind() == ErrorKind::NotFound;
        let error = failed(folder, error);
        if missing {
            error.hint(format!("make the folder first: mkdir -p {}", folder.display()))
        } else {
            error
        }
    })?;
    let subject = || folder.display().to_string();
    if !metadata.is_dir() {
        return Err(Error::new(Kind::Invalid, OPERATION, subject())
            .because("it is not a folder")
            .hint("name an empty folder"));
    }
    let mut entries = std::fs::read_dir(folder).map_err(|error| failed(folder, error))?;
    if entries.next().is_some() {
        let top = mount_table::topmost(folder).map_err(|error| failed(folder, error))?;
        let reason = match top {
            Some(top) if top.kind == KIND => "another Larder is mounted there",
            _ => "the folder is not empty",
        };
        return Err(Error::new(Kind::Refused, OPERATION, subject())
            .because(reason)
            .hint("name an empty folder"));
    }
    Ok(Owner { uid: metadata.uid(), gid: metadata.gid(), version_mode: 0o440 })
}

/// Everyone, as far as the files' modes let them, or the owner only.
fn access() -> SessionACL {
    let allowed = || {
        let settings = std::fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
        settings.lines().any(|line| line.trim() == "user_allow_other")
    };
    if rustix::process::geteuid().is_root() || allowed() {
        SessionACL::All
    } else {
        SessionACL::Owner
    }
}

fn attach(folder: &Path, acl: SessionACL, read_only: bool) -> Result<(OwnedFd, Option<Helper>)> {
    let subject = || folder.display().to_string();
    if !Path::new(DEVICE).exists() {
        return Err(Error::new(Kind::Unavailable, OPERATION, subject())
            .because(format!("this kernel offers no FUSE: {DEVICE} is missing"))
            .hint("load it: modprobe fuse"));
    }
    let error = match attach_with_helper(folder, acl, read_only) {
        Ok(attached) => return Ok(attached),
        Err(error) => error,
    };
    if rustix::process::geteuid().is_root() {
        tracing::debug!(%error, "mounting without fusermount3");
        let fd = attach_directly(folder, read_only).map_err(|error| failed(folder, error))?;
        return Ok((fd, None));
    }
    if error.kind() == ErrorKind::NotFound {
        return Err(Error::new(Kind::Unavailable, OPERATION, subject())
            .because("fusermount3 is missing")
            .hint("install it (apt-get install fuse3), or mount as root"));
    }
    Err(failed(folder, error))
}

fn attach_directly(folder: &Path, read_only: bool) -> io::Result<OwnedFd> {
    let device = File::options().read(true).write(true).open(DEVICE)?;
    let options = CString::new(format!(
        "fd={},rootmode=40000,user_id={},group_id={},allow_other,default_permissions,max_read={}",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
        REQUEST_LEN_MAX,
    ))?;
    let mut flags = MountFlags::NODEV | MountFlags::NOSUID;
    flags.set(MountFlags::RDONLY, read_only);
    rustix::mount::mount(SOURCE, folder, KIND, flags, options.as_c_str())?;
    Ok(device.into())
}

fn attach_with_helper(
    folder: &Path,
    acl: SessionACL,
    read_only: bool,
) -> io::Result<(OwnedFd, Option<Helper>)> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut options = format!(
        "fsname={SOURCE},subtype=larder,default_permissions,nodev,nosuid,max_read={REQUEST_LEN_MAX}"
    );
    if read_only {
        options.push_str(",ro");
    }
    if acl == SessionACL::All {
        options.push_str(",allow_other,auto_unmount");
    }
    let mut command = Command::new("fusermount3");
    // The socket is its standard input: the one descriptor that a child gets for the asking.
    command.arg("-o").arg(options).arg("--").arg(folder).env("_FUSE_COMMFD", "0");
    command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    drop(command);
    let received = receive_descriptor(&ours);
    match received {
        Ok(Some(fd)) if acl == SessionACL::All => {
            Ok((fd, Some(Helper { child, socket: Some(ours) })))
        }
        Ok(Some(fd)) => child.wait().map(|_| (fd, None)),
        received => {
            drop(ours);
            let mut reason = String::new();
            if let Some(stderr) = child.stderr.take() {
                stderr.take(4096).read_to_string(&mut reason)?;
            }
            child.wait()?;
            received?;
            Err(io::Error::new(ErrorKind::PermissionDenied, reason.trim().to_string()))
        }
    }
}

/// The descriptor that comes over a socket; `None` where it is closed without one.
fn receive_descriptor(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut byte)];
    let received = loop {
        match rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            received => break received?,
        }
    };
    if received.bytes == 0 {
        return Ok(None);
    }
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    }))
}

/// Serves a session on threads of its own. The receiver learns when it has ended.
fn serve(
    session: Session<Door>,
    dropped: Receiver<Dropped>,
    folder: &Path,
) -> io::Result<Receiver<()>> {
    let notifier = session.notifier();
    // Of its own: the kernel may let it wait until a lookup in the same folder was answered.
    std::thread::Builder::new().name("larder-fuse-drop".into()).spawn(move || {
        for (parent, name) in dropped {
            if let Err(error) = notifier.inval_entry(INodeNo(parent), OsStr::new(&name)) {
                tracing::debug!(%error, name, "the kernel knows the name no more");
            }
        }
    })?;
    let (end, ended) = sync_channel(1);
    let folder = folder.to_path_buf();
    std::thread::Builder::new().name("larder-fuse".into()).spawn(move || {
        if let Err(error) = session.run() {
            tracing::warn!(%error, folder = %folder.display(), "a mount ended with an error");
        }
        let _ = end.send(());
    })?;
    Ok(ended)
}

/// True until the kernel has let go of the mount.
fn is_alive(connection: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(connection, PollFlags::empty())];
    let events = rustix::event::poll(&mut polled, Some(&Timespec::default()));
    events.is_err() || !polled[0].revents().contains(PollFlags::ERR)
}

fn mounted_device(folder: &Path) -> io::Result<String> {
    match mount_table::topmost(folder)? {
        Some(top) if top.kind == KIND => Ok(top.device),
        _ => Err(io::Error::other("it is not in the table of mounts")),
    }
}

/// Lets sequential readers run ahead by so many bytes, as a rule by whole requests: what is asked for
/// while the session starts is capped at the kernel's default of 128 KiB. Only root may, and nothing
/// breaks without.
fn set_readahead(device: &str, len: u32) {
    let path = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(error) = std::fs::write(&path, (len / 1024).to_string()) {
        tracing::debug!(%error, path, "readahead stays as it is");
    }
}

/// Unmounts what is on the folder; lazily where its files may stay open.
fn detach(folder: &Path, lazily: bool) -> io::Result<()> {
    let flags = if lazily { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(folder, flags | UnmountFlags::NOFOLLOW) {
        Err(Errno::PERM) => {}
        done => return done.map_err(io::Error::from),
    }
    let mut command = Command::new("fusermount3");
    command.args(if lazily { &["-u", "-z", "-q"][..] } else { &["-u", "-q"] });
    let output = command.arg("--").arg(folder).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&output.stderr).trim().to_string();
    Err(io::Error::new(ErrorKind::ResourceBusy, reason))
}
