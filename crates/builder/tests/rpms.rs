//! Builds from a tiny signed repository of rpm packages, offline.

#[allow(dead_code, reason = "what the other tests need is there too")]
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use builder::difference::{PackageChange, compare_packages};
use format::decode_description;
use model::Kind;
use support::server::{ALWAYS, Server};
use support::{Ask, Kitchen};

const CORE: &str = "disk.size = \"64M\"\n[[stage]]\nname = \"core\"\npackages = [\"tiny\"]\n";

/// Writes a recipe: these stages, of packages from there, signed with these keys.
fn recipe_with(kitchen: &Kitchen, stages: &str, url: &str, keys: &Path) {
    let keys = keys.display();
    kitchen.write(
        "recipe.toml",
        &format!(
            "name = \"out\"\n{stages}\n[distribution]\nid = \"fedora\"\nrelease = \"41\"\n\
             [[archive]]\nurl = \"{url}\"\nsigned_by = \"{keys}\"\n"
        ),
    );
}

fn recipe(kitchen: &Kitchen, rpms: &Path, stages: &str) {
    let url = format!("file://{}/repo", rpms.display());
    recipe_with(kitchen, stages, &url, &rpms.join("keys.asc"));
}

/// A copy of the repositories, to be damaged.
fn copy(kitchen: &Kitchen, rpms: &Path) -> PathBuf {
    let to = kitchen.path("copy");
    assert!(Command::new("cp").arg("-r").args([rpms, &to]).status().unwrap().success());
    to
}

fn packages(kitchen: &Kitchen, reference: &str) -> Vec<String> {
    let version = kitchen.repository.catalog().version(&reference.parse().unwrap()).unwrap();
    let text = kitchen.repository.description(&version).unwrap();
    let packages = decode_description(text.as_bytes()).unwrap().packages;
    packages.into_iter().map(|p| format!("{} {} {}", p.name, p.version, p.architecture)).collect()
}

#[test]
fn a_first_stage_of_rpms_is_made_of_exactly_the_lock_and_found_again() {
    let Some(rpms) = support::rpms() else { return };
    let kitchen = Kitchen::new();
    recipe(&kitchen, &rpms, CORE);
    let built = kitchen.build();
    assert!(built.is_new && !built.stages[0].cached);
    kitchen.nothing_is_left();
    assert_eq!(kitchen.ask("out", "cat /usr/share/tiny/version"), "one\n");
    assert_eq!(kitchen.ask("out", "cat /var/lib/misc/tiny"), "configured\n");
    assert_eq!(packages(&kitchen, "out"), ["tiny 1.0-1 noarch", "tools 1.0-1 x86_64"]);
    let left = kitchen.ask("out", "ls /usr/lib/sysimage/rpm");
    assert!(left.contains("rpmdb.sqlite"), "{left}");
    assert!(!left.contains("lock") && !left.contains("-shm") && !left.contains("-wal"), "{left}");
    let lock = std::fs::read_to_string(kitchen.path("recipe.lock")).unwrap();
    assert!(lock.contains("path = \"Packages/tiny-1.0-1.noarch.rpm\""), "{lock}");
    assert!(lock.contains("order = [\"install tiny tools\"]"), "no weak dependency: {lock}");
    assert!(lock.contains("source_date_epoch = 1762000000"), "{lock}");

    let again = kitchen.build();
    assert!(!again.is_new && again.stages[0].cached);
    assert_eq!(std::fs::read_to_string(kitchen.path("recipe.lock")).unwrap(), lock);
}

#[test]
fn the_same_lock_of_rpms_gives_the_same_content_in_another_repository() {
    let Some(rpms) = support::rpms() else { return };
    let (one, two) = (Kitchen::new(), Kitchen::new());
    let stages = CORE.replace("\"tiny\"", "\"tiny\", \"more\"");
    recipe(&one, &rpms, &stages);
    let first = one.build();
    recipe(&two, &rpms, &stages);
    std::fs::copy(one.path("recipe.lock"), two.path("recipe.lock")).unwrap();
    let second = two.build_as(Ask { locked: true, ..Ask::default() }).unwrap();
    assert_eq!(first.stages[0].key, second.stages[0].key);
    assert_eq!(first.content, second.content);
}

