//! Time to the login prompt of a guest on a fresh mirror, beside the plain raw file.

use std::time::Instant;

use guest::{Console, Drive, Guest, GuestConfig};
use model::Result;

use super::rows::Contender;
use super::{Bench, Session, Size, inputs};
use crate::workspace::system_program;
use crate::{images, process};

pub const BENCH: Bench = Bench {
    name: "login",
    about: "Time to the login prompt from a fresh mirror, beside the plain raw file.",
    in_tests: false,
    tools: &["qemu-system-x86_64"],
    run,
};

fn run(session: &mut Session) -> Result<()> {
    // Only a real image boots.
    let disk = images::ensure(&[&images::MINIMAL])?.remove(0);
    let folder = session.folder.path().to_path_buf();
    let sockets = inputs::sockets()?;
    let larder = inputs::larder(session, "larder")?;
    larder.json(&["import", inputs::text(&disk)?, "image"])?;
    let mirror = || {
        inputs::remove(&folder.join("larder/state"))?;
        inputs::settle();
        let socket = sockets.path().join("mirror");
        let began = Instant::now();
        let attached = larder.attach("image", "fresh", &socket)?;
        let attach = began.elapsed().as_secs_f64();
        let mut columns = boot(Drive::NbdUnix { socket, export: String::new(), read_only: false })?;
        columns.push(("attach_seconds", attach));
        let fetched = larder.mirror("fresh")?.number("fetched_bytes")?;
        columns.push(("fetched_mib", fetched as f64 / f64::from(1 << 20)));
        attached.detach()?;
        Ok(columns)
    };
    let plain = || {
        let copy = folder.join("copy.raw");
        let mut command = system_program("cp");
        process::run(command.args(["--sparse=always", "--"]).arg(&disk).arg(&copy))?;
        inputs::settle();
        let columns = boot(Drive::File { path: copy.clone(), read_only: false })?;
        inputs::remove(&copy)?;
        Ok(columns)
    };
    let mut contenders: Vec<Contender<'_>> =
        vec![("larder".into(), Box::new(mirror)), ("raw file".into(), Box::new(plain))];
    let rounds = if session.size == Size::Full { 2 } else { 1 };
    session.rows.alternate(rounds, &mut contenders)?;
    drop(contenders);
    let median = |who: &str| session.rows.median(who, "login_seconds").unwrap_or(0.0);
    let note = format!(
        "From a fresh mirror the login prompt takes {:.2} times what it takes from the plain file. \
         Without KVM the processor's work hides the disk; `replay` shows the disk alone.",
        median("larder") / median("raw file")
    );
    session.notes.push(note);
    Ok(())
}

fn boot(drive: Drive) -> Result<Vec<(&'static str, f64)>> {
    let config = GuestConfig::new(vec![drive], Console::Scripted);
    let began = Instant::now();
    let mut guest = Guest::start(&config)?;
    let _registered = process::register(guest.pid())?;
    guest.console()?.wait_for("login: ", images::BOOT_MAX)?;
    Ok(vec![("login_seconds", began.elapsed().as_secs_f64())])
}
