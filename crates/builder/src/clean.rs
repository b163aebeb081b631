//! What a stage must not leave behind: caches, logs, and what would make two machines one.
//!
//! **Invariants**: an image has no machine id and no SSH host key. One that was made on the way is
//! removed; one that the recipe wants to stay is an error.
//!
//! **Source**: what two builds of one recipe were found to differ in.

use rustix::fs::FileType;

use model::{Error, Kind, Result};

use crate::recipe::Stage;
use crate::tree::Tree;

/// Folders that are emptied.
const EMPTIED: [&str; 10] = [
    "/dev",
    "/run",
    "/tmp",
    "/var/tmp",
    "/var/cache/apt",
    "/var/lib/apt/lists",
    "/var/cache/dnf",
    "/var/cache/libdnf5",
    "/var/cache/man",
    "/var/cache/fontconfig",
];

/// Files that are removed.
const REMOVED: [&str; 18] = [
    "/var/cache/ldconfig/aux-cache",
    "/var/lib/dpkg/lock",
    "/var/lib/dpkg/lock-frontend",
    "/usr/lib/sysimage/rpm/.rpm.lock",
    "/usr/lib/sysimage/rpm/rpmdb.sqlite-shm",
    "/var/lib/rpm/.rpm.lock",
    "/var/lib/rpm/rpmdb.sqlite-shm",
    "/var/lib/systemd/random-seed",
    "/var/lib/systemd/credential.secret",
    "/var/lib/dbus/machine-id",
    "/etc/resolv.conf",
    "/etc/.pwd.lock",
    "/etc/apt/apt.conf.d/99mmdebstrap",
    "/root/.bash_history",
    "/root/.lesshst",
    "/root/.viminfo",
    "/root/.wget-hsts",
    "/lost+found/.larder",
];

/// Folders in which files with these beginnings and endings are removed.
const MATCHING: [(&str, &str, &str); 6] = [
    ("/etc/ssh", "ssh_host_", ""),
    ("/var/lib/dpkg", "", "-old"),
    ("/var/cache/debconf", "", "-old"),
    ("/etc/dropbear", "dropbear_", "_host_key"),
    ("/var/lib/dnf", "history.sqlite", ""),
    ("/etc", "", ".dpkg-new"),
];

/// Cleans an image after a stage.
///
/// # Errors
/// `Refused` where a machine id or a host key is to stay.
pub(crate) fn clean(tree: &Tree, stage: &Stage) -> Result<()> {
    let kept: Vec<&str> =
        stage.keep.iter().map(|path| path.get_ref().trim_end_matches('/')).collect();
    let keeps = |path: &str| {
        let inside = |kept: &&str| {
            path.strip_prefix(*kept).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        kept.iter().any(inside)
    };
    for path in EMPTIED {
        if !keeps(path) {
            tree.empty(path, &keeps)?;
        }
    }
    for path in REMOVED {
        if !keeps(path) {
            tree.remove(path)?;
        }
    }
    for (folder, begins, ends) in MATCHING {
        for (name, _) in tree.list(folder)? {
            let path = format!("{folder}/{name}");
            if name.starts_with(begins) && name.ends_with(ends) && !keeps(&path) {
                tree.remove(&path)?;
            }
        }
    }
    empty_logs(tree, "/var/log", &keeps)?;
    for (name, _) in tree.list("/home")? {
        for history in [".bash_history", ".lesshst", ".wget-hsts"] {
            tree.remove(&format!("/home/{name}/{history}"))?;
        }
    }
    if tree.exists("/etc/machine-id") && !keeps("/etc/machine-id") {
        // Empty, and not the word `uninitialized`, at which systemd asks its first questions.
        tree.write("/etc/machine-id", b"", 0o444, (0, 0))?;
    }
    check(tree)
}

/// Folders of logs stay: services need them to be there.
fn empty_logs(tree: &Tree, folder: &str, keeps: &dyn Fn(&str) -> bool) -> Result<()> {
    for (name, kind) in tree.list(folder)? {
        let path = format!("{folder}/{name}");
        if keeps(&path) {
            continue;
        }
        if kind == FileType::Directory {
            empty_logs(tree, &path, keeps)?;
        } else {
            tree.remove(&path)?;
        }
    }
    Ok(())
}

/// Fails where the image would make two machines one.
fn check(tree: &Tree) -> Result<()> {
    let refused = |what: &str| {
        Err(Error::new(Kind::Refused, "keep", what)
            .because("all machines made of the image would have the same")
            .hint(
                "leave it out of `keep` and `files`; each machine makes its own at its first boot",
            ))
    };
    for path in ["/etc/machine-id", "/var/lib/dbus/machine-id"] {
        // A link to the other is none of its own.
        if tree.read(path)?.is_some_and(|text| !text.trim().is_empty()) {
            return refused(path);
        }
    }
    for (folder, begins) in [("/etc/ssh", "ssh_host_"), ("/etc/dropbear", "dropbear_")] {
        for (name, _) in tree.list(folder)? {
            if name.starts_with(begins) && name.ends_with("_key") {
                return refused(&format!("{folder}/{name}"));
            }
        }
    }
    Ok(())
}

/// Fails where a stage's files name what [`clean`] removes for a reason.
pub(crate) fn check_files(stage: &Stage) -> Option<(usize, String)> {
    stage.files.iter().find_map(|file| {
        let to = file.get_ref().to.as_str();
        let bakes = to == "/etc/machine-id"
            && file.get_ref().content.as_deref().is_none_or(|text| !text.trim().is_empty())
            || to.starts_with("/etc/ssh/ssh_host_");
        let reason = format!("`{to}` in an image makes all machines of it one");
        bakes.then(|| (file.span().start, reason))
    })
}