#[test]
fn a_stage_of_rpms_changes_its_parent_in_place_and_leaves_nothing_of_its_making() {
    let Some(rpms) = support::rpms() else { return };
    let kitchen = Kitchen::new();
    kitchen.write("motd", "welcome\n");
    let stages = format!(
        "{CORE}[[stage]]\nname = \"more\"\nparent = \"core\"\npackages = [\"more\"]\n\
         exclude_packages = [\"first\"]\n\
         files = [{{ to = \"/etc/motd\", from = \"motd\" }}]\n\
         users = [{{ name = \"ann\", groups = [\"staff\"] }}]\n\
         services = {{ enable = [\"more\"] }}\n\
         run = [\"cat /etc/motd > /etc/step\"]\n[system]\nhostname = \"box\"\n"
    );
    recipe(&kitchen, &rpms, &stages);
    let built = kitchen.build();
    kitchen.nothing_is_left();
    let expected =
        ["more 1.0-1 noarch", "second 1.0-1 noarch", "tiny 1.0-1 noarch", "tools 1.0-1 x86_64"];
    assert_eq!(packages(&kitchen, "out"), expected);
    assert_eq!(kitchen.ask("out", "cat /etc/step"), "welcome\n");
    assert_eq!(kitchen.ask("out", "cat /etc/hostname"), "box\n");
    assert_eq!(kitchen.ask("out", "cat /etc/systemd/system/more.enable"), "enable\n");
    assert!(kitchen.ask("out", "cat /etc/passwd").contains("ann:x:1000:1000"));
    assert_eq!(kitchen.ask("out", "cat /etc/machine-id"), "");
    assert!(!kitchen.ask("out", "ls /etc/ssh").contains("ssh_host"));
    assert!(!kitchen.ask("out", "ls /var/log/more").contains(" log"));
    assert_eq!(kitchen.ask(&format!("stages/{}", built.stages[0].key), "cat /etc/motd"), "");

    kitchen.write("motd", "hello\n");
    let again = kitchen.build();
    assert!(again.stages[0].cached);
    assert_eq!(again.stages[1].why, "the files that it copies changed");
    let log = std::fs::read_to_string(kitchen.path("state/build/logs/out-more.log")).unwrap();
    assert!(log.contains("its packages are there") && !log.contains("installing"), "{log}");
}

#[test]
fn a_recipe_of_rpms_may_stand_on_a_version_and_replaces_what_is_newer() {
    let Some(rpms) = support::rpms() else { return };
    let kitchen = Kitchen::new();
    recipe(&kitchen, &rpms, CORE);
    kitchen.build();
    let upper =
        "[[stage]]\nname = \"upper\"\nparent = \"out@1\"\npackages = [\"tiny\", \"first\"]\n";
    let next = format!("file://{}/next", rpms.display());
    recipe_with(&kitchen, upper, &next, &rpms.join("keys.asc"));
    kitchen.build();
    kitchen.nothing_is_left();
    let lock = std::fs::read_to_string(kitchen.path("recipe.lock")).unwrap();
    assert!(lock.contains("\"install first\"") && lock.contains("\"upgrade tiny\""), "{lock}");
    assert!(!lock.contains("name = \"tools\""), "what the parent has is not installed: {lock}");
    assert_eq!(kitchen.ask("out", "cat /usr/share/tiny/version"), "two\n");
    let expected = ["first 1.0-1 noarch", "tiny 2.0-1 noarch", "tools 1.0-1 x86_64"];
    assert_eq!(packages(&kitchen, "out"), expected);
}

