//! An archive of tiny packages, and a folder to build from it in.

pub mod server;
pub mod small_kernel;

use std::path::{Path, PathBuf};
use std::process::Command;

use builder::{BuildRequest, Built};
use model::progress::{Cancel, Silent};
use model::{Reference, Result};
use repository::Repository;
use repository::repository::Machine;

/// The archive, made once and kept for later runs.
pub fn archive() -> PathBuf {
    made("archive", include_str!("archive.sh"))
}

/// The repositories of rpm packages, made once and kept for later runs; none where this machine has
/// not what makes them.
#[allow(clippy::print_stderr, reason = "whoever looks is told what was not tested")]
pub fn rpms() -> Option<PathBuf> {
    let needed = ["dnf", "rpmbuild", "rpmsign", "createrepo_c", "gpg", "busybox", "curl"];
    let is_there = |name: &&&str| Path::new("/usr/bin").join(name).exists();
    if let Some(missing) = needed.iter().find(|name| !is_there(name)) {
        eprintln!("skipped: there is no {missing}; `cargo xtask setup test` installs it");
        return None;
    }
    Some(made("rpms", include_str!("rpms.sh")))
}

fn made(what: &str, script: &str) -> PathBuf {
    let name = blake3::hash(script.as_bytes()).to_hex();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{what}-{}", &name[..12]));
    if !folder.exists() {
        let new = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let kernel = new.path().join("small-kernel");
        std::fs::write(&kernel, small_kernel::small_kernel()).unwrap();
        let mut make = Command::new("bash");
        let made = make.args(["-c", script, "archive"]).arg(new.path()).arg(&kernel).output();
        let made = made.unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        // Another test may have been quicker.
        let _ = std::fs::rename(new.path(), &folder);
    }
    folder
}

/// A folder with recipes, a repository and a state folder of its own.
pub struct Kitchen {
    pub folder: tempfile::TempDir,
    pub repository: Repository,
    pub archive: PathBuf,
    pub cancel: Cancel,
}

/// How a build is asked for.
#[derive(Default)]
pub struct Ask {
    pub locked: bool,
    pub update: bool,
}

impl Kitchen {
    pub fn new() -> Kitchen {
        let folder = tempfile::Builder::new().prefix("larder-build-").tempdir().unwrap();
        let (repository, _) =
            Repository::open_or_create(&Machine::real(), &folder.path().join("repo")).unwrap();
        Kitchen { folder, repository, archive: archive(), cancel: Cancel::new() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a recipe: these stages, a disk of 64 MiB, the archive.
    pub fn recipe(&self, stages: &str) {
        let archive = self.archive.display();
        self.write(
            "recipe.toml",
            &format!(
                "name = \"out\"\n{stages}\n[distribution]\nid = \"debian\"\nrelease = \"bookworm\"\n\
                 [[archive]]\nurl = \"file://{archive}\"\nsigned_by = \"{archive}/keys.gpg\"\n"
            ),
        );
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub fn build_as(&self, ask: Ask) -> Result<Built> {
        builder::build(
            &self.repository,
            &BuildRequest {
                recipe: self.path("recipe.toml"),
                tag: None,
                locked: ask.locked,
                update: ask.update,
                shell_on_failure: false,
                state: self.path("state"),
                tell: &|_| (),
                cancel: &self.cancel,
            },
        )
    }

    pub fn build(&self) -> Built {
        match self.build_as(Ask::default()) {
            Ok(built) => built,
            Err(error) => panic!("{} (hint: {:?})", error.chain(), error.hint_text()),
        }
    }

    pub fn fails(&self) -> model::Error {
        let error = self.build_as(Ask::default()).map(|built| built.version).unwrap_err();
        self.nothing_is_left();
        error
    }

    /// Exports a version and answers debugfs's question about it.
    pub fn ask(&self, reference: &str, question: &str) -> String {
        let path = self.path("exported.raw");
        let _ = std::fs::remove_file(&path);
        let reference: Reference = reference.parse().unwrap();
        let version = self.repository.catalog().version(&reference).unwrap();
        let raw = format::foreign::OutputFormat::Raw;
        let sink = format::foreign::create_sink(&path, raw, version.facts.length).unwrap();
        self.repository.export(&version.id, sink, &Silent, &self.cancel).unwrap();
        let output = Command::new("debugfs").args(["-R", question]).arg(&path).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// No mount, no loop device, no process of a build, no folder for work.
    pub fn nothing_is_left(&self) {
        let home = self.folder.path().display().to_string();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&home), "{mounts}");
        for device in std::fs::read_dir("/sys/block").unwrap() {
            let backing = device.unwrap().path().join("loop/backing_file");
            let file = std::fs::read_to_string(backing).unwrap_or_default();
            assert!(!file.contains(&home), "a loop device of {file}");
        }
        for process in std::fs::read_dir("/proc").unwrap() {
            let path = process.unwrap().path();
            let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
            assert!(
                !String::from_utf8_lossy(&line).contains(&home),
                "{}: {}",
                path.display(),
                String::from_utf8_lossy(&line)
            );
        }
        for entry in std::fs::read_dir(self.path("state/build")).into_iter().flatten() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(!name.starts_with("work-"), "{name} is left");
        }
    }
}
