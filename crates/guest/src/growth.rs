//! Processors, memory, disks and network cards for a guest that runs.
//!
//! ```text
//!   plan: what QEMU has (query-*) and what is wanted --> device_add, object-add, blockdev-add
//!   QEMU --ACPI--> guest's kernel --helper--> online --report--> Grown
//! ```
//!
//! The guest was started with room: `maxcpus`, `slots` and `maxmem`, empty PCI Express root ports
//! whose ids begin with [`PORT_PREFIX`].
//!
//! **Invariants**
//! - Nothing shrinks: what is there stays.
//! - What is added has a name by what it is and its place (`grown-memory0`, `disk-port3`), so a second
//!   growth finds what the first added.
//!
//! **Failure**: a request that does not fit is refused before anything is added, with the room that there is.

use std::time::{Duration, Instant};

use model::{Error, Kind, Result};
use serde_json::{Value, json};

use crate::arguments::drive_node;
use crate::config::Drive;
use crate::helper::{Helper, Report};
use crate::qmp::Qmp;

/// How long a guest that is asked is left alone before it is asked again.
const LOOK: Duration = Duration::from_millis(20);

/// What the id of a root port that is for hot-plug begins with; a number follows.
pub const PORT_PREFIX: &str = "port";

/// How large a guest is to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Processors in all; none: as many as there are.
    pub cpus: Option<u32>,
    /// Memory in all, in MiB; none: as much as there is.
    pub memory_mib: Option<u64>,
}

/// What a guest was grown to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grown {
    /// Processors that were added.
    pub cpus_added: u32,
    /// Memory that was added, in MiB.
    pub memory_added_mib: u64,
    /// What the guest says it has.
    pub report: Report,
    /// From the first command to QEMU to the guest's word that all is online.
    pub took: Duration,
}

/// A network card's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// A random one of those that are administered locally, for one card.
    pub fn random(entropy: &dyn env::Entropy) -> Self {
        let mut bytes = [0; 6];
        entropy.fill(&mut bytes);
        bytes[0] = (bytes[0] & 0xfc) | 0x02;
        MacAddress(bytes)
    }
}

impl std::fmt::Display for MacAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Grows a guest's processors and memory and returns when it has them online. `limit` is for the guest.
///
/// # Errors
/// `Invalid`: there is no room, or less is wanted than there is. `Unavailable`: the guest had not
/// taken everything within `limit`; what it lacks is told.
pub fn grow(qmp: &Qmp, helper: &mut Helper, wanted: Wanted, limit: Duration) -> Result<Grown> {
    let before = helper.report(limit)?;
    let began = Instant::now();
    let cpus = wanted.cpus.map_or(Ok(Vec::new()), |count| plan_cpus(&hotpluggable(qmp)?, count))?;
    let memory = wanted.memory_mib.map_or(Ok(0), |mib| plan_memory(memory_mib(qmp)?, mib))?;
    for device in &cpus {
        qmp.execute("device_add", Some(device.clone()))?;
    }
    if memory > 0 {
        add_memory(qmp, memory)?;
    }
    let cpu_count = before.cpu_count + u32::try_from(cpus.len()).unwrap_or(u32::MAX);
    let memory_online = before.memory_online + before.memory_offline + (memory << 20);
    let report = wait_online(helper, cpu_count, memory_online, limit)?;
    Ok(Grown {
        cpus_added: cpu_count - before.cpu_count,
        memory_added_mib: memory,
        report,
        took: began.elapsed(),
    })
}

/// Waits until a guest has so many processors and so many bytes of memory online, and brings online
/// what its kernel found.
///
/// # Errors
/// `Unavailable`: it had not within `limit`, with what it has.
pub fn wait_online(
    helper: &mut Helper,
    cpu_count: u32,
    memory_online: u64,
    limit: Duration,
) -> Result<Report> {
    let deadline = Instant::now() + limit;
    loop {
        let report = helper.bring_online(deadline.saturating_duration_since(Instant::now()))?;
        // A kernel without memory hot-plug has no blocks to count.
        let has_memory = report.memory_online >= memory_online || memory_online == 0;
        if report.cpu_count >= cpu_count && has_memory {
            return Ok(report);
        }
        // Its kernel takes them with the processor that would answer.
        std::thread::park_timeout(LOOK);
        if Instant::now() >= deadline {
            return Err(Error::new(Kind::Unavailable, "grow", "the guest").because(format!(
                "after {:.1} s it has {} of {cpu_count} CPUs and {} of {} MiB online",
                limit.as_secs_f64(),
                report.cpu_count,
                report.memory_online >> 20,
                memory_online >> 20,
            )));
        }
    }
}

