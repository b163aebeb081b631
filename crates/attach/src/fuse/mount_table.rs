//! What is mounted where, from `/proc/self/mountinfo`.
//!
//! **Source**: proc_pid_mountinfo(5).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mounted {
    /// `major:minor` of its device: one of its own for each FUSE mount.
    pub(crate) device: String,
    /// Its file system, with the subtype: `fuse.larder`.
    pub(crate) kind: String,
    /// What was mounted: for FUSE, the option `fsname`.
    pub(crate) source: String,
}

/// The topmost mount on a folder, in canonical form; `None` where it is no mount point.
pub(crate) fn topmost(folder: &Path) -> std::io::Result<Option<Mounted>> {
    Ok(find(&std::fs::read("/proc/self/mountinfo")?, folder))
}

fn find(table: &[u8], folder: &Path) -> Option<Mounted> {
    table.rsplit(|byte| *byte == b'\n').find_map(|line| parse(line, folder))
}

/// The mount on one line of the table, where it is on `folder`.
fn parse(line: &[u8], folder: &Path) -> Option<Mounted> {
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let mut fields = line.split(|byte| *byte == b' ');
    let device = fields.nth(2)?;
    let point = OsString::from_vec(unescape(fields.nth(1)?));
    if Path::new(&point) != folder {
        return None;
    }
    // Options, then any number of optional fields, then `-`.
    fields.find(|field| *field == b"-")?;
    let (kind, source) = (fields.next()?, fields.next()?);
    Some(Mounted { device: text(device), kind: text(kind), source: text(source) })
}

/// Blanks, tabs, newlines and backslashes are written as `\ooo`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|digits| *first == b'\\' && digits[0] < b'4');
        let value = octal
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match value {
            Some(value) => {
                bytes.push(value);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_mount_on_a_folder_is_the_topmost() {
        let table = b"22 1 0:20 / /mnt\\040x rw shared:1 master:2 - tmpfs tmpfs rw\n\
            23 22 0:52 / /mnt\\040x rw - fuse.larder larder rw,user_id=0\n\
            24 22 0:53 / /mnt rw - ext4 /dev/sda rw\nrubbish\n\n";
        let found = find(table, Path::new("/mnt x")).unwrap();
        assert_eq!((found.device.as_str(), found.kind.as_str()), ("0:52", "fuse.larder"));
        assert_eq!(found.source, "larder");
        assert_eq!(find(table, Path::new("/elsewhere")), None);
        assert_eq!(unescape(b"a\\134b\\9\\777"), b"a\\b\\9\\777");
    }
}
