//! An image's files: unpacked by mmdebstrap, then settled so that root logs in on the serial console.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use model::{Error, Result};

use super::recipe::Recipe;
use super::sources;
use crate::process;
use crate::workspace::system_program;

/// Unpacks the recipe's packages into a new folder, from where this machine gets its own.
pub fn unpack(recipe: &Recipe, root: &Path, log: &Path) -> Result<()> {
    let mut command = system_program("mmdebstrap");
    command.args(["--mode=root", "--variant=minbase", "--format=directory"]);
    command.arg(format!("--include={}", recipe.packages.join(",")));
    for option in sources::settings()? {
        command.arg(format!("--aptopt={option}"));
    }
    command.arg("--aptopt=Acquire::Languages \"none\"").arg("--aptopt=Acquire::Retries \"3\"");
    command.arg(recipe.suite).arg(root).args(sources::of(recipe)?);
    process::run_logged(&mut command, log)
}

/// Gives the files what a machine needs beside packages: a name, a table of file systems, a root who
/// logs in without a password, and nothing of this machine.
pub fn settle(recipe: &Recipe, root: &Path) -> Result<()> {
    let write = |name: &str, text: &str| {
        let path = root.join(name);
        fs::write(&path, text)
            .map_err(|source| Error::io("write", path.display().to_string(), source))
    };
    write("etc/hostname", &format!("{}\n", recipe.name))?;
    write("etc/hosts", &format!("127.0.0.1 localhost {}\n", recipe.name))?;
    write("etc/fstab", &format!("UUID={} / ext4 defaults 0 1\n", recipe.uuid("root")))?;
    // Empty, and not the word `uninitialized`, at which systemd asks its first questions.
    write("etc/machine-id", "")?;
    let shadow = root.join("etc/shadow");
    let text = fs::read_to_string(&shadow)
        .map_err(|source| Error::io("read", shadow.display().to_string(), source))?;
    write("etc/shadow", &without_root_password(&text))?;
    for name in ["etc/resolv.conf", "etc/apt/apt.conf.d/99mmdebstrap"] {
        remove(&root.join(name))?;
    }
    for (name, mode, text) in recipe.files() {
        let path = root.join(name);
        let failed = |source| Error::io("make", path.display().to_string(), source);
        fs::create_dir_all(path.parent().unwrap_or(root)).map_err(failed)?;
        write(name, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).map_err(failed)?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", path.display().to_string(), error))
        }
        _ => Ok(()),
    }
}

fn without_root_password(shadow: &str) -> String {
    let lines = shadow.lines().map(|line| {
        let mut fields: Vec<&str> = line.split(':').collect();
        if fields[0] == "root" && fields.len() > 1 {
            fields[1] = "";
        }
        fields.join(":") + "\n"
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_roots_password_is_emptied() {
        let shadow = "root:*:19000:0:99999:7:::\nrooty:!:1::::::\n";
        assert_eq!(without_root_password(shadow), "root::19000:0:99999:7:::\nrooty:!:1::::::\n");
    }
}
