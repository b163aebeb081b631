//! In guests that differ in how their second disk is attached, and in nothing else.
//!
//! bonnie++ comes with its libraries on a third disk: the image that boots need not have it, nor the
//! same release.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use guest::{Console, Guest, GuestConfig};
use model::{Error, Kind, Result};

use super::{Disks, Load, answer};
use crate::bench::inputs::text;
use crate::bench::rows::Contender;
use crate::bench::{Session, inputs};
use crate::demo::larder::Larder;
use crate::workspace::{find_program, system_program};
use crate::{images, process};

const MEMORY_MIB: u64 = 256;
/// How long bonnie++ may take in an emulated guest.
const BONNIE_MAX: Duration = Duration::from_secs(1200);

/// Measures all, in turn.
pub fn run(
    session: &mut Session,
    larder: &Larder,
    disks: &Disks,
    load: Load,
    rounds: u32,
) -> Result<()> {
    let system = images::ensure(&[&images::MINIMAL])?.remove(0);
    let folder = session.folder.path().to_path_buf();
    let sockets = inputs::sockets()?;
    let tools = tools(&folder)?;
    let [nbd_at, vhost_at] = ["nbd", "vhost"].map(|name| sockets.path().join(name));
    let nbd = larder.attach("disk", "guest-nbd", &nbd_at)?;
    let vhost = larder.attach_at("--vhost-user", "disk", "guest-vhost", &vhost_at, &[])?;
    let ways = [
        (
            "larder NBD",
            virtio(&format!("driver=nbd,server.type=unix,server.path={}", text(&nbd_at)?)),
        ),
        ("larder vhost-user", vhost_user(text(&vhost_at)?)),
        ("qcow2 overlay", virtio(&of_file("qcow2", &disks.overlay)?)),
        ("raw file", virtio(&of_file("raw", &disks.raw)?)),
    ];
    let mut contenders: Vec<Contender<'_>> = Vec::new();
    for (who, disk) in &ways {
        let (system, tools) = (&system, &tools);
        let measure = move || bonnie(system, disk, tools, load);
        contenders.push((format!("guest, {who}"), Box::new(measure)));
    }
    session.rows.alternate(rounds, &mut contenders)?;
    session.notes.push(format!(
        "Guests have {MEMORY_MIB} MiB and one processor ({}), and all began with {}.",
        guest::pick_accelerator().as_str(),
        disks.original.file_name().unwrap_or_default().display()
    ));
    nbd.detach()?;
    vhost.detach()
}

fn of_file(format: &str, path: &Path) -> Result<String> {
    Ok(format!("driver={format},file.driver=file,file.filename={}", text(path)?))
}

fn virtio(node: &str) -> Vec<String> {
    let device = "virtio-blk-pci,drive=data,logical_block_size=512,physical_block_size=4096";
    ["-blockdev", &format!("{node},node-name=data"), "-device", device].map(str::to_owned).into()
}

fn vhost_user(socket: &str) -> Vec<String> {
    let chardev = format!("socket,id=data,path={socket}");
    let device = "vhost-user-blk-pci,chardev=data,num-queues=1";
    ["-chardev", &chardev, "-device", device].map(str::to_owned).into()
}

/// A disk with bonnie++ and its libraries.
fn tools(folder: &Path) -> Result<PathBuf> {
    let bonnie = find_program("bonnie++")
        .ok_or_else(|| Error::new(Kind::NotFound, "find", "bonnie++").hint("cargo xtask setup"))?;
    let from = folder.join("tools");
    std::fs::create_dir(&from)
        .map_err(|source| Error::io("make", from.display().to_string(), source))?;
    let listed = process::output(system_program("ldd").arg(&bonnie), "")?;
    let libraries = listed
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    let mut command = system_program("cp");
    command.arg("--dereference").arg(&bonnie).args(libraries).arg(&from);
    process::run(&mut command)?;
    let disk = folder.join("tools.raw");
    let mut command = system_program("mke2fs");
    process::run(command.args(["-q", "-F", "-t", "ext4", "-d"]).arg(&from).arg(&disk).arg("16M"))?;
    Ok(disk)
}

/// Boots a guest and runs bonnie++ in it. What it changes of its system is thrown away.
fn bonnie(
    system: &Path,
    disk: &[String],
    tools: &Path,
    load: Load,
) -> Result<Vec<(&'static str, f64)>> {
    let mut config = GuestConfig::new(Vec::new(), Console::Scripted);
    config.memory_mib = MEMORY_MIB;
    let shared = format!("memory-backend-memfd,id=memory,size={MEMORY_MIB}M,share=on");
    let boot = format!("if=none,id=system,format=raw,snapshot=on,file={}", text(system)?);
    let third = format!("{},node-name=tools,read-only=on", of_file("raw", tools)?);
    let mut arguments: Vec<&str> = vec![
        // What a guest with vhost-user needs, all have.
        "-object",
        &shared,
        "-machine",
        "memory-backend=memory",
        "-drive",
        &boot,
        "-device",
        "virtio-blk-pci,drive=system,bootindex=0",
    ];
    arguments.extend(disk.iter().map(String::as_str));
    arguments.extend(["-blockdev", &third, "-device", "virtio-blk-pci,drive=tools"]);
    config.extra_arguments = arguments.into_iter().map(OsString::from).collect();
    inputs::settle();
    let mut guest = Guest::start(&config)?;
    let _registered = process::register(guest.pid())?;
    let console = guest.console()?;
    console.log_in("root", images::BOOT_MAX)?;
    let mount = "mkdir -p /data /tools && mount /dev/vdb /data && mount -r /dev/vdc /tools";
    console.run(mount, images::BOOT_MAX)?;
    let loader = "/tools/ld-linux-x86-64.so.2 --library-path /tools /tools/bonnie++";
    let line = format!("{loader} {} 2>/dev/null", load.arguments("/data").join(" "));
    let said = console.run(&line, BONNIE_MAX)?;
    console.run("umount /data", images::BOOT_MAX)?;
    guest.kill();
    // The terminal may have wrapped the line.
    answer::columns(&said.replace("\r", ""))
}
