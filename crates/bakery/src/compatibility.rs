//! Whether a machine can be resumed on this host. Pure: what is known of both sides is compared.
//!
//! A device state is the inside of one monitor, so nearly everything must be the same. What differs
//! first, in the order in which a person would ask, is the reason.

use model::machine::{MachineRecord, MonitorFacts};

/// Why a machine cannot be resumed by a monitor; nothing where it can. `devices` are those that the
/// monitor would have for the machine's shape.
pub fn obstacle(record: &MachineRecord, host: &MonitorFacts, devices: &[String]) -> Option<String> {
    let made = &record.monitor;
    let differ = |what: &str, made: &str, here: &str| {
        (made != here).then(|| format!("its state is of {what} {made}, and this host has {here}"))
    };
    differ("the monitor", &made.name, &host.name)
        .or_else(|| differ("QEMU", &made.version, &host.version))
        .or_else(|| differ("the accelerator", &made.accelerator, &host.accelerator))
        .or_else(|| differ("the machine type", &made.machine_type, &host.machine_type))
        .or_else(|| differ("the CPU model", &made.cpu_model, &host.cpu_model))
        .or_else(|| features(&made.cpu_features, &host.cpu_features))
        .or_else(|| {
            let differ = made.devices != devices;
            differ.then(|| "its devices are not those that this larder gives machines".to_string())
        })
}

fn features(made: &[String], here: &[String]) -> Option<String> {
    let missing: Vec<&str> =
        made.iter().filter(|f| !here.contains(f)).map(String::as_str).collect();
    if !missing.is_empty() {
        return Some(format!("its CPU has {}, which this host's has not", some(&missing)));
    }
    let added: Vec<&str> = here.iter().filter(|f| !made.contains(f)).map(String::as_str).collect();
    (!added.is_empty()).then(|| format!("this host's CPU has {}, which its has not", some(&added)))
}

/// A few names, and how many more there are.
fn some(names: &[&str]) -> String {
    const SHOWN: usize = 3;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::ContentDigest;
    use model::machine::{MachineOrigin, MachineShape, StateRegion};

    fn facts() -> MonitorFacts {
        let text = |text: &str| text.to_string();
        MonitorFacts {
            name: text("qemu"),
            version: text("7.2"),
            accelerator: text("tcg"),
            machine_type: text("pc-q35-7.2"),
            cpu_model: text("max"),
            cpu_features: vec![text("aes"), text("avx")],
            devices: Vec::new(),
        }
    }

    fn record(change: impl FnOnce(&mut MonitorFacts)) -> MachineRecord {
        let mut monitor = facts();
        monitor.devices = vec!["disk".to_string()];
        change(&mut monitor);
        MachineRecord {
            origin: MachineOrigin::Baked,
            has_helper: false,
            shape: MachineShape {
                cpus: 1,
                cpus_max: 1,
                memory_len: 1 << 20,
                memory_slots: 0,
                memory_max_len: 1 << 20,
            },
            state: StateRegion { offset: 64 << 20, len: 1, digest: [0; 32] },
            disk: ContentDigest([0; 32]),
            monitor,
        }
    }

    #[test]
    fn the_first_difference_is_the_reason() {
        let devices = ["disk".to_string()];
        let check = |change: &dyn Fn(&mut MonitorFacts), expected: Option<&str>| {
            let found = obstacle(&record(change), &facts(), &devices);
            assert_eq!(found.as_deref(), expected);
        };
        check(&|_| {}, None);
        check(
            &|m| (m.version, m.accelerator) = ("7.1".into(), "kvm".into()),
            Some("its state is of QEMU 7.1, and this host has 7.2"),
        );
        check(
            &|m| m.accelerator = "kvm".into(),
            Some("its state is of the accelerator kvm, and this host has tcg"),
        );
        check(
            &|m| m.cpu_features.extend(["sse".into(), "vmx".into(), "x".into(), "y".into()]),
            Some("its CPU has sse, vmx, x and 1 more, which this host's has not"),
        );
        check(&|m| m.cpu_features.truncate(1), Some("this host's CPU has avx, which its has not"));
        check(
            &|m| m.devices.clear(),
            Some("its devices are not those that this larder gives machines"),
        );
    }
}
