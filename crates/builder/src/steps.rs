//! What a stage does to its files, in order: packages, users, files, services, commands, settings.
//!
//! **Failure**: an error names the recipe's file, the line, and the last lines of what was said.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use model::progress::Cancel;
use model::{Error, Kind, Result};

use crate::contained::{Grants, Inside, SHOWN};
use crate::lock::LockedStage;
use crate::packages::files::file_name;
use crate::recipe::{Contents, Place, RunStep, Stage, System, duration};
use crate::room::Room;
use crate::tool::{End, Log, Run};
use crate::tree::Tree;
use crate::users;

/// How long the installation of packages may take.
const INSTALL_LIMIT: Duration = Duration::from_secs(2 * 3600);
const SERVICE_LIMIT: Duration = Duration::from_secs(120);

/// With less than this free a disk counts as full.
const FULL: u64 = 1 << 20;

/// More than any file that one puts into an image by a recipe.
const FILE_LEN_MAX: u64 = 1 << 30;

/// A stage at work.
pub(crate) struct Steps<'a> {
    /// The stage.
    pub stage: &'a Stage,
    /// Where it stands in which file.
    pub place: &'a Place,
    /// The folder that names in it are relative to.
    pub beside: &'a Path,
    /// The image's files.
    pub tree: &'a Tree,
    /// The same, to run things in.
    pub inside: &'a Inside,
    /// What was said.
    pub log: &'a Log,
    /// Ends it.
    pub cancel: &'a Cancel,
}

