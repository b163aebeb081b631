//! The indexes of archives, kept on this host: the next resolution fetches only what is new.
//!
//! ```text
//! STATE/build/indexes/DIGEST/    of the lines of sources and of the keys that they are signed with
//! ```
//!
//! **Invariants**: only what apt has verified is kept, and apt asks the archives again each time.
//!
//! **Failure**: what cannot be kept is fetched again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::sources::Source;

/// How many sets of archives are remembered. One of Debian takes some 60 MB.
const KEPT_MAX: usize = 4;

/// What apt has in its folder of indexes that is of no use to another.
const OWN: [&str; 3] = ["lock", "partial", "auxfiles"];

/// The kept indexes of a set of archives.
#[derive(Clone, Debug)]
pub(crate) struct Indexes {
    all: PathBuf,
    folder: PathBuf,
}

impl Indexes {
    /// Those of these sources, below this folder.
    pub(crate) fn of(below: &Path, sources: &[Source]) -> Indexes {
        let mut hasher = blake3::Hasher::new();
        for source in sources {
            hasher.update(source.line.as_bytes()).update(b"\n");
            let words = source.line.split(['[', ']', ' ']);
            for keys in words.filter_map(|word| word.strip_prefix("signed-by=")) {
                hasher.update(blake3::hash(&fs::read(keys).unwrap_or_default()).as_bytes());
            }
        }
        let all = below.join("indexes");
        let folder = all.join(&hasher.finalize().to_hex()[..32]);
        Indexes { all, folder }
    }

    /// Gives apt what is kept.
    pub(crate) fn put_into(&self, lists: &Path) {
        if let Err(error) = link_all(&self.folder, lists) {
            tracing::debug!(%error, "no indexes from {}", self.folder.display());
        }
    }

    /// Keeps what apt has verified now.
    pub(crate) fn keep(&self, lists: &Path) {
        let keep = || -> io::Result<()> {
            fs::create_dir_all(&self.all)?;
            let new = tempfile::tempdir_in(&self.all)?;
            link_all(lists, new.path())?;
            if self.folder.exists() {
                fs::remove_dir_all(&self.folder)?;
            }
            // Another build may have been quicker, with the same.
            fs::rename(new.path(), &self.folder)?;
            self.remove_old()
        };
        if let Err(error) = keep() {
            tracing::debug!(%error, "cannot keep indexes in {}", self.folder.display());
        }
    }

    fn remove_old(&self) -> io::Result<()> {
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.all)? {
            let entry = entry?;
            kept.push((entry.metadata()?.modified()?, entry.path()));
        }
        kept.sort();
        let too_many = kept.len().saturating_sub(KEPT_MAX);
        kept[..too_many].iter().try_for_each(|(_, path)| fs::remove_dir_all(path))
    }
}

/// Links all files of a folder into another. apt replaces files and never writes into them.
fn link_all(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if !OWN.iter().any(|own| name == *own) && entry.file_type()?.is_file() {
            fs::hard_link(entry.path(), to.join(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_of_the_last_sets_of_archives_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let lists = folder.path().join("lists");
        fs::create_dir_all(lists.join("partial")).unwrap();
        fs::write(lists.join("InRelease"), "signed").unwrap();
        fs::write(lists.join("lock"), "").unwrap();
        let of = |line: &str| {
            let source = Source { base: String::new(), line: line.to_owned(), archive: 0 };
            Indexes::of(folder.path(), &[source])
        };
        for (age, line) in ["a", "b", "c", "d", "e", "e"].into_iter().enumerate() {
            of(line).keep(&lists);
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(age as u64);
            fs::File::open(of(line).folder).unwrap().set_modified(time).unwrap();
        }
        let kept = fs::read_dir(folder.path().join("indexes")).unwrap().count();
        assert_eq!(kept, KEPT_MAX);
        let again = folder.path().join("again");
        fs::create_dir(&again).unwrap();
        of("a").put_into(&again);
        assert_eq!(fs::read_dir(&again).unwrap().count(), 0, "the oldest is gone");
        of("e").put_into(&again);
        let names: Vec<_> = fs::read_dir(&again).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["InRelease"]);
    }

    #[test]
    fn another_key_is_another_set() {
        let folder = tempfile::tempdir().unwrap();
        let keys = folder.path().join("keys.gpg");
        let line = format!("deb [arch=amd64 signed-by={}] x y", keys.display());
        let source = [Source { base: String::new(), line, archive: 0 }];
        fs::write(&keys, "one").unwrap();
        let one = Indexes::of(folder.path(), &source).folder;
        fs::write(&keys, "two").unwrap();
        assert_ne!(one, Indexes::of(folder.path(), &source).folder);
    }
}
