//! From a configuration to QEMU's command line, without I/O.
//!
//! **Invariants**
//! - Every format is named: QEMU never guesses one from bytes that a guest wrote.
//! - QEMU adds no device that is not here (`-nodefaults`), so a guest sees the same machine whatever
//!   the host's settings.
//! - A path reaches QEMU inside JSON or with its commas doubled, so it cannot become an option.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::Path;

use model::{Error, Kind, Result};
use serde_json::{Value, json};

use crate::accelerator::Accelerator;
use crate::config::{Console, Drive, Growth, GuestConfig, Network};

// Where the devices of a machine that may grow are on its PCI Express bus. What is saved with them
// there is found there again, so these never change.
const RANDOM_SLOT: usize = 2;
const HELPER_SLOT: usize = 3;
const DRIVE_SLOT: usize = 4;
const PORT_SLOT: u32 = 0x10;

/// For how long a guest's requests wait for an NBD server that went away, in seconds.
const RECONNECT_SECONDS: u32 = 24 * 60 * 60;

/// The descriptors that QEMU inherits: its ends of socket pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InheritedSockets {
    /// The control channel.
    pub qmp: RawFd,
    /// The console, where a program reads it.
    pub console: Option<RawFd>,
    /// The helper's port, where the guest may grow.
    pub helper: Option<RawFd>,
    /// The port of QEMU's own guest agent, where the guest may grow.
    pub guest_agent: Option<RawFd>,
    /// The socket on which those are listened to who speak with that agent, where it may not.
    pub agent_listener: Option<RawFd>,
}

/// The name of the helper's port in the guest: `/dev/virtio-ports/` and this.
pub const HELPER_PORT: &str = "larder.agent.0";

/// The name by which QEMU's guest agent finds its port.
const GUEST_AGENT_PORT: &str = "org.qemu.guest_agent.0";

/// The devices that a guest sees, as QEMU is told of them, in order; a balloon is left out.
///
/// # Errors
/// As [`plan`].
pub fn devices(config: &GuestConfig) -> Result<Vec<String>> {
    let none = Some(0);
    let sockets = InheritedSockets {
        qmp: 0,
        console: none,
        helper: none,
        guest_agent: none,
        agent_listener: config.guest_agent.as_ref().map(|_| 0),
    };
    let config = GuestConfig { has_balloon: false, ..config.clone() };
    let arguments = plan(&config, Accelerator::Tcg, sockets)?;
    let value =
        |pair: &[OsString]| (pair[0] == "-device").then(|| pair[1].to_string_lossy().into());
    Ok(arguments.windows(2).filter_map(value).collect())
}

/// Plans QEMU's arguments for a guest.
///
/// # Errors
/// `Invalid`: no memory, no processor, a path that is not UTF-8; fix the configuration.
pub fn plan(
    config: &GuestConfig,
    accelerator: Accelerator,
    sockets: InheritedSockets,
) -> Result<Vec<OsString>> {
    if config.memory_mib == 0 || config.cpus == 0 {
        return Err(Error::new(Kind::Invalid, "start", "the guest")
            .because("a guest has at least 1 MiB of memory and one CPU"));
    }
    let mut line = Line::default();
    line.flag("-nodefaults");
    line.flag("-no-user-config");
    line.option("-display", "none");
    line.machine(config)?;
    line.option(
        "-accel",
        match accelerator {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg,thread=multi",
        },
    );
    line.option("-cpu", accelerator.cpu_model());
    // A guest that reboots starts over from its disk: in a throw-away guest that would hide a crash.
    line.flag("-no-reboot");
    line.option("-device", format!("virtio-rng-pci{}", line.place(config, RANDOM_SLOT)));
    for (index, drive) in config.drives.iter().enumerate() {
        let place = line.place(config, DRIVE_SLOT + index);
        line.drive(index, drive, &place)?;
    }
    if let Some(growth) = &config.growth {
        line.growth(growth, config.has_balloon, sockets)?;
    }
    match config.network {
        Network::None => line.option("-nic", "none"),
        Network::User => {
            line.option("-netdev", "user,id=network");
            line.option("-device", "virtio-net-pci,netdev=network,romfile=");
        }
    }
    if let (None, true, Some(fd)) =
        (&config.growth, config.guest_agent.is_some(), sockets.agent_listener)
    {
        line.option("-device", "virtio-serial-pci,id=guest-agent-ports");
        line.option("-chardev", format!("socket,id=guest-agent,fd={fd},server=on,wait=off"));
        let port = "virtserialport,bus=guest-agent-ports.0,chardev=guest-agent";
        line.option("-device", format!("{port},name={GUEST_AGENT_PORT}"));
    }
    line.option("-chardev", format!("socket,id=qmp,fd={}", sockets.qmp));
    line.option("-mon", "chardev=qmp,mode=control");
    line.console(&config.console, sockets.console)?;
    if config.is_incoming {
        line.option("-incoming", "defer");
    }
    line.arguments.extend(config.extra_arguments.iter().cloned());
    Ok(line.arguments)
}

/// A command line that grows.
#[derive(Default)]
struct Line {
    arguments: Vec<OsString>,
}

