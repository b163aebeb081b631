//! Which machine boots a Debian soonest without KVM.
//!
//! The wall time to the login prompt depends on what else runs; QEMU's own CPU time much less.

use std::fs;
use std::time::Instant;

use guest::{Accelerator, Console, Drive, Guest, GuestConfig};
use model::{Error, Kind, Result};

use super::rows::Contender;
use super::{Bench, Session, Size};
use crate::{images, process};

pub const BENCH: Bench = Bench {
    name: "boot",
    about: "Time to the login prompt of a minimal Debian under TCG, by kind of machine.",
    in_tests: false,
    tools: &["qemu-system-x86_64"],
    run,
};

/// Names of machines, and what of QEMU's line differs from the guest crate's own.
const MACHINES: &[(&str, &[&str])] = &[
    ("as guests are run", &[]),
    ("cpu qemu64", &["-cpu", "qemu64"]),
    ("cpu Nehalem", &["-cpu", "Nehalem"]),
    ("machine q35", &["-machine", "q35"]),
    ("no hpet", &["-machine", "hpet=off"]),
    ("2 processors", &["-smp", "2"]),
    ("no ACPI", &["-machine", "acpi=off"]),
];

fn run(session: &mut Session) -> Result<()> {
    let image = images::ensure(&[&images::MINIMAL])?.remove(0);
    let mut contenders: Vec<Contender<'_>> = Vec::new();
    for (name, arguments) in MACHINES {
        let image = image.clone();
        let measure = move || {
            let drive = Drive::File { path: image.clone(), read_only: false };
            let mut config = GuestConfig::new(vec![drive], Console::Scripted);
            config.accelerator = Some(Accelerator::Tcg);
            config.extra_arguments = vec!["-snapshot".into()];
            config.extra_arguments.extend(arguments.iter().map(Into::into));
            let began = Instant::now();
            let mut guest = Guest::start(&config)?;
            let _registered = process::register(guest.pid())?;
            guest.console()?.wait_for("login: ", images::BOOT_MAX)?;
            let wall = began.elapsed().as_secs_f64();
            Ok(vec![("wall_seconds", wall), ("cpu_seconds", cpu_seconds(guest.pid())?)])
        };
        contenders.push(((*name).to_owned(), Box::new(measure)));
    }
    let (rounds, count) = match session.size {
        Size::Small => (1, 1),
        Size::Full => (3, contenders.len()),
    };
    session.rows.alternate(rounds, &mut contenders[..count])
}

/// The CPU time of a running process, from `/proc`.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text =
        fs::read_to_string(&path).map_err(|source| Error::io("read", path.clone(), source))?;
    // After the name, which is in brackets and may hold anything: fields 3 and on.
    let fields: Vec<&str> =
        text.rsplit(')').next().unwrap_or_default().split_ascii_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
    match (ticks(11), ticks(12)) {
        (Some(user), Some(system)) => {
            Ok((user + system) as f64 / rustix::param::clock_ticks_per_second() as f64)
        }
        _ => Err(Error::new(Kind::Invalid, "read", path).because("its fields are not numbers")),
    }
}
