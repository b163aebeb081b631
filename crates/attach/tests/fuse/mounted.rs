//! A tree on a mount in a temporary folder.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use attach::fuse::{FuseMount, MemoryTree, Tree};
use model::{ImageName, MirrorName};

/// A mount; unmounted, then removed, when dropped.
pub struct Mounted {
    /// Dropped first.
    mount: Option<FuseMount>,
    pub tree: Arc<MemoryTree>,
    pub scratch: tempfile::TempDir,
}

pub fn image(name: &str) -> ImageName {
    ImageName::new(name).unwrap()
}

pub fn mirror(name: &str) -> MirrorName {
    MirrorName::new(name).unwrap()
}

/// Bytes that look random, with holes: every fourth 64 KiB is zero.
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes: Vec<u8> = (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect();
    for (index, part) in bytes.chunks_mut(64 << 10).enumerate() {
        if index % 4 == 2 {
            part.fill(0);
        }
    }
    bytes
}

/// Mounts a tree on a new folder.
pub fn mount_tree(tree: Arc<dyn Tree>) -> (tempfile::TempDir, FuseMount) {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("mount");
    std::fs::create_dir(&folder).unwrap();
    let mount = FuseMount::mount(&folder, tree).expect("a mount");
    (scratch, mount)
}

impl Mounted {
    pub fn new(tree: MemoryTree) -> Self {
        let tree = Arc::new(tree);
        let (scratch, mount) = mount_tree(tree.clone());
        Mounted { mount: Some(mount), tree, scratch }
    }

    /// A mount with one version, `debian/1`, and one mirror of it, `mirrors/web`.
    pub fn with(bytes: Vec<u8>) -> Self {
        let tree = MemoryTree::default();
        tree.add_version(&image("debian"), bytes.clone());
        tree.add_mirror(&mirror("web"), &image("debian"), bytes);
        Self::new(tree)
    }

    pub fn path(&self, inside: &str) -> PathBuf {
        self.mount.as_ref().unwrap().folder().join(inside)
    }

    pub fn version(&self) -> PathBuf {
        self.path("debian/1")
    }

    pub fn mirror(&self) -> PathBuf {
        self.path("mirrors/web")
    }

    pub fn mirror_bytes(&self) -> Vec<u8> {
        self.tree.mirror_bytes(&mirror("web")).unwrap()
    }

    /// A path beside the mount.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    pub fn unmount(&mut self) {
        self.mount.take().unwrap().unmount().unwrap();
    }
}

/// Runs a command line; a blank inside a word is written as `~`. Gives what it printed.
pub fn run(line: &str) -> String {
    let (succeeded, output) = try_run(line);
    assert!(succeeded, "`{line}` failed:\n{output}");
    output
}

/// Runs a command line and tells whether it succeeded.
pub fn try_run(line: &str) -> (bool, String) {
    let mut words = line.split_whitespace().map(|word| word.replace('~', " "));
    let output = Command::new(words.next().unwrap())
        .args(words)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("`{line}`: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout) + &text(&output.stderr))
}

/// Waits until a condition holds, for at most 20 seconds.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !holds() {
        assert!(start.elapsed().as_secs() < 20, "waited in vain until {what}");
        std::thread::yield_now();
    }
}

/// The names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
