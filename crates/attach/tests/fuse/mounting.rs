//! Mounting, unmounting, and dead mounts.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use attach::fuse::{FuseMount, MemoryTree};
use model::Kind;

use crate::mounted::{Mounted, image, names, wait_until};

const FOLDER: &str = "LARDER_TEST_MOUNT";

#[test]
fn a_folder_that_will_not_do_is_refused_with_a_hint() {
    let scratch = tempfile::tempdir().unwrap();
    let check = |name: &str, kind: Kind| {
        let error = FuseMount::mount(&scratch.path().join(name), Arc::new(MemoryTree::default()))
            .expect_err(name);
        assert_eq!(error.kind(), kind, "{}", error.chain());
        assert!(error.hint_text().is_some(), "{}", error.chain());
    };
    std::fs::write(scratch.path().join("file"), "x").unwrap();
    std::fs::create_dir_all(scratch.path().join("full/x")).unwrap();
    check("missing", Kind::NotFound);
    check("missing/deeper", Kind::NotFound);
    check("file", Kind::Invalid);
    check("full", Kind::Refused);
    let mounted = Mounted::with(vec![1; 10]);
    let error = FuseMount::mount(&mounted.path(""), Arc::new(MemoryTree::default())).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused, "{}", error.chain());
    assert!(mounted.version().exists(), "the mount that was there goes on");
}

#[test]
fn an_unmounted_folder_is_empty_again() {
    let mut mounted = Mounted::with(vec![1; 10]);
    let folder = mounted.path("");
    mounted.unmount();
    assert!(names(&folder).is_empty());
    drop(FuseMount::mount(&folder, Arc::new(MemoryTree::default())).unwrap());
    assert!(names(&folder).is_empty());
    let strange = folder.join("with blank\tand\\");
    std::fs::create_dir(&strange).unwrap();
    let link = folder.join("link");
    std::os::unix::fs::symlink(&strange, &link).unwrap();
    let mount = FuseMount::mount(&link, Arc::new(MemoryTree::default())).unwrap();
    assert_eq!(mount.folder().file_name(), strange.file_name());
    assert_eq!(names(&strange), ["mirrors"]);
    mount.unmount().unwrap();
    assert!(names(&strange).is_empty());
}

#[test]
fn an_unmount_lets_go_of_the_tree() {
    let mut mounted = Mounted::with(vec![1; 10_000]);
    std::fs::read(mounted.mirror()).unwrap();
    assert!(Arc::strong_count(&mounted.tree) > 1);
    mounted.unmount();
    assert_eq!(Arc::strong_count(&mounted.tree), 1);
}

#[test]
fn a_file_that_is_open_outlives_the_unmount() {
    let mut mounted = Mounted::with(vec![1; 100_000]);
    let folder = mounted.path("");
    let file = File::open(mounted.mirror()).unwrap();
    mounted.unmount();
    assert!(names(&folder).is_empty());
    let mut bytes = vec![0; 100_000];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, vec![1; 100_000]);
}

#[test]
fn unmounting_from_outside_leaves_later_mounts_alone() {
    let mut mounted = Mounted::with(vec![1; 10]);
    let folder = mounted.path("");
    rustix::mount::unmount(&folder, rustix::mount::UnmountFlags::DETACH).unwrap();
    let other = FuseMount::mount(&folder, Arc::new(MemoryTree::default())).unwrap();
    mounted.unmount();
    assert_eq!(names(&folder), ["mirrors"]);
    other.unmount().unwrap();
    assert!(names(&folder).is_empty());
}

/// Not a test by itself: the server that others kill.
#[test]
#[ignore = "runs only as a child of the tests that kill it"]
fn a_server_that_waits_to_be_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let tree = MemoryTree::default();
    tree.add_version(&image("debian"), vec![1; 100_000]);
    let _mount = FuseMount::mount(Path::new(&folder), Arc::new(tree)).unwrap();
    loop {
        std::thread::park();
    }
}

fn server(folder: &Path, path: &str) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "mounting::a_server_that_waits_to_be_killed", "--ignored"])
        .env(FOLDER, folder)
        .env("PATH", path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the server serves", || {
        assert!(child.try_wait().unwrap().is_none(), "the server ended");
        folder.join("debian/1").exists()
    });
    child
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn mounting_again_clears_away_the_mount_of_a_killed_server() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("mount");
    std::fs::create_dir(&folder).unwrap();
    // Without fusermount3 in its path the server mounts by itself, and nobody unmounts for it.
    let child = server(&folder, "/nowhere");
    let file = File::open(folder.join("debian/1")).unwrap();
    kill(child);
    let dead = std::fs::read_dir(&folder).unwrap_err();
    assert_eq!(rustix::io::Errno::from_io_error(&dead), Some(rustix::io::Errno::NOTCONN));
    let mount = FuseMount::mount(&folder, Arc::new(MemoryTree::default())).unwrap();
    assert_eq!(names(&folder), ["mirrors"]);
    mount.unmount().unwrap();
    assert!(names(&folder).is_empty());
    assert!(file.read_at(&mut [0], 0).is_err());
}

#[test]
fn the_mount_of_a_killed_server_goes_with_it() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("mount");
    std::fs::create_dir(&folder).unwrap();
    let child = server(&folder, &std::env::var("PATH").unwrap());
    kill(child);
    wait_until("the folder is free", || std::fs::read_dir(&folder).is_ok());
    assert!(names(&folder).is_empty());
}
