//! Changes become versions: through the owner, without one, through ioctls.

use std::path::Path;

use serde_json::Value;

use crate::harness::{Larder, Random};
use crate::nbd_client::NbdClient;

const LEN: usize = 8 << 20;

/// An image `web` of random bytes; the bytes.
fn image(larder: &Larder, seed: u64) -> Vec<u8> {
    let bytes = Random::new(seed).bytes(LEN);
    larder.write("web.raw", &bytes);
    larder.json("import web.raw web");
    bytes
}

fn exported(larder: &Larder, reference: &str) -> Vec<u8> {
    larder.json(&format!("export {reference} exported.raw"));
    larder.read("exported.raw")
}

fn number(document: &Value, key: &str) -> u64 {
    document[key].as_u64().unwrap_or_else(|| panic!("{key} in {document}"))
}

#[test]
fn a_commit_of_a_mirror_that_is_served_holds_what_was_written_and_costs_what_changed() {
    let larder = Larder::new();
    let mut bytes = image(&larder, 1);
    let base = bytes.clone();
    let served = larder.attach("web --mirror m --nbd ./s");
    let mut client = NbdClient::connect(&larder.path("s"), "m");
    // One block whole, one in its middle, one over a boundary.
    for (offset, len) in [(4096, 4096), (100_000, 10), (8191 + 4096 * 100, 2)] {
        let data = Random::new(offset as u64).bytes(len);
        client.write(offset as u64, &data);
        bytes[offset..offset + len].copy_from_slice(&data);
    }
    let commit = larder.json("commit m --tag changed");
    assert_eq!((&commit["image"], &commit["version"]), (&"web".into(), &2.into()));
    assert_eq!(commit["parent"], "web@1");
    assert_eq!(commit["bypassed"], Value::Null);
    assert_eq!(number(&commit, "dirty_bytes"), 4 * 4096);
    assert_eq!(number(&commit, "new_bytes"), 4 * 4096);
    assert!(number(&commit, "stored_bytes") < 400 << 10, "{commit}");
    assert_eq!(commit["digest"], larder.json("show web:changed")["digest"]);
    assert_eq!(larder.json("show web:changed")["parent"], "web@1");
    assert!(exported(&larder, "web@2") == bytes);
    assert!(exported(&larder, "web@1") == base, "the parent is as it was");

    // It goes on being served, and the next commit stands upon this one.
    client.trim(1 << 20, 1 << 20);
    client.write_zeroes(3 << 20, 8192);
    bytes[3 << 20..(3 << 20) + 8192].fill(0);
    let trimmed = client.read(1 << 20, 1 << 20);
    bytes[1 << 20..2 << 20].copy_from_slice(&trimmed);
    let commit = larder.json("commit m");
    assert_eq!((&commit["version"], &commit["parent"]), (&3.into(), &"web@2".into()));
    assert_eq!(number(&commit, "new_bytes"), 0, "zeros are stored nowhere");
    assert!(exported(&larder, "web") == bytes);
    served.stop();
    // The version's identity is its content's: an import of the same bytes is the same version.
    larder.write("same.raw", &bytes);
    assert_eq!(larder.json("import same.raw same")["digest"], commit["digest"]);
}

#[test]
fn a_commit_works_where_nobody_serves_the_mirror_and_after_it_is_opened_again() {
    let larder = Larder::new();
    let mut bytes = image(&larder, 2);
    let served = larder.attach("web --mirror m --nbd ./s");
    let mut client = NbdClient::connect(&larder.path("s"), "m");
    client.write(0, &[1; 5000]);
    bytes[..5000].fill(1);
    drop(client);
    served.stop();
    assert_eq!(number(&larder.json("mirrors")["mirrors"][0], "dirty_bytes"), 8192);
    let commit = larder.json("commit m");
    assert_eq!((&commit["version"], &commit["parent"]), (&2.into(), &"web@1".into()));
    assert_eq!(number(&larder.json("mirrors")["mirrors"][0], "dirty_bytes"), 0);
    assert!(exported(&larder, "web") == bytes);

    // The mirror is of version 2 now.
    let failure = larder.try_attach("web@1 --mirror m --nbd ./s").err().unwrap();
    assert!(failure.message.contains("web@2"), "{failure:?}");
    let served = larder.attach("web@2 --mirror m --nbd ./s");
    assert_eq!(served.ready["version"], 2);
    let mut client = NbdClient::connect(&larder.path("s"), "m");
    assert!(client.read_all() == bytes);
    client.write(LEN as u64 - 7, &[3; 7]);
    bytes[LEN - 7..].fill(3);
    let commit = larder.json("commit m");
    assert_eq!((&commit["version"], &commit["parent"]), (&3.into(), &"web@2".into()));
    assert_eq!(number(&commit, "new_bytes"), 4096);
    assert!(exported(&larder, "web") == bytes);
    served.stop();
}

#[test]
fn a_commit_to_a_new_image_binds_the_mirror_to_it() {
    let larder = Larder::new();
    let mut bytes = image(&larder, 3);
    let served = larder.attach("web --mirror m --nbd ./s");
    let mut client = NbdClient::connect(&larder.path("s"), "m");
    client.write(77, &[5; 3]);
    bytes[77..80].fill(5);
    let commit = larder.json("commit m --to mine --tag first");
    assert_eq!((&commit["image"], &commit["version"]), (&"mine".into(), &2.into()));
    assert_eq!(commit["parent"], "mine@1");
    assert_eq!(larder.json("show mine@1")["parent"], "web@1");
    assert_eq!(larder.json("show web")["version"], 1);
    assert!(exported(&larder, "mine:first") == bytes);
    assert_eq!(larder.json("mirrors")["mirrors"][0]["base"], "mine@2");
    assert_eq!(larder.json("commit m")["image"], "mine");
    let failure = larder.fails("commit m --to web");
    assert!(failure.message.contains("web"), "{failure:?}");
    served.stop();
    // Nobody serves it: the same.
    let commit = larder.json("commit m --to third");
    assert_eq!((&commit["image"], &commit["parent"]), (&"third".into(), &"third@1".into()));
    assert!(exported(&larder, "third") == bytes);
}

