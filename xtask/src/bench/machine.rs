//! Where something was measured, and with what.

use std::fs;
use std::process::Command;

use crate::process;
use crate::workspace::{root, system_program};

const UNKNOWN: &str = "unknown";

/// Facts about this machine and these tools, as lines of a list.
pub fn facts(tools: &[&str]) -> Vec<String> {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZeroUsize::get);
    let system = rustix::system::uname();
    let mut facts = vec![
        format!("processor: {cores} cores, {}", field("/proc/cpuinfo", "model name")),
        format!("memory: {}", field("/proc/meminfo", "MemTotal")),
        format!("kernel: {}", system.release().to_string_lossy()),
        format!("system: {}", field("/etc/os-release", "PRETTY_NAME")),
        format!("larder: {}", revision()),
    ];
    facts.extend(tools.iter().map(|tool| format!("{tool}: {}", version(tool))));
    facts
}

/// The value of `name` in a file of `name: value` or `name=value` lines.
fn field(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name));
    let value = line.and_then(|line| line.split_once([':', '=']));
    value.map_or(UNKNOWN, |(_, value)| value.trim().trim_matches('"')).to_owned()
}

/// The commit that was measured, and whether something was changed since.
fn revision() -> String {
    let mut command = Command::new("git");
    command.current_dir(root()).args(["describe", "--always", "--dirty", "--abbrev=12"]);
    first_line(&mut command)
}

fn version(tool: &str) -> String {
    // Most know the option, some the verb only.
    let said = ["--version", "version"].map(|ask| first_line(system_program(tool).arg(ask)));
    said.into_iter().find(|line| line != UNKNOWN).unwrap_or_else(|| UNKNOWN.to_owned())
}

fn first_line(command: &mut Command) -> String {
    let output = process::output(command, "").unwrap_or_default();
    output.lines().next().unwrap_or(UNKNOWN).trim().to_owned()
}