#[test]
fn packages_of_versions_without_a_description_are_read_from_their_databases() {
    let Some(rpms) = support::rpms() else { return };
    let kitchen = Kitchen::new();
    // The second stage is described, the first is not.
    let changed = "[[stage]]\nname = \"other\"\nparent = \"core\"\nrun = [\"echo > /other\"]\n";
    let [old, new] =
        [("repo", "\"tiny\", \"extra\""), ("next", "\"tiny\", \"first\"")].map(|(place, names)| {
            let stages = CORE.replace("\"tiny\"", names) + changed;
            let url = format!("file://{}/{place}", rpms.display());
            recipe_with(&kitchen, &stages, &url, &rpms.join("keys.asc"));
            let stage = format!("stages/{}", kitchen.build().stages[0].key);
            Arc::new(kitchen.repository.open_version(&stage.parse().unwrap()).unwrap())
        });
    assert!(kitchen.repository.description(old.version()).is_ok_and(|text| !text.contains("tiny")));
    let found = compare_packages(&kitchen.repository, &old, &new).unwrap();
    let names = |list: &[PackageChange]| -> Vec<String> {
        list.iter().map(|change| format!("{} {}", change.name, change.architecture)).collect()
    };
    assert_eq!(names(&found.added), ["first noarch"]);
    assert_eq!(names(&found.removed), ["extra noarch"]);
    assert_eq!(names(&found.changed), ["tiny noarch"]);
    assert_eq!(found.changed[0].from.as_deref(), Some("1.0-1"));
    assert_eq!(found.changed[0].to.as_deref(), Some("2.0-1"));
}

#[test]
fn a_package_that_is_excluded_is_removed_from_what_a_stage_stands_on() {
    let Some(rpms) = support::rpms() else { return };
    let kitchen = Kitchen::new();
    let stages = CORE.replace("\"tiny\"", "\"tiny\", \"extra\"")
        + "[[stage]]\nname = \"less\"\nparent = \"core\"\nexclude_packages = [\"extra\"]\n";
    recipe(&kitchen, &rpms, &stages);
    kitchen.build();
    let lock = std::fs::read_to_string(kitchen.path("recipe.lock")).unwrap();
    assert!(lock.contains("order = [\"remove extra\"]"), "{lock}");
    assert_eq!(packages(&kitchen, "out"), ["tiny 1.0-1 noarch", "tools 1.0-1 x86_64"]);
}

#[test]
fn a_lock_of_rpms_that_does_not_fit_is_refused_where_it_must_fit() {
    let Some(rpms) = support::rpms() else { return };
    let kitchen = Kitchen::new();
    recipe(&kitchen, &rpms, CORE);
    let locked = || kitchen.build_as(Ask { locked: true, ..Ask::default() });
    assert_eq!(locked().unwrap_err().kind(), Kind::Stale);
    kitchen.build();
    locked().unwrap();
    recipe(&kitchen, &rpms, &CORE.replace("\"tiny\"", "\"extra\""));
    let error = locked().unwrap_err();
    assert!(error.to_string().ends_with("the lock is not for what stage `core` asks"), "{error}");
}

/// Builds these stages from a repository with these keys, which fails.
fn fails(rpms: &Path, (repository, keys): (&str, &str), stages: &str) -> (Kitchen, model::Error) {
    let kitchen = Kitchen::new();
    let url = format!("file://{}", rpms.join(repository).display());
    recipe_with(&kitchen, stages, &url, &rpms.join(keys));
    let error = kitchen.fails();
    (kitchen, error)
}

#[test]
fn an_rpm_that_is_not_signed_as_the_recipe_says_is_refused() {
    let Some(rpms) = support::rpms() else { return };
    let core = |package: &str| CORE.replace("\"tiny\"", &format!("\"{package}\""));
    for (place, package, reason) in [
        (("mixed", "keys.asc"), "tiny", "verify the package tiny 1.0-1: it is not signed"),
        (("mixed", "keys.asc"), "more", "it is signed with another key"),
        (
            ("repo", "other.asc"),
            "extra",
            "verify the package extra 1.0-1: it is signed with another key",
        ),
        (("next", "other.asc"), "extra", "Bad GPG signature"),
    ] {
        let (_kitchen, error) = fails(&rpms, place, &core(package));
        assert_eq!(error.kind(), Kind::Refused, "{}", error.chain());
        let text = error.chain();
        assert!(text.contains("line ") && text.contains("stage `core`"), "{text}");
        assert!(text.contains(reason), "{text}");
        assert!(error.hint_text().unwrap().contains("`signed_by`"));
    }
}

