//! A Debian that verifies its disks as soon as it is up, for guests whose disks are disturbed.
//!
//! On its second serial port it says `up`, then `pass N` after each round of fio on its root file system
//! and on its second disk, or `wrong` with fio's words. It is asked there too: `vdb 7` makes it read the
//! seventh 256 KiB of that disk and say `sum vdb 7 MD5`, or `failed vdb 7` where the read is an error.

use super::recipe::{Recipe, State};

/// A Debian that verifies its disks.
pub const VERIFY: Recipe = Recipe {
    name: "verify",
    suite: "bookworm",
    packages: &[
        "systemd-sysv",
        "udev",
        "dbus",
        "kmod",
        "iproute2",
        "linux-image-cloud-amd64",
        "fio",
    ],
    disk_mib: 2048,
    boot_mib: 63,
    state: State::Own,
};

/// Its files beside those of packages: name, mode, text.
pub const FILES: &[(&str, u32, &str)] = &[
    ("usr/local/sbin/verify", 0o755, SCRIPT),
    ("etc/systemd/system/sysinit.target.wants/verify.service", 0o644, UNIT),
    // What it logs would be lost with it, and would wait for the disk that is disturbed.
    ("etc/systemd/journald.conf.d/volatile.conf", 0o644, "[Journal]\nStorage=volatile\n"),
];

const UNIT: &str = "\
[Unit]
Description=Verify the disks
DefaultDependencies=no
After=systemd-remount-fs.service

[Service]
ExecStart=/usr/local/sbin/verify
";

/// The file on the root file system and the first part of the second disk are written to and verified,
/// past the page cache.
const SCRIPT: &str = r#"#!/bin/sh
port=/dev/ttyS1
stty -F $port raw -echo
exec <$port >$port 2>&1
printf 'up\n'
answer() {
    sum=$(dd if=/dev/$1 bs=256k skip=$2 count=1 iflag=direct 2>/dev/null | md5sum)
    case $sum in
        d41d8cd98f00b204e9800998ecf8427e*) printf 'failed %s %s\n' $1 $2 ;;
        *) printf 'sum %s %s %s\n' $1 $2 "${sum%% *}" ;;
    esac
}
(
    pass=0
    while pass=$((pass + 1)); do
        text=$(fio --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite --bs=4k --size=4m \
            --fsync=32 --randseed=$pass --verify=crc32c --verify_fatal=1 --verify_backlog=64 \
            --do_verify=1 --name=root --filename=/var/verified --name=data --filename=/dev/vdb 2>&1) ||
            printf 'wrong in pass %s: %s\n' $pass "$(printf '%s' "$text" | tr '\n' ' ')"
        printf 'pass %s\n' $pass
    done
) </dev/null &
while read -r disk piece; do
    answer $disk $piece </dev/null &
done
"#;
