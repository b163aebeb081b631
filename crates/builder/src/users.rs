//! Users of an image, written to its tables without its programs.
//!
//! The same recipe gives the same bytes: `useradd` would note the day.

use model::{Error, Kind, Result};

use crate::recipe::User;
use crate::tree::{Owner, Tree};

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";
const SHADOW: &str = "/etc/shadow";

/// Where numbers of people begin and end.
const FIRST: u32 = 1000;
const LAST: u32 = 59_999;

/// Adds a user, the home folder with what is in `/etc/skel`, and the keys.
///
/// # Errors
/// `Exists` where the user is there; `NotFound` for a group that is not.
pub(crate) fn add(tree: &Tree, user: &User) -> Result<()> {
    let passwd = tree.read(PASSWD)?.unwrap_or_default();
    let mut group = tree.read(GROUP)?.unwrap_or_default();
    let shadow = tree.read(SHADOW)?.unwrap_or_default();
    let failed =
        |kind, reason: String| Error::new(kind, "add the user", &user.name).because(reason);
    if line_of(&passwd, &user.name).is_some() {
        return Err(failed(Kind::Exists, "there is one of this name".into()));
    }
    let uid = user.uid.unwrap_or_else(|| free_number(&passwd, &group));
    if numbers(&passwd).any(|taken| taken == uid) {
        return Err(failed(Kind::Exists, format!("the number {uid} is taken")));
    }
    let gid = match line_of(&group, &user.name) {
        Some(line) => number_in(line).unwrap_or(uid),
        None => {
            group = with_line(&group, &format!("{}:x:{uid}:", user.name));
            uid
        }
    };
    for name in &user.groups {
        group = with_member(&group, name, &user.name)
            .ok_or_else(|| failed(Kind::NotFound, format!("there is no group `{name}`")))?;
    }
    let home = user.home.clone().unwrap_or_else(|| format!("/home/{}", user.name));
    let (name, shell) = (&user.name, &user.shell);
    let password = user.password.as_deref().unwrap_or("!");
    tree.rewrite(
        PASSWD,
        &with_line(&passwd, &format!("{name}:x:{uid}:{gid}::{home}:{shell}")),
        0o644,
    )?;
    tree.rewrite(GROUP, &group, 0o644)?;
    tree.rewrite(SHADOW, &with_line(&shadow, &format!("{name}:{password}:::::::")), 0o640)?;
    make_home(tree, user, &home, (uid, gid))
}

fn make_home(tree: &Tree, user: &User, home: &str, owner: Owner) -> Result<()> {
    let is_new = !tree.exists(home);
    tree.make_folder(home, 0o755, owner)?;
    if is_new {
        for (name, kind) in tree.list("/etc/skel")? {
            if kind == rustix::fs::FileType::RegularFile
                && let Some(text) = tree.read(&format!("/etc/skel/{name}"))?
            {
                tree.write(&format!("{home}/{name}"), text.as_bytes(), 0o644, owner)?;
            }
        }
    }
    if !user.ssh_keys.is_empty() {
        tree.make_folder(&format!("{home}/.ssh"), 0o700, owner)?;
        let keys: String = user.ssh_keys.iter().map(|key| format!("{}\n", key.trim())).collect();
        tree.write(&format!("{home}/.ssh/authorized_keys"), keys.as_bytes(), 0o600, owner)?;
    }
    Ok(())
}

/// Sets root's password; `None` locks it.
pub(crate) fn set_root_password(tree: &Tree, password: Option<&str>) -> Result<()> {
    let Some(shadow) = tree.read(SHADOW)? else { return Ok(()) };
    let lines = shadow.lines().map(|line| {
        let mut fields: Vec<&str> = line.split(':').collect();
        if fields[0] == "root" && fields.len() > 1 {
            fields[1] = password.unwrap_or("*");
        }
        fields.join(":") + "\n"
    });
    tree.rewrite(SHADOW, &lines.collect::<String>(), 0o640)
}

/// The numbers of `user` or `user:group`, by name or number.
///
/// # Errors
/// `NotFound` where the image has no such user or group.
pub(crate) fn owner(tree: &Tree, text: &str) -> Result<Owner> {
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    let missing = |what: &str| {
        Error::new(Kind::NotFound, "find the owner", text).because(format!("there is no {what}"))
    };
    let passwd = tree.read(PASSWD)?.unwrap_or_default();
    let entry = line_of(&passwd, user);
    let uid = match user {
        "root" => 0,
        _ => entry.and_then(number_in).or(user.parse().ok()).ok_or_else(|| missing("such user"))?,
    };
    let gid = match (group, user) {
        ("", "root") | ("root", _) => 0,
        ("", _) => entry.and_then(|line| line.split(':').nth(3)?.parse().ok()).unwrap_or(uid),
        (name, _) => {
            let groups = tree.read(GROUP)?.unwrap_or_default();
            let found = line_of(&groups, name).and_then(number_in);
            found.or(name.parse().ok()).ok_or_else(|| missing("such group"))?
        }
    };
    Ok((uid, gid))
}

fn line_of<'a>(table: &'a str, name: &str) -> Option<&'a str> {
    table.lines().find(|line| line.split(':').next() == Some(name))
}

fn number_in(line: &str) -> Option<u32> {
    line.split(':').nth(2)?.parse().ok()
}

fn numbers(table: &str) -> impl Iterator<Item = u32> {
    table.lines().filter_map(number_in)
}

fn free_number(passwd: &str, group: &str) -> u32 {
    let taken: std::collections::BTreeSet<u32> = numbers(passwd).chain(numbers(group)).collect();
    (FIRST..=LAST).find(|number| !taken.contains(number)).unwrap_or(LAST)
}

fn with_line(table: &str, line: &str) -> String {
    let end = if table.is_empty() || table.ends_with('\n') { "" } else { "\n" };
    format!("{table}{end}{line}\n")
}

fn with_member(table: &str, group: &str, member: &str) -> Option<String> {
    line_of(table, group)?;
    let lines = table.lines().map(|line| {
        let is_it = line.split(':').next() == Some(group);
        match is_it {
            false => format!("{line}\n"),
            true if line.ends_with(':') => format!("{line}{member}\n"),
            true => format!("{line},{member}\n"),
        }
    });
    Some(lines.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_gets_a_free_number_and_the_groups_that_are_there() {
        let passwd = "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/:/bin/sh\n";
        assert_eq!(free_number(passwd, "x:x:1001:\n"), 1002);
        let group = "adm:x:4:\nsudo:x:27:ann\n";
        assert_eq!(with_member(group, "sudo", "bob").unwrap(), "adm:x:4:\nsudo:x:27:ann,bob\n");
        assert_eq!(with_member(group, "adm", "bob").unwrap(), "adm:x:4:bob\nsudo:x:27:ann\n");
        assert_eq!(with_member(group, "none", "bob"), None);
        assert_eq!(with_line("a", "b"), "a\nb\n");
    }
}
