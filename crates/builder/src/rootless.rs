//! Building as an ordinary user: in a user namespace, where the user is root of a range of users.
//!
//! ```text
//! on the host          user 1000   100000 ... 165534      /etc/subuid, by newuidmap
//! in the namespace     user 0      1      ... 65535       larder, and all that it runs
//! ```
//!
//! **Invariants**: owners of an image's files are the same as where root builds it; on the host they
//! are the user's own. What needs the machine's root (loop devices) is not done there; see `anew`.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use model::{Error, Kind, Result};

use crate::tool::need;

/// What a namespace needs to hold all users of a Debian.
const RANGE_LEN: u64 = 65_535;

/// Where the owner of everything is not the machine's root, goes on in a namespace where this user
/// is: the process starts again there, with the same arguments.
///
/// # Errors
/// `NotFound`, `Refused` where the machine does not let this user have one; the hint says what to do.
pub fn enter() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    need(&[("unshare", "util-linux"), ("newuidmap", "uidmap"), ("newgidmap", "uidmap")])?;
    let uid = rustix::process::getuid().as_raw();
    let name = name_of(&fs::read_to_string("/etc/passwd").unwrap_or_default(), uid);
    for path in ["/etc/subuid", "/etc/subgid"] {
        let table = fs::read_to_string(path).unwrap_or_default();
        if !has_range(&table, name.as_deref(), uid) {
            let name = name.unwrap_or_else(|| uid.to_string());
            return Err(Error::new(Kind::Refused, "build as", name.clone())
                .because(format!(
                    "{path} gives this user no {RANGE_LEN} users for an image's files"
                ))
                .hint(format!(
                    "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}"
                )));
        }
    }
    let failed = |error| Error::io("go on in", "a user namespace", error);
    let own = std::env::current_exe().map_err(failed)?;
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--map-auto", "--mount"]);
    command.args(["--propagation", "private", "--"]).arg(own).args(std::env::args_os().skip(1));
    Err(failed(command.exec()))
}

/// True in a user namespace that is not the machine's own.
pub(crate) fn is_in_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !is_whole(&map)
}

fn is_whole(map: &str) -> bool {
    let numbers: Vec<u64> = map.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    numbers.is_empty() || numbers == [0, 0, u32::MAX.into()]
}

fn name_of(passwd: &str, uid: u32) -> Option<String> {
    let line = passwd.lines().find(|line| line.split(':').nth(2) == Some(&uid.to_string()))?;
    line.split(':').next().map(str::to_owned)
}

/// `name or number:first:count`
fn has_range(table: &str, name: Option<&str>, uid: u32) -> bool {
    table.lines().any(|line| {
        let words: Vec<&str> = line.split(':').collect();
        let [who, _, count] = words[..] else { return false };
        let is_ours = Some(who) == name || who == uid.to_string();
        is_ours && count.trim().parse::<u64>().is_ok_and(|count| count >= RANGE_LEN)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_found_by_name_and_by_number_when_it_is_long_enough() {
        let passwd = "root:x:0:0::/:/bin/sh\nann:x:1000:1000::/:/bin/sh\n";
        assert_eq!(name_of(passwd, 1000).as_deref(), Some("ann"));
        assert_eq!(name_of(passwd, 1001), None);
        assert!(has_range("ann:100000:65536\n", Some("ann"), 1000));
        assert!(has_range("1000:100000:65536\n", None, 1000));
        assert!(!has_range("ann:100000:1000\n", Some("ann"), 1000));
        assert!(!has_range("bob:100000:65536\nnoise\n", Some("ann"), 1000));
    }

    #[test]
    fn the_machines_own_namespace_has_all_users() {
        assert!(is_whole("         0          0 4294967295\n"));
        assert!(!is_whole("         0       1000          1\n         1     100000      65535\n"));
    }
}
