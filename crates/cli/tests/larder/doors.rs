//! Real clients at both doors, on a mirror of a real ext4 file system.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use crate::harness::{LIMIT, Larder, Process, Random, Served};

const LEN: u64 = 32 << 20;

/// An image `ext4` with files in it, and `disk.raw` beside it.
fn ext4(larder: &Larder) {
    for (index, len) in [100, 5000, 300_000, 4_000_000].into_iter().enumerate() {
        let folder = larder.path("tree/sub");
        std::fs::create_dir_all(&folder).unwrap();
        let bytes = Random::new(index as u64).bytes(len);
        std::fs::write(folder.join(format!("file-{index}")), bytes).unwrap();
    }
    larder.shell(&format!("mke2fs -q -t ext4 -d tree disk.raw {}k", LEN >> 10));
    larder.json("import disk.raw ext4");
    std::fs::create_dir(larder.path("mount")).unwrap();
}

fn nbd(larder: &Larder) -> Served {
    larder.attach("ext4 --mirror m --nbd ./s")
}

fn fuse(larder: &Larder) -> Served {
    larder.attach("ext4 --mirror m --fuse mount")
}

fn exported_equals(larder: &Larder, reference: &str, path: &Path) {
    larder.json(&format!("export {reference} exported.raw"));
    larder.shell(&format!("cmp exported.raw {}", path.display()));
}

#[test]
fn a_disk_is_the_same_through_nbd_and_through_fuse() {
    let larder = Larder::new();
    ext4(&larder);
    let served = larder.attach("ext4 --mirror m --nbd ./s --fuse mount");
    let (uri, file) = (served.uri().to_string(), served.file().display().to_string());
    larder.shell(&format!("qemu-img compare -f raw -F raw disk.raw '{uri}'"));
    larder.shell(&format!("qemu-img compare -f raw -F raw disk.raw {file}"));
    larder.shell("cmp disk.raw mount/ext4/1");
    larder.shell(&format!("nbdcopy '{uri}' copy.raw && cmp disk.raw copy.raw"));
    let facts = larder.shell(&format!("nbdinfo --json '{uri}'"));
    let facts: serde_json::Value = serde_json::from_str(&facts).unwrap();
    assert_eq!(facts["exports"][0]["export-size"], LEN);
    assert_eq!(facts["exports"][0]["is_read_only"], false);
    // The second door reads only, and so does every version.
    let doors = served.ready["exports"].as_array().unwrap();
    assert_eq!((&doors[0]["writable"], &doors[1]["writable"]), (&true.into(), &false.into()));
    for path in [&file, "mount/ext4/1"] {
        let path = larder.path(path);
        assert!(std::fs::OpenOptions::new().write(true).open(&path).is_err(), "{path:?}");
    }
    served.stop();
    assert_eq!(std::fs::read_dir(larder.path("mount")).unwrap().count(), 0, "it is unmounted");
}

#[test]
fn a_read_only_attach_takes_no_write_at_any_door() {
    let larder = Larder::new();
    ext4(&larder);
    let served = larder.attach("ext4 --mirror m --nbd ./s --fuse mount --read-only");
    let (succeeded, text) =
        larder.try_shell(&format!("qemu-io -f raw -c 'write 0 512' '{}'", served.uri()));
    assert!(!succeeded, "{text}");
    assert!(std::fs::OpenOptions::new().write(true).open(served.file()).is_err());
    larder.shell(&format!("cmp disk.raw {}", served.file().display()));
    // The kernel knows it of the whole mount, and answers by itself.
    let flags = rustix::fs::statvfs(larder.path("mount")).unwrap().f_flag;
    assert!(flags.contains(rustix::fs::StatVfsMountFlags::RDONLY), "{flags:?}");
    served.stop();
    assert_eq!(larder.json("mirrors")["mirrors"][0]["dirty_bytes"], 0);
}

#[test]
fn a_tcp_port_serves_as_a_socket_does() {
    let larder = Larder::new();
    ext4(&larder);
    let served = larder.attach("ext4 --mirror m --nbd 127.0.0.1:0");
    assert!(served.uri().starts_with("nbd://127.0.0.1:"), "{}", served.uri());
    larder.shell(&format!("qemu-img compare -f raw -F raw disk.raw '{}'", served.uri()));
    served.stop();
}

#[test]
fn fio_finds_what_it_wrote_through_nbd() {
    let larder = Larder::new();
    ext4(&larder);
    let served = nbd(&larder);
    larder.shell(&format!(
        "fio --name=verify --ioengine=nbd --uri='{}' --rw=randwrite --bsrange=512-64k \
         --blockalign=512 --size=16m --iodepth=8 --verify=crc32c --do_verify=1 --randseed=7 \
         --output=fio.txt || {{ cat fio.txt; exit 1; }}",
        served.uri()
    ));
    larder.json("commit m");
    larder.shell(&format!("nbdcopy '{}' copy.raw", served.uri()));
    exported_equals(&larder, "ext4@2", &larder.path("copy.raw"));
    served.stop();
}

#[test]
fn fio_finds_what_it_wrote_through_fuse() {
    let larder = Larder::new();
    ext4(&larder);
    let served = fuse(&larder);
    for (engine, extra) in [("psync", "--fsync=32"), ("mmap", "")] {
        larder.shell(&format!(
            "fio --name=verify --ioengine={engine} --filename={} --rw=randwrite --bs=4k \
             --size=8m --verify=crc32c --do_verify=1 --randseed=7 {extra} --end_fsync=1 \
             --allow_file_create=0 --output=fio.txt || {{ cat fio.txt; exit 1; }}",
            served.file().display()
        ));
    }
    larder.json("commit m");
    exported_equals(&larder, "ext4@2", &served.file());
    larder.shell("cmp exported.raw mount/ext4/2");
    larder.shell("cmp disk.raw mount/ext4/1");
    served.stop();
}

