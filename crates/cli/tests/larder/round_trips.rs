//! What goes in comes out, byte for byte; and what every command prints for programs.

use std::process::Stdio;

use serde_json::Value;

use crate::harness::{Larder, Random};

const MIB: usize = 1 << 20;

/// A disk with data, holes, blocks that repeat, and an end off every boundary.
fn mixed(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = vec![0; len];
    for chunk in bytes.chunks_mut(64 << 10) {
        match random.below(4) {
            0 => {}
            1 => chunk.fill(random.below(256) as u8),
            _ => chunk.copy_from_slice(&random.bytes(chunk.len())),
        }
    }
    bytes
}

#[test]
fn raw_disks_of_any_length_come_back_byte_for_byte() {
    let larder = Larder::new();
    let lens = [0, 1, 511, 512, 513, 4095, 4096, 4097, MIB - 1, MIB, MIB + 1, 5 * MIB + 777];
    for len in lens {
        let bytes = mixed(len as u64, len);
        larder.write("in.raw", &bytes);
        let imported = larder.json("import in.raw odd --input-format raw");
        assert_eq!(imported["length_bytes"], len as u64);
        larder.json("export odd out.raw");
        assert!(larder.read("out.raw") == bytes, "{len}");
        larder.shell("cmp in.raw out.raw && rm out.raw");
    }
    assert_eq!(larder.json("show odd")["version"], lens.len());
    larder.json(&format!("export odd@{} again.raw", lens.len() - 1));
    assert!(larder.read("again.raw") == mixed((MIB + 1) as u64, MIB + 1), "an older version stays");
}

#[test]
fn an_all_zero_disk_and_a_sparse_disk_take_no_room() {
    let larder = Larder::new();
    larder.shell("truncate -s 3G sparse.raw; head -c 8M /dev/zero > zero.raw");
    let zero = larder.json("import zero.raw zero");
    assert_eq!((&zero["data_bytes"], &zero["new_bytes"]), (&Value::from(0), &Value::from(0)));

    larder.shell("printf here | dd of=sparse.raw bs=1 seek=2147483000 conv=notrunc");
    let sparse = larder.json("import sparse.raw sparse");
    assert_eq!(sparse["length_bytes"], 3_u64 << 30);
    assert_eq!(sparse["data_bytes"], 4096);
    assert!(sparse["stored_bytes"].as_u64().unwrap() < 64 << 10, "{sparse}");
    larder.json("export sparse out.raw");
    larder.shell("qemu-img compare -f raw -F raw sparse.raw out.raw");
    let blocks: u64 = larder.shell("stat -c %b out.raw").trim().parse().unwrap();
    assert!(blocks * 512 <= 64 << 10, "the exported file has {blocks} sectors");
    assert_eq!(larder.shell("stat -c %s out.raw").trim(), (3_u64 << 30).to_string());
}

#[test]
fn qcow2_disks_of_every_make_come_back() {
    let larder = Larder::new();
    let bytes = mixed(7, 6 * MIB);
    larder.write("in.raw", &bytes);
    let whole = larder.json("import in.raw raw");
    for (name, options) in [
        ("plain", ""),
        ("old", "-o compat=0.10"),
        ("deflated", "-c"),
        ("zstd", "-c -o compression_type=zstd"),
        ("small-clusters", "-o cluster_size=4k"),
        ("large-clusters", "-o cluster_size=2M"),
        ("sub-clusters", "-o extended_l2=on"),
    ] {
        larder.shell(&format!("qemu-img convert -O qcow2 {options} in.raw {name}.qcow2"));
        let imported = larder.json(&format!("import {name}.qcow2 {name}"));
        assert_eq!(imported["digest"], whole["digest"], "{name}: content is the identity");
        assert_eq!(imported["new_bytes"], 0, "{name}");
        larder.json(&format!("export {name} {name}.raw"));
        assert!(larder.read(format!("{name}.raw")) == bytes, "{name}");
    }
}

