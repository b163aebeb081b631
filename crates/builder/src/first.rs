//! A stage without a parent: from packages to a tree of files, and from these to a disk.
//!
//! ```text
//! pool (exactly the lock) ──mmdebstrap or rpm──► tree ──steps, clean──► tree ──mke2fs──► disk ──► version
//! ```

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::progress::Cancel;
use model::{Error, Kind, Result};

use crate::contained::Inside;
use crate::disk;
use crate::lock::LockedStage;
use crate::packages::dnf;
use crate::recipe::{Family, Place, Recipe, Stage, System};
use crate::steps::{Steps, installed};
use crate::tool::{Log, Run, program};
use crate::tree::Tree;

const LIMIT: Duration = Duration::from_secs(2 * 3600);

/// Releases that leave it to their installer to make `/bin` a link to `/usr/bin`, and so on; later
/// ones have a package for it, and expect it.
const UNMERGED: [(&str, &str); 2] = [("debian", "bullseye"), ("debian", "buster")];

/// Does so, in front of all packages.
const MERGE: &str = "for name in bin sbin lib lib32 lib64 libx32; do \
                     mkdir -p \"$1/usr/$name\"; ln -s \"usr/$name\" \"$1/$name\"; done";

/// What a stage is made of, and where.
pub(crate) struct Job<'a> {
    /// The recipe.
    pub recipe: &'a Recipe,
    /// Its file.
    pub place: &'a Place,
    /// The stage.
    pub stage: &'a Stage,
    /// Its packages.
    pub locked: &'a LockedStage,
    /// Its key.
    pub key: &'a str,
    /// What the last stage settles.
    pub system: Option<&'a System>,
    /// The folder that names in the recipe are relative to.
    pub beside: &'a Path,
    /// The packages' files, as an archive.
    pub pool: &'a Path,
    /// A folder for what is of no use afterwards.
    pub work: &'a Path,
    /// What was said.
    pub log: &'a Log,
    /// Ends it.
    pub cancel: &'a Cancel,
    /// Opens a shell where a step fails.
    pub shell_on_failure: bool,
}

/// What of a stage is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Its packages are installed.
    Packages,
    /// What comes behind the packages, which are there.
    Rest,
    /// Both.
    Whole,
}

impl Job<'_> {
    /// Makes the stage's steps, with a shell where one fails.
    pub(crate) fn work_on(&self, tree: &Tree, inside: &Inside, part: Part) -> Result<()> {
        Inside::prepare(tree)?;
        let steps = self.steps(tree, inside);
        let packages = match part {
            Part::Rest => Ok(()),
            Part::Packages | Part::Whole => self.install(&steps, inside),
        };
        let done = packages.and_then(|()| match part {
            Part::Packages => Ok(()),
            Part::Rest | Part::Whole => steps.apply(self.system),
        });
        if done.is_err() && self.shell_on_failure {
            steps.shell();
        }
        done?;
        if self.system.is_some() && part != Part::Packages {
            crate::contextualization::settle(tree, self.recipe, self.place)?;
        }
        crate::clean::clean(tree, self.stage)
    }

    fn steps<'b>(&'b self, tree: &'b Tree, inside: &'b Inside) -> Steps<'b> {
        let (stage, place, beside) = (self.stage, self.place, self.beside);
        Steps { stage, place, beside, tree, inside, log: self.log, cancel: self.cancel }
    }

    fn install(&self, steps: &Steps, inside: &Inside) -> Result<()> {
        match self.recipe.distribution.family() {
            Family::Deb => steps.install(self.locked, self.pool),
            Family::Rpm => dnf::install::install(self, steps, inside),
        }
    }
}

