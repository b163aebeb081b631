//! `fuser`'s trait, translated to [`Core`]; requests that may wait go through [`Workers`].

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};
use model::device::ExtentKind;
use rustix::fs::OFlags;

use super::core::{Core, Dropped, Look};
use super::nodes::{Node, ROOT};
use super::passthrough::STACK_DEPTH_MAX;
use super::workers::{Workers, guard};

/// The most bytes of one request.
pub(crate) const REQUEST_LEN_MAX: u32 = 1 << 20;
/// The most requests that the kernel has under way on its own account (readahead, direct I/O).
const BACKGROUND_MAX: u16 = 256;
/// How long the kernel may believe what it knows of versions: they never change.
const VERSION_TTL: Duration = Duration::from_secs(3600);
/// The same for all that comes and goes.
const OTHER_TTL: Duration = Duration::from_secs(1);
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

/// Whom the files belong to: those of the folder that is mounted on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner {
    /// User.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Who may open versions, and how.
    pub(crate) version_mode: u16,
}

/// A file system for `fuser`.
pub(crate) struct Door {
    core: Arc<Core>,
    workers: Workers,
    owner: Owner,
    dropped: Sender<Dropped>,
}

impl Door {
    /// A door to `core`. Gives the names that the kernel is to drop, on a thread that may wait for
    /// it.
    pub(crate) fn new(core: Core, owner: Owner) -> (Self, Receiver<Dropped>) {
        let (dropped, names) = channel();
        (Door { core: Arc::new(core), workers: Workers::default(), owner, dropped }, names)
    }

    fn serve(&self, job: impl FnOnce(&Core) + Send + 'static) {
        let core = Arc::clone(&self.core);
        self.workers.run(move || job(&core));
    }
}

fn attributes(look: &Look, owner: Owner) -> FileAttr {
    let folder = look.node.is_folder();
    let (kind, perm) = match look.node {
        Node::Version(_) => (FileType::RegularFile, owner.version_mode),
        Node::Mirror(_) => (FileType::RegularFile, 0o660),
        _ => (FileType::Directory, 0o550),
    };
    // One sector fewer than the length has: many tools ask for holes only where a file seems to
    // have some, and telling the true number would mean to open it. Never 0, which others take
    // for a file without any data.
    let sectors = look.len.div_ceil(512);
    let blocks = if sectors > 1 { sectors - 1 } else { sectors };
    FileAttr {
        ino: INodeNo(look.number),
        size: look.len,
        blocks,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind,
        perm,
        nlink: if folder { 2 } else { 1 },
        uid: owner.uid,
        gid: owner.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn ttl(node: &Node) -> &'static Duration {
    match node {
        Node::Version(_) => &VERSION_TTL,
        _ => &OTHER_TTL,
    }
}

thread_local! {
    /// What this thread reads into: asking for a fresh buffer for every read costs page faults.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn read(core: &Core, handle: FileHandle, offset: u64, size: u32, reply: ReplyData) {
    let size = size as usize;
    let answer = |buffer: &mut [u8]| match core.read(handle.0, offset, buffer) {
        Ok(bytes) => reply.data(bytes),
        Err(errno) => reply.error(errno),
    };
    if size > REQUEST_LEN_MAX as usize {
        return answer(&mut vec![0; size]);
    }
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < size {
            buffer.resize(size, 0);
        }
        answer(&mut buffer[..size]);
    });
}

fn write(core: &Core, handle: FileHandle, offset: u64, bytes: &[u8], reply: ReplyWrite) {
    match core.write(handle.0, offset, bytes) {
        Ok(()) => reply.written(bytes.len() as u32),
        Err(errno) => reply.error(errno),
    }
}

