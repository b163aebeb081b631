//! `larder diff`: packages, files and blocks of two versions.

#![expect(clippy::print_stderr, reason = "what is left out is for whoever reads the output")]

use std::collections::HashSet;
use std::path::PathBuf;

use serde_json::json;

use crate::harness::{Larder, Random};

/// Two trees, as file systems `old.raw` and `new.raw` of 16 MiB.
fn make(larder: &Larder) {
    larder.shell(
        "mkdir -p old/etc old/var/lib/dpkg && cd old && echo same > same && echo abc > text && \
         echo grows > grows && touch gone mode && ln -s same link && mkdir kind && \
         printf 'Package: one\\nStatus: install ok installed\\nArchitecture: all\\nVersion: 1\\n\\n\
         Package: two\\nStatus: install ok installed\\nArchitecture: all\\nVersion: 1\\n' \
         > var/lib/dpkg/status && seq 100000 > etc/large && find . -exec touch -hd @1000 {} + && \
         cd .. && cp -a old new && cd new && echo abd > text && echo grown >> grows && rm gone && \
         chmod 600 mode && ln -sf text link && rmdir kind && touch kind came && \
         sed -i s/50000/50001/ etc/large && \
         printf 'Package: one\\nStatus: install ok installed\\nArchitecture: all\\nVersion: 2\\n\\n\
         Package: three\\nStatus: install ok installed\\nArchitecture: all\\nVersion: 3\\n' \
         > var/lib/dpkg/status && find . -exec touch -hd @1000 {} + && cd .. && \
         for n in old new; do mke2fs -q -t ext4 -d $n $n.raw 16M; done",
    );
}

fn expected_files() -> serde_json::Value {
    json!({
        "added": ["/came"],
        "removed": ["/gone"],
        "changed": [
            {"path": "/etc/large", "what": ["content"]},
            {"path": "/grows", "what": ["content"]},
            {"path": "/kind", "what": ["type"]},
            {"path": "/link", "what": ["target"]},
            {"path": "/mode", "what": ["mode"]},
            {"path": "/text", "what": ["content"]},
            {"path": "/var/lib/dpkg/status", "what": ["content"]},
        ],
    })
}

fn blocks(bytes: &[u8]) -> HashSet<&[u8]> {
    bytes.chunks(4096).filter(|block| block.iter().any(|byte| *byte != 0)).collect()
}

#[test]
fn packages_files_and_blocks_that_differ_are_told() {
    let larder = Larder::new();
    make(&larder);
    larder.run("import old.raw old");
    larder.run("import new.raw new");
    let found = larder.json("diff old new");
    assert_eq!(found["files"], expected_files());
    let package = |name: &str, version: &str| json!([{"name": name, "architecture": "all", "version": version}]);
    assert_eq!(found["packages"]["added"], package("three", "3"));
    assert_eq!(found["packages"]["removed"], package("two", "1"));
    assert_eq!(
        found["packages"]["changed"],
        json!([{"name": "one", "architecture": "all", "from": "1", "to": "2"}])
    );
    let (old, new) = (larder.read("old.raw"), larder.read("new.raw"));
    let (old, new) = (blocks(&old), blocks(&new));
    assert_eq!(found["new_bytes"], new.difference(&old).count() * 4096);
    assert_eq!(found["gone_bytes"], old.difference(&new).count() * 4096);
    assert_eq!(found["shared_bytes"], old.intersection(&new).count() * 4096);
    let text = larder.run("diff old new");
    assert!(text.contains("changed  one      1 -> 2"), "{text}");
    assert!(larder.run("diff old old --files").contains("no file differs"));
}