impl Steps<'_> {
    /// Installs exactly the locked packages, from their files in `pool`.
    pub(crate) fn install(&self, locked: &LockedStage, pool: &Path) -> Result<()> {
        if locked.order.is_empty() {
            return Ok(());
        }
        self.log.say(&format!("installing {} packages", locked.package.len()));
        let grants = Grants { shown: Some(pool), ..Grants::default() };
        let policy = "/usr/sbin/policy-rc.d";
        let puts_policy = !self.tree.exists(policy);
        if puts_policy {
            // Nothing is started in an image that is being made.
            self.tree.write(policy, b"#!/bin/sh\nexit 101\n", 0o755, (0, 0))?;
        }
        let file = |name: &str| {
            let package = locked.package.iter().find(|package| package.name == name);
            package.map(|package| format!("{SHOWN}/{}", file_name(package)))
        };
        for line in &locked.order {
            let (verb, names) = line.split_once(' ').unwrap_or((line, ""));
            let names = names.split(' ').filter(|name| !name.is_empty());
            let words: Vec<String> = match verb {
                "unpack" => names.filter_map(file).collect(),
                _ => names.map(str::to_owned).collect(),
            };
            let flags: &[&str] = match verb {
                "unpack" => &["--no-triggers", "--auto-deconfigure", "--unpack"],
                "configure" => &["--no-triggers", "--configure"],
                _ => &["--no-triggers", "--force-depends", "--force-remove-protected", "--remove"],
            };
            self.dpkg(grants, flags, &words)?;
        }
        self.dpkg(grants, &["--configure", "-a"], &[])?;
        if puts_policy {
            self.tree.remove(policy)?;
        }
        Ok(())
    }

    fn dpkg(&self, grants: Grants, flags: &[&str], words: &[String]) -> Result<()> {
        let mut command = self.inside.command(grants);
        command.args(["dpkg", "--force-unsafe-io", "--force-confdef", "--force-confold"]);
        command.args(flags).args(words);
        self.run_install(&mut command)
    }

    /// Runs what installs packages.
    pub(crate) fn run_install(&self, command: &mut Command) -> Result<()> {
        let line =
            self.stage.packages.first().map_or(self.stage.name.span().start, |p| p.span().start);
        self.run(command, INSTALL_LIMIT, line, "the installation of its packages")
    }

    /// Does everything behind the packages.
    pub(crate) fn apply(&self, system: Option<&System>) -> Result<()> {
        for user in &self.stage.users {
            let error = |error: Error| self.failed(user.span().start, "a user", error);
            users::add(self.tree, user.get_ref()).map_err(error)?;
        }
        for file in &self.stage.files {
            let error = |error: Error| self.failed(file.span().start, "a file", error);
            self.put(file.get_ref()).map_err(error)?;
        }
        self.switch_services()?;
        for (number, step) in self.stage.run.iter().enumerate() {
            self.cancel.check("build", &self.place.file)?;
            self.run_step(step.get_ref(), step.span().start, number + 1)?;
        }
        match system {
            Some(system) => self.settle(system),
            None => Ok(()),
        }
    }

    fn put(&self, file: &crate::recipe::FileEntry) -> Result<()> {
        let owner = users::owner(self.tree, &file.owner)?;
        let mode = file.mode_bits().unwrap_or(0o644);
        let bytes = match file.contents() {
            Some(Contents::Text(text)) => text.as_bytes().to_vec(),
            Some(Contents::From(from)) => {
                let path = self.beside.join(from);
                let failed = |error| Error::io("read", path.display().to_string(), error);
                let facts = std::fs::metadata(&path).map_err(failed)?;
                if facts.len() > FILE_LEN_MAX {
                    return Err(Error::new(Kind::Invalid, "read", path.display().to_string())
                        .because(format!(
                            "it has {} bytes; the most is {FILE_LEN_MAX}",
                            facts.len()
                        )));
                }
                std::fs::read(&path).map_err(failed)?
            }
            None => Vec::new(),
        };
        self.log.say(&format!("putting {}", file.to));
        self.tree.write(&file.to, &bytes, mode, owner)
    }

    fn switch_services(&self) -> Result<()> {
        let services = &self.stage.services;
        for (verb, names) in
            [("enable", &services.enable), ("disable", &services.disable), ("mask", &services.mask)]
        {
            if !names.is_empty() {
                let mut command = self.inside.command(Grants::default());
                command.args(["systemctl", verb, "--"]).args(names);
                let start = self.stage.name.span().start;
                self.run(&mut command, SERVICE_LIMIT, start, &format!("to {verb} its services"))?;
            }
        }
        Ok(())
    }

    fn run_step(&self, step: &RunStep, start: usize, number: usize) -> Result<()> {
        let limit = duration(&step.timeout).unwrap_or(SERVICE_LIMIT);
        let network = step.network;
        let resolver = "/etc/resolv.conf";
        if network && let Ok(text) = std::fs::read_to_string(resolver) {
            self.tree.write(resolver, text.as_bytes(), 0o644, (0, 0))?;
        }
        let (what, words, shown) = match (&step.command, &step.script) {
            (Some(command), _) => (shortened(command), ["-ec", command.as_str()], None),
            (None, Some(script)) => (script.clone(), ["-e", SHOWN], Some(self.beside.join(script))),
            (None, None) => return Ok(()),
        };
        self.log.say(&format!("step {number}: {what}"));
        let grants = Grants { network, shown: shown.as_deref(), terminal: false };
        let mut command = self.inside.command(grants);
        command.arg("/bin/sh").args(words);
        let ran = self.run(&mut command, limit, start, &format!("the step `{what}`"));
        if network {
            self.tree.remove(resolver)?;
        }
        ran
    }

    fn run(&self, command: &mut Command, limit: Duration, start: usize, what: &str) -> Result<()> {
        let run = Run { log: self.log, limit, cancel: self.cancel };
        let room = self.inside.room.map(|max| Room::new(self.tree, max));
        let may_go_on = || room.as_ref().is_none_or(Room::is_left);
        let end = run.to_end_while(command, &may_go_on)?;
        let full = matches!(end, End::Stopped) || self.tree.free_len() < FULL;
        let why = match end {
            End::Stopped => "was ended".to_owned(),
            End::Exited(status) if status.success() => return Ok(()),
            End::Exited(status) => format!("ended with {status}"),
            End::TimedOut => format!("took longer than {} s and was ended", limit.as_secs()),
        };
        let last = self.log.last_lines();
        let said = if last.is_empty() { String::new() } else { format!(": {last}") };
        let (kind, disk) = match full {
            true => (Kind::Full, "; the disk is full"),
            false => (Kind::Invalid, ""),
        };
        let reason = format!(
            "line {}, stage `{}`: {what} {why}{disk}{said}",
            self.place.line(start),
            self.stage.name.get_ref()
        );
        let hint = match full {
            true => "give the recipe a larger `size` in `[disk]`".to_owned(),
            false => format!(
                "all that was said is in {}; `--shell-on-failure` opens a shell there",
                self.log.path().display()
            ),
        };
        Err(Error::new(kind, "build", &self.place.file).because(reason).hint(hint))
    }

    fn failed(&self, start: usize, what: &str, error: Error) -> Error {
        let reason = format!(
            "line {}, stage `{}`: {what}",
            self.place.line(start),
            self.stage.name.get_ref()
        );
        Error::new(error.kind(), "build", &self.place.file).because(reason).caused_by(error)
    }

    fn settle(&self, system: &System) -> Result<()> {
        let tree = self.tree;
        if let Some(name) = &system.hostname {
            let name = name.get_ref();
            tree.write("/etc/hostname", format!("{name}\n").as_bytes(), 0o644, (0, 0))?;
            let hosts = format!("127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost\n");
            tree.write("/etc/hosts", hosts.as_bytes(), 0o644, (0, 0))?;
        }
        if let Some(locale) = &system.locale {
            let line = format!("LANG={locale}\n");
            tree.write("/etc/locale.conf", line.as_bytes(), 0o644, (0, 0))?;
            tree.write("/etc/default/locale", line.as_bytes(), 0o644, (0, 0))?;
        }
        if let Some(zone) = &system.timezone {
            let (at, zone) = (zone.span().start, zone.get_ref());
            let rules = format!("/usr/share/zoneinfo/{zone}");
            if zone.contains("..") || !tree.exists(&rules) {
                return Err(self
                    .place
                    .error("build", at, format!("the image has no {rules}"))
                    .hint("add the package `tzdata`"));
            }
            tree.link(&rules, "/etc/localtime")?;
            tree.write("/etc/timezone", format!("{zone}\n").as_bytes(), 0o644, (0, 0))?;
        }
        users::set_root_password(tree, system.root_password.as_deref())
    }

    /// Opens a shell where a step has failed, on our terminal.
    pub(crate) fn shell(&self) {
        let has_shell = ["/bin/bash", "/bin/sh"].into_iter().find(|path| self.tree.exists(path));
        let Some(shell) = has_shell else { return };
        let grants = Grants { terminal: true, network: true, shown: None };
        let mut command = self.inside.command(grants);
        // How it ends is the user's business.
        let _ = command.arg(shell).status();
    }
}

/// The first line of a command, and not all of a long one.
fn shortened(command: &str) -> String {
    let line = command.trim().lines().next().unwrap_or_default();
    let short: String = line.chars().take(60).collect();
    if short.len() < command.trim().len() { format!("{short}...") } else { short }
}

/// The names, versions and architectures of what dpkg has installed.
pub(crate) fn installed(status: &str) -> Vec<(String, String, String)> {
    let mut all = Vec::new();
    for stanza in status.split("\n\n") {
        let field = |name: &str| {
            stanza
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        if field("Status:").ends_with(" installed") {
            all.push((field("Package:"), field("Version:"), field("Architecture:")));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_commands_are_shown_by_their_beginning() {
        assert_eq!(shortened("echo a"), "echo a");
        assert_eq!(shortened("echo a\necho b"), "echo a...");
        assert_eq!(shortened(&"x".repeat(99)).len(), 63);
    }

    #[test]
    fn what_was_removed_is_not_installed() {
        let status = "Package: a\nStatus: install ok installed\nVersion: 1\nArchitecture: all\n\n\
                      Package: b\nStatus: deinstall ok config-files\nVersion: 1\nArchitecture: all\n";
        assert_eq!(installed(status), [("a".into(), "1".into(), "all".into())]);
    }
}
