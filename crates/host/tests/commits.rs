//! Commits of one mirror that come at once.

use std::path::Path;
use std::sync::Arc;

use env::RealFileSystem;
use host::commit::{CommitOptions, Committer};
use mirror::{Binding, Mirror, StateFolder};
use model::device::Device;
use model::progress::{Cancel, Silent};
use model::source::DiskSink;
use model::{ImageName, MirrorName, Result};
use repository::Repository;
use repository::repository::Machine;

const LENGTH: u64 = 1 << 20;

/// A mirror `m` of a new image `web` of zeros.
fn mirror_in(folder: &Path) -> (Repository, Arc<Mirror>) {
    let (repository, _) =
        Repository::open_or_create(&Machine::real(), &folder.join("repository")).unwrap();
    let version = repository.create_image(&ImageName::new("web").unwrap(), LENGTH).unwrap();
    let state = StateFolder::new(Arc::new(RealFileSystem), folder.join("state"));
    let binding = Binding {
        parent: version.id,
        content: version.facts.content,
        layout: version.facts.layout,
        length: version.facts.length,
    };
    let name = MirrorName::new("m").unwrap();
    let mirror = Mirror::create(&state, &name, binding, repository.chunks()).unwrap();
    (repository, mirror)
}

/// Writes an export into memory.
struct Bytes(Arc<std::sync::Mutex<Vec<u8>>>);

impl DiskSink for Bytes {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.0.lock().unwrap()[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn finish(self: Box<Self>, _length: u64) -> Result<()> {
        Ok(())
    }
}

fn exported(repository: &Repository, reference: &str) -> Vec<u8> {
    let bytes = Arc::new(std::sync::Mutex::new(vec![0; LENGTH as usize]));
    let version = repository.catalog().version(&reference.parse().unwrap()).unwrap();
    let sink = Box::new(Bytes(bytes.clone()));
    repository.export(&version.id, sink, &Silent, &Cancel::new()).unwrap();
    std::mem::take(&mut *bytes.lock().unwrap())
}

#[test]
fn commits_that_come_at_once_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (repository, mirror) = mirror_in(folder.path());
    let committer = Committer::new(repository.clone(), mirror.clone());
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (committer, mirror) = (&committer, &mirror);
            scope.spawn(move || {
                for round in 0..8 {
                    let block = thread * 8 + round;
                    mirror.write(block * 4096, &[block as u8 + 1; 4096]).unwrap();
                    committer.commit(&CommitOptions::default(), &Silent).unwrap();
                }
            });
        }
    });
    let mut disk = vec![0; LENGTH as usize];
    mirror.read(0, &mut disk).unwrap();
    assert!(exported(&repository, "web@33") == disk, "the last version is the mirror");
}
