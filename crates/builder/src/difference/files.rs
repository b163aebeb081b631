//! Which files two versions have, and which of them differ in what.
//!
//! ```text
//! list A ║ list B  ─►  same path, kind and length  ─►  digests A ║ digests B
//! ```
//!
//! Only files that both have, with the same length, are read.
//!
//! **Invariants**: at most `FILES_MAX` names, `DEPTH_MAX` folders deep, are read of one version, and
//! no more bytes of files than `budget` says: holes and blocks that are used twice cost time, too.

use std::collections::BTreeMap;
use std::sync::Arc;

use ext4_view::{Ext4, FileType, PathBuf};
use model::progress::Cancel;
use model::{Error, Kind, Result};
use repository::Reader;

use super::disk::{damaged, root_file_system};

/// Names that are read of one version.
pub const FILES_MAX: usize = 1 << 21;

/// How deep folders may lie.
pub const DEPTH_MAX: usize = 256;

/// How many bytes of names are kept of one version.
const NAMES_LEN_MAX: usize = 256 << 20;

const READ_LEN: usize = 1 << 18;

/// A file that both have and that is not the same in both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileChange {
    /// Its path.
    pub path: String,
    /// What differs: `type`, `content`, `target`, `mode`, `owner`, `modified`.
    pub what: Vec<&'static str>,
}

/// Paths, sorted. Bytes that are no UTF-8 are replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileDifference {
    /// Only the second has them.
    pub added: Vec<String>,
    /// Only the first has them.
    pub removed: Vec<String>,
    /// Both have them.
    pub changed: Vec<FileChange>,
}

/// Compares the files in the root file systems of two versions. Times alone make no difference for
/// folders.
///
/// Cost: reads all folders and inodes of both, and what both have under one path with one length; two
/// threads; memory for the names and some 100 MiB.
///
/// # Errors
/// `Invalid` where a version holds no file system of the ext family, or claims more than is read;
/// `Corrupt` where one is damaged; `Cancelled`.
pub fn compare_files(
    first: &SharedReader,
    second: &SharedReader,
    cancel: &Cancel,
) -> Result<FileDifference> {
    let (old, new) = both(|| list(first, cancel), || list(second, cancel))?;
    let alike: Vec<&[u8]> = new
        .iter()
        .filter(|(path, entry)| {
            entry.kind == FileType::Regular
                && old.get(*path).is_some_and(|o| o.kind == entry.kind && o.len == entry.len)
        })
        .map(|(path, _)| path.as_slice())
        .collect();
    let (a, b) = both(|| digests(first, &alike, cancel), || digests(second, &alike, cancel))?;
    let differ: std::collections::HashSet<&[u8]> =
        alike.iter().zip(a.iter().zip(&b)).filter(|(_, (a, b))| a != b).map(|(p, _)| *p).collect();
    let text = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    let mut difference = FileDifference::default();
    for (path, entry) in &new {
        let Some(before) = old.get(path) else {
            difference.added.push(text(path));
            continue;
        };
        let what = changes(before, entry, differ.contains(path.as_slice()));
        if !what.is_empty() {
            difference.changed.push(FileChange { path: text(path), what });
        }
    }
    difference.removed =
        old.keys().filter(|path| !new.contains_key(*path)).map(|p| text(p)).collect();
    Ok(difference)
}

/// A version that threads share.
pub type SharedReader = Arc<Reader>;

#[derive(PartialEq, Eq)]
struct Entry {
    kind: FileType,
    mode: u16,
    owner: (u32, u32),
    len: u64,
    modified: (i64, u32),
    target: Vec<u8>,
}

fn changes(old: &Entry, new: &Entry, is_other_content: bool) -> Vec<&'static str> {
    if old.kind != new.kind {
        return vec!["type"];
    }
    let is_file = new.kind == FileType::Regular;
    let facts = [
        ("content", is_file && (is_other_content || old.len != new.len)),
        ("target", old.target != new.target),
        ("mode", old.mode != new.mode),
        ("owner", old.owner != new.owner),
        ("modified", is_file && old.modified != new.modified),
    ];
    facts.into_iter().filter(|(_, differs)| *differs).map(|(what, _)| what).collect()
}

