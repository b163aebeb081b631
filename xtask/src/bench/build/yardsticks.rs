//! The package manager by itself.

use std::fs;
use std::path::Path;

use model::{Error, Kind, Result};

use super::Columns;
use crate::images;
use crate::process;
use crate::workspace::system_program;

/// Mounts a copy of a disk in a mount namespace, installs packages there, and says how long apt took.
const SCRIPT: &str = r#"
set -e
disk=$1 root=$2 keep=$3 sources=$4 settings=$5; shift 5
mkdir -p "$root" "$keep/lists/partial" "$keep/archives/partial"
offset=$(($(sfdisk --dump "$disk" | sed -n 's/.*start= *\([0-9]*\).*/\1/p' | tail -n1) * 512))
mount -o "loop,noatime,offset=$offset" "$disk" "$root"
mount --bind /dev "$root/dev"
mount -t proc proc "$root/proc"
mkdir -p "$root/var/lib/apt/lists" "$root/var/cache/apt/archives"
mount --bind "$keep/lists" "$root/var/lib/apt/lists"
mount --bind "$keep/archives" "$root/var/cache/apt/archives"
cp "$sources" "$root/etc/apt/sources.list.d/"
cp "$settings" "$root/etc/apt/apt.conf.d/99bench"
printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"; chmod 755 "$root/usr/sbin/policy-rc.d"
cp /etc/resolv.conf "$root/etc/resolv.conf" || true
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin
began=$(date +%s%N)
chroot "$root" apt-get -qq update >&2
chroot "$root" apt-get -qq -y --no-install-recommends -o Dpkg::Options::=--force-unsafe-io install "$@" >&2
ended=$(date +%s%N)
umount -R "$root"
echo $((ended - began))
"#;

/// How long apt takes to install packages into a copy of this disk.
pub fn apt(folder: &Path, parent: &Path, packages: &[&str]) -> Result<Columns> {
    let disk = folder.join("apt.raw");
    let settings = folder.join("apt.conf");
    let failed = |source| Error::io("write", settings.display().to_string(), source);
    let own = images::apt_settings()?;
    let lines: String = own.iter().map(|line| format!("{line};\n")).collect();
    fs::write(&settings, lines + "Acquire::Languages \"none\";\n").map_err(failed)?;
    process::run(system_program("cp").arg("--sparse=always").arg(parent).arg(&disk))?;
    crate::bench::inputs::settle();
    let mut command = system_program("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", SCRIPT, "apt"]);
    command.arg(&disk).arg(folder.join("apt-root")).arg(folder.join("apt-keep"));
    command.arg(images::apt_sources()?).arg(&settings).args(packages);
    let said = process::output(&mut command, "")?;
    crate::bench::inputs::remove(&disk)?;
    let nanos: f64 = said.trim().parse().map_err(|source| {
        Error::new(Kind::Invalid, "read", "how long apt took")
            .because(said.clone())
            .caused_by(source)
    })?;
    Ok(vec![("wall_seconds", nanos / 1e9)])
}