fn finish(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

impl Filesystem for Door {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Each of these is a wish: an older kernel goes without.
        for wish in [
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
        ] {
            let _ = config.add_capabilities(wish);
        }
        let _ = config.set_max_write(REQUEST_LEN_MAX);
        let read_ahead_len = self.core.read_ahead_len_max().unwrap_or(REQUEST_LEN_MAX);
        if let Err(most) = config.set_max_readahead(read_ahead_len) {
            let _ = config.set_max_readahead(most);
        }
        let _ = config.set_max_background(BACKGROUND_MAX);
        let passes = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(STACK_DEPTH_MAX).is_ok();
        self.core.offer.set(if passes { Ok(()) } else { Err("the kernel has none (6.9 has)") });
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        // A name that is not even text is no name of ours.
        let Some(name) = name.to_str().map(str::to_owned) else {
            return reply.error(Errno::ENOENT);
        };
        let owner = self.owner;
        self.serve(move |core| match core.lookup(parent.0, &name) {
            Ok(look) => reply.entry(ttl(&look.node), &attributes(&look, owner), Generation(0)),
            Err(errno) => reply.error(errno),
        });
    }

    fn forget(&self, _request: &Request, number: INodeNo, count: u64) {
        self.core.forget(number.0, count);
    }

    fn getattr(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        let owner = self.owner;
        self.serve(move |core| match core.look(number.0) {
            Ok(look) => reply.attr(ttl(&look.node), &attributes(&look, owner)),
            Err(errno) => reply.error(errno),
        });
    }

    fn setattr(
        &self,
        _request: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let owner = self.owner;
        let ownership = mode.is_some() || uid.is_some() || gid.is_some();
        self.serve(move |core| match core.change(number.0, size, ownership) {
            Ok(look) => reply.attr(ttl(&look.node), &attributes(&look, owner)),
            Err(errno) => reply.error(errno),
        });
    }

    fn open(&self, _request: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let writable = flags.acc_mode() != OpenAccMode::O_RDONLY;
        let truncate = OFlags::from_bits_retain(flags.0 as u32).contains(OFlags::TRUNC);
        self.serve(move |core| {
            let register = |fd: BorrowedFd<'_>| reply.open_backing(fd);
            let (handle, file, keep_cache) =
                match core.open(number.0, writable, truncate, &register) {
                    Ok(opened) => opened,
                    Err(errno) => return reply.error(errno),
                };
            let mut flags = FopenFlags::empty();
            flags.set(FopenFlags::FOPEN_NOFLUSH, !writable);
            if let Some(passthrough) = &file.passthrough {
                return reply.opened_passthrough(FileHandle(handle), flags, passthrough.id());
            }
            flags.set(FopenFlags::FOPEN_KEEP_CACHE, keep_cache);
            reply.opened(FileHandle(handle), flags);
        });
    }

    fn read(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.serve(move |core| read(core, handle, offset, size, reply));
    }

    fn write(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // The bytes are the event thread's own; only a worker needs a copy of them.
        if let Some(_permit) = self.workers.try_here() {
            return guard(|| write(&self.core, handle, offset, data, reply));
        }
        let (core, data) = (Arc::clone(&self.core), data.to_vec());
        self.workers.hand_over(Box::new(move || write(&core, handle, offset, &data, reply)));
    }

    fn flush(
        &self,
        _request: &Request,
        _number: INodeNo,
        _handle: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn release(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let dropped = self.dropped.clone();
        self.serve(move |core| {
            if let Some(name) = core.release(handle.0) {
                // Without the thread that takes it the mount is about to end.
                let _ = dropped.send(name);
            }
            reply.ok();
        });
    }

    fn fsync(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        self.serve(move |core| finish(core.flush(handle.0), reply));
    }

    fn fallocate(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.serve(move |core| finish(core.allocate(handle.0, offset, length, mode), reply));
    }

    fn lseek(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let wanted = match whence {
            SEEK_DATA => ExtentKind::Data,
            SEEK_HOLE => ExtentKind::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        self.serve(move |core| match core.seek(handle.0, offset, wanted) {
            Ok(found) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
            Err(errno) => reply.error(errno),
        });
    }

    fn ioctl(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        _flags: IoctlFlags,
        command: u32,
        in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        let input = in_data.to_vec();
        self.serve(move |core| match core.control(handle.0, command, &input) {
            Ok(output) => reply.ioctl(0, &output),
            Err(errno) => reply.error(errno),
        });
    }

    fn opendir(&self, _request: &Request, number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.serve(move |core| match core.open_folder(number.0) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(errno) => reply.error(errno),
        });
    }

    fn readdir(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        self.serve(move |core| list(core, number, handle, offset, reply));
    }

    fn readdirplus(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let owner = self.owner;
        self.serve(move |core| list_plus(core, owner, number, handle, offset, reply));
    }

    fn releasedir(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.core.release_folder(handle.0);
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _number: INodeNo, reply: ReplyStatfs) {
        reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096);
    }

    // The tree changes through the catalog only.

    fn mknod(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn create(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn symlink(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _target: &Path,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn link(
        &self,
        _request: &Request,
        _number: INodeNo,
        _parent: INodeNo,
        _name: &OsStr,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn rename(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _new_parent: INodeNo,
        _new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    // `ENOSYS` tells the kernel to stop asking.

    fn getxattr(
        &self,
        _request: &Request,
        _number: INodeNo,
        _name: &OsStr,
        _size: u32,
        reply: ReplyXattr,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _request: &Request, _number: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }
}

/// The entry with which reading goes on, where it stopped at `offset`: `.` and `..` come first.
const DOTS: [&str; 2] = [".", ".."];

fn list(core: &Core, number: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
    let listing = match core.listing(handle.0) {
        Ok(listing) => listing,
        Err(errno) => return reply.error(errno),
    };
    let skip = usize::try_from(offset).unwrap_or(usize::MAX);
    for (index, dot) in DOTS.iter().enumerate().skip(skip) {
        let number = if index == 0 { number } else { INodeNo(ROOT) };
        if reply.add(number, index as u64 + 1, FileType::Directory, dot) {
            return reply.ok();
        }
    }
    for (index, (name, node)) in listing.iter().enumerate().skip(skip.saturating_sub(DOTS.len())) {
        let kind = if node.is_folder() { FileType::Directory } else { FileType::RegularFile };
        let next = (index + DOTS.len()) as u64 + 1;
        if reply.add(INodeNo(core.number(node)), next, kind, name) {
            break;
        }
    }
    reply.ok();
}

fn list_plus(
    core: &Core,
    owner: Owner,
    number: INodeNo,
    handle: FileHandle,
    offset: u64,
    mut reply: ReplyDirectoryPlus,
) {
    let listing = match core.listing(handle.0) {
        Ok(listing) => listing,
        Err(errno) => return reply.error(errno),
    };
    let skip = usize::try_from(offset).unwrap_or(usize::MAX);
    for (index, dot) in DOTS.iter().enumerate().skip(skip) {
        let number = if index == 0 { number.0 } else { ROOT };
        // The kernel takes no more than the number and the type from these two.
        let attr = attributes(&Look { number, node: Node::Mirrors, len: 0 }, owner);
        let next = index as u64 + 1;
        if reply.add(INodeNo(number), next, dot, &Duration::ZERO, &attr, Generation(0)) {
            return reply.ok();
        }
    }
    for (index, (name, node)) in listing.iter().enumerate().skip(skip.saturating_sub(DOTS.len())) {
        let (number, look) = core.look_listed(node);
        // Where the length cannot be told the kernel is to ask, and to get the error, at once.
        let ttl = if look.is_some() { ttl(node) } else { &Duration::ZERO };
        let look = look.unwrap_or_else(|| Look { number, node: node.clone(), len: 0 });
        let next = (index + DOTS.len()) as u64 + 1;
        let attr = attributes(&look, owner);
        if reply.add(INodeNo(number), next, name, ttl, &attr, Generation(0)) {
            core.forget(number, 1);
            break;
        }
    }
    reply.ok();
}