impl Line {
    fn flag(&mut self, name: &str) {
        self.arguments.push(name.into());
    }

    fn option(&mut self, name: &str, value: impl Into<OsString>) {
        self.arguments.push(name.into());
        self.arguments.push(value.into());
    }

    /// Machine, memory and processors.
    fn machine(&mut self, config: &GuestConfig) -> Result<()> {
        let family = if config.growth.is_some() { "q35" } else { "pc" };
        let mut machine = config.machine_type.clone().unwrap_or_else(|| family.into());
        let (mut memory, mut cpus) = (format!("{}M", config.memory_mib), config.cpus.to_string());
        if let Some(growth) = &config.growth {
            let Growth { memory_slots, memory_max_mib, cpus_max, .. } = growth;
            memory = format!("{memory},slots={memory_slots},maxmem={memory_max_mib}M");
            cpus = format!("{cpus},maxcpus={cpus_max}");
        }
        if let Some(file) = &config.memory_file {
            machine.push_str(",memory-backend=memory");
            let backend = json!({
                "qom-type": "memory-backend-file",
                "id": "memory",
                "size": config.memory_mib << 20,
                "mem-path": text(&file.path)?,
                "share": file.is_shared,
            });
            self.option("-object", backend.to_string());
        }
        self.option("-machine", machine);
        self.option("-m", memory);
        self.option("-smp", cpus);
        Ok(())
    }

    /// Where a device is, in a machine whose devices must be found in the same places again.
    fn place(&self, config: &GuestConfig, slot: usize) -> String {
        match config.growth {
            Some(_) => format!(",bus=pcie.0,addr={slot:#x}"),
            None => String::new(),
        }
    }

    /// Empty ports, the helper's port, and what tells the guest that it is a copy.
    fn growth(&mut self, growth: &Growth, balloon: bool, sockets: InheritedSockets) -> Result<()> {
        for port in 0..growth.port_count {
            let (slot, chassis) = (PORT_SLOT + port, port + 1);
            self.option(
                "-device",
                format!(
                    "pcie-root-port,id=port{port},bus=pcie.0,addr={slot:#x},chassis={chassis},\
                     slot={chassis}"
                ),
            );
        }
        let (Some(helper), Some(agent)) = (sockets.helper, sockets.guest_agent) else {
            return Err(Error::new(Kind::Bug, "start", "the guest")
                .because("no sockets for its helper and its agent"));
        };
        self.option(
            "-device",
            format!("virtio-serial-pci,id=ports,bus=pcie.0,addr={HELPER_SLOT:#x}"),
        );
        self.option("-chardev", format!("socket,id=helper,fd={helper}"));
        self.option(
            "-device",
            format!("virtserialport,bus=ports.0,chardev=helper,name={HELPER_PORT}"),
        );
        self.option("-chardev", format!("socket,id=guest-agent,fd={agent}"));
        self.option(
            "-device",
            format!("virtserialport,bus=ports.0,chardev=guest-agent,name={GUEST_AGENT_PORT}"),
        );
        self.option("-device", "vmgenid,guid=auto,id=generation");
        if balloon && growth.port_count > 0 {
            let port = growth.port_count - 1;
            self.option(
                "-device",
                format!(
                    "virtio-balloon-pci,id=balloon,bus=port{port},free-page-reporting=on,\
                     deflate-on-oom=on"
                ),
            );
        }
        Ok(())
    }

    fn drive(&mut self, index: usize, drive: &Drive, place: &str) -> Result<()> {
        let name = format!("drive{index}");
        let node = drive_node(&name, drive)?;
        self.option("-blockdev", node.to_string());
        self.option(
            "-device",
            // QEMU gives 0 to a kernel that it boots itself.
            format!(
                "virtio-blk-pci{place},drive={name},bootindex={},logical_block_size=512,\
                 physical_block_size=4096,discard=on,write-zeroes=on",
                index + 1
            ),
        );
        Ok(())
    }

    fn console(&mut self, console: &Console, inherited: Option<RawFd>) -> Result<()> {
        match console {
            Console::Terminal => {
                self.option("-chardev", "stdio,id=console,mux=on,signal=off");
                self.option("-mon", "chardev=console,mode=readline");
            }
            Console::Scripted | Console::Stream => {
                let fd = inherited.ok_or_else(|| {
                    Error::new(Kind::Bug, "start", "the guest").because("no socket for its console")
                })?;
                self.option("-chardev", format!("socket,id=console,fd={fd}"));
            }
            Console::Socket(path) => {
                let path = text(path)?.replace(',', ",,");
                let value = format!("socket,id=console,path={path},server=on,wait=off");
                self.option("-chardev", value);
            }
            Console::None => self.option("-chardev", "null,id=console"),
        }
        self.option("-serial", "chardev:console");
        Ok(())
    }
}

