//! An image's files: unpacked by mmdebstrap, then settled so that root logs in on the serial console.

use std::fs;
use std::path::{Path, PathBuf};

use model::{Error, Kind, Result};

use super::recipe::Recipe;
use crate::process;
use crate::workspace::system_program;

/// Unpacks the recipe's packages into a new folder, from where this machine gets its own.
pub fn unpack(recipe: &Recipe, root: &Path, log: &Path) -> Result<()> {
    let mut command = system_program("mmdebstrap");
    command.args(["--mode=root", "--variant=minbase", "--format=directory"]);
    command.arg(format!("--include={}", recipe.packages.join(",")));
    for option in apt_settings()? {
        command.arg(format!("--aptopt={option}"));
    }
    command.arg("--aptopt=Acquire::Languages \"none\"").arg("--aptopt=Acquire::Retries \"3\"");
    command.arg(recipe.suite).arg(root).args(apt_sources()?);
    process::run_logged(&mut command, log)
}

/// The files that say where this machine's Debian packages come from.
fn apt_sources() -> Result<Vec<PathBuf>> {
    let deb822 = Path::new("/etc/apt/sources.list.d/debian.sources");
    let list = Path::new("/etc/apt/sources.list");
    [deb822, list]
        .into_iter()
        .find(|path| {
            fs::read_to_string(path).is_ok_and(|text| {
                text.lines().any(|line| {
                    line.to_lowercase().starts_with("types: deb") || line.starts_with("deb ")
                })
            })
        })
        .map(|path| vec![path.to_path_buf()])
        .ok_or_else(|| {
            Error::new(Kind::NotFound, "read", "this machine's Debian sources").because(format!(
                "neither {} nor {} holds any",
                deb822.display(),
                list.display()
            ))
        })
}

/// This machine's own settings of how packages are fetched: proxies, and whether a mirror that stands
/// still is believed.
fn apt_settings() -> Result<Vec<String>> {
    let dump = process::output(system_program("apt-config").arg("dump"), "")?;
    Ok(chosen_settings(&dump))
}

fn chosen_settings(dump: &str) -> Vec<String> {
    const CHOSEN: [&str; 5] = [
        "Acquire::Check-Valid-Until ",
        "Acquire::Check-Date ",
        "Acquire::http::",
        "Acquire::https::",
        "Acquire::Max-FutureTime ",
    ];
    dump.lines()
        .filter(|line| CHOSEN.iter().any(|chosen| line.starts_with(chosen)))
        .map(|line| line.trim_end_matches(';').to_owned())
        .filter(|line| !line.ends_with("\"\""))
        .collect()
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

    #[test]
    fn of_apts_settings_those_about_fetching_are_taken() {
        let dump = "APT::Architecture \"amd64\";\nAcquire::Check-Valid-Until \"false\";\n\
                    Acquire::http \"\";\nAcquire::http::Proxy \"http://localhost:3142\";\n\
                    Acquire::http::Pipeline-Depth \"\";\nAcquire::Languages \"en\";\n";
        assert_eq!(
            chosen_settings(dump),
            [
                "Acquire::Check-Valid-Until \"false\"",
                "Acquire::http::Proxy \"http://localhost:3142\""
            ]
        );
    }
}
