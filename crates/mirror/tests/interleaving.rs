//! Orders of events that threads meet once in a million runs, made to happen.

mod support;

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use env::simulated::SimulatedFileSystem;
use env::{File, FileSystem, OpenMode, Space};
use model::device::Device;
use support::*;

type Action = Box<dyn FnOnce() + Send>;

/// Actions that run just before a read or sync of an overlay file, or a read of a base, one each time.
#[derive(Clone, Default)]
struct Script {
    before_read: Arc<Mutex<Vec<Action>>>,
    before_sync: Arc<Mutex<Vec<Action>>>,
    before_base_read: Arc<Mutex<Vec<Action>>>,
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Script")
    }
}

fn run_next(actions: &Mutex<Vec<Action>>) {
    let action = actions.lock().unwrap().pop();
    action.into_iter().for_each(|action| action());
}

#[derive(Debug)]
struct Scripted {
    disk: SimulatedFileSystem,
    script: Script,
}

#[derive(Debug)]
struct ScriptedFile {
    file: Arc<dyn File>,
    script: Script,
}

impl FileSystem for Scripted {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let file = self.disk.open(path, mode)?;
        let script = self.script.clone();
        match path.to_string_lossy() {
            path if path.contains("overlay.") => Ok(Arc::new(ScriptedFile { file, script })),
            path if path.ends_with("/data") => {
                let script = Script { before_read: script.before_base_read, ..Script::default() };
                Ok(Arc::new(ScriptedFile { file, script }))
            }
            _ => Ok(file),
        }
    }
    fn create_folders(&self, path: &Path) -> io::Result<()> {
        self.disk.create_folders(path)
    }
    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        self.disk.list(folder)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_file(path)
    }
    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_folder(path)
    }
    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.disk.sync_folder(folder)
    }
    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.disk.exists(path)
    }
    fn boot_id(&self) -> io::Result<String> {
        self.disk.boot_id()
    }
    fn mount_id(&self, folder: &Path) -> io::Result<String> {
        self.disk.mount_id(folder)
    }
    fn space(&self, folder: &Path) -> io::Result<Space> {
        self.disk.space(folder)
    }
}

impl File for ScriptedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        run_next(&self.script.before_read);
        self.file.read_at(buffer, offset)
    }
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }
    fn sync(&self) -> io::Result<()> {
        run_next(&self.script.before_sync);
        self.file.sync()
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.punch_hole(offset, len)
    }
    fn allocated_bytes(&self) -> io::Result<u64> {
        self.file.allocated_bytes()
    }
    fn try_lock(&self) -> io::Result<bool> {
        self.file.try_lock()
    }
    fn try_lock_shared(&self) -> io::Result<bool> {
        self.file.try_lock_shared()
    }
    fn lock(&self) -> io::Result<()> {
        self.file.lock()
    }
    fn unlock(&self) -> io::Result<()> {
        self.file.unlock()
    }
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

fn scripted() -> (SimulatedFileSystem, Script, Host, Model) {
    let (disk, script, model) = (SimulatedFileSystem::new(), Script::default(), Model::example());
    let file_system = Scripted { disk: disk.clone(), script: script.clone() };
    let host = Host::new(Arc::new(file_system), &model);
    (disk, script, host, model)
}

#[test]
fn a_reader_that_looked_before_its_segment_was_evicted_never_sees_the_hole() {
    let (_, script, host, model) = scripted();
    let mirror = host.create().unwrap();
    let view = mirror::ReadOnlyView::open(&host.state, &host.binding, host.store.clone()).unwrap();
    let readers: [&dyn Device; 2] = [&*mirror, &view];
    for reader in readers {
        reader.prefetch(0, 12 * LEN).unwrap();
        host.state.limit_bases(host.state.base_bytes().unwrap());
        let before = host.state.base_numbers().unwrap().evicted_segments;
        let other = mirror.clone();
        script.before_base_read.lock().unwrap().push(Box::new(move || {
            other.prefetch(WINDOWS[2].0, 8 * LEN).unwrap();
            other.prefetch(WINDOWS[1].0, 8 * LEN).unwrap();
        }));
        let (mut found, mut expected) = (vec![0; 12 * LEN as usize], vec![0; 12 * LEN as usize]);
        reader.read(0, &mut found).unwrap();
        model.read(0, &mut expected);
        assert!(host.state.base_numbers().unwrap().evicted_segments > before);
        assert!(found == expected);
        host.state.limit_bases(u64::MAX);
    }
}

#[test]
fn a_reader_that_looked_before_bytes_moved_never_sees_the_hole_they_left() {
    let (_, script, host, _) = scripted();
    let mirror = host.create().unwrap();
    mirror.write(0, &[1; 4096]).unwrap();
    mirror.finish_commit(mirror.seal().unwrap(), version(2)).unwrap();
    let writer = mirror.clone();
    script.before_read.lock().unwrap().push(Box::new(move || {
        writer.write(0, &[2; 4096]).unwrap();
        writer.flush().unwrap();
    }));
    let mut bytes = [0; 4096];
    mirror.read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [2; 4096]);
}

#[test]
fn committed_bytes_that_are_overwritten_while_a_seal_begins_stay_until_their_successors_are_durable()
 {
    for seed in 0..30 {
        let (disk, script, host, model) = scripted();
        let mirror = host.create().unwrap();
        mirror.write(0, &[1; 4 * 4096]).unwrap();
        mirror.finish_commit(mirror.seal().unwrap(), version(2)).unwrap();
        mirror.write(0, &[2; 4096]).unwrap();
        for block in [2, 1] {
            let writer = mirror.clone();
            script.before_sync.lock().unwrap().push(Box::new(move || {
                writer.write(block * LEN, &[3; 4096]).unwrap();
            }));
        }
        let sealed = mirror.seal().unwrap();
        assert!(script.before_sync.lock().unwrap().is_empty());
        mirror.write(0, &[4; 3 * 4096]).unwrap();
        let after = host.on(Arc::new(disk.crash(seed))).reopen().unwrap();
        drop(sealed);
        let mut disk = model;
        disk.write(0, &[1; 4 * 4096]);
        for (block, bytes) in read_changes(&after.seal().unwrap()) {
            disk.blocks.insert(block, bytes.unwrap());
        }
        // All that is visible is in the parent or in the next commit.
        assert_same(&*after, &disk, &format!("seed {seed}"));
    }
}
