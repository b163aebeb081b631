//! What a guest is made of.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;

use crate::accelerator::Accelerator;

/// The program that runs guests.
pub const QEMU_PROGRAM: &str = "qemu-system-x86_64";

/// A disk of a guest. The guest sees a virtio disk with logical sectors of 512 bytes and physical
/// ones of 4096, and its TRIM reaches the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Drive {
    /// An export of an NBD server at a Unix socket. When the server goes away, the guest's requests
    /// wait for it up to five minutes, then fail.
    NbdUnix {
        /// Where the server listens.
        socket: PathBuf,
        /// The name of the export, often empty.
        export: String,
        /// Whether writes are refused.
        read_only: bool,
    },
    /// A raw file: a plain one, or one in a FUSE mount. The format is never guessed.
    File {
        /// The file.
        path: PathBuf,
        /// Whether writes are refused.
        read_only: bool,
    },
    /// A block device of the host, its bytes taken as they are.
    BlockDevice {
        /// The device.
        path: PathBuf,
        /// Whether writes are refused.
        read_only: bool,
    },
}

/// Where a guest's serial console goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Console {
    /// This process's terminal (standard input and output), with QEMU's monitor behind `Ctrl-A c`
    /// and its end behind `Ctrl-A x`. `Ctrl-C` goes to the guest.
    Terminal,
    /// A [`ScriptedConsole`](crate::ScriptedConsole) in this process.
    Scripted,
    /// A stream to this process, as the bytes come: see [`Guest::take_console_stream`].
    ///
    /// [`Guest::take_console_stream`]: crate::Guest::take_console_stream
    Stream,
    /// A Unix socket on which QEMU listens; what the guest says while nobody listens is lost.
    Socket(PathBuf),
    /// Nowhere.
    None,
}

/// What a guest reaches by network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Nothing: no network card.
    None,
    /// The host's network through QEMU's own translation; nobody reaches the guest.
    User,
}

/// A file that is a guest's memory.
#[derive(Clone, Debug)]
pub struct MemoryFile {
    /// The file, which may be longer than the memory. QEMU opens it for reading and writing.
    pub path: PathBuf,
    /// Whether what the guest writes goes to the file. Otherwise it stays with the guest, and the file
    /// must not change.
    pub is_shared: bool,
}

/// What a guest may be grown by while it runs. Its machine has empty slots, and a helper's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    /// Processors there may be.
    pub cpus_max: u32,
    /// Memory there may be, in MiB.
    pub memory_max_mib: u64,
    /// Slots for more memory.
    pub memory_slots: u32,
    /// Empty PCI Express ports, `port0` and so on.
    pub port_count: u32,
}

impl Growth {
    /// What baked machines have.
    pub const DEFAULT: Growth =
        Growth { cpus_max: 16, memory_max_mib: 64 << 10, memory_slots: 8, port_count: 8 };
}

/// What a guest is made of. [`GuestConfig::new`] gives one that boots a Debian.
#[derive(Clone, Debug)]
pub struct GuestConfig {
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// Processors.
    pub cpus: u32,
    /// Which accelerator; none: [`pick_accelerator`](crate::pick_accelerator) decides.
    pub accelerator: Option<Accelerator>,
    /// The disks; the firmware boots the first.
    pub drives: Vec<Drive>,
    /// The serial console.
    pub console: Console,
    /// The network.
    pub network: Network,
    /// The machine type; none: QEMU's newest, with PCI Express where the guest may grow.
    pub machine_type: Option<String>,
    /// The file that is its memory; none: memory of QEMU's own.
    pub memory_file: Option<MemoryFile>,
    /// What it may be grown by, and the port of a helper; none: nothing.
    pub growth: Option<Growth>,
    /// Whether a balloon is in the last of its ports, to be taken out before it is saved.
    pub has_balloon: bool,
    /// Whether it waits for a saved state instead of booting.
    pub is_incoming: bool,
    /// Descriptors that QEMU inherits, by their numbers here.
    pub inherited: Vec<Arc<OwnedFd>>,
    /// Where those connect who want to speak with QEMU's own agent in the guest, if anywhere: a socket
    /// that listens.
    pub guest_agent: Option<Arc<UnixListener>>,
    /// Whether the guest lives on when this process ends. Otherwise the kernel kills it then.
    pub outlives_parent: bool,
    /// QEMU: a path, or a name looked up in `PATH`.
    pub program: PathBuf,
    /// Arguments for QEMU after all others.
    pub extra_arguments: Vec<OsString>,
}

impl GuestConfig {
    /// A guest of 512 MiB and one processor with these disks and a console.
    pub fn new(drives: Vec<Drive>, console: Console) -> Self {
        GuestConfig {
            memory_mib: 512,
            cpus: 1,
            accelerator: None,
            drives,
            console,
            network: Network::None,
            machine_type: None,
            memory_file: None,
            growth: None,
            has_balloon: false,
            is_incoming: false,
            inherited: Vec::new(),
            guest_agent: None,
            outlives_parent: false,
            program: PathBuf::from(QEMU_PROGRAM),
            extra_arguments: Vec::new(),
        }
    }

    /// Whether its memory is a file that does not change by what the guest writes.
    pub(crate) fn maps_file_privately(&self) -> bool {
        self.memory_file.as_ref().is_some_and(|file| !file.is_shared)
    }
}
