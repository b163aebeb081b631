//! Disks that grow: at attach, while they are served, through commits, kills and the daemon.

use std::os::unix::fs::FileExt;

use serde_json::Value;

use crate::harness::{Larder, Random};
use crate::nbd_client::NbdClient;

const LEN: usize = (5 << 20) + 700;
const LONGER: usize = (70 << 20) + 100;

/// An image `disk` of random bytes; the bytes.
fn image(larder: &Larder) -> Vec<u8> {
    let bytes = Random::new(291).bytes(LEN);
    larder.write("disk.raw", &bytes);
    larder.json("import disk.raw disk");
    bytes
}

fn exported(larder: &Larder, reference: &str) -> Vec<u8> {
    larder.json(&format!("export {reference} exported.raw"));
    larder.read("exported.raw")
}

fn length(larder: &Larder) -> Value {
    larder.json("mirrors")["mirrors"][0]["length_bytes"].clone()
}

#[test]
fn a_mirror_is_attached_longer_than_its_version_and_commits_keep_the_length() {
    let larder = Larder::new();
    let mut bytes = image(&larder);
    let served = larder.attach(&format!("disk --mirror m --nbd ./s --length {LONGER}"));
    assert_eq!(served.ready["length_bytes"], LONGER);
    let mut client = NbdClient::connect(&larder.path("s"), "m");
    assert_eq!(client.length, LONGER as u64);
    bytes.resize(LONGER, 0);
    assert!(client.read_all() == bytes, "what was added is zeros");
    for offset in [LEN - 10, LONGER - 20] {
        client.write(offset as u64, &[7; 20]);
        bytes[offset..offset + 20].fill(7);
    }
    served.kill();
    assert_eq!(length(&larder), LONGER);

    // Opened again it is as long as it was, with and without saying so.
    let served = larder.attach(&format!("disk --mirror m --nbd ./s --length {LONGER}"));
    served.stop();
    let failure = larder.try_attach("disk --mirror m --nbd ./s --length 6MiB").err().unwrap();
    assert!(failure.message.contains(&LONGER.to_string()), "{failure:?}");
    assert!(failure.hint.is_some());
    let commit = larder.json("commit m");
    assert_eq!(larder.json("show disk@2")["length_bytes"], LONGER);
    assert!(exported(&larder, "disk@2") == bytes);
    larder.write("same.raw", &bytes);
    assert_eq!(larder.json("import same.raw same")["digest"], commit["digest"]);
    assert_eq!(larder.json("show disk@1")["length_bytes"], LEN);

    // The longer version is as good as any: cloned, attached, grown, and committed without a write.
    larder.json("clone disk@2 other");
    std::fs::create_dir(larder.path("mount")).unwrap();
    let served = larder.attach("other --mirror o --fuse mount --length 100MiB");
    assert_eq!(served.file().metadata().unwrap().len(), 100 << 20);
    served.stop();
    larder.json("commit o");
    bytes.resize(100 << 20, 0);
    assert!(exported(&larder, "other@2") == bytes);
    assert_eq!(larder.json("show other@2")["length_bytes"], 100 << 20);
}

#[test]
fn a_new_mirror_that_would_be_shorter_than_its_version_is_not_made() {
    let larder = Larder::new();
    image(&larder);
    let failure = larder.try_attach("disk --mirror m --nbd ./s --length 1MiB").err().unwrap();
    assert!(failure.message.contains(&LEN.to_string()), "{failure:?}");
    assert_eq!(larder.json("mirrors")["mirrors"], serde_json::json!([]));
    let failure = larder.fails("resize m --length 9MiB");
    assert!(failure.message.contains("no such mirror"), "{failure:?}");
}

#[test]
fn a_mirror_that_is_served_grows_and_each_door_shows_it_as_it_can() {
    let larder = Larder::new();
    let mut bytes = image(&larder);
    std::fs::create_dir(larder.path("mount")).unwrap();
    let served = larder.attach("disk --mirror m --nbd ./s --fuse mount");
    let mut before = NbdClient::connect(&larder.path("s"), "m");
    let file = std::fs::File::open(served.file()).unwrap();
    assert_eq!(file.metadata().unwrap().len(), LEN as u64);
    let resized = larder.json(&format!("resize m --length {LONGER}"));
    assert_eq!((&resized["length_bytes"], &resized["before_bytes"]), (&LONGER.into(), &LEN.into()));
    assert_eq!(resized["doors"][0], serde_json::json!({"door": "nbd", "sees_it": false}));
    assert_eq!(resized["doors"][1], serde_json::json!({"door": "fuse", "sees_it": true}));
    assert!(before.read_all() == bytes, "who was connected goes on with what it knows");
    let mut after = NbdClient::connect(&larder.path("s"), "m");
    assert_eq!(after.length, LONGER as u64);
    after.write(LONGER as u64 - 5, b"there");
    bytes.resize(LONGER - 5, 0);
    bytes.extend(b"there");
    // Within a second, by itself.
    while file.metadata().unwrap().len() != LONGER as u64 {
        std::thread::yield_now();
    }
    let mut end = [0; 5];
    file.read_exact_at(&mut end, LONGER as u64 - 5).unwrap();
    assert_eq!(&end, b"there");
    let text = larder.run("resize m --length 80MiB");
    assert!(text.contains("clients of nbd see it when they connect again"), "{text}");
    assert!(larder.fails("resize m --length 79MiB").message.contains("80"));
    drop((before, after, file));
    served.stop();
    larder.run("resize m --length 81MiB");
    assert_eq!(length(&larder), 81 << 20);
    larder.json("commit m");
    bytes.resize(81 << 20, 0);
    assert!(exported(&larder, "disk") == bytes);
}

#[test]
fn a_daemon_grows_what_it_serves_and_serves_it_so_again() {
    let larder = Larder::new();
    image(&larder);
    let daemon = larder.daemon("");
    larder.run("attach disk --mirror m --nbd ./s --length 20MiB --detach");
    assert_eq!(NbdClient::connect(&larder.path("s"), "m").length, 20 << 20);
    larder.run("resize m --length 30MiB");
    daemon.kill();
    let _daemon = larder.daemon("");
    assert_eq!(NbdClient::connect(&larder.path("s"), "m").length, 30 << 20);
}

#[test]
fn a_commit_that_runs_while_the_disk_grows_has_the_length_of_before() {
    let larder = Larder::new();
    image(&larder);
    let served = larder.attach("disk --mirror m --nbd ./s");
    let mut client = NbdClient::connect(&larder.path("s"), "m");
    let mut lengths = vec![LEN as u64];
    for step in 1..6_u64 {
        client.write(step << 16, &Random::new(step).bytes(4 << 19));
        let before = LEN as u64 + (step - 1) * 4096;
        std::thread::scope(|scope| {
            let commit = scope.spawn(|| larder.json("commit m"));
            larder.json(&format!("resize m --length {}", before + 4096));
            commit.join().unwrap();
        });
        let found = larder.json("show disk")["length_bytes"].as_u64().unwrap();
        assert!([before, before + 4096].contains(&found), "{found} after {lengths:?}");
        lengths.push(found);
    }
    larder.json("commit m");
    assert_eq!(larder.json("show disk")["length_bytes"], LEN + 5 * 4096);
    served.stop();
}
