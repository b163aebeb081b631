//! A version as files that can be changed: a mirror, a FUSE mount, a loop device, a mount; and back.
//!
//! ```text
//! version ◄─mirror─ FUSE file ◄─loop─ ext4, mounted in a mount namespace of its own (the holder)
//!    next version ◄─commit─ sealed mirror ◄── trimmed, unmounted
//! ```
//!
//! **Invariants**: the loop device and the mount exist in the holder's mount namespace only. When the
//! holder ends, however it ends, the kernel takes both away; it ends when its standard input closes,
//! so it ends with us.
//!
//! **Failure**: dropped at any point, nothing is left: no mount, no device, no process, no hold.

use std::cell::OnceCell;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use attach::fuse::{FuseMount, Tree as MountedTree};
use catalog::VersionRecord;
use env::RealFileSystem;
use mirror::{Binding, Mirror, StateFolder};
use model::device::Device;
use model::progress::Silent;
use model::{Error, ImageName, Kind, MirrorName, Result, VersionId, VersionNumber};
use repository::{CommitRequest, Committed, Repository};
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::boot::BOOT_OFFSET;
use crate::tool::{Log, Run, kill_group, program, wait_for};
use crate::work::holder_of;

/// How long the kernel may take for a mount, a trim, an unmount.
const MOUNT_LIMIT: Duration = Duration::from_secs(300);

/// How long a hold outlives a build that was killed.
const HOLD_TIME: Duration = Duration::from_secs(24 * 3600);

const NAME: &str = "build";

/// The holder: mounts, says so, waits for a word, unmounts.
const HOLDER: &str = r#"
set -e
mount -o "$3" "$1" "$2"
echo mounted
read -r word
if [ "$word" = keep ]; then sync -f "$2"; fstrim "$2"; fi
umount "$2"
echo unmounted
read -r word || true
"#;

/// A version with a mirror that takes changes.
pub(crate) struct Attached {
    repository: Repository,
    holder_name: String,
    mirror: Arc<Mirror>,
    mount: Option<FuseMount>,
    file: PathBuf,
    folder: PathBuf,
    length: u64,
    root: OnceCell<(u64, u64)>,
}

/// What the mount shows: one mirror.
struct OneMirror(Arc<Mirror>, MirrorName);

fn nothing<T>(what: &str) -> Result<T> {
    Err(Error::new(Kind::NotFound, "find", what))
}

impl MountedTree for OneMirror {
    fn images(&self) -> Result<Vec<ImageName>> {
        Ok(Vec::new())
    }
    fn versions(&self, image: &ImageName) -> Result<Vec<VersionNumber>> {
        nothing(image.as_str())
    }
    fn version_length(&self, version: &VersionId) -> Result<u64> {
        nothing(version.image.as_str())
    }
    fn open_version(&self, version: &VersionId) -> Result<Arc<dyn Device>> {
        nothing(version.image.as_str())
    }
    fn mirrors(&self) -> Result<Vec<MirrorName>> {
        Ok(vec![self.1.clone()])
    }
    fn mirror_length(&self, _mirror: &MirrorName) -> Result<u64> {
        Ok(self.0.length())
    }
    fn open_mirror(&self, mirror: &MirrorName) -> Result<Arc<dyn Device>> {
        if *mirror == self.1 { Ok(self.0.clone()) } else { nothing(mirror.as_str()) }
    }
    fn clone_mirror(&self, mirror: &MirrorName, _image: &ImageName) -> Result<VersionId> {
        nothing(mirror.as_str())
    }
    fn commit_mirror(&self, mirror: &MirrorName) -> Result<VersionId> {
        nothing(mirror.as_str())
    }
}

impl Attached {
    /// Makes a mirror of a version in a folder for work, and mounts it there.
    ///
    /// # Errors
    /// Those of the repository; `Unavailable` where there is no FUSE.
    pub(crate) fn open(
        repository: &Repository,
        version: &VersionRecord,
        work: &Path,
    ) -> Result<Attached> {
        let holder_name = holder_of(work);
        repository.catalog().hold(&version.id, &holder_name, Some(HOLD_TIME))?;
        let opened = Self::open_held(repository, version, work, &holder_name);
        opened.inspect_err(|_| {
            // The error that matters is the first; the hold ends by itself.
            let _ = repository.catalog().release(&holder_name);
        })
    }