#[test]
fn an_rpm_that_was_verified_for_another_recipe_is_verified_for_this_one() {
    let Some(rpms) = support::rpms() else { return };
    let kitchen = Kitchen::new();
    recipe(&kitchen, &rpms, CORE);
    kitchen.build();
    let url = format!("file://{}/repo", rpms.display());
    // Another stage with the same file.
    let stages = CORE.replace("\"tiny\"", "\"tools\"");
    recipe_with(&kitchen, &stages, &url, &rpms.join("other.asc"));
    let error = kitchen.fails();
    assert_eq!(error.kind(), Kind::Refused, "{}", error.chain());
    assert!(error.chain().contains("verify the package tools 1.0-1"), "{}", error.chain());
}

#[test]
fn an_rpm_that_is_damaged_is_a_transient_error_and_never_installed() {
    let Some(rpms) = support::rpms() else { return };
    let kitchen = Kitchen::new();
    let copy = copy(&kitchen, &rpms);
    let rpm = copy.join("repo/Packages/tiny-1.0-1.noarch.rpm");
    let whole = std::fs::read(&rpm).unwrap();
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(&rpm, damaged).unwrap();
    recipe(&kitchen, &copy, CORE);
    let error = kitchen.fails();
    assert_eq!(error.kind(), Kind::Unavailable, "{}", error.chain());
    let text = error.chain();
    let expected = "fetch the package tiny 1.0-1: what the archive has is not what was locked";
    assert!(text.contains(expected), "{text}");
    std::fs::write(&rpm, whole).unwrap();
    kitchen.build();
}

#[test]
fn an_rpm_that_does_not_exist_is_told_with_its_line() {
    let Some(rpms) = support::rpms() else { return };
    let stages = CORE.replace("\"tiny\"", "\"tiny\",\n\"nosuch\"");
    let (kitchen, error) = fails(&rpms, ("repo", "keys.asc"), &stages);
    assert_eq!(error.kind(), Kind::NotFound, "{}", error.chain());
    let text = error.to_string();
    let expected = "line 6, stage `core`: there is no package `nosuch` in the archives";
    assert!(text.ends_with(expected), "{text}");
    assert!(!kitchen.path("recipe.lock").exists());
}

#[test]
fn rpms_that_conflict_are_told_with_the_stage() {
    let Some(rpms) = support::rpms() else { return };
    let stages = CORE.replace("\"tiny\"", "\"first\", \"second\"");
    let (_kitchen, error) = fails(&rpms, ("repo", "keys.asc"), &stages);
    assert_eq!(error.kind(), Kind::Invalid, "{}", error.chain());
    let text = error.chain();
    assert!(text.contains("stage `core`") && text.contains("conflicts with second"), "{text}");
}

#[test]
fn an_rpm_whose_script_fails_ends_the_build() {
    let Some(rpms) = support::rpms() else { return };
    let stages =
        format!("{CORE}[[stage]]\nname = \"bad\"\nparent = \"core\"\npackages = [\"broken\"]\n");
    let (kitchen, error) = fails(&rpms, ("repo", "keys.asc"), &stages);
    assert_eq!(error.kind(), Kind::Invalid, "{}", error.chain());
    let text = error.to_string();
    assert!(text.contains("stage `bad`: the installation of its packages ended with"), "{text}");
    assert!(text.contains("this package is broken"), "{text}");
    assert!(text.contains("a script of broken-1.0-1.noarch.rpm failed"), "{text}");
    let kept = kitchen.repository.catalog().images(&Default::default()).unwrap();
    assert_eq!(kept.len(), 1, "the finished stage is kept, and nothing else: {kept:?}");
}