/// Makes the disk of a first stage. It has its name only when it is whole.
pub(crate) fn make(job: &Job) -> Result<PathBuf> {
    let wanted = job.recipe.disk_or_default();
    crate::boot::check_machine(wanted.boot)?;
    let root = job.work.join("root");
    let plan = disk::Plan::of(&wanted, job.key);
    let inside = Inside {
        root: root.clone(),
        holder: None,
        epoch: job.locked.source_date_epoch,
        room: Some(plan.root_len),
    };
    let tree = match job.recipe.distribution.family() {
        Family::Deb => {
            unpack(job, &root)?;
            let tree = Tree::open(&root)?;
            settle(&tree)?;
            check(job, &tree)?;
            tree
        }
        Family::Rpm => {
            std::fs::create_dir(&root)
                .map_err(|error| Error::io("make", root.display().to_string(), error))?;
            let tree = Tree::open(&root)?;
            Inside::prepare(&tree)?;
            job.install(&job.steps(&tree, &inside), &inside)?;
            tree.write("/etc/hostname", b"localhost\n", 0o644, (0, 0))?;
            tree
        }
    };
    disk::write_table(&tree, &plan, job.key)?;
    job.work_on(&tree, &inside, Part::Rest)?;
    let path = job.work.join("disk.raw");
    let failed = |error| Error::io("make", path.display().to_string(), error);
    File::create_new(&path).and_then(|file| file.set_len(plan.len)).map_err(failed)?;
    disk::make(job, &plan, &tree, &root, &path)?;
    Ok(path)
}

/// Unpacks and configures the packages, in namespaces of its own, so that no mount is left.
fn unpack(job: &Job, root: &Path) -> Result<()> {
    job.log.say(&format!("unpacking {} packages", job.locked.package.len()));
    let (release, arch) =
        (job.recipe.distribution.release.get_ref(), job.recipe.distribution.arch.get_ref());
    let mut command = program("unshare");
    command.args(["--mount", "--propagation", "private"]);
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "mmdebstrap"]);
    command.env("SOURCE_DATE_EPOCH", job.locked.source_date_epoch.to_string());
    command.env("TMPDIR", job.work);
    command.args(["--mode=root", "--variant=essential", "--format=directory"]);
    // Whether its programs run here is known already.
    command.arg(format!("--architectures={arch}")).arg("--skip=check/qemu");
    if UNMERGED.contains(&(job.recipe.distribution.id.get_ref(), release)) {
        command.arg(format!("--setup-hook={MERGE}"));
    }
    let names: Vec<&str> = job.locked.package.iter().map(|package| package.name.as_str()).collect();
    command.arg(format!("--include={}", names.join(",")));
    for option in [
        "Acquire::Languages \"none\"",
        "APT::Install-Recommends \"false\"",
        "APT::Sandbox::User \"root\"",
    ] {
        command.arg(format!("--aptopt={option}"));
    }
    command.arg("--dpkgopt=force-unsafe-io");
    command.arg(release).arg(root);
    command.arg(format!("deb [trusted=yes] copy://{} ./", job.pool.display()));
    let run = Run { log: job.log, limit: LIMIT, cancel: job.cancel };
    run.succeed(&mut command).map_err(|error| {
        if error.kind() != Kind::Unavailable {
            return error;
        }
        let reason = format!(
            "line {}, stage `{}`: the installation of its packages failed: {}",
            job.place.line(job.stage.name.span().start),
            job.stage.name.get_ref(),
            job.log.last_lines()
        );
        Error::new(Kind::Invalid, "build", &job.place.file)
            .because(reason)
            .hint(format!("all that was said is in {}", job.log.path().display()))
    })
}

/// Takes out what mmdebstrap has put of this machine and of the build.
fn settle(tree: &Tree) -> Result<()> {
    for path in ["/etc/resolv.conf", "/etc/apt/apt.conf.d/99mmdebstrap"] {
        tree.remove(path)?;
    }
    if tree.exists("/etc/apt/sources.list") {
        tree.write("/etc/apt/sources.list", b"", 0o644, (0, 0))?;
    }
    tree.write("/etc/hostname", b"localhost\n", 0o644, (0, 0))
}

/// The image has what the lock says, and nothing else.
fn check(job: &Job, tree: &Tree) -> Result<()> {
    let status = tree.read("/var/lib/dpkg/status")?.unwrap_or_default();
    let mut found = installed(&status);
    let locked = job.locked.package.iter();
    let mut wanted: Vec<_> =
        locked.map(|p| (p.name.clone(), p.version.clone(), p.architecture.clone())).collect();
    found.sort();
    wanted.sort();
    if found == wanted {
        return Ok(());
    }
    let odd = found.iter().find(|package| !wanted.contains(package));
    let odd = odd.or_else(|| wanted.iter().find(|package| !found.contains(package)));
    let name = odd.map_or("", |package| package.0.as_str());
    Err(Error::new(Kind::Bug, "install", name).because("what was installed is not what was locked"))
}
