//! Tools that keep images in a repository, each used as its manual says: larder and its peers.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use model::{Error, Result};

use super::super::inputs::{self, Image};
use super::super::measure::{Measured, measure};
use crate::demo::larder::Larder;
use crate::process;
use crate::workspace::{find_program, system_program};

/// A tool with a repository of its own. It runs with its defaults but for what its name says.
pub trait Keeper {
    /// Its name in tables.
    fn name(&self) -> &'static str;

    /// Makes an empty repository; one that was there goes.
    fn begin(&self) -> Result<()>;

    /// The command that adds an image.
    fn import(&self, image: &Image) -> Result<Command>;

    /// The command that writes an image into this empty folder, and the file that comes out.
    fn restore(&self, image: &Image, folder: &Path) -> Result<(Command, PathBuf)>;

    /// The command that shows an image below this empty folder, and the file that it is seen as;
    /// `Err` in words where there is no way.
    fn show(&self, image: &Image, folder: &Path) -> std::result::Result<Shown, &'static str>;

    /// All that the tool keeps, without caches that it can do without.
    fn kept(&self) -> PathBuf;
}

/// How an image is shown without being restored.
pub struct Shown {
    /// Runs as long as it is shown.
    pub command: Command,
    /// The file that it is seen as.
    pub file: PathBuf,
}

/// Adds an image and measures that.
pub fn import(keeper: &dyn Keeper, image: &Image) -> Result<Measured> {
    let mut command = keeper.import(image)?;
    inputs::settle();
    measure(quiet(&mut command))
}

/// Everyone that is installed.
pub fn all(larder: Larder, folder: &Path) -> Vec<Box<dyn Keeper>> {
    let borg = |name, place, arguments| -> Box<dyn Keeper> {
        Box::new(Borg { name, folder: folder.join(place), arguments })
    };
    let mut keepers: Vec<Box<dyn Keeper>> =
        vec![Box::new(OwnKeeper { larder, folder: folder.join("larder") })];
    if find_program("casync").is_some() {
        keepers.push(Box::new(Casync { folder: folder.join("casync") }));
    }
    if find_program("restic").is_some() {
        keepers.push(Box::new(Restic { folder: folder.join("restic") }));
    }
    if find_program("borg").is_some() {
        keepers.extend([
            // The options that its manual gives for disk images.
            borg(
                "borg, fixed 4 KiB, zstd 3",
                "borg-fixed",
                &["--sparse", "--chunker-params=fixed,4096", "--compression=zstd,3"],
            ),
            borg("borg, default chunker, zstd 3", "borg-zstd", &["--compression=zstd,3"]),
            borg("borg, as it comes (lz4)", "borg-lz4", &[]),
        ]);
    }
    keepers
}

/// Larder.
struct OwnKeeper {
    larder: Larder,
    folder: PathBuf,
}

impl Keeper for OwnKeeper {
    fn name(&self) -> &'static str {
        "larder"
    }

    fn begin(&self) -> Result<()> {
        inputs::remove(&self.folder)
    }

    fn import(&self, image: &Image) -> Result<Command> {
        Ok(self.larder.command(&["--quiet", "import", inputs::text(&image.path)?, &image.name]))
    }

    fn restore(&self, image: &Image, folder: &Path) -> Result<(Command, PathBuf)> {
        let file = folder.join("disk.raw");
        let command =
            self.larder.command(&["--quiet", "export", &image.name, inputs::text(&file)?]);
        Ok((command, file))
    }

    fn show(&self, image: &Image, folder: &Path) -> std::result::Result<Shown, &'static str> {
        // Without anything that a mirror on this host has fetched before.
        let state = self.folder.join("state");
        if inputs::remove(&state).is_err() {
            return Err("its state folder stays");
        }
        let mut command = self.larder.command(&["attach", &image.name, "--mirror", "bench"]);
        command.arg("--fuse").arg(folder);
        Ok(Shown { command, file: folder.join("mirrors/bench") })
    }

    fn kept(&self) -> PathBuf {
        self.folder.join("repository")
    }
}

/// Chunks by content, a file for each.
struct Casync {
    folder: PathBuf,
}

impl Casync {
    fn command(&self, verb: &str) -> Command {
        let mut command = system_program("casync");
        command.arg(verb).arg(format!("--store={}", self.folder.join("store.castr").display()));
        command
    }

    fn index(&self, image: &Image) -> PathBuf {
        self.folder.join(format!("{}.caibx", image.name))
    }
}

