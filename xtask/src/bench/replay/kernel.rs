//! The kernel and the initrd of an image, taken out of it, so that a guest gets them from the host.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use model::{Error, Kind, Result};

use crate::process;
use crate::workspace::system_program;

/// Where in the first sector the second partition's first sector stands.
const SECOND_PARTITION: u64 = 446 + 16 + 8;

/// QEMU's arguments that boot the disk's second partition with its own kernel and initrd, which are
/// copied to `folder`.
pub fn arguments(disk: &Path, folder: &Path) -> Result<Vec<OsString>> {
    let mut sector = [0; 4];
    File::open(disk)
        .and_then(|file| file.read_exact_at(&mut sector, SECOND_PARTITION))
        .map_err(|source| Error::io("read", disk.display().to_string(), source))?;
    let offset = u64::from(u32::from_le_bytes(sector)) * 512;
    let file_system = format!("{}?offset={offset}", disk.display());
    let ask = |request: &str| {
        let mut command = system_program("debugfs");
        process::output(command.args(["-R", request]).arg(&file_system), "")
    };
    let listed = ask("ls -p /boot")?;
    let mut arguments = Vec::new();
    for (option, prefix) in [("-kernel", "vmlinuz-"), ("-initrd", "initrd.img-")] {
        let name = listed.split('/').find(|name| name.starts_with(prefix)).ok_or_else(|| {
            Error::new(Kind::NotFound, "find", format!("{prefix}* in /boot of the image"))
        })?;
        let copy = folder.join(prefix);
        ask(&format!("dump /boot/{name} {}", copy.display()))?;
        arguments.extend([option.into(), copy.into_os_string()]);
    }
    arguments.extend(["-append", "root=/dev/vda2 rw console=ttyS0"].map(OsString::from));
    Ok(arguments)
}
