//! Real Debian disk images, made once and kept under `target/images/`.
//!
//! ```text
//!   recipe --mmdebstrap--> folder --settings--> folder --mke2fs, mtools, syslinux--> NAME-KEY.raw
//! ```
//!
//! An image is kept by the hash of its recipe's text, so a changed recipe makes a new image and an
//! unchanged one costs nothing. Images that are wanted together are made side by side, each from
//! nothing, like images of two people who know nothing of each other.
//!
//! **Failure**: an image has its name only once it is whole. What a killed run left is removed by
//! the next one.

pub mod corpus;
mod disk;
mod recipe;
mod root;
mod sources;
mod verify;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use guest::{Console, Drive, Guest, GuestConfig};
use model::{Error, Kind, Result};

pub use recipe::{AGENT, CLOUD, MINIMAL, NGINX, Recipe};
pub use verify::VERIFY;

use crate::process;
use crate::setup::{self, For};
use crate::steps::seconds;
use crate::workspace;

/// What to do with the images.
#[derive(clap::Args)]
pub struct Options {
    /// Boot each to its login prompt and say how long that took.
    #[arg(long)]
    boot: bool,
}

/// The longest that a boot may take before it counts as failed.
pub const BOOT_MAX: Duration = Duration::from_secs(180);

/// Builds the images that are missing and says where all are.
pub fn run(options: &Options) -> Result<()> {
    setup::ensure(For::Images)?;
    let recipes = [&MINIMAL, &NGINX, &AGENT, &CLOUD, &VERIFY];
    let began = Instant::now();
    let paths = ensure(&recipes)?;
    println!("images ready after {}", seconds(began.elapsed()));
    for (recipe, path) in recipes.iter().zip(&paths) {
        println!("{:<8} {}", recipe.name, path.display());
        if options.boot {
            println!("{:<8} boots to its login prompt in {}", recipe.name, seconds(boot(path)?));
        }
    }
    Ok(())
}

/// Makes sure that the images exist and returns their paths, in the order of the recipes. The files
/// are shared by all who ask: copy one before writing to it.
///
/// # Errors
/// `Refused`: an image has to be built and this is not root. `Invalid`: a tool failed; its last
/// words are in the error.
pub fn ensure(recipes: &[&Recipe]) -> Result<Vec<PathBuf>> {
    let folder = folder()?;
    let paths: Vec<PathBuf> =
        recipes.iter().map(|recipe| folder.join(format!("{}.raw", recipe.file_stem()))).collect();
    let missing: Vec<_> = recipes.iter().zip(&paths).filter(|(_, path)| !path.exists()).collect();
    if missing.is_empty() {
        return Ok(paths);
    }
    begin(&folder)?;
    thread::scope(|scope| -> Result<()> {
        let builders: Vec<_> = missing
            .iter()
            .map(|(recipe, path)| scope.spawn(|| build(recipe, &folder, path)))
            .collect();
        let ends: Vec<_> = builders.into_iter().map(thread::ScopedJoinHandle::join).collect();
        for end in ends {
            end.unwrap_or_else(|_| Err(Error::new(Kind::Bug, "build", "an image")))?;
        }
        Ok(())
    })?;
    Ok(paths)
}

/// Unpacks the minimal image's packages by mmdebstrap, and does nothing else.
pub fn unpack_alone(folder: &Path, log: &Path) -> Result<()> {
    root::unpack(&MINIMAL, folder, log)
}

/// This machine's settings of apt about fetching.
pub fn apt_settings() -> Result<Vec<String>> {
    sources::settings()
}

/// The file that says where this machine's packages come from.
pub fn apt_sources() -> Result<PathBuf> {
    let found = sources::of(&MINIMAL)?;
    Ok(found.into_iter().next().map(PathBuf::from).unwrap_or_default())
}

/// Where images are kept.
fn folder() -> Result<PathBuf> {
    let folder = workspace::target().join("images");
    let failed = |source| Error::io("make", folder.display().to_string(), source);
    fs::create_dir_all(&folder).map_err(failed)?;
    Ok(folder)
}

/// Before images are built: checks that they can be, and tidies up.
fn begin(folder: &Path) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::new(Kind::Refused, "build", "the Debian images")
            .because("only root may unpack a system's files with their owners")
            .hint("sudo cargo xtask images"));
    }
    remove_leftovers(folder);
    Ok(())
}

/// Builds one image; it has its name only once it is whole.
fn build(recipe: &Recipe, folder: &Path, path: &Path) -> Result<()> {
    let began = Instant::now();
    println!("building the image {} ({} packages asked for)", recipe.name, recipe.packages.len());
    let work = Work::begin(folder, recipe)?;
    let root = work.0.join("root");
    let log = folder.join(format!("{}.log", recipe.file_stem()));
    root::unpack(recipe, &root, &log)?;
    root::settle(recipe, &root)?;
    let disk = work.0.join("disk.raw");
    disk::assemble(recipe, &root, &disk, &log)?;
    fs::rename(&disk, path)
        .map_err(|source| Error::io("name", path.display().to_string(), source))?;
    println!("built the image {} in {}", recipe.name, seconds(began.elapsed()));
    Ok(())
}

/// Boots an image to its login prompt, its changes thrown away, and returns how long that took.
pub fn boot(image: &Path) -> Result<Duration> {
    let drive = Drive::File { path: image.to_path_buf(), read_only: false };
    let mut config = GuestConfig::new(vec![drive], Console::Scripted);
    config.extra_arguments = vec!["-snapshot".into()];
    let began = Instant::now();
    let mut guest = Guest::start(&config)?;
    let _registered = process::register(guest.pid())?;
    guest.console()?.wait_for("login: ", BOOT_MAX)?;
    Ok(began.elapsed())
}

/// Where an image is being built: a folder that is removed in the end, come what may.
struct Work(PathBuf);

impl Work {
    fn begin(folder: &Path, recipe: &Recipe) -> Result<Work> {
        let path = folder.join(format!(".work-{}-{}", std::process::id(), recipe.name));
        let failed = |source| Error::io("make", path.display().to_string(), source);
        fs::create_dir(&path).map_err(failed)?;
        Ok(Work(path))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        remove_tree(&self.0);
    }
}

/// Removes a tree, but nothing that another file system has mounted in it.
fn remove_tree(path: &Path) {
    let mut command = workspace::system_program("rm");
    let removed = command.args(["-rf", "--one-file-system", "--"]).arg(path).status();
    if !removed.is_ok_and(|status| status.success()) {
        eprintln!("xtask: could not remove {}", path.display());
    }
}

/// Removes what runs left that are no more.
fn remove_leftovers(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.filter_map(std::result::Result::ok) {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(".work-"));
        let owner = owner.and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove_tree(&entry.path());
        }
    }
}