#[test]
fn two_mirrors_of_one_version_commit_beside_each_other_and_the_second_is_told() {
    let larder = Larder::new();
    let bytes = image(&larder, 4);
    let (mut first, mut second) = (bytes.clone(), bytes);
    let a = larder.attach("web --mirror a --nbd ./a");
    let b = larder.attach("web --mirror b --nbd ./b");
    NbdClient::connect(&larder.path("a"), "a").write(0, &[1; 512]);
    NbdClient::connect(&larder.path("b"), "b").write(4096, &[2; 512]);
    first[..512].fill(1);
    second[4096..4608].fill(2);
    assert_eq!(larder.json("commit a")["bypassed"], Value::Null);
    let text = larder.run("commit b");
    assert!(text.contains("web@2 was the latest; its changes are not in this version"), "{text}");
    assert_eq!(larder.json("show web@3")["parent"], "web@1");
    assert!(exported(&larder, "web@2") == first);
    assert!(exported(&larder, "web@3") == second);
    assert_eq!(larder.json("commit a")["bypassed"], "web@3");
    a.stop();
    b.stop();
}

#[test]
fn what_was_committed_stays_readable_when_its_parents_are_removed() {
    let larder = Larder::new();
    let mut bytes = image(&larder, 5);
    let served = larder.attach("web --mirror m --nbd ./s");
    let mut client = NbdClient::connect(&larder.path("s"), "m");
    client.write(0, &[9; 4096]);
    bytes[..4096].fill(9);
    larder.json("commit m");
    larder.json("remove web@1");
    assert!(exported(&larder, "web@2") == bytes);
    // What the mirror has not fetched yet comes from there too.
    assert!(client.read_all() == bytes);
    client.write(4096, &[8; 4096]);
    bytes[4096..8192].fill(8);
    larder.json("commit m");
    assert!(exported(&larder, "web@3") == bytes);
    served.stop();
    let served = larder.attach("web --mirror m --nbd ./s");
    assert!(NbdClient::connect(&larder.path("s"), "m").read_all() == bytes);
    served.stop();
}

#[test]
fn a_mirror_whose_version_was_removed_keeps_its_data_until_it_has_a_place() {
    let larder = Larder::new();
    image(&larder, 6);
    larder.json("clone web other");
    let served = larder.attach("web --mirror m --nbd ./s");
    let mut client = NbdClient::connect(&larder.path("s"), "m");
    client.write(0, &[9; 4096]);
    client.flush();
    larder.json("remove web");
    let failure = larder.fails("commit m");
    assert!(failure.message.contains("web"), "{failure:?}");
    assert_eq!(client.read(0, 4096), [9; 4096]);
    client.write(8192, &[7; 4096]);
    assert_eq!(client.read(8192, 4096), [7; 4096]);
    served.stop();
    assert_eq!(number(&larder.json("mirrors")["mirrors"][0], "dirty_bytes"), 8192);
}

/// Writes a text, then does what its arguments say: `commit`, or a clone to the image that is named.
const IOCTLS: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include "larder.h"

int main(int argc, char **argv)
{
	int fd = open(argv[1], O_RDWR);

	if (fd < 0 || pwrite(fd, "through the door", 16, 5000) != 16)
		return 2;
	for (int i = 2; i < argc; i++) {
		struct larder_version version;
		int is_commit = strcmp(argv[i], "commit") == 0;

		memset(&version, 0, sizeof version);
		if (!is_commit)
			strcpy(version.image, argv[i]);
		if (ioctl(fd, is_commit ? LARDER_IOC_COMMIT : LARDER_IOC_CLONE, &version) != 0) {
			perror(argv[i]);
			return 1;
		}
		printf("%s@%llu\n", version.image, version.version);
	}
	return 0;
}
"#;

#[test]
fn ioctls_on_the_mirrors_file_clone_and_commit() {
    let larder = Larder::new();
    let mut bytes = image(&larder, 7);
    larder.write("ioctls.c", IOCTLS.as_bytes());
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../include");
    larder.shell(&format!("cc -Wall -I {} -o ioctls ioctls.c", include.display()));
    std::fs::create_dir(larder.path("mount")).unwrap();
    let served = larder.attach("web --mirror m --fuse mount");
    let file = served.file();
    let call = |calls: &str| larder.shell(&format!("./ioctls {} {calls}", file.display()));
    bytes[5000..5016].copy_from_slice(b"through the door");
    assert_eq!(call("commit"), "web@2\n");
    assert!(exported(&larder, "web@2") == bytes);
    assert_eq!(call("team/snapshot commit"), "team/snapshot@1\nteam/snapshot@2\n");
    assert!(exported(&larder, "team/snapshot@1") == bytes);
    assert_eq!(larder.json("mirrors")["mirrors"][0]["base"], "team/snapshot@2");
    let (succeeded, text) = larder.try_shell(&format!("./ioctls {} web", file.display()));
    assert!(!succeeded && text.contains("File exists"), "{text}");
    // The new versions are in the mount.
    larder.shell("cmp mount/team/snapshot/2 exported.raw");
    served.stop();
}
