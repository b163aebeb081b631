//! Recipes of the bench, and a larder that builds them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use model::{Error, Result};

use super::Columns;
use crate::bench::{Session, Size, inputs};
use crate::demo::larder::Larder;
use crate::process;
use crate::workspace::{self, system_program};

const CORE: [&str; 6] =
    ["systemd-sysv", "udev", "dbus", "kmod", "iproute2", "linux-image-cloud-amd64"];
const FEW: [&str; 4] = ["less", "curl", "openssh-server", "ca-certificates"];
const ADDED: [&str; 3] = ["tmux", "rsync", "file"];
const TEN: [&str; 10] = [
    "nginx-light",
    "curl",
    "rsync",
    "tmux",
    "python3-minimal",
    "redis-server",
    "vim-tiny",
    "openssh-server",
    "git",
    "htop",
];

/// A larder, recipes, and where their packages come from.
pub struct Kitchen {
    pub larder: Larder,
    recipes: PathBuf,
    /// The archive of tiny packages; none where the machine's own is taken.
    archive: Option<PathBuf>,
}

impl Kitchen {
    /// A kitchen with a repository of its own, in the session's folder.
    pub fn new(session: &Session) -> Result<Kitchen> {
        let folder = session.folder.path().join("kitchen");
        Kitchen::at(session, "kitchen", &folder)
    }

    /// A kitchen whose repository is there; its recipes and locks are those of this name.
    pub fn at(session: &Session, name: &str, folder: &Path) -> Result<Kitchen> {
        let recipes = session.folder.path().join(format!("recipes-{name}"));
        fs::create_dir_all(&recipes)
            .map_err(|source| Error::io("make", recipes.display().to_string(), source))?;
        let archive = match session.size {
            Size::Full => None,
            Size::Small => Some(tiny_archive(session.folder.path())?),
        };
        let binary = inputs::binary(session.size)?;
        Ok(Kitchen { larder: Larder::new(binary, folder), recipes, archive })
    }

    fn is_small(&self) -> bool {
        self.archive.is_some()
    }

    /// A few packages of the last stage.
    pub fn few(&self) -> Vec<&'static str> {
        if self.is_small() { vec!["more"] } else { FEW.to_vec() }
    }

    /// Packages that come on top, one each round.
    pub fn added(&self) -> Vec<&'static str> {
        if self.is_small() { vec!["kernel"] } else { ADDED.to_vec() }
    }

    /// What ten recipes add to the core.
    pub fn ten(&self) -> Vec<&'static str> {
        if self.is_small() { vec!["more", "kernel"] } else { TEN.to_vec() }
    }

    fn head(&self) -> String {
        let archive = match &self.archive {
            None => String::new(),
            Some(archive) => {
                let place = archive.display();
                format!("[[archive]]\nurl = \"file://{place}\"\nsigned_by = \"{place}/keys.gpg\"\n")
            }
        };
        let (size, boot) = if self.is_small() { ("64M", "direct") } else { ("2G", "bios") };
        format!(
            "[distribution]\nid = \"debian\"\nrelease = \"bookworm\"\n{archive}\
             [disk]\nsize = \"{size}\"\nboot = \"{boot}\"\n"
        )
    }

    fn core_packages(&self) -> Vec<&'static str> {
        if self.is_small() { vec!["tiny"] } else { CORE.to_vec() }
    }

    /// A core that boots.
    pub fn core(&self) -> String {
        format!(
            "{}[[stage]]\nname = \"core\"\npackages = {:?}\n",
            self.head(),
            self.core_packages()
        )
    }

    /// The core, and upon it packages and a file.
    pub fn top(&self, packages: &[&str], text: &str) -> String {
        format!(
            "{}[[stage]]\nname = \"top\"\nparent = \"core\"\npackages = {packages:?}\n\
             files = [{{ to = \"/etc/motd\", content = \"{text}\" }}]\n",
            self.core()
        )
    }

    /// The same in one stage.
    pub fn one_shot(&self, packages: &[&str]) -> String {
        let all: Vec<&str> = self.core_packages().into_iter().chain(packages.to_vec()).collect();
        format!(
            "{}[[stage]]\nname = \"all\"\npackages = {all:?}\n\
             files = [{{ to = \"/etc/motd\", content = \"one\" }}]\n",
            self.head()
        )
    }

    /// Builds an image from this recipe: how long that took.
    pub fn build(&self, image: &str, recipe: &str) -> Result<Columns> {
        let path = self.recipes.join(format!("{image}.toml"));
        fs::write(&path, format!("name = \"{image}\"\n{recipe}"))
            .map_err(|source| Error::io("write", path.display().to_string(), source))?;
        inputs::settle();
        let began = Instant::now();
        let answer = self.larder.json(&["build", inputs::text(&path)?])?;
        let mut columns = vec![("wall_seconds", began.elapsed().as_secs_f64())];
        let stages = answer.value("stages").as_array().cloned().unwrap_or_default();
        if let Some(root) = stages.last().and_then(|stage| stage["root_ms"].as_f64()) {
            columns.push(("root_ms", root));
        }
        Ok(columns)
    }

    /// Builds an image; bytes that the repository then takes.
    pub fn build_stored(&self, image: &str, recipe: &str) -> Result<f64> {
        self.build(image, recipe)?;
        Ok(self.larder.json(&["stats"])?.number("stored_bytes")? as f64)
    }
}

/// The archive of tiny packages that the builder's tests use.
fn tiny_archive(folder: &Path) -> Result<PathBuf> {
    let archive = folder.join("archive");
    if !archive.exists() {
        let script = workspace::root().join("crates/builder/tests/support/archive.sh");
        process::output(system_program("bash").arg(script).arg(&archive), "")?;
    }
    Ok(archive)
}
