//! From an image's files to a file system, the same bytes for the same files.
//!
//! ```text
//! tree ──mke2fs -d──► ext4 ──debugfs: times of change──► the same bytes, whoever makes it
//! ```
//!
//! **Invariants**: every input of mke2fs is given: its settings file, the time, the identity and the
//! seed of the directory hashes, which come from the stage's key.
//!
//! **Source**: e2fsprogs before 1.47.1 writes the times at which the files on the host were changed,
//! which nobody can set; they are set in the file system afterwards.

use std::path::Path;
use std::time::Duration;

use model::progress::Cancel;
use model::{Error, Result};

use crate::key::digest;
use crate::tool::{Log, Run, program};

const LIMIT: Duration = Duration::from_secs(3600);

/// What mke2fs is told instead of what the machine's settings say.
const SETTINGS: &str = "[defaults]\n\
    base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr\n\
    default_mntopts = acl,user_xattr\nenable_periodic_fsck = 0\nblocksize = 4096\n\
    inode_size = 256\ninode_ratio = 16384\n[fs_types]\next4 = {\n\
    features = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize\n}\n";

/// A file system to be made.
pub(crate) struct FileSystem<'a> {
    /// The files.
    pub tree: &'a Path,
    /// The disk, which has its length already.
    pub disk: &'a Path,
    /// Where on it the file system begins.
    pub offset: u64,
    /// Its length.
    pub len: u64,
    /// Its identity, in the form of a UUID.
    pub identity: String,
    /// The key of the stage.
    pub key: &'a str,
    /// What counts as now.
    pub epoch: i64,
    /// A folder for what is of no use afterwards.
    pub work: &'a Path,
}

/// An identity that follows from a stage's key, in the form of a UUID.
pub(crate) fn identity(key: &str, what: &str) -> String {
    let hex = digest(&[key, what]);
    let (a, b, c, d, e) = (&hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..32]);
    format!("{a}-{b}-4{c}-8{d}-{e}")
}

impl FileSystem<'_> {
    /// Makes it.
    ///
    /// # Errors
    /// `Full` where the files do not fit.
    pub(crate) fn make(&self, log: &Log, cancel: &Cancel) -> Result<()> {
        log.say("making the file system");
        let settings = self.work.join("mke2fs.conf");
        std::fs::write(&settings, SETTINGS)
            .map_err(|error| Error::io("write", settings.display().to_string(), error))?;
        let run = Run { log, limit: LIMIT, cancel };
        let mut command = self.timed("mke2fs");
        command.env("MKE2FS_CONFIG", &settings);
        command.args(["-q", "-F", "-t", "ext4", "-L", "root", "-m", "1"]);
        command.args(["-U", &self.identity, "-E"]).arg(format!(
            "offset={},hash_seed={},lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0",
            self.offset,
            identity(self.key, "hash")
        ));
        command.arg("-d").arg(self.tree).arg(self.disk).arg(format!("{}k", self.len / 1024));
        run.succeed(&mut command).map_err(|error| self.explain(error))?;
        self.set_times(&run)
    }

    fn timed(&self, name: &str) -> std::process::Command {
        let mut command = program(name);
        let epoch = self.epoch.to_string();
        command.env("SOURCE_DATE_EPOCH", &epoch).env("E2FSPROGS_FAKE_TIME", epoch);
        command
    }

    fn inside(&self) -> String {
        format!("{}?offset={}", self.disk.display(), self.offset)
    }

    /// Sets the times of change of all files. Their inodes are the first ones.
    fn set_times(&self, run: &Run) -> Result<()> {
        let facts = run.answer(program("dumpe2fs").arg("-h").arg(self.inside()))?;
        let facts = String::from_utf8_lossy(&facts).into_owned();
        let field = |name: &str| -> u64 {
            let value = facts.lines().find_map(|line| line.strip_prefix(name));
            value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
        };
        let used = field("Inode count:").saturating_sub(field("Free inodes:"));
        let mut script = String::new();
        // Those below are the file system's own.
        for inode in std::iter::once(2).chain(11..=used) {
            script.push_str(&format!(
                "set_inode_field <{inode}> ctime @{0}\nset_inode_field <{inode}> ctime_extra 0\n",
                self.epoch
            ));
        }
        let path = self.work.join("times");
        std::fs::write(&path, script)
            .map_err(|error| Error::io("write", path.display().to_string(), error))?;
        let mut command = self.timed("debugfs");
        command.args(["-w", "-f"]).arg(&path).arg(self.inside());
        // It repeats each line of the script.
        run.answer(&mut command).map(drop)
    }

    fn explain(&self, error: Error) -> Error {
        let said = error.to_string();
        if said.contains("Could not allocate") || said.contains("No space left") {
            return Error::new(model::Kind::Full, "make the file system", "")
                .because(format!("the files do not fit into {} bytes", self.len))
                .hint("give the recipe a larger `size` in `[disk]`");
        }
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_differ_by_stage_and_by_what_they_are_of() {
        let a = identity("a", "root");
        assert_eq!(a.len(), 36);
        assert_ne!(a, identity("a", "hash"));
        assert_ne!(a, identity("b", "root"));
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::create(&folder.path().join("log")).unwrap();
        let make = |name: &str, order: [&str; 3]| {
            let tree = folder.path().join(name);
            for file in order {
                std::fs::create_dir_all(tree.join(file)).unwrap();
                std::fs::write(tree.join(file).join("x"), vec![7; 9000]).unwrap();
                std::os::unix::fs::symlink("x", tree.join(file).join("link")).unwrap();
            }
            crate::tree::Tree::open(&tree).unwrap().clamp_times(1_700_000_000).unwrap();
            let disk = folder.path().join(format!("{name}.raw"));
            std::fs::File::create(&disk).unwrap().set_len(32 << 20).unwrap();
            let file_system = FileSystem {
                tree: &tree,
                disk: &disk,
                offset: 1 << 20,
                len: 31 << 20,
                identity: identity("k", "root"),
                key: "k",
                epoch: 1_700_000_000,
                work: folder.path(),
            };
            file_system.make(&log, &Cancel::new()).unwrap();
            std::fs::read(disk).unwrap()
        };
        let (one, two) = (make("one", ["a", "b", "c"]), make("two", ["c", "b", "a"]));
        let differ = one.iter().zip(&two).filter(|(a, b)| a != b).count();
        assert_eq!(differ, 0);
    }
}
