//! What QEMU is, as far as states depend on it.
//!
//! Asking costs a start of QEMU, some 100 ms, so the answer is kept in a file, under a key of all that
//! it depends on: the program, the kernel, the processor.
//!
//! **Failure**: a file that cannot be read, or was made for another key, is made anew.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use guest::{Accelerator, Console, Guest, GuestConfig, Qmp};
use model::machine::MonitorFacts;
use model::{Error, Kind, Result};
use serde_json::{Value, json};

const FILE: &str = "qemu.json";

/// What this host's QEMU is.
pub(super) fn of_host(accelerator: Accelerator, folder: Option<&Path>) -> Result<MonitorFacts> {
    let file = folder.map(|folder| folder.join(format!("{accelerator}-{FILE}")));
    let key = key()?;
    if let Some(kept) = file.as_deref().and_then(|file| read(file, &key)) {
        return Ok(kept);
    }
    let config = GuestConfig {
        memory_mib: 16,
        accelerator: Some(accelerator),
        growth: Some(guest::Growth::DEFAULT),
        extra_arguments: vec![OsString::from("-S")],
        ..GuestConfig::new(Vec::new(), Console::None)
    };
    let guest = Guest::start(&config)?;
    let facts = of_guest(guest.qmp(), accelerator)?;
    if let Some(file) = file
        && let Err(error) = write(&file, &key, &facts)
    {
        tracing::debug!(%error, "what QEMU is will be asked again");
    }
    Ok(facts)
}

/// What the QEMU of a running guest is. Devices are left out.
pub(super) fn of_guest(qmp: &Qmp, accelerator: Accelerator) -> Result<MonitorFacts> {
    let version = qmp.execute("query-version", None)?;
    let number = |part: &str| version["qemu"][part].as_u64().unwrap_or(0);
    let machine =
        qmp.execute("qom-get", Some(json!({ "path": "/machine", "property": "type" })))?;
    let machine = machine.as_str().unwrap_or("unknown");
    let cpu_model = accelerator.cpu_model();
    let arguments = json!({ "type": "full", "model": { "name": cpu_model } });
    let expansion = qmp.execute("query-cpu-model-expansion", Some(arguments))?;
    Ok(MonitorFacts {
        name: "qemu".to_string(),
        version: format!("{}.{}", number("major"), number("minor")),
        accelerator: accelerator.to_string(),
        machine_type: machine.trim_end_matches("-machine").to_string(),
        cpu_model: cpu_model.to_string(),
        cpu_features: features(&expansion["model"]["props"]),
        devices: Vec::new(),
    })
}

/// The names of the properties that are on, ascending.
fn features(properties: &Value) -> Vec<String> {
    let is_on = |(name, value): (&String, &Value)| (*value == true).then(|| name.clone());
    let mut on: Vec<String> =
        properties.as_object().into_iter().flatten().filter_map(is_on).collect();
    on.sort_unstable();
    on
}

/// All that the answer depends on.
fn key() -> Result<String> {
    let program = program()?;
    let metadata = std::fs::metadata(&program)
        .map_err(|error| Error::io("look at", program.display().to_string(), error))?;
    let system = rustix::system::uname();
    let cpu_info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpu_info.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let flags = blake3::hash(flags.as_bytes()).to_hex();
    Ok(format!(
        "{} {} {}.{} {} {}",
        program.display(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        system.release().to_string_lossy(),
        &flags[..16],
    ))
}

fn program() -> Result<PathBuf> {
    let name = guest::config::QEMU_PROGRAM;
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|p| p.is_file()).ok_or_else(
        || {
            Error::new(Kind::NotFound, "start", name)
                .because("it is not installed")
                .hint("install QEMU: apt-get install qemu-system-x86 qemu-utils")
        },
    )
}

fn read(file: &Path, key: &str) -> Option<MonitorFacts> {
    let kept: Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    let text = |name: &str| kept[name].as_str().map(str::to_string);
    let features = kept["cpu_features"].as_array()?;
    let features = features.iter().filter_map(|feature| feature.as_str().map(str::to_string));
    (kept["key"] == key).then_some(MonitorFacts {
        name: text("name")?,
        version: text("version")?,
        accelerator: text("accelerator")?,
        machine_type: text("machine_type")?,
        cpu_model: text("cpu_model")?,
        cpu_features: features.collect(),
        devices: Vec::new(),
    })
}

fn write(file: &Path, key: &str, facts: &MonitorFacts) -> std::io::Result<()> {
    let kept = json!({
        "key": key,
        "name": facts.name,
        "version": facts.version,
        "accelerator": facts.accelerator,
        "machine_type": facts.machine_type,
        "cpu_model": facts.cpu_model,
        "cpu_features": facts.cpu_features,
    });
    std::fs::create_dir_all(file.parent().unwrap_or(Path::new(".")))?;
    // Whoever reads it meanwhile must not see half of it.
    let next = file.with_extension(format!("{}", std::process::id()));
    std::fs::write(&next, kept.to_string())?;
    std::fs::rename(&next, file)
}