#[test]
fn an_export_to_qcow2_is_a_good_one() {
    let larder = Larder::new();
    for len in [4 * MIB, 3 * MIB + 512] {
        larder.write("in.raw", &mixed(3, len));
        larder.json("import in.raw disk");
        larder.json("export disk out.qcow2 --output-format qcow2");
        larder.shell("qemu-img check -f qcow2 out.qcow2");
        larder.shell("qemu-img compare -f raw -F qcow2 in.raw out.qcow2");
        larder.shell("qemu-img info out.qcow2 | grep 'file format: qcow2'");
        let back = larder.json("import out.qcow2 back");
        assert_eq!(back["digest"], larder.json("show disk")["digest"]);
        larder.shell("rm out.qcow2");
    }
}

#[test]
fn stdin_and_stdout_are_disks_too() {
    let larder = Larder::new();
    let bytes = mixed(11, 3 * MIB + 5);
    larder.write("in.raw", &bytes);
    let from_file = larder.json("import in.raw file");
    let piped = larder.run_with_input("import - piped --format json", &bytes);
    assert_eq!(piped.code, Some(0), "{}", piped.stderr);
    let piped: Value = serde_json::from_slice(&piped.stdout).unwrap();
    assert_eq!(piped["digest"], from_file["digest"]);

    let out = larder.attempt("export piped -");
    assert!(out.stdout == bytes);
    assert_eq!(out.stderr, "");
    // With the disk on stdout the document goes to stderr.
    let out = larder.attempt("export piped - --format json --quiet");
    assert!(out.stdout == bytes);
    let document: Value = serde_json::from_str(&out.stderr).unwrap();
    assert_eq!(document["length_bytes"], bytes.len());
    // To a file that is stdout, and to a reader that goes away.
    let status = larder
        .command("export piped -")
        .stdout(std::fs::File::create(larder.path("redirected.raw")).unwrap())
        .status()
        .unwrap();
    assert!(status.success());
    assert!(larder.read("redirected.raw") == bytes);
    let mut child = larder
        .command("export piped -")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    // And one that has nothing in it.
    let empty = larder.run_with_input("import - empty --format json", b"");
    assert_eq!(empty.code, Some(0), "{}", empty.stderr);
    assert_eq!(larder.attempt("export empty -").stdout, b"");
}

#[test]
fn known_blocks_are_not_stored_again_and_a_clone_copies_nothing() {
    let larder = Larder::new();
    let bytes = Random::new(1).bytes(4 * MIB);
    larder.write("a.raw", &bytes);
    let mut changed = bytes.clone();
    changed[MIB..MIB + 10].fill(0xaa);
    changed.extend(Random::new(2).bytes(8192));
    larder.write("b.raw", &changed);
    let first = larder.json("import a.raw a --tag v1");
    assert_eq!(first["new_bytes"], 4 * MIB);
    let second = larder.json("import b.raw b");
    assert_eq!(second["new_bytes"], 3 * 4096);
    let before = larder.json("stats");
    let clone = larder.json("clone a:v1 c");
    assert_eq!((&clone["image"], &clone["version"]), (&"c".into(), &1.into()));
    let after = larder.json("stats");
    assert_eq!(before["unique_bytes"], after["unique_bytes"]);
    assert_eq!(before["unique_bytes"], 4 * MIB + 3 * 4096);
    assert_eq!(after["images"], 3);
    larder.json("export c c.raw");
    assert!(larder.read("c.raw") == bytes);
    // The clone stands on its own feet.
    larder.json("remove a");
    larder.json("export c c.raw");
    assert!(larder.read("c.raw") == bytes);
}

fn has_keys(document: &Value, keys: &str) {
    let object = document.as_object().unwrap_or_else(|| panic!("{document}"));
    for key in keys.split_whitespace() {
        assert!(object.contains_key(key), "no `{key}` in {document}");
    }
}

