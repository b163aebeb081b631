//! The main job on real images: from a disk file to a booted guest, and its changes back as a version.
//!
//! ```text
//!   recipes --build, by stages--> minimal.raw, nginx.raw, in a repository of their own
//!   minimal.raw --import--> minimal@1 --attach--> mirror --NBD--> guest: writes a file
//!   nginx.raw ---import--> nginx@1                  |
//!                                                commit, the guest running
//!                                                   v
//!                          minimal@2 --attach--> mirror --NBD--> guest: reads the file
//!   minimal.raw ------------------------------------------------> guest, for comparison
//!   recipe upon the same core --build--> web@1; another page --build--> web@2 --attach--> guest
//! ```
//!
//! **Failure**: whatever ends the demo, its processes end and its folders go.

pub mod larder;
mod order;
mod table;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use guest::{Console, Drive, Guest, GuestConfig};
use model::{Error, Kind, Result};

use self::larder::Larder;
use self::table::{Outcome, bytes};
use crate::images;
use crate::process::{self, Registered};
use crate::setup::{self, For};
use crate::steps::seconds;
use crate::workspace::{self, cargo};

/// How to run the demo.
#[derive(clap::Args)]
pub struct Options {
    /// A larder that is built already; otherwise a release build is made.
    #[arg(long)]
    larder: Option<PathBuf>,
}

/// What the guest writes.
const FILE: &str = "/root/larder-was-here";

/// How long a command in the guest may take.
const COMMAND_MAX: Duration = Duration::from_secs(60);

/// How long a guest may take to shut down before its power is cut.
const SHUTDOWN_MAX: Duration = Duration::from_secs(90);

/// Runs the main job.
pub fn run(options: &Options) -> Result<()> {
    let began = Instant::now();
    setup::ensure(For::Demo)?;
    let binary = prepare(options)?;
    let place = Place::make()?;
    let larder = Larder::new(binary.clone(), place.data.path());

    println!("\n== two Debian disks to order, by stages");
    let kitchen = place.data.path().join("kitchen");
    std::fs::create_dir(&kitchen)
        .map_err(|source| Error::io("make", kitchen.display().to_string(), source))?;
    let builder = Larder::new(binary, &kitchen);
    let [minimal, nginx] = order::two_disks(&builder, &kitchen)?;

    println!("\n== two images, imported");
    let first = larder.json(&["import", &text(&minimal)?, "minimal"])?;
    say_import(&first)?;
    let second = larder.json(&["import", &text(&nginx)?, "nginx"])?;
    say_import(&second)?;

    println!("\n== a guest from the plain file, for comparison");
    let plain_login = boot_plain(&minimal)?;
    println!("login prompt after {}", seconds(plain_login));

    println!("\n== a guest from a mirror of minimal@1");
    let token = format!("written by a guest, process {}", std::process::id());
    let changed = change_and_commit(&larder, &place, &token)?;

    println!("\n== a guest from the new version");
    let reference = format!("minimal@{}", changed.commit.number("version")?);
    let read = read_back(&larder, &place, &reference)?;
    println!("{reference}: {FILE} holds {read:?}");
    if read != token {
        return Err(Error::new(Kind::Corrupt, "read", FILE)
            .because(format!("the guest wrote {token:?} and the new version holds {read:?}")));
    }

    let stats = larder.json(&["stats"])?;
    Outcome {
        image_len: first.number("length_bytes")?,
        image_data_bytes: first.number("data_bytes")?,
        boot_fetched_bytes: changed.fetched_bytes,
        mirror_login: changed.login,
        plain_login,
        commit_stored_bytes: changed.commit.number("stored_bytes")?,
        commit_new_bytes: changed.commit.number("new_bytes")?,
        commit: changed.commit.seconds()?,
        commit_pause_ms: changed.commit.number("pause_ms")?,
        repository_bytes: stats.number("stored_bytes")?,
        second_data_bytes: second.number("data_bytes")?,
        second_new_bytes: second.number("new_bytes")?,
        second_stored_bytes: second.number("stored_bytes")?,
    }
    .print();
    println!("\n== another image upon their core, and again with another page");
    order::build_twice(&builder, &kitchen)?;
    let reference = format!("web@{}", builder.json(&["show", "web"])?.number("version")?);
    let (login, page) = read_page(&builder, &place, &reference)?;
    println!("{reference}: login prompt after {}, its page is {page:?}", seconds(login));
    if page != "another page" {
        return Err(Error::new(Kind::Corrupt, "read", "the page").because(page));
    }
    println!("\nthe demo took {}", seconds(began.elapsed()));
    Ok(())
}

/// Where the demo keeps its things; both folders go when it ends.
struct Place {
    /// The repositories, the mirrors, the disks.
    data: tempfile::TempDir,
    /// Sockets: their paths must be short.
    sockets: tempfile::TempDir,
}

