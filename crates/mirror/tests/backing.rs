//! A base's file in the kernel's hands.

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use env::FileSystem;
use env::simulated::SimulatedFileSystem;
use mirror::ReadOnlyView;
use model::device::Device;
use support::*;

fn marks(disk: &dyn FileSystem, host: &Host) -> Vec<PathBuf> {
    let folder = Path::new("/state/bases").join(host.binding.content.to_string());
    let mut names = disk.list(&folder).unwrap();
    names.retain(|name| name.to_string_lossy().starts_with("held."));
    names
}

fn open(host: &Host) -> ReadOnlyView {
    ReadOnlyView::open(&host.state, &host.binding, host.store.clone()).unwrap()
}

#[test]
fn a_file_is_given_out_when_the_version_is_complete_and_marked_durably_before() {
    let disk = SimulatedFileSystem::new();
    let host = Host::new(Arc::new(disk.clone()), &Model::example());
    let view = open(&host);
    assert!(view.hold_file().unwrap().is_none(), "nothing is here yet");
    assert_eq!(marks(&disk, &host), [] as [PathBuf; 0]);
    view.prefetch(0, LENGTH).unwrap();
    let held = view.hold_file().unwrap().unwrap();
    for seed in 0..20 {
        assert_eq!(marks(&disk.crash(seed), &host).len(), 1, "seed {seed}");
    }
    let second = open(&host).hold_file().unwrap().unwrap();
    drop(held);
    assert_eq!(marks(&disk, &host).len(), 1, "another still holds it");
    drop(second.clone());
    assert_eq!(marks(&disk, &host).len(), 1, "a clone shares the guard");
    drop(second);
    assert_eq!(marks(&disk, &host), [] as [PathBuf; 0]);
}

#[test]
fn a_mark_that_cannot_be_written_gives_no_file() {
    let disk = SimulatedFileSystem::new();
    let host = Host::new(Arc::new(disk.clone()), &Model::example());
    let view = open(&host);
    view.prefetch(0, LENGTH).unwrap();
    for step in 0.. {
        disk.fail_once_at(disk.operation_count() + step, 5);
        match view.hold_file() {
            Err(_) => disk.heal(),
            Ok(held) => {
                assert!(step >= 3, "three operations make a mark durable");
                assert!(held.is_some());
                break;
            }
        }
    }
}

#[test]
fn a_whole_version_reads_the_same_from_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let model = Model::example();
    let (store, binding) = store_of(&model);
    let state = mirror::StateFolder::without_background(
        Arc::new(env::RealFileSystem),
        folder.path().join("state"),
    );
    let view = ReadOnlyView::open(&state, &binding, Arc::new(store)).unwrap();
    view.prefetch(0, LENGTH).unwrap();
    let held = view.hold_file().unwrap().unwrap();
    let file = std::fs::File::from(held.fd().unwrap().try_clone_to_owned().unwrap());
    for (start, len) in WINDOWS {
        let (mut found, mut expected) = (vec![0; len as usize], vec![0; len as usize]);
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut found, start).unwrap();
        model.read(start, &mut expected);
        assert!(found == expected, "window at {start}");
    }
}
