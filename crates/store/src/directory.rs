//! Packs as files in a folder.
//!
//! ```text
//! packs/3fa0...       a pack
//! packs/3fa0....new   a pack that is being written; left over after a crash
//! ```
//!
//! One flat folder: a TiB of unique data is 65,536 packs, which file systems with hashed folders
//! find as quickly as a few, and a name is durable with one sync.
//!
//! **Order of writes**: bytes to the `.new` name, sync the file, rename, sync the folder. Only then
//! does `put` return, so that nothing refers to bytes that are not durable.
//!
//! **Failure**: a folder that is not there (a disk that was taken out, a share that is gone) is
//! `Unavailable`, never a missing pack: it may come back. A crash leaves a `.new` file, which nothing refers to; or a whole pack that no
//! catalog row names. Collect removes both.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use env::{File, FileSystem, OpenMode};
use model::{Error, Kind, Result};

use crate::pack_store::{PackName, PackStore};

/// What the name of a pack that is being written ends with.
const UNFINISHED: &str = ".new";

/// Packs as files in a folder.
#[derive(Debug)]
pub struct DirectoryPackStore {
    file_system: Arc<dyn FileSystem>,
    folder: PathBuf,
}

impl DirectoryPackStore {
    /// Opens the folder, making it if it is not there.
    pub fn open(file_system: Arc<dyn FileSystem>, folder: &Path) -> Result<Self> {
        let parent = folder.parent().unwrap_or(folder);
        file_system
            .create_folders(folder)
            .and_then(|()| file_system.sync_folder(parent))
            .map_err(|error| Error::io("open the store", folder.display().to_string(), error))?;
        Ok(DirectoryPackStore { file_system, folder: folder.to_path_buf() })
    }

    fn path(&self, name: &PackName) -> PathBuf {
        self.folder.join(name.as_str())
    }

    fn unfinished_path(&self, name: &PackName) -> PathBuf {
        self.folder.join(format!("{name}{UNFINISHED}"))
    }

    fn files(&self) -> Result<Vec<PathBuf>> {
        let failed =
            |error| Error::io("list the packs in", self.folder.display().to_string(), error);
        self.file_system.list(&self.folder).map_err(failed)
    }

    fn remove_file(&self, name: &PackName, path: &Path) -> Result<()> {
        match self.file_system.remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove the pack", name.as_str(), error))
            }
            _ => Ok(()),
        }
    }

    fn open_pack(&self, operation: &'static str, name: &PackName) -> Result<Arc<dyn File>> {
        self.file_system
            .open(&self.path(name), OpenMode::Read)
            .map_err(|error| self.failed(operation, name, error))
    }

    /// An error of the system; a pack that is missing with its whole folder is out of reach.
    fn failed(&self, operation: &'static str, name: &PackName, error: std::io::Error) -> Error {
        let is_missing = error.kind() == std::io::ErrorKind::NotFound;
        if is_missing && !self.file_system.exists(&self.folder).unwrap_or(false) {
            return Error::new(Kind::Unavailable, operation, name.as_str())
                .because(format!("the folder {} is not there", self.folder.display()))
                .caused_by(error);
        }
        Error::io(operation, name.as_str(), error)
    }

    fn write_durably(&self, name: &PackName, bytes: &[u8]) -> std::io::Result<()> {
        let path = self.path(name);
        let new = self.unfinished_path(name);
        let written = self.file_system.open(&new, OpenMode::CreateNew).and_then(|file| {
            file.write_all_at(bytes, 0)?;
            file.sync()
        });
        let renamed = written.and_then(|()| self.file_system.rename(&new, &path));
        if let Err(error) = renamed {
            // Best effort: the error that matters is the first.
            let _ = self.file_system.remove_file(&new);
            return Err(error);
        }
        self.file_system.sync_folder(&self.folder).inspect_err(|_| {
            // It is not durable, so it must not be there.
            let _ = self.file_system.remove_file(&path);
        })
    }
}

impl PackStore for DirectoryPackStore {
    fn put(&self, name: &PackName, bytes: &[u8]) -> Result<()> {
        let failed = |error| self.failed("put the pack", name, error);
        if self.file_system.exists(&self.path(name)).map_err(failed)? {
            return Err(Error::new(Kind::Exists, "put the pack", name.as_str()));
        }
        self.write_durably(name, bytes).map_err(failed)
    }