impl Place {
    fn make() -> Result<Place> {
        let target = workspace::target();
        let failed = |source| Error::io("make", "the demo's folders", source);
        let folder =
            |within: &Path| tempfile::Builder::new().prefix("larder-demo-").tempdir_in(within);
        Ok(Place {
            data: folder(&target).map_err(failed)?,
            sockets: folder(&std::env::temp_dir()).map_err(failed)?,
        })
    }

    fn socket(&self, mirror: &str) -> PathBuf {
        self.sockets.path().join(format!("{mirror}.nbd"))
    }
}

/// Makes the binary, unless there is one.
fn prepare(options: &Options) -> Result<PathBuf> {
    if let Some(binary) = &options.larder {
        return Ok(binary.clone());
    }
    println!("== larder itself");
    let arguments = ["build", "--release", "--locked", "--package", "cli", "--quiet"];
    process::run(cargo().args(arguments))?;
    Ok(workspace::target().join("release/larder"))
}

fn say_import(import: &larder::Answer) -> Result<()> {
    println!(
        "{}@{}: {} long, {} of it data; {} not seen before, stored in {}",
        import.text("image")?,
        import.number("version")?,
        bytes(import.number("length_bytes")?),
        bytes(import.number("data_bytes")?),
        bytes(import.number("new_bytes")?),
        bytes(import.number("stored_bytes")?),
    );
    Ok(())
}

/// A guest at its login prompt.
struct Booted {
    guest: Guest,
    login: Duration,
    _registered: Registered,
}

/// Boots a guest to its login prompt.
fn boot(drive: Drive) -> Result<Booted> {
    let began = Instant::now();
    let mut guest = Guest::start(&GuestConfig::new(vec![drive], Console::Scripted))?;
    let registered = process::register(guest.pid())?;
    guest.console()?.wait_for("login: ", images::BOOT_MAX)?;
    Ok(Booted { guest, login: began.elapsed(), _registered: registered })
}

impl Booted {
    fn log_in(&mut self) -> Result<()> {
        let console = self.guest.console()?;
        console.send("root")?;
        console.wait_for("# ", COMMAND_MAX).map(drop)
    }

    fn run(&mut self, command: &str) -> Result<String> {
        self.guest.console()?.run(command, COMMAND_MAX)
    }

    fn shut_down(self) {
        if let Err(error) = self.guest.power_down(SHUTDOWN_MAX) {
            println!("its power is cut: {error}");
        }
    }
}

/// Boots the disk file itself, which nobody needs any more: it was imported.
fn boot_plain(image: &Path) -> Result<Duration> {
    let booted = boot(Drive::File { path: image.to_path_buf(), read_only: false })?;
    Ok(booted.login)
}

/// What a guest's stay on a mirror gave.
struct Changed {
    login: Duration,
    fetched_bytes: u64,
    commit: larder::Answer,
}

fn change_and_commit(larder: &Larder, place: &Place, token: &str) -> Result<Changed> {
    let socket = place.socket("demo");
    let attached = larder.attach("minimal@1", "demo", &socket)?;
    let mut booted = boot(on_mirror(&socket))?;
    println!("login prompt after {}", seconds(booted.login));
    let fetched_bytes = larder.mirror("demo")?.number("fetched_bytes")?;
    booted.log_in()?;
    booted.run(&format!("echo '{token}' > {FILE}; sync"))?;
    println!("the guest wrote {FILE}");
    let commit = larder.json(&["commit", "demo"])?;
    println!(
        "committed as {}@{} while the guest ran, which held it up for {} ms",
        commit.text("image")?,
        commit.number("version")?,
        commit.number("pause_ms")?
    );
    let login = booted.login;
    booted.shut_down();
    attached.detach()?;
    Ok(Changed { login, fetched_bytes, commit })
}

fn read_back(larder: &Larder, place: &Place, reference: &str) -> Result<String> {
    let socket = place.socket("again");
    let attached = larder.attach(reference, "again", &socket)?;
    let mut booted = boot(on_mirror(&socket))?;
    println!("login prompt after {}", seconds(booted.login));
    booted.log_in()?;
    let read = booted.run(&format!("cat {FILE}"))?;
    drop(booted);
    attached.detach()?;
    Ok(read)
}

/// Boots what was built, and asks for its page.
fn read_page(larder: &Larder, place: &Place, reference: &str) -> Result<(Duration, String)> {
    let socket = place.socket("web");
    let attached = larder.attach(reference, "web", &socket)?;
    let mut booted = boot(on_mirror(&socket))?;
    booted.log_in()?;
    let page = booted.run("cat /var/www/html/index.html; echo")?;
    let login = booted.login;
    drop(booted);
    attached.detach()?;
    Ok((login, page.trim().to_owned()))
}

fn on_mirror(socket: &Path) -> Drive {
    Drive::NbdUnix { socket: socket.to_path_buf(), export: String::new(), read_only: false }
}

fn text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        Error::new(Kind::Invalid, "use", path.display().to_string()).because("it is not UTF-8")
    })
}