#[test]
fn a_file_system_in_a_partition_is_found() {
    let larder = Larder::new();
    make(&larder);
    for (name, table, start) in [("old", "gpt", 4096), ("new", "dos", 2048)] {
        larder.shell(&format!(
            "truncate -s 24M {name}.disk && printf 'label: {table}\\nstart={start}, size=32768\\n' | \
             PATH=$PATH:/sbin:/usr/sbin sfdisk -q {name}.disk && \
             dd if={name}.raw of={name}.disk bs=512 seek={start} conv=notrunc status=none"
        ));
        larder.run(&format!("import --input-format raw {name}.disk {name}"));
    }
    let found = larder.json("diff old new --files");
    assert_eq!(found["files"], expected_files());
    assert!(found.get("new_bytes").is_none() && found.get("packages").is_none());
}

#[test]
fn of_what_holds_no_files_the_blocks_are_compared() {
    let larder = Larder::new();
    larder.write("a.bin", &Random::new(1).bytes(40_960));
    larder.write("b.bin", &[&larder.read("a.bin")[..20_480], &Random::new(2).bytes(9000)].concat());
    larder.run("import --input-format raw a.bin a");
    larder.run("import --input-format raw b.bin b");
    let found = larder.json("diff a b");
    assert_eq!(found["new_bytes"], 3 * 4096);
    assert_eq!((&found["shared_bytes"], &found["gone_bytes"]), (&20_480.into(), &20_480.into()));
    assert!(found["files"]["not_compared"].as_str().unwrap().contains("no file system"), "{found}");
    let failure = larder.fails("diff a b --files");
    assert!(failure.message.contains("a@1") && failure.message.contains("no file system"));
}

#[test]
fn a_long_list_says_how_to_see_all_of_it() {
    let larder = Larder::new();
    larder.shell(
        "mkdir -p few/etc && cp -a few many && touch many/etc/$(seq -s ' many/etc/' 60) && \
         for n in few many; do mke2fs -q -t ext4 -d $n $n.raw 4M; done",
    );
    larder.run("import few.raw few");
    larder.run("import many.raw many");
    assert!(larder.run("diff few many --files").contains("and 20 more; `--all` shows them"));
    assert!(!larder.run("diff few many --files --all").contains("more;"));
}

#[test]
fn a_damaged_file_system_is_an_error_and_no_panic() {
    let larder = Larder::new();
    make(&larder);
    larder.run("import old.raw old");
    let whole = larder.read("new.raw");
    let mut random = Random::for_test(7);
    let mut failed = 0;
    for _ in 0..60 {
        let mut bytes = whole.clone();
        // Where superblock, descriptors, inodes and folders lie.
        for _ in 0..1 + random.below(40) {
            let at = [1024 + random.below(1024), random.below(1 << 20), random.below(1 << 16)]
                [random.below(3) as usize];
            bytes[at as usize] = random.next() as u8;
        }
        larder.write("new.raw", &bytes);
        larder.run("import --input-format raw new.raw new");
        let outcome = larder.attempt("diff old new --files --format json");
        assert!(matches!(outcome.code, Some(0 | 1)), "{:?}: {}", outcome.code, outcome.stderr);
        assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
        failed += usize::from(outcome.code == Some(1));
    }
    assert!(failed > 0);
}

#[test]
fn two_real_debians_differ_by_what_was_installed() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/images");
    let image = |name: &str| {
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let mut names = entries.map(|entry| entry.path());
        names.find(|path| {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            file.starts_with(name) && file.ends_with(".raw")
        })
    };
    let (Some(minimal), Some(nginx)) = (image("minimal-"), image("nginx-")) else {
        eprintln!("no images in {}: `cargo xtask images` makes them", folder.display());
        return;
    };
    let larder = Larder::new();
    larder.run(&format!("import {} minimal", minimal.display()));
    larder.run(&format!("import {} nginx", nginx.display()));
    let found = larder.json("diff minimal nginx");
    let added = found["packages"]["added"].as_array().unwrap();
    assert!(added.iter().any(|package| package["name"] == "nginx"), "{found}");
    assert_eq!(found["packages"]["removed"], json!([]));
    let added = found["files"]["added"].as_array().unwrap();
    assert!(added.contains(&json!("/etc/nginx/nginx.conf")), "{found}");
    assert!(found["shared_bytes"].as_u64() > found["new_bytes"].as_u64());
}