    fn open_held(
        repository: &Repository,
        version: &VersionRecord,
        work: &Path,
        holder_name: &str,
    ) -> Result<Attached> {
        let facts = &version.facts;
        let binding = Binding {
            parent: version.id.clone(),
            content: facts.content,
            layout: facts.layout,
            length: facts.length,
        };
        let folder = work.join("mirror");
        let mount_folder = work.join("fuse");
        std::fs::create_dir_all(&mount_folder)
            .map_err(|error| Error::io("make", mount_folder.display().to_string(), error))?;
        let state = StateFolder::new(Arc::new(RealFileSystem), folder.clone());
        let name = MirrorName::new(NAME)?;
        let chunks = Arc::new(repository.chunks().another());
        let mirror = Mirror::create(&state, &name, binding, chunks)?;
        let tree = Arc::new(OneMirror(mirror.clone(), name));
        let mount = FuseMount::mount(&mount_folder, tree)?;
        Ok(Attached {
            repository: repository.clone(),
            holder_name: holder_name.to_owned(),
            mirror,
            mount: Some(mount),
            file: mount_folder.join("mirrors").join(NAME),
            folder,
            length: facts.length,
            root: OnceCell::new(),
        })
    }

    /// Where the file system of the image's root is: its first byte and its length.
    ///
    /// # Errors
    /// `Invalid` where there is none that is known.
    pub(crate) fn root(&self, run: &Run) -> Result<(u64, u64)> {
        if let Some(root) = self.root.get() {
            return Ok(*root);
        }
        let root = self.find_root(run)?;
        Ok(*self.root.get_or_init(|| root))
    }

    fn find_root(&self, run: &Run) -> Result<(u64, u64)> {
        if self.is_ext4(0)? {
            return Ok((0, self.length));
        }
        let table = run.answer(program("sfdisk").arg("--json").arg(&self.file));
        let table: serde_json::Value =
            table.ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        let sector = table["partitiontable"]["sectorsize"].as_u64().unwrap_or(512);
        let parts = table["partitiontable"]["partitions"].as_array().cloned().unwrap_or_default();
        // A build calls it so; partitions behind it hold other things.
        let named = parts.iter().filter(|part| part["name"] == "root");
        for part in named.chain(parts.iter().rev()) {
            let (start, size) = (part["start"].as_u64(), part["size"].as_u64());
            let (Some(start), Some(size)) = (start, size) else { continue };
            let (offset, len) = (start.saturating_mul(sector), size.saturating_mul(sector));
            let fits = offset.checked_add(len).is_some_and(|end| end <= self.length);
            if fits && self.is_ext4(offset)? {
                return Ok((offset, len));
            }
        }
        Err(Error::new(
            Kind::Invalid,
            "find the root file system of",
            self.mirror.base().to_string(),
        )
        .because("neither the disk nor a partition of it is an ext4 file system"))
    }

    /// Where the boot partition begins, if the disk has one.
    pub(crate) fn boot_partition(&self, run: &Run) -> Result<Option<u64>> {
        let (root, _) = self.root(run)?;
        if root <= BOOT_OFFSET {
            return Ok(None);
        }
        let mut label = [0; 3];
        // Where FAT says what it is.
        self.mirror.read(BOOT_OFFSET + 54, &mut label)?;
        Ok((&label == b"FAT").then_some(BOOT_OFFSET))
    }

    /// The disk's length.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Bytes of the disk.
    pub(crate) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.mirror.read(offset, buffer)
    }

    /// The identity of the file system that begins there, in the form of a UUID.
    pub(crate) fn identity(&self, offset: u64) -> Result<String> {
        let mut bytes = [0; 16];
        // Where ext4 says what it is.
        self.mirror.read(offset + 1024 + 0x68, &mut bytes)?;
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let (a, b, c, d, e) = (&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
        Ok(format!("{a}-{b}-{c}-{d}-{e}"))
    }

    /// The disk as a file.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    fn is_ext4(&self, offset: u64) -> Result<bool> {
        let mut magic = [0; 2];
        if offset + 1082 > self.length {
            return Ok(false);
        }
        self.mirror.read(offset + 1080, &mut magic)?;
        Ok(magic == [0x53, 0xef])
    }

    /// The text of a file of the image, which is not mounted for that; none where there is no such file.
    pub(crate) fn read_file(&self, path: &str, run: &Run) -> Result<String> {
        let (offset, _) = self.root(run)?;
        let inside = format!("{}?offset={offset}", self.file.display());
        let text =
            run.answer(program("debugfs").args(["-R", &format!("cat {path}")]).arg(inside))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Copies a file of the image, which is not mounted for that.
    ///
    /// # Errors
    /// `NotFound` where there is no such file.
    pub(crate) fn copy_file(&self, path: &str, to: &Path, run: &Run) -> Result<()> {
        let (offset, _) = self.root(run)?;
        let inside = format!("{}?offset={offset}", self.file.display());
        let question = format!("dump {path} \"{}\"", to.display());
        run.answer(program("debugfs").args(["-R", &question]).arg(inside))?;
        // It says that it failed in words alone.
        match std::fs::metadata(to) {
            Ok(facts) if facts.len() > 0 => Ok(()),
            _ => Err(Error::new(Kind::NotFound, "read", path)
                .because(format!("{} has no such file", self.mirror.base()))),
        }
    }

    /// Mounts the root file system.
    pub(crate) fn mount(&self, work: &Path, log: &Log, run: &Run) -> Result<Mounted> {
        let (offset, len) = self.root(run)?;
        let folder = work.join("root");
        std::fs::create_dir_all(&folder)
            .map_err(|error| Error::io("make", folder.display().to_string(), error))?;
        Mounted::start(&self.file, &folder, (offset, len), log)
    }

    /// Makes what was changed the next version of an image.
    pub(crate) fn commit(&self, image: &ImageName, origin: String) -> Result<Committed> {
        let sealed = self.mirror.seal()?;
        let request = CommitRequest {
            parent: sealed.parent().clone(),
            image: image.clone(),
            tag: None,
            origin,
            progress: &Silent,
        };
        self.repository.commit(&sealed, &request)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Some(mount) = self.mount.take()
            && let Err(error) = mount.unmount()
        {
            tracing::warn!("{}", error.chain());
        }
        // Its folder goes, and with it whatever could not be made durable.
        let _ = self.mirror.close();
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            tracing::warn!(%error, "cannot remove {}", self.folder.display());
        }
        if let Err(error) = self.repository.catalog().release(&self.holder_name) {
            tracing::warn!("{}", error.chain());
        }
    }
}