#[test]
fn a_file_system_made_through_nbd_is_sound_and_is_committed() {
    let larder = Larder::new();
    ext4(&larder);
    let served = nbd(&larder);
    // nbdfuse shows the export as a file, without a kernel driver.
    std::fs::create_dir(larder.path("nbd")).unwrap();
    let mut command = Command::new("nbdfuse");
    command.arg(larder.path("nbd")).arg(served.uri()).current_dir(larder.path(""));
    let mut nbdfuse = Process::start(&mut command);
    assert!(nbdfuse.runs_until(|| larder.path("nbd/nbd").exists()));
    larder
        .shell("e2fsck -f -n nbd/nbd && mkfs.ext4 -q -F -L fresh -d tree nbd/nbd && sync nbd/nbd");
    larder.shell("e2fsck -f -n nbd/nbd");
    larder.shell("fusermount3 -u nbd");
    assert!(nbdfuse.ends_within(LIMIT));
    larder.json("commit m");
    larder.json("export ext4@2 out.raw");
    larder.shell("e2fsck -f -n out.raw && dumpe2fs -h out.raw 2>&1 | grep 'volume name:.*fresh'");
    larder.shell(&format!("qemu-img compare -f raw -F raw out.raw '{}'", served.uri()));
    served.stop();
}

#[test]
fn mkfs_on_the_mirrors_file_makes_a_sound_file_system() {
    let larder = Larder::new();
    ext4(&larder);
    let served = fuse(&larder);
    let file = served.file().display().to_string();
    larder.shell(&format!("e2fsck -f -n {file}"));
    larder.shell(&format!("mkfs.ext4 -q -F -L fresh -d tree {file} && e2fsck -f -n {file}"));
    // It goes on living: a debugger of ext4 adds and removes files.
    larder.shell(&format!(
        "debugfs -w -R 'write disk.raw inside' {file} && debugfs -w -R 'rm sub/file-3' {file}; \
         e2fsck -f -p {file} || test $? -le 1"
    ));
    larder.json("commit m");
    larder.json("export ext4@2 out.raw");
    larder.shell(&format!("cmp out.raw {file} && e2fsck -f -n out.raw"));
    served.stop();
    // The same through NBD, of the mirror that is opened again.
    let served = larder.attach("ext4@2 --mirror m --nbd ./s");
    larder.shell(&format!("qemu-img compare -f raw -F raw out.raw '{}'", served.uri()));
    served.stop();
}

#[test]
fn qemu_io_and_many_connections_at_once_see_one_disk() {
    let larder = Larder::new();
    ext4(&larder);
    let served = nbd(&larder);
    let uri = served.uri();
    larder.shell(&format!(
        "qemu-io -f raw -c 'write -P 0x11 1M 64k' -c 'write -z -u 2M 1M' -c 'discard 4M 1M' \
         -c 'write -f -P 0x22 6000k 3k' -c flush '{uri}'"
    ));
    larder.shell(&format!(
        "qemu-io -f raw -r -c 'read -P 0x11 1M 64k' -c 'read -P 0 2M 1M' -c 'read -P 0x22 6000k 3k' \
         '{uri}' | tee io.txt; ! grep -i 'fail\\|mismatch' io.txt"
    ));
    larder.shell(&format!(
        "for i in 1 2 3 4; do nbdcopy --connections=4 '{uri}' copy-$i.raw & done; wait; \
         for i in 2 3 4; do cmp copy-1.raw copy-$i.raw || exit 1; done"
    ));
    larder.json("commit m");
    exported_equals(&larder, "ext4@2", &larder.path("copy-1.raw"));
    served.stop();
}

#[test]
fn a_disk_of_any_length_is_whole_through_both_doors() {
    let larder = Larder::new();
    std::fs::create_dir(larder.path("mount")).unwrap();
    for (index, len) in [1, 511, 4097, (1 << 20) + 1].into_iter().enumerate() {
        let bytes = Random::new(9).bytes(len);
        larder.write("odd.raw", &bytes);
        let image = format!("odd-{index}");
        larder.json(&format!("import odd.raw {image}"));
        let served = larder.attach(&format!("{image} --mirror {image} --fuse mount"));
        assert!(larder.read(served.file()) == bytes);
        let file = std::fs::OpenOptions::new().write(true).open(served.file()).unwrap();
        file.write_all_at(b"!", len as u64 - 1).unwrap();
        file.sync_all().unwrap();
        drop(file);
        served.stop();
        let mut expected = bytes;
        expected[len - 1] = b'!';
        let served = larder.attach(&format!("{image} --mirror {image} --nbd ./s"));
        larder.shell(&format!("nbdcopy '{}' copy.raw", served.uri()));
        assert!(larder.read("copy.raw") == expected, "{len}");
        larder.json(&format!("commit {image}"));
        larder.json(&format!("export {image} out.raw"));
        assert!(larder.read("out.raw") == expected, "{len}");
        served.stop();
    }
}

#[test]
fn two_mirrors_of_one_image_share_what_was_fetched_and_nothing_else() {
    let larder = Larder::new();
    ext4(&larder);
    let first = nbd(&larder);
    larder.shell(&format!("nbdcopy '{}' copy.raw", first.uri()));
    let second = larder.attach("ext4 --mirror other --nbd ./t");
    larder.shell(&format!("qemu-io -f raw -c 'write -P 7 0 1M' -c flush '{}'", second.uri()));
    larder.shell(&format!("qemu-img compare -f raw -F raw disk.raw '{}'", first.uri()));
    first.stop();
    second.stop();
}