    fn read(&self, name: &PackName, offset: u64, len: usize) -> Result<Vec<u8>> {
        let operation = "read the pack";
        let file = self.open_pack(operation, name)?;
        let failed = |error| Error::io(operation, name.as_str(), error);
        let file_len = file.len().map_err(failed)?;
        if offset.checked_add(len as u64).is_none_or(|end| end > file_len) {
            return Err(
                Error::new(Kind::Corrupt, operation, name.as_str()).because("it ends too early")
            );
        }
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, offset).map_err(failed)?;
        Ok(bytes)
    }

    fn len(&self, name: &PackName) -> Result<u64> {
        let operation = "measure the pack";
        let file = self.open_pack(operation, name)?;
        file.len().map_err(|error| Error::io(operation, name.as_str(), error))
    }

    fn list(&self) -> Result<Vec<PackName>> {
        let files = self.files()?;
        Ok(files.iter().filter_map(|file| PackName::new(file.to_str()?).ok()).collect())
    }

    fn remove(&self, name: &PackName) -> Result<()> {
        self.remove_file(name, &self.path(name))
    }

    fn unfinished(&self) -> Result<Vec<(PackName, u64)>> {
        let files = self.files()?;
        let names = files
            .iter()
            .filter_map(|file| PackName::new(file.to_str()?.strip_suffix(UNFINISHED)?).ok());
        let measured = names.map(|name| {
            let file = self.file_system.open(&self.unfinished_path(&name), OpenMode::Read);
            match file.and_then(|file| file.len()) {
                Ok(len) => Ok(Some((name, len))),
                // Its writer has just ended.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(Error::io("measure the pack", name.as_str(), error)),
            }
        });
        measured.filter_map(Result::transpose).collect()
    }

    fn discard_unfinished(&self, name: &PackName) -> Result<()> {
        self.remove_file(name, &self.unfinished_path(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contract_holds() {
        let folder = tempfile::tempdir().unwrap();
        let file_system = Arc::new(env::RealFileSystem);
        let store = DirectoryPackStore::open(file_system, &folder.path().join("packs")).unwrap();
        crate::pack_store::contract::check(&store);
    }

    #[test]
    fn a_folder_that_went_away_is_out_of_reach_and_no_pack_is_lost() {
        let place = tempfile::tempdir().unwrap();
        let [folder, away] = ["packs", "away"].map(|name| place.path().join(name));
        let store = DirectoryPackStore::open(Arc::new(env::RealFileSystem), &folder).unwrap();
        let [there, not_there] = ["a", "b"].map(|digit| PackName::new(&digit.repeat(32)).unwrap());
        store.put(&there, b"bytes").unwrap();
        std::fs::rename(&folder, &away).unwrap();
        for name in [&there, &not_there] {
            assert_eq!(store.read(name, 0, 1).unwrap_err().kind(), Kind::Unavailable);
            assert_eq!(store.len(name).unwrap_err().kind(), Kind::Unavailable);
            assert_eq!(store.put(name, b"x").unwrap_err().kind(), Kind::Unavailable);
        }
        std::fs::rename(&away, &folder).unwrap();
        assert_eq!(store.read(&there, 0, 5).unwrap(), b"bytes");
        assert_eq!(store.read(&not_there, 0, 1).unwrap_err().kind(), Kind::NotFound);
    }

    #[test]
    fn what_a_put_that_died_has_left_is_listed_and_discarded() {
        let folder = tempfile::tempdir().unwrap();
        let store = DirectoryPackStore::open(Arc::new(env::RealFileSystem), folder.path()).unwrap();
        let name = PackName::new(&"c".repeat(32)).unwrap();
        std::fs::write(folder.path().join(format!("{name}.new")), b"half").unwrap();
        std::fs::write(folder.path().join("notes.new"), b"somebody else's").unwrap();
        assert_eq!(store.unfinished().unwrap(), [(name.clone(), 4)]);
        assert_eq!(store.list().unwrap(), []);
        store.discard_unfinished(&name).unwrap();
        assert_eq!(store.unfinished().unwrap(), []);
        assert!(folder.path().join("notes.new").exists());
    }
}