impl Keeper for Casync {
    fn name(&self) -> &'static str {
        "casync"
    }

    fn begin(&self) -> Result<()> {
        inputs::remove(&self.folder)?;
        std::fs::create_dir(&self.folder)
            .map_err(|source| Error::io("make", self.folder.display().to_string(), source))
    }

    fn import(&self, image: &Image) -> Result<Command> {
        let mut command = self.command("make");
        command.arg(self.index(image)).arg(&image.path);
        Ok(command)
    }

    fn restore(&self, image: &Image, folder: &Path) -> Result<(Command, PathBuf)> {
        let mut command = self.command("extract");
        let file = folder.join("disk.raw");
        command.arg(self.index(image)).arg(&file);
        Ok((command, file))
    }

    fn show(&self, _: &Image, _: &Path) -> std::result::Result<Shown, &'static str> {
        Err("`casync mkdev` needs the kernel's nbd driver; its FUSE shows trees of files only")
    }

    fn kept(&self) -> PathBuf {
        self.folder.clone()
    }
}

/// Chunks by content, in packs, always encrypted.
struct Restic {
    folder: PathBuf,
}

impl Restic {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = system_program("restic");
        command.env("RESTIC_PASSWORD", "bench").arg("--repo").arg(self.kept());
        command.arg("--cache-dir").arg(self.folder.join("cache")).arg("--quiet").args(arguments);
        command
    }
}

impl Keeper for Restic {
    fn name(&self) -> &'static str {
        "restic"
    }

    fn begin(&self) -> Result<()> {
        inputs::remove(&self.folder)?;
        process::output(&mut self.command(&["init"]), "").map(drop)
    }

    fn import(&self, image: &Image) -> Result<Command> {
        let mut command = self.command(&["backup", "--tag", &image.name]);
        command.arg(&image.path);
        Ok(command)
    }

    fn restore(&self, image: &Image, folder: &Path) -> Result<(Command, PathBuf)> {
        let mut command = self.command(&["restore", "latest", "--tag", &image.name, "--target"]);
        command.arg(folder);
        Ok((command, below(folder, &image.path)))
    }

    fn show(&self, image: &Image, folder: &Path) -> std::result::Result<Shown, &'static str> {
        let mut command = self.command(&["mount"]);
        command.arg(folder);
        let latest = folder.join("tags").join(&image.name).join("latest");
        Ok(Shown { command, file: below(&latest, &image.path) })
    }

    fn kept(&self) -> PathBuf {
        self.folder.join("repository")
    }
}

/// Chunks in segments; by content or of one size.
struct Borg {
    name: &'static str,
    folder: PathBuf,
    arguments: &'static [&'static str],
}

impl Borg {
    fn command(&self, verb: &str) -> Command {
        let mut command = system_program("borg");
        command.env("BORG_BASE_DIR", self.folder.join("cache"));
        command.env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes").arg(verb);
        command
    }

    fn archive(&self, image: &Image) -> String {
        format!("{}::{}", self.kept().display(), image.name)
    }
}

impl Keeper for Borg {
    fn name(&self) -> &'static str {
        self.name
    }

    fn begin(&self) -> Result<()> {
        inputs::remove(&self.folder)?;
        let mut command = self.command("init");
        command.args(["--make-parent-dirs", "--encryption=none"]).arg(self.kept());
        process::output(&mut command, "").map(drop)
    }

    fn import(&self, image: &Image) -> Result<Command> {
        let mut command = self.command("create");
        command.args(self.arguments).arg(self.archive(image)).arg(&image.path);
        Ok(command)
    }

    fn restore(&self, image: &Image, folder: &Path) -> Result<(Command, PathBuf)> {
        let mut command = self.command("extract");
        command.arg("--sparse").arg(self.archive(image)).current_dir(folder);
        Ok((command, below(folder, &image.path)))
    }

    fn show(&self, image: &Image, folder: &Path) -> std::result::Result<Shown, &'static str> {
        let mut command = self.command("mount");
        command.arg("--foreground").arg(self.archive(image)).arg(folder);
        Ok(Shown { command, file: below(folder, &image.path) })
    }

    fn kept(&self) -> PathBuf {
        self.folder.join("repository")
    }
}

/// Where a file with this path is when its root is `folder`.
fn below(folder: &Path, path: &Path) -> PathBuf {
    folder.join(path.strip_prefix("/").unwrap_or(path))
}

/// Sends a command's words nowhere; its complaints stay.
pub fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null())
}

/// Fails unless two disks hold the same bytes.
pub fn compare(a: &Path, b: &Path) -> Result<()> {
    process::output(system_program("cmp").arg("--").args([a, b]), "").map(drop)
}
