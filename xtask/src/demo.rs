//! The main job on real images: from a disk file to a booted guest, and its changes back as a version.
//!
//! ```text
//!   minimal.raw --import--> minimal@1 --attach--> mirror --NBD--> guest: writes a file
//!   nginx.raw ---import--> nginx@1                  |
//!                                                commit, the guest running
//!                                                   v
//!                          minimal@2 --attach--> mirror --NBD--> guest: reads the file
//!   minimal.raw --copy--> plain file ---------------------------> guest, for comparison
//!   recipe --build, by stages--> web@1; another page --build--> web@2 --attach--> guest
//! ```
//!
//! **Failure**: whatever ends the demo, its processes end and its folders go; images stay for the
//! next run.

pub mod larder;
mod order;
mod table;

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use guest::{Console, Drive, Guest, GuestConfig};
use model::{Error, Kind, Result};

use self::larder::Larder;
use self::table::{Outcome, bytes};
use crate::images;
use crate::process::{self, Registered};
use crate::setup::{self, For};
use crate::steps::seconds;
use crate::workspace::{self, cargo, system_program};

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
    let (images, binary) = prepare(options)?;
    let [minimal, nginx] = &images[..] else {
        return Err(Error::new(Kind::Bug, "run", "the demo").because("two images were asked for"));
    };
    let place = Place::make()?;
    let larder = Larder::new(binary, place.data.path());

    println!("\n== two images, imported");
    let first = larder.json(&["import", &text(minimal)?, "minimal"])?;
    say_import(&first)?;
    let second = larder.json(&["import", &text(nginx)?, "nginx"])?;
    say_import(&second)?;

    println!("\n== a guest from the plain file, for comparison");
    let plain_login = boot_plain(minimal, place.data.path())?;
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
    println!("\n== an image to order, by stages");
    order::build_twice(&larder, place.data.path())?;
    let reference = format!("web@{}", larder.json(&["show", "web"])?.number("version")?);
    let (login, page) = read_page(&larder, &place, &reference)?;
    println!("{reference}: login prompt after {}, its page is {page:?}", seconds(login));
    if page != "another page" {
        return Err(Error::new(Kind::Corrupt, "read", "the page").because(page));
    }
    println!("\nthe demo took {}", seconds(began.elapsed()));
    Ok(())
}

/// Where the demo keeps its things; both folders go when it ends.
struct Place {
    /// The repository, the mirrors, the plain file.
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

/// Makes the images and the binary, side by side.
fn prepare(options: &Options) -> Result<(Vec<PathBuf>, PathBuf)> {
    println!("== two Debian images and larder itself");
    let recipes = [&images::MINIMAL, &images::NGINX];
    thread::scope(|scope| {
        let images = scope.spawn(|| images::ensure(&recipes));
        let binary = match &options.larder {
            Some(binary) => Ok(binary.clone()),
            None => process::run(cargo().args([
                "build",
                "--release",
                "--locked",
                "--package",
                "cli",
                "--quiet",
            ]))
            .map(|()| workspace::target().join("release/larder")),
        };
        let images =
            images.join().unwrap_or_else(|_| Err(Error::new(Kind::Bug, "build", "the images")))?;
        Ok((images, binary?))
    })
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

/// Boots a copy of the image, since a guest writes to its disk.
fn boot_plain(image: &Path, folder: &Path) -> Result<Duration> {
    let path = folder.join("plain.raw");
    let mut command = system_program("cp");
    process::run(command.args(["--sparse=always", "--"]).arg(image).arg(&path))?;
    let booted = boot(Drive::File { path: path.clone(), read_only: false })?;
    let login = booted.login;
    drop(booted);
    std::fs::remove_file(&path)
        .map_err(|source| Error::io("remove", path.display().to_string(), source))?;
    Ok(login)
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
