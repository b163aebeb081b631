//! Scrub, repair and rebuild as commands: what they print, how they end, and what is left when they
//! are killed.

use std::path::PathBuf;

use serde_json::Value;

use crate::every_step::kill_at_each_step;
use crate::harness::{Larder, Random};

fn packs(larder: &Larder, repo: &str) -> Vec<PathBuf> {
    let files = std::fs::read_dir(larder.path(repo).join("packs")).unwrap();
    files.map(|file| file.unwrap().path()).collect()
}

/// Zeroes the first bytes of the entries of every pack.
fn spoil(larder: &Larder) {
    for pack in packs(larder, "repo") {
        let mut bytes = std::fs::read(&pack).unwrap();
        bytes[16..2000].fill(0);
        std::fs::write(pack, bytes).unwrap();
    }
}

fn lose_catalog(larder: &Larder) {
    larder.shell("rm -f repo/catalog.sqlite repo/catalog.sqlite-wal repo/catalog.sqlite-shm");
}

#[test]
fn a_scrub_ends_with_1_where_something_is_damaged_and_repair_makes_it_0_again() {
    let larder = Larder::new();
    let bytes = Random::new(1).bytes(1 << 20);
    larder.write("disk.raw", &bytes);
    larder.json("import disk.raw web");
    let sound = larder.json("scrub --deep");
    assert_eq!((&sound["corrupt"], &sound["missing"]), (&Value::from(0), &Value::from(0)));
    assert!(sound["chunks"].as_u64().unwrap() >= 4);
    assert!(larder.run("scrub --rate 1GiB").contains("damaged"));

    spoil(&larder);
    let outcome = larder.attempt("scrub --format json --quiet");
    assert_eq!(outcome.code, Some(1));
    let document: Value = serde_json::from_slice(&outcome.stdout).unwrap();
    assert_eq!(document["corrupt"], 1);
    let finding = &document["findings"][0];
    assert_eq!(finding["fault"], "damaged");
    assert_eq!(finding["versions"][0]["image"], "web");
    let digest = finding["digest"].as_str().unwrap();
    let told = outcome.stderr.lines().collect::<Vec<_>>();
    assert_eq!(told[0], "larder: scrub repo: 1 damaged, 0 missing");
    assert!(told[1].starts_with("hint: ") && told[1].contains("--repair"), "{told:?}");
    let text = larder.attempt("scrub");
    assert!(String::from_utf8(text.stdout).unwrap().contains(digest));
    let failure = larder.fails("export web out.raw");
    assert!(failure.message.contains(digest) && failure.message.contains("web@1"), "{failure:?}");
    assert!(failure.hint.unwrap().contains("larder scrub"));

    let outcome = larder.attempt("scrub --repair");
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.stderr.contains("could not be repaired"), "{}", outcome.stderr);
    let other = Random::new(2).bytes(1 << 19);
    larder.write("other.raw", &other);
    for line in ["import other.raw x --repo donor", "import disk.raw y --repo donor"] {
        larder.json(line);
    }
    let repaired = larder.json("scrub --repair --from donor");
    assert_eq!(repaired["findings"][0]["outcome"], "restored");
    assert_eq!(larder.json("scrub --deep")["corrupt"], 0);
    larder.json("export web out.raw");
    assert!(larder.read("out.raw") == bytes);
}

#[test]
fn a_lost_catalog_is_told_by_every_command_and_rebuilt_by_the_one_that_they_name() {
    let larder = Larder::new();
    larder.write("disk.raw", &Random::new(1).bytes(1 << 20));
    larder.json("import disk.raw web --tag stable");
    lose_catalog(&larder);
    for line in [
        "list",
        "show web",
        "import disk.raw web",
        "export web out.raw",
        "stats",
        "clone web copy",
        "remove web",
        "scrub",
        "attach web --mirror m --nbd ./s",
    ] {
        let failure = larder.fails(line);
        assert!(failure.message.contains("catalog.sqlite: the file is missing"), "{failure:?}");
        assert!(failure.hint.as_deref().unwrap().contains("larder scrub --rebuild"), "{failure:?}");
    }
    let rebuilt = larder.json("scrub --rebuild");
    assert_eq!((&rebuilt["packs"], &rebuilt["versions_from_export"]), (&1.into(), &1.into()));
    assert!(rebuilt["unknown"][0].as_str().unwrap().contains("since the export"));
    larder.json("show web:stable");
    assert!(larder.fails("scrub --rebuild").hint.unwrap().contains("--even-if-sound"));
    assert!(larder.run("scrub --rebuild --even-if-sound").contains("broken-1"));
    assert_eq!(larder.attempt("scrub --from x").code, Some(2));
}

#[test]
fn a_repair_that_is_killed_at_any_step_is_finished_by_the_next() {
    let larder = Larder::new();
    let (bytes, other) = (Random::new(1).bytes(400_000), Random::new(2).bytes(100_000));
    larder.write("disk.raw", &bytes);
    larder.write("other.raw", &other);
    larder.json("import other.raw x --repo donor");
    larder.json("import disk.raw y --repo donor");
    larder.json("import disk.raw web");
    spoil(&larder);
    kill_at_each_step(&larder, "scrub --repair --from donor", |step| {
        larder.json("scrub --repair --from donor");
        assert_eq!(larder.json("scrub")["corrupt"], 0, "{step}");
        larder.json("export web out.raw");
        assert!(larder.read("out.raw") == bytes, "{step}");
    });
}

#[test]
fn a_rebuild_that_is_killed_at_any_step_leaves_the_old_catalog_or_the_new_one_or_says_so() {
    let larder = Larder::new();
    let bytes = Random::new(1).bytes(400_000);
    larder.write("disk.raw", &bytes);
    larder.json("import disk.raw web");
    larder.write("repo/catalog.sqlite", b"no database at all, but a text of some length");
    kill_at_each_step(&larder, "scrub --rebuild", |step| {
        let listed = larder.attempt("list");
        if listed.code != Some(0) {
            assert!(listed.stderr.contains("larder scrub --rebuild"), "{step}: {}", listed.stderr);
            larder.json("scrub --rebuild");
        }
        larder.json("export web out.raw");
        assert!(larder.read("out.raw") == bytes, "{step}");
        larder.json("import disk.raw web");
        assert_eq!(larder.json("show web")["version"], 2, "{step}");
        let kept = larder.shell("cat repo/catalog.sqlite.broken-*");
        assert!(kept.contains("no database at all"), "{step}: nothing is removed");
    });
}
