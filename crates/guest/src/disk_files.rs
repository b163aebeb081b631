//! Files put into a guest's disk before it boots, without a mount.
//!
//! **Failure**: as [`helper::install`](crate::helper::install), which this stands on.
//!
//! **Not here**: disks whose root file system is not an ext2, ext3 or ext4.

use std::fs;
use std::path::Path;

use model::{Error, Kind, Result};

use crate::helper::install::{Target, find_root};

/// A file to be put into a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFile {
    /// Where: absolute, without spaces.
    pub path: String,
    /// What is in it.
    pub contents: Vec<u8>,
    /// Its permissions.
    pub mode: u32,
}

/// Puts files and symbolic links (`path`, `to`) into the root file system of a disk, over those of
/// the same names. The guest must not run.
///
/// # Errors
/// As [`install`](crate::helper::install::install); `Invalid` for a path with other than letters,
/// digits and `._-@/`.
pub fn put(disk: &Path, files: &[DiskFile], links: &[(&str, &str)]) -> Result<()> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@/".contains(&byte);
    let paths = files.iter().map(|file| file.path.as_str()).chain(links.iter().map(|link| link.0));
    if let Some(path) =
        paths.clone().find(|path| !path.starts_with('/') || !path.bytes().all(is_plain))
    {
        return Err(
            Error::new(Kind::Invalid, "put into a disk", path).because("it is no plain path")
        );
    }
    let target = Target { disk, root: find_root(disk)? };
    target.recover()?;
    let folder = tempfile::tempdir().map_err(|error| Error::io("make", "a folder", error))?;
    let mut made = Vec::new();
    let mut commands = String::new();
    for path in paths {
        for (at, _) in path.match_indices('/').skip(1) {
            let above = &path[..at];
            // Making a folder that is there would leave a nameless one in the file system.
            if !made.contains(&above) && !target.exists(above)? {
                commands += &format!("mkdir {above}\n");
            }
            made.push(above);
        }
    }
    for (index, DiskFile { path, contents, mode }) in files.iter().enumerate() {
        let source = folder.path().join(index.to_string());
        fs::write(&source, contents)
            .map_err(|error| Error::io("write", source.display().to_string(), error))?;
        commands += &format!(
            "rm {path}\nwrite \"{}\" {path}\nsif {path} mode 010{mode:04o}\nsif {path} uid 0\n\
             sif {path} gid 0\n",
            source.display()
        );
    }
    for (path, to) in links {
        commands += &format!("rm {path}\nsymlink {path} {to}\n");
    }
    target.change(&folder.path().join("commands"), &commands)?;
    for file in files {
        if target.ask(&format!("cat {}", file.path))?.as_bytes() != file.contents {
            return Err(Error::new(Kind::Unavailable, "put into a disk", &*file.path)
                .because("it does not read back as it was written")
                .hint("the disk may be full or damaged: look with debugfs"));
        }
    }
    Ok(())
}