/// The processors that QEMU could have, in its own order.
fn hotpluggable(qmp: &Qmp) -> Result<Vec<Value>> {
    let answer = qmp.execute("query-hotpluggable-cpus", None)?;
    // QEMU tells the last first.
    Ok(answer.as_array().into_iter().flatten().rev().cloned().collect())
}

/// What to add for so many processors in all.
fn plan_cpus(slots: &[Value], wanted: u32) -> Result<Vec<Value>> {
    let (taken, free): (Vec<&Value>, Vec<&Value>) =
        slots.iter().partition(|slot| slot.get("qom-path").is_some());
    let (taken, wanted) = (taken.len(), wanted as usize);
    let room = taken + free.len();
    if wanted < taken || wanted > room {
        return Err(Error::new(Kind::Invalid, "grow", "the guest").because(format!(
            "{wanted} CPUs are wanted; it has {taken}, and there is room for {room}"
        )));
    }
    let device = |slot: &&Value| {
        let mut device = slot["props"].clone();
        device["driver"] = slot["type"].clone();
        let place = |name: &str| slot["props"][name].as_u64().unwrap_or_default();
        device["id"] = json!(format!(
            "grown-cpu-{}-{}-{}",
            place("socket-id"),
            place("core-id"),
            place("thread-id")
        ));
        device
    };
    Ok(free.iter().take(wanted - taken).map(device).collect())
}

/// Memory that the guest was started with and that was added, in MiB.
fn memory_mib(qmp: &Qmp) -> Result<u64> {
    let answer = qmp.execute("query-memory-size-summary", None)?;
    let bytes = |name: &str| answer[name].as_u64().unwrap_or_default();
    Ok((bytes("base-memory") + bytes("plugged-memory")) >> 20)
}

/// How much to add for so much memory in all, in MiB.
fn plan_memory(has: u64, wanted: u64) -> Result<u64> {
    // The kernel takes memory by blocks of 128 MiB.
    const BLOCK_MIB: u64 = 128;
    match wanted.checked_sub(has) {
        Some(more) if more % BLOCK_MIB == 0 => Ok(more),
        Some(more) => Err(Error::new(Kind::Invalid, "grow", "the guest").because(format!(
            "{more} MiB more than its {has} MiB is no multiple of {BLOCK_MIB} MiB: take {} MiB",
            has + more.next_multiple_of(BLOCK_MIB)
        ))),
        None => Err(Error::new(Kind::Invalid, "grow", "the guest")
            .because(format!("{wanted} MiB are wanted, and it has {has} MiB already"))),
    }
}

/// Adds memory in one slot.
///
/// # Errors
/// `Invalid`: QEMU refused it, with its words: no slot is free, or it is more than `maxmem`.
pub fn add_memory(qmp: &Qmp, mib: u64) -> Result<()> {
    let devices = qmp.execute("query-memory-devices", None)?;
    let count = devices.as_array().map_or(0, Vec::len);
    let (backend, device) = (format!("grown-memory{count}"), format!("grown-dimm{count}"));
    qmp.execute(
        "object-add",
        Some(json!({ "qom-type": "memory-backend-ram", "id": backend, "size": mib << 20 })),
    )?;
    let added = qmp.execute(
        "device_add",
        Some(json!({ "driver": "pc-dimm", "id": device, "memdev": backend })),
    );
    if added.is_err() {
        let _removed = qmp.execute("object-del", Some(json!({ "id": backend })));
    }
    added.map(drop)
}

/// The empty root ports, in the order of their numbers.
///
/// # Errors
/// As [`Qmp::execute`].
pub fn free_ports(qmp: &Qmp) -> Result<Vec<String>> {
    let answer = qmp.execute("query-pci", None)?;
    let mut free: Vec<(u32, String)> = Vec::new();
    for device in
        answer.as_array().into_iter().flatten().flat_map(|bus| devices_of(&bus["devices"]))
    {
        let id = device["qdev_id"].as_str().unwrap_or_default();
        let number = id.strip_prefix(PORT_PREFIX).and_then(|number| number.parse().ok());
        if let Some(number) = number
            && devices_of(&device["pci_bridge"]["devices"]).next().is_none()
        {
            free.push((number, id.to_owned()));
        }
    }
    free.sort();
    Ok(free.into_iter().map(|(_, id)| id).collect())
}

