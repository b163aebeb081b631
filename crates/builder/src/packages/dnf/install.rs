//! Packages into an image, in one transaction of this machine's rpm: exactly those of the lock.
//!
//! ```text
//! of this machine: programs, the pool ─► rpm ─► /image, in which scripts run as in their root
//! ```
//!
//! Images need no rpm of their own. Where two builds install the same, the database is the same bytes:
//! rpm takes the time of the build for the time of installation.
//!
//! **Failure**: a script that fails ends the build, whatever rpm makes of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use model::{Error, Kind, Result};
use serde_json::{Value, json};

use super::files::file_name;
use super::installed::installed;
use super::{DATABASE_FILE, PYTHON, database, write};
use crate::contained::{IMAGE, Inside, SHOWN};
use crate::derive::LOOK_LIMIT;
use crate::first::Job;
use crate::lock::{LockedPackage, LockedStage};
use crate::steps::Steps;
use crate::tool::{Run, program};
use crate::tree::Tree;

const SCRIPT: &str = include_str!("install.py");

const SCRIPT_NAME: &str = "install.py";
const ASKED_NAME: &str = "install.json";

/// What `install.py` is asked; `note` where packages are only written down.
pub(super) fn asked(
    root: &Path,
    database: &str,
    stage: &LockedStage,
    file: &dyn Fn(&LockedPackage) -> PathBuf,
    note: bool,
) -> Value {
    let names = |wanted: &str| -> Vec<&str> {
        let of_verb = stage.order.iter().filter_map(|line| line.split_once(' '));
        of_verb
            .filter(|(verb, _)| *verb == wanted)
            .flat_map(|(_, names)| names.split(' '))
            .collect()
    };
    let upgraded = names("upgrade");
    let packages: Vec<Value> = stage
        .package
        .iter()
        .map(|package| {
            let is_upgrade = upgraded.contains(&package.name.as_str());
            json!([if is_upgrade { "upgrade" } else { "install" }, file(package)])
        })
        .collect();
    json!({
        "root": root,
        "database": database,
        "note": note,
        "packages": packages,
        "remove": names("remove"),
    })
}

/// A command that does what was asked, its script in this folder.
pub(super) fn command(folder: &Path, asked: &Value, epoch: i64) -> Result<Command> {
    write(&folder.join(SCRIPT_NAME), SCRIPT)?;
    write(&folder.join(ASKED_NAME), &asked.to_string())?;
    let mut command = program(PYTHON);
    command.env("SOURCE_DATE_EPOCH", epoch.to_string());
    command.arg("-I").arg(folder.join(SCRIPT_NAME)).arg(folder.join(ASKED_NAME));
    Ok(command)
}

/// Installs a stage's packages from their files in its pool into an image.
pub(crate) fn install(job: &Job, steps: &Steps, inside: &Inside) -> Result<()> {
    let stage = job.locked;
    if stage.order.is_empty() {
        return Ok(());
    }
    job.log.say(&format!("installing {} packages", stage.package.len()));
    let pool = job.pool;
    for path in [pool.to_path_buf(), job.work.join("database")] {
        std::fs::create_dir_all(&path)
            .map_err(|error| Error::io("make", path.display().to_string(), error))?;
    }
    let file = |package: &LockedPackage| Path::new(SHOWN).join(file_name(package));
    let database = database(&job.recipe.distribution);
    let asked = asked(Path::new(IMAGE), database, stage, &file, false);
    write(&pool.join(SCRIPT_NAME), SCRIPT)?;
    write(&pool.join(ASKED_NAME), &asked.to_string())?;
    let mut command = inside.command_beside(pool);
    command.arg(PYTHON).arg("-I");
    command.args([SCRIPT_NAME, ASKED_NAME].map(|name| Path::new(SHOWN).join(name)));
    steps.run_install(&mut command)?;
    check(job, steps.tree)
}

/// The image has what the lock says.
fn check(job: &Job, tree: &Tree) -> Result<()> {
    let copy = job.work.join("database");
    let folder = database(&job.recipe.distribution);
    tree.copy_out(&format!("{folder}/{DATABASE_FILE}"), &copy.join(DATABASE_FILE))?;
    let run = Run { log: job.log, limit: LOOK_LIMIT, cancel: job.cancel };
    let found = installed(&run, &copy)?;
    let is_there = |package: &LockedPackage| {
        let LockedPackage { name, version, architecture, .. } = package;
        found.contains(&(name.clone(), version.clone(), architecture.clone()))
    };
    let missing = job.locked.package.iter().find(|package| !is_there(package));
    let is_first = job.stage.parent.is_none();
    match missing {
        Some(package) => Err(odd(&package.name)),
        None if is_first && found.len() != job.locked.package.len() => Err(odd("packages")),
        None => Ok(()),
    }
}

fn odd(name: &str) -> Error {
    Error::new(Kind::Bug, "install", name).because("what was installed is not what was locked")
}