/// Runs two closures at once. A panic of either is an error: file systems come from guests.
fn both<T: Send>(
    first: impl FnOnce() -> Result<T> + Send,
    second: impl FnOnce() -> Result<T> + Send,
) -> Result<(T, T)> {
    let lost = || {
        Error::new(Kind::Corrupt, "read", "a file system").because("what it holds is not possible")
    };
    std::thread::scope(|scope| {
        let (first, second) = (scope.spawn(first), scope.spawn(second));
        let first = first.join().unwrap_or_else(|_| Err(lost()));
        let second = second.join().unwrap_or_else(|_| Err(lost()));
        Ok((first?, second?))
    })
}

fn too_much(reader: &Reader, reason: String) -> Error {
    Error::new(Kind::Invalid, "read the files of", reader.version().id.to_string())
        .because(reason)
        .hint("`larder diff --bytes` compares blocks of whatever there is")
}

fn list(reader: &SharedReader, cancel: &Cancel) -> Result<BTreeMap<Vec<u8>, Entry>> {
    let files = root_file_system(reader)?;
    let mut found = BTreeMap::new();
    let mut names_len = 0;
    let mut folders = vec![(PathBuf::new("/"), 0)];
    while let Some((folder, depth)) = folders.pop() {
        cancel.check("compare", "files")?;
        let failed = |error| damaged(reader, &folder.display().to_string(), error);
        for entry in files.read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if matches!(entry.file_name().as_ref(), b"." | b"..") {
                continue;
            }
            let path = entry.path();
            let read = entry_of(&files, &path, &entry.metadata().map_err(failed)?);
            let read = read.map_err(|error| damaged(reader, &path.display().to_string(), error))?;
            names_len += path.as_ref().len();
            if found.len() == FILES_MAX || names_len > NAMES_LEN_MAX || depth == DEPTH_MAX {
                return Err(too_much(reader, "it has more files than are compared".into()));
            }
            if read.kind == FileType::Directory {
                folders.push((path.clone(), depth + 1));
            }
            found.insert(path.as_ref().to_vec(), read);
        }
    }
    Ok(found)
}

fn entry_of(
    files: &Ext4,
    path: &PathBuf,
    metadata: &ext4_view::Metadata,
) -> Result<Entry, ext4_view::Ext4Error> {
    let kind = metadata.file_type();
    let target = match kind {
        FileType::Symlink => files.read_link(path)?.as_ref().to_vec(),
        _ => Vec::new(),
    };
    let modified = metadata.modified();
    Ok(Entry {
        kind,
        mode: metadata.mode(),
        owner: (metadata.uid(), metadata.gid()),
        len: metadata.len(),
        modified: (modified.seconds(), modified.nanoseconds()),
        target,
    })
}

/// How many bytes of files are read of a version.
fn budget(reader: &Reader) -> u64 {
    reader.length().saturating_mul(4).saturating_add(1 << 30)
}

fn digests(reader: &SharedReader, paths: &[&[u8]], cancel: &Cancel) -> Result<Vec<[u8; 32]>> {
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    let files = root_file_system(reader)?;
    let mut left = budget(reader);
    let mut buffer = vec![0; READ_LEN];
    let mut digests = Vec::with_capacity(paths.len());
    for path in paths {
        let shown = || String::from_utf8_lossy(path).into_owned();
        let failed = |error| damaged(reader, &shown(), error);
        let path = ext4_view::Path::try_from(*path)
            .map_err(|_| too_much(reader, format!("{} is no path", shown())))?;
        let mut file = files.open(path).map_err(failed)?;
        let mut hasher = blake3::Hasher::new();
        loop {
            cancel.check("compare", "files")?;
            let len = file.read_bytes(&mut buffer).map_err(failed)?;
            if len == 0 {
                break;
            }
            left = left.checked_sub(len as u64).ok_or_else(|| {
                too_much(reader, format!("{}: its files claim more than it holds", shown()))
            })?;
            hasher.update(&buffer[..len]);
        }
        digests.push(*hasher.finalize().as_bytes());
    }
    Ok(digests)
}

/// A whole file of a version; `None` where there is none.
///
/// # Errors
/// `Invalid` where it has more than `len_max` bytes.
pub(super) fn whole_file(
    reader: &SharedReader,
    path: &str,
    len_max: u64,
) -> Result<Option<Vec<u8>>> {
    let read = || {
        let files = root_file_system(reader)?;
        let failed = |error| damaged(reader, path, error);
        if !files.exists(path).map_err(failed)? {
            return Ok(None);
        }
        if files.metadata(path).map_err(failed)?.len() > len_max {
            return Err(too_much(reader, format!("{path} has more than {len_max} bytes")));
        }
        files.read(path).map(Some).map_err(failed)
    };
    Ok(both(read, || Ok(None))?.0)
}