fn devices_of(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn free_port(qmp: &Qmp) -> Result<String> {
    free_ports(qmp)?.into_iter().next().ok_or_else(|| {
        Error::new(Kind::Full, "add a device to", "the guest")
            .because("all of its PCI Express ports are taken")
            .hint("boot it with more room, or take a device out")
    })
}

/// Adds a disk in the first empty port. Returns the device's id.
///
/// # Errors
/// `Full`: no port is empty. `Invalid`: QEMU refused the disk, with its words; nothing was added.
pub fn add_drive(qmp: &Qmp, drive: &Drive) -> Result<String> {
    let port = free_port(qmp)?;
    let (node, device) = (format!("drive-{port}"), format!("disk-{port}"));
    qmp.execute("blockdev-add", Some(drive_node(&node, drive)?))?;
    let added = qmp.execute(
        "device_add",
        Some(json!({
            "driver": "virtio-blk-pci",
            "id": device,
            "bus": port,
            "drive": node,
            "logical_block_size": 512,
            "physical_block_size": 4096,
        })),
    );
    if added.is_err() {
        let _removed = qmp.execute("blockdev-del", Some(json!({ "node-name": node })));
    }
    added.map(|_| device)
}

/// Adds a network card with this address, behind QEMU's own translation to the host's network, in the
/// first empty port. Returns the device's id.
///
/// # Errors
/// As [`add_drive`].
pub fn add_network(qmp: &Qmp, address: MacAddress) -> Result<String> {
    let port = free_port(qmp)?;
    let (backend, device) = (format!("net-{port}"), format!("card-{port}"));
    qmp.execute("netdev_add", Some(json!({ "type": "user", "id": backend })))?;
    let added = qmp.execute(
        "device_add",
        Some(json!({
            "driver": "virtio-net-pci",
            "id": device,
            "bus": port,
            "netdev": backend,
            "mac": address.to_string(),
            "romfile": "",
        })),
    );
    if added.is_err() {
        let _removed = qmp.execute("netdev_del", Some(json!({ "id": backend })));
    }
    added.map(|_| device)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(taken: usize, free: usize) -> Vec<Value> {
        let slot = |index: usize| {
            let mut slot = json!({
                "type": "max-x86_64-cpu",
                "props": { "socket-id": index, "core-id": 0, "thread-id": 0 },
                "vcpus-count": 1,
            });
            if index < taken {
                slot["qom-path"] = json!("/machine/unattached/device[0]");
            }
            slot
        };
        (0..taken + free).map(slot).collect()
    }

    #[test]
    fn processors_are_added_up_to_the_room_and_never_taken() {
        let plan = plan_cpus(&slots(1, 3), 3).unwrap();
        let ids: Vec<&str> = plan.iter().filter_map(|device| device["id"].as_str()).collect();
        assert_eq!(ids, ["grown-cpu-1-0-0", "grown-cpu-2-0-0"]);
        assert_eq!(plan[0]["driver"], "max-x86_64-cpu");
        assert_eq!(plan[0]["socket-id"], 1);
        assert_eq!(plan_cpus(&slots(2, 2), 2).unwrap(), Vec::<Value>::new());
        for wanted in [0, 1, 5] {
            let error = plan_cpus(&slots(2, 2), wanted).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.to_string().contains("room for 4"), "{error}");
        }
    }

    #[test]
    fn memory_grows_by_whole_blocks() {
        assert_eq!(plan_memory(256, 256).unwrap(), 0);
        assert_eq!(plan_memory(256, 1024).unwrap(), 768);
        assert!(plan_memory(256, 128).unwrap_err().to_string().contains("already"));
        assert!(plan_memory(256, 300).unwrap_err().to_string().contains("384 MiB"));
    }

    #[test]
    fn an_address_is_local_and_for_one_card() {
        let address = MacAddress::random(&env::SystemEntropy);
        assert_eq!(address.0[0] & 3, 2);
        assert_eq!(MacAddress([2, 0, 0, 10, 11, 255]).to_string(), "02:00:00:0a:0b:ff");
    }
}