#[test]
fn every_command_prints_the_keys_that_programs_read() {
    let larder = Larder::new();
    larder.write("disk.raw", &mixed(5, MIB));
    has_keys(
        &larder.json("import disk.raw team/web --tag stable"),
        "image version digest length_bytes data_bytes new_bytes stored_bytes seconds",
    );
    has_keys(&larder.json("label team/web role=front"), "image label value");
    let list = larder.json("list --label role=front --search web");
    has_keys(&list, "images");
    has_keys(&list["images"][0], "name versions tags labels");
    assert_eq!(list["images"][0]["versions"], serde_json::json!([1]));
    assert_eq!(list["images"][0]["tags"]["stable"], 1);
    assert_eq!(list["images"][0]["labels"]["role"], "front");
    assert_eq!(larder.json("list --label role=back")["images"], serde_json::json!([]));
    has_keys(
        &larder.json("show team/web:stable"),
        "image version digest length_bytes parent created",
    );
    let created = larder.json("create empty --length 1MiB");
    has_keys(&created, "image version");
    has_keys(&larder.json("export team/web out.raw"), "length_bytes seconds");
    has_keys(&larder.json("clone team/web@1 copy"), "image version");
    larder.json("tag copy best");
    assert_eq!(larder.json("show copy:best")["image"], "copy");

    let served = larder.attach("team/web --mirror m --nbd ./m.sock");
    has_keys(&served.ready, "event mirror image version length_bytes exports");
    has_keys(&served.ready["exports"][0], "door address writable");
    let mirrors = larder.json("mirrors");
    has_keys(
        &mirrors["mirrors"][0],
        "name base dirty_bytes fetched_bytes host_bytes exports served_by",
    );
    let commit = "image version parent digest dirty_bytes new_bytes stored_bytes pause_ms seconds";
    has_keys(&larder.json("commit m --tag next"), commit);
    served.stop();
    has_keys(&larder.json("commit m"), commit);
    has_keys(&larder.json("detach m --discard"), "mirror was_served discarded");
    let stats = larder.json("stats");
    has_keys(
        &stats,
        "images versions logical_bytes data_bytes unique_bytes stored_bytes metadata_bytes \
         index_bytes dedup_ratio",
    );
    let ratio =
        1.0 - stats["unique_bytes"].as_f64().unwrap() / stats["data_bytes"].as_f64().unwrap();
    assert!((stats["dedup_ratio"].as_f64().unwrap() - ratio).abs() < 1e-9, "{stats}");
    larder.json("remove copy");
    has_keys(&larder.json("collect"), "removable_bytes removed_bytes packs live_bytes");
    has_keys(&larder.json("collect --apply"), "removable_bytes removed_bytes removed_packs");
    let nothing = larder.json(&format!("collect --explain {}", "ab".repeat(32)));
    has_keys(&nothing, "digest entry uses use_count verdict");
    has_keys(&larder.json("settings show"), "settings file");
    assert_eq!(larder.json("settings show")["settings"]["repo"]["value"], "repo");
    assert!(larder.run("completions bash").contains("larder"));
    larder.run("man pages");
    assert!(larder.path("pages/larder-import.1").exists());
}

#[test]
fn global_options_stand_before_or_after_the_command() {
    let larder = Larder::new();
    larder.write("disk.raw", &[7; 5000]);
    larder.run("--repo other import disk.raw a");
    assert!(larder.path("other/repository.toml").exists());
    assert!(!larder.path("repo").exists());
    for line in ["--format json --repo other list", "list --repo other --format json"] {
        let list: Value = serde_json::from_str(&larder.run(line)).unwrap();
        assert_eq!(list["images"][0]["name"], "a", "{line}");
    }
    larder.run("attach a --repo other --state there --mirror m --nbd ./s --detach");
    assert_eq!(larder.json("--state there mirrors")["mirrors"][0]["name"], "m");
    larder.run("--state there detach m");
    assert!(larder.path("there/mirrors/m").exists());
}

#[test]
fn text_for_people_names_what_was_done() {
    let larder = Larder::new();
    larder.write("disk.raw", &[7; 5000]);
    for (line, expected) in [
        ("import disk.raw a --tag one", "a@1"),
        ("list", "one@1"),
        ("show a", "import disk.raw"),
        ("create b --length 1M", "b@1"),
        ("export a out.raw", "out.raw"),
        ("clone a c", "c@1"),
        ("tag a two", "two"),
        ("label a k=v", "k=v"),
        ("label a k=", "taken away"),
        ("mirrors", "no mirrors"),
        ("attach a --mirror m --nbd ./s --detach", "ready"),
        ("mirrors", "a@1"),
        ("commit m", "a@2"),
        ("detach m", "changes are kept"),
        ("detach m --discard", "thrown away"),
        ("stats", "images"),
        ("remove c", "removed c@1"),
        ("remove a --all", "removed a@1 a@2"),
    ] {
        let text = larder.run(line);
        assert!(text.contains(expected), "larder {line}: {text}");
    }
}