/// The block node of a drive, under a name, in QEMU's words.
pub(crate) fn drive_node(name: &str, drive: &Drive) -> Result<Value> {
    Ok(match drive {
        Drive::NbdUnix { socket, export, read_only } => json!({
            "driver": "nbd",
            "node-name": name,
            "server": { "type": "unix", "path": text(socket)? },
            "export": export,
            "read-only": read_only,
            "discard": "unmap",
            "detect-zeroes": "off",
            "reconnect-delay": RECONNECT_SECONDS,
        }),
        Drive::File { path, read_only } => json!({
            "driver": "raw",
            "node-name": name,
            "read-only": read_only,
            "discard": "unmap",
            "detect-zeroes": "off",
            "file": file_node("file", path, *read_only)?,
        }),
        Drive::BlockDevice { path, read_only } => json!({
            "driver": "raw",
            "node-name": name,
            "read-only": read_only,
            "discard": "unmap",
            "detect-zeroes": "off",
            "file": file_node("host_device", path, *read_only)?,
        }),
    })
}

/// The node under a raw one: `driver` is QEMU's word for where the bytes are.
fn file_node(driver: &str, path: &Path, read_only: bool) -> Result<Value> {
    Ok(json!({
        "driver": driver,
        "filename": text(path)?,
        "read-only": read_only,
        "discard": "unmap",
    }))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| {
        Error::new(Kind::Invalid, "start a guest from", path.display().to_string())
            .because("QEMU takes only paths that are UTF-8")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;
    use std::sync::Arc;

    const SOCKETS: InheritedSockets = InheritedSockets {
        qmp: 7,
        console: Some(8),
        helper: Some(9),
        guest_agent: Some(10),
        agent_listener: Some(11),
    };

    fn planned(config: &GuestConfig) -> Vec<String> {
        let arguments = plan(config, Accelerator::Tcg, SOCKETS).unwrap();
        arguments.into_iter().map(|argument| argument.into_string().unwrap()).collect()
    }

    /// The values of one option.
    fn values<'a>(arguments: &'a [String], option: &str) -> Vec<&'a str> {
        arguments.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1].as_str()).collect()
    }

    #[test]
    fn a_drive_names_its_format_and_passes_trim_on() {
        let nbd = Drive::NbdUnix {
            socket: PathBuf::from("/run/a,b.sock"),
            export: "debian".into(),
            read_only: false,
        };
        let file = Drive::File { path: PathBuf::from("/tmp/\"x\".raw"), read_only: true };
        let arguments = planned(&GuestConfig::new(vec![nbd, file], Console::None));
        let nodes: Vec<Value> = values(&arguments, "-blockdev")
            .into_iter()
            .map(|node| serde_json::from_str(node).unwrap())
            .collect();
        assert_eq!(nodes[0]["server"]["path"], "/run/a,b.sock");
        assert_eq!(nodes[0]["export"], "debian");
        assert_eq!(nodes[1]["driver"], "raw");
        assert_eq!(nodes[1]["file"]["filename"], "/tmp/\"x\".raw");
        assert_eq!(nodes[1]["read-only"], true);
        assert!(nodes.iter().all(|node| node["discard"] == "unmap"));
        let devices = values(&arguments, "-device");
        assert!(devices.iter().any(|device| device.contains("drive=drive0,bootindex=1")));
        assert!(devices.iter().any(|device| device.contains("drive=drive1,bootindex=2")));
    }

    #[test]
    fn qemus_own_agent_gets_its_port() {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("agent")).unwrap();
        let guest_agent = Some(Arc::new(listener));
        let arguments =
            planned(&GuestConfig { guest_agent, ..GuestConfig::new(vec![], Console::None) });
        let listens = "socket,id=guest-agent,fd=11,server=on,wait=off";
        assert!(values(&arguments, "-chardev").contains(&listens));
        let devices = values(&arguments, "-device");
        assert!(devices.iter().any(|device| device.ends_with("name=org.qemu.guest_agent.0")));
    }

    #[test]
    fn a_comma_in_a_socket_path_does_not_become_an_option() {
        let config = GuestConfig::new(vec![], Console::Socket(PathBuf::from("/tmp/a,server=off")));
        let arguments = planned(&config);
        let console = "socket,id=console,path=/tmp/a,,server=off,server=on,wait=off";
        assert!(values(&arguments, "-chardev").contains(&console));
    }

    #[test]
    fn extra_arguments_come_last() {
        let mut config = GuestConfig::new(vec![], Console::Scripted);
        config.extra_arguments = vec!["-name".into(), "x".into()];
        assert!(planned(&config).ends_with(&["-name".to_string(), "x".to_string()]));
    }

    #[test]
    fn a_guest_without_memory_or_with_an_unspeakable_path_is_invalid() {
        let mut config = GuestConfig::new(vec![], Console::None);
        config.memory_mib = 0;
        assert_eq!(plan(&config, Accelerator::Tcg, SOCKETS).unwrap_err().kind(), Kind::Invalid);
        let path = PathBuf::from(OsStr::from_bytes(b"/tmp/\xff"));
        let config = GuestConfig::new(vec![Drive::File { path, read_only: false }], Console::None);
        assert_eq!(plan(&config, Accelerator::Tcg, SOCKETS).unwrap_err().kind(), Kind::Invalid);
    }
}
