//! No space left in the middle: an error, nothing half published, and on with it once there is room.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Larder, Random};
use crate::nbd_client::NbdClient;

/// A file system of a few MiB; unmounted when dropped.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one; `None`, said on stderr, for a user who may not mount.
    pub fn mount(larder: &Larder, name: &str, mib: u64) -> Option<SmallDisk> {
        let folder = larder.path(name);
        std::fs::create_dir(&folder).unwrap();
        let disk = SmallDisk(folder);
        let (succeeded, text) = larder
            .try_shell(&format!("mount -t tmpfs -o size={mib}m larder-test {}", disk.0.display()));
        if !succeeded {
            std::mem::forget(disk);
            assert!(!rustix::process::geteuid().is_root(), "{text}");
            let mut stderr = std::io::stderr();
            let _told = std::io::Write::write_all(&mut stderr, b"not tested: needs root\n");
            return None;
        }
        Some(disk)
    }

    pub fn grow(&self, mib: u64) {
        let size = format!("remount,size={mib}m");
        let status = Command::new("mount").args(["-o", &size]).arg(&self.0).status().unwrap();
        assert!(status.success());
    }

    fn free_len(&self) -> u64 {
        let facts = rustix::fs::statvfs(&self.0).unwrap();
        facts.f_bavail * facts.f_frsize
    }

    /// Takes all but so many bytes.
    pub fn fill(&self, rest: u64) -> PathBuf {
        let path = self.0.join("filler");
        let len = self.free_len().saturating_sub(rest);
        std::fs::write(&path, vec![1; len as usize]).unwrap();
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

pub fn is_about_space(message: &str) -> bool {
    message.to_lowercase().contains("no space")
}

fn exported(larder: &Larder, reference: &str) -> Vec<u8> {
    larder.json(&format!("export {reference} exported.raw"));
    larder.read("exported.raw")
}

fn write_random(larder: &Larder, name: &str, seed: u64, mib: usize) -> Vec<u8> {
    let bytes = Random::new(seed).bytes(mib << 20);
    larder.write(name, &bytes);
    bytes
}

#[test]
fn an_import_into_a_full_disk_leaves_no_version_and_no_pack() {
    let larder = Larder::new();
    // What it is short of differs: the pack, the catalog's journal, the last bytes of all.
    let Some(disk) = SmallDisk::mount(&larder, "repo", 64) else { return };
    let first = write_random(&larder, "first.raw", 1, 4);
    let large = write_random(&larder, "large.raw", 2, 24);
    larder.json("import first.raw first");
    let before = larder.inventory();
    for rest in [0, 4096, 50_000, 300_000, 1 << 20, 12 << 20, 23 << 20] {
        let filler = disk.fill(rest);
        let outcome = larder.attempt("import large.raw large");
        let failure = outcome.failure("import large.raw large");
        assert!(is_about_space(&failure.message), "{rest}: {failure:?}");
        std::fs::remove_file(filler).unwrap();
        assert_eq!(larder.inventory(), before, "{rest} bytes were free");
        assert!(exported(&larder, "first") == first);
    }
    larder.json("import large.raw large");
    assert!(exported(&larder, "large") == large);
}

#[test]
fn a_commit_into_a_full_disk_keeps_the_mirror_and_works_once_there_is_room() {
    for is_served in [true, false] {
        let larder = Larder::new();
        let Some(disk) = SmallDisk::mount(&larder, "repo", 64) else { return };
        let mut bytes = write_random(&larder, "web.raw", 3, 8);
        larder.json("import web.raw web");
        let served = larder.attach("web --mirror m --nbd ./s");
        let mut client = NbdClient::connect(&larder.path("s"), "m");
        let data = Random::new(4).bytes(4 << 20);
        client.write(1 << 20, &data);
        bytes[1 << 20..5 << 20].copy_from_slice(&data);
        let mut served = Some((served, client));
        if !is_served {
            served.take().unwrap().0.stop();
        }
        let before = larder.inventory();
        for rest in [0, 4096, 100_000, 2 << 20] {
            let filler = disk.fill(rest);
            let failure = larder.attempt("commit m").failure("commit m");
            assert!(is_about_space(&failure.message), "{rest}: {failure:?}");
            std::fs::remove_file(filler).unwrap();
            assert_eq!(larder.inventory(), before, "{rest} bytes were free");
            if let Some((_, client)) = &mut served {
                assert!(client.read_all() == bytes, "the mirror is as it was");
                client.write(0, &[rest as u8; 512]);
                bytes[..512].fill(rest as u8);
            }
        }
        let commit = larder.json("commit m");
        assert_eq!((&commit["version"], &commit["parent"]), (&2.into(), &"web@1".into()));
        assert!(exported(&larder, "web") == bytes);
    }
}

#[test]
fn a_guest_is_told_of_a_full_state_disk_and_loses_nothing_that_was_flushed() {
    let larder = Larder::new();
    let Some(disk) = SmallDisk::mount(&larder, "state", 24) else { return };
    let mut bytes = write_random(&larder, "web.raw", 5, 32);
    larder.json("import web.raw web");
    let served = larder.attach("web --mirror m --nbd ./s");
    let mut client = NbdClient::connect(&larder.path("s"), "m");
    client.write(0, &vec![1; 1 << 20]);
    bytes[..1 << 20].fill(1);
    client.flush();
    const ENOSPC: u32 = 28;
    const STEP: usize = 1 << 20;
    let mut refused_at = None;
    for offset in (STEP..bytes.len()).step_by(STEP) {
        match client.try_write(offset as u64, &vec![2; STEP]) {
            0 => bytes[offset..offset + STEP].fill(2),
            ENOSPC => {
                refused_at = Some(offset);
                break;
            }
            other => panic!("error {other}"),
        }
    }
    let refused_at = refused_at.expect("32 MiB do not fit into 24");
    assert!(client.read(0, refused_at) == bytes[..refused_at], "what was taken is there");
    // With room again it goes on where it was.
    disk.grow(128);
    client.write(refused_at as u64, &vec![3; STEP]);
    bytes[refused_at..refused_at + STEP].fill(3);
    client.flush();
    assert!(client.read_all() == bytes);
    let uri = served.uri().to_string();
    larder.shell(&format!(
        "fio --name=verify --ioengine=nbd --uri='{uri}' --rw=randwrite --bsrange=512-16k \
         --bs_unaligned=0 --iodepth=8 --size=4m --fsync=32 --verify=crc32c --verify_fatal=1"
    ));
    bytes = client.read_all();
    served.kill();
    let served = larder.attach("web --mirror m --nbd ./s");
    assert!(NbdClient::connect(&larder.path("s"), "m").read_all() == bytes);
    larder.json("commit m");
    assert!(exported(&larder, "web") == bytes);
    served.stop();
}

#[test]
fn an_export_into_a_full_disk_leaves_no_file() {
    let larder = Larder::new();
    write_random(&larder, "web.raw", 6, 8);
    larder.json("import web.raw web");
    let Some(_disk) = SmallDisk::mount(&larder, "small", 4) else { return };
    for format in ["raw", "qcow2"] {
        let line = format!("export web small/out --output-format {format}");
        let failure = larder.fails(&line);
        assert!(is_about_space(&failure.message) && failure.message.contains("small/out"));
        let left = std::fs::read_dir(larder.path(Path::new("small"))).unwrap().count();
        assert_eq!(left, 0, "{line}");
    }
}

#[test]
fn a_repair_into_a_full_disk_is_told_and_goes_on_once_there_is_room() {
    let larder = Larder::new();
    let Some(disk) = SmallDisk::mount(&larder, "repo", 64) else { return };
    let bytes = write_random(&larder, "web.raw", 5, 8);
    larder.json("import web.raw web");
    larder.json("import web.raw same --repo donor");
    let packs = crate::harness::files_below(&larder.path("repo/packs"));
    for pack in packs {
        let mut spoiled = std::fs::read(&pack).unwrap();
        let middle = spoiled.len() / 2;
        spoiled[16..middle].fill(0);
        std::fs::write(pack, spoiled).unwrap();
    }
    for rest in [0, 4096, 100_000, 3 << 20] {
        let filler = disk.fill(rest);
        let outcome = larder.attempt("scrub --repair --from donor");
        assert_eq!(outcome.code, Some(1), "{rest}");
        assert!(is_about_space(&outcome.stderr), "{rest}: {}", outcome.stderr);
        std::fs::remove_file(filler).unwrap();
    }
    larder.json("scrub --repair --from donor");
    larder.json("scrub --deep");
    assert!(exported(&larder, "web") == bytes);
}

#[test]
fn a_rebuild_into_a_full_disk_leaves_what_there_was_and_works_once_there_is_room() {
    let larder = Larder::new();
    let Some(disk) = SmallDisk::mount(&larder, "repo", 64) else { return };
    let bytes = write_random(&larder, "web.raw", 6, 8);
    larder.json("import web.raw web");
    let rubbish = b"no database".repeat(1000);
    larder.write("repo/catalog.sqlite", &rubbish);
    for rest in [0, 4096, 40_000] {
        let filler = disk.fill(rest);
        let failure = larder.fails("scrub --rebuild");
        assert!(is_about_space(&failure.message), "{rest}: {failure:?}");
        std::fs::remove_file(filler).unwrap();
        assert_eq!(larder.read("repo/catalog.sqlite"), rubbish, "{rest}");
        assert!(!larder.path("repo/catalog.sqlite.new").exists(), "{rest}");
    }
    larder.json("scrub --rebuild");
    assert!(exported(&larder, "web") == bytes);
}