#[test]
fn a_script_of_an_rpm_sees_nothing_of_the_host() {
    let Some(rpms) = support::rpms() else { return };
    let kitchen = Kitchen::new();
    kitchen.write("victim", "safe");
    let stages = CORE.replace("\"tiny\"", "\"curious\"");
    recipe(&kitchen, &rpms, &stages);
    kitchen.build();
    assert_eq!(kitchen.ask("out", "cat /escaped"), "");
    assert!(kitchen.ask("out", "cat /looked").starts_with("looked"));
}

#[test]
fn a_repository_of_rpms_that_breaks_off_is_asked_again() {
    let Some(rpms) = support::rpms() else { return };
    let server = Server::start(&rpms);
    let kitchen = Kitchen::new();
    let url = format!("{}/repo", server.url());
    recipe_with(&kitchen, CORE, &url, &rpms.join("keys.asc"));
    server.break_off(1);
    kitchen.build();
    assert_eq!(server.broken(), 1);
    assert_eq!(kitchen.ask("out", "cat /usr/share/tiny/version"), "one\n");
}

#[test]
fn a_repository_of_rpms_that_always_breaks_off_is_a_transient_error_and_the_lock_is_kept() {
    let Some(rpms) = support::rpms() else { return };
    let server = Server::start(&rpms);
    let kitchen = Kitchen::new();
    let url = format!("{}/repo", server.url());
    recipe_with(&kitchen, CORE, &url, &rpms.join("keys.asc"));
    server.break_off(ALWAYS);
    let error = kitchen.fails();
    assert_eq!(error.kind(), Kind::Unavailable, "{}", error.chain());
    let text = error.chain();
    assert!(text.contains("stage `core`") && text.contains("fetch the package "), "{text}");
    let lock = std::fs::read_to_string(kitchen.path("recipe.lock")).unwrap();
    server.break_off(0);
    kitchen.build_as(Ask { locked: true, ..Ask::default() }).unwrap();
    assert_eq!(std::fs::read_to_string(kitchen.path("recipe.lock")).unwrap(), lock);
    drop(server);
    kitchen.write("recipe.lock", "format = 1\n");
    let error = kitchen.fails();
    assert_eq!(error.kind(), Kind::Unavailable, "{}", error.chain());
    assert!(error.chain().contains("stage `core`"), "{}", error.chain());
}

#[test]
fn a_disk_of_rpms_boots_the_newest_kernel_of_its_modules() {
    let Some(rpms) = support::rpms() else { return };
    let disk = "disk = { size = \"64M\", boot = \"bios\", boot_size = \"17M\" }\n";
    let core = format!("{disk}[[stage]]\nname = \"core\"\npackages = [\"kernel-core\"]\n");
    let (one, two) = (Kitchen::new(), Kitchen::new());
    recipe(&one, &rpms, &core);
    let first = one.build();
    recipe(&two, &rpms, &core);
    assert_eq!(first.content, two.build().content);
    assert_eq!(boot_files(&one), [200_000, 200_000]);
    // Another kernel is installed beside the first.
    let upper = "[[stage]]\nname = \"upper\"\nparent = \"out@1\"\npackages = [\"kernel-core\"]\n";
    let next = format!("file://{}/next", rpms.display());
    recipe_with(&one, upper, &next, &rpms.join("keys.asc"));
    one.build();
    assert_eq!(boot_files(&one), [100_000, 100_000]);
    let lock = std::fs::read_to_string(one.path("recipe.lock")).unwrap();
    assert!(lock.contains("order = [\"install kernel-core\"]"), "{lock}");
}

/// The lengths of the kernel and the initrd on the boot partition.
fn boot_files(kitchen: &Kitchen) -> [usize; 2] {
    kitchen.ask("out", "quit");
    ["vmlinuz", "initrd.img"].map(|name| {
        let image = format!("{}@@1M", kitchen.path("exported.raw").display());
        let command = ["-i", &image, &format!("::{name}"), "-"];
        Command::new("mcopy").args(command).output().unwrap().stdout.len()
    })
}