/// A root file system that is mounted in the namespace of a process.
pub(crate) struct Mounted {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    folder: PathBuf,
    log: Log,
}

impl Mounted {
    fn start(file: &Path, folder: &Path, (offset, len): (u64, u64), log: &Log) -> Result<Mounted> {
        // Before the commit everything is synced; until then nobody needs it to survive a power cut.
        let options = format!(
            "loop,offset={offset},sizelimit={len},rw,noatime,nodev,nosuid,noinit_itable,barrier=0"
        );
        let mut command: Command = program("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"]);
        command.args(["/bin/sh", "-c", HOLDER, "holder"]).arg(file).arg(folder).arg(options);
        let failed = |error| Error::io("mount", folder.display().to_string(), error);
        let (reader, writer) = std::io::pipe().map_err(failed)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(writer);
        let mut child = std::os::unix::process::CommandExt::process_group(&mut command, 0)
            .spawn()
            .map_err(failed)?;
        command.stderr(Stdio::null());
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let errors = log.clone();
        std::thread::spawn(move || {
            BufReader::new(reader)
                .split(b'\n')
                .map_while(std::result::Result::ok)
                .for_each(|line| errors.add(&[line, b"\n".to_vec()].concat()));
        });
        let Some(stdout) = stdout else {
            return Err(Error::new(Kind::Bug, "mount", folder.display().to_string()));
        };
        let (stdout, folder) = (BufReader::new(stdout), folder.to_path_buf());
        let mut mounted = Mounted { child, stdin, stdout, folder, log: log.clone() };
        mounted.hear("mounted")?;
        Ok(mounted)
    }

    fn hear(&mut self, word: &str) -> Result<()> {
        let limit = Timespec { tv_sec: MOUNT_LIMIT.as_secs() as i64, tv_nsec: 0 };
        let mut line = String::new();
        let heard = {
            let mut poll = [PollFd::new(self.stdout.get_ref(), PollFlags::IN)];
            rustix::event::poll(&mut poll, Some(&limit))
        };
        if matches!(heard, Ok(1..)) {
            let _ = self.stdout.read_line(&mut line);
        }
        if line.trim() == word {
            return Ok(());
        }
        Err(Error::new(Kind::Unavailable, "mount", self.folder.display().to_string())
            .because(format!("it was not {word}: {}", self.log.last_lines())))
    }

    /// The process in whose namespace it is mounted.
    pub(crate) fn holder(&self) -> u32 {
        self.child.id()
    }

    /// Where it is mounted there.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The same from here.
    pub(crate) fn folder_from_here(&self) -> PathBuf {
        let inside = self.folder.strip_prefix("/").unwrap_or(&self.folder);
        Path::new("/proc").join(self.child.id().to_string()).join("root").join(inside)
    }

    /// Tells the disk which blocks are free, and unmounts. Nobody may have a file open there.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.tell("keep");
        self.hear("unmounted")
    }

    fn tell(&mut self, word: &str) {
        if let Some(stdin) = &mut self.stdin {
            // A holder that is gone is found out by what it does not say.
            let _ = writeln!(stdin, "{word}").and_then(|()| stdin.flush());
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.tell("drop");
        drop(self.stdin.take());
        let _ = wait_for(&mut self.child, MOUNT_LIMIT);
        kill_group(&mut self.child);
    }
}
