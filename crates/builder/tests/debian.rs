//! The shipped recipes: all can be read, and the first two make a Debian that boots.
#![allow(clippy::print_stdout, reason = "times for whoever looks")]

#[allow(dead_code, reason = "what the other tests need is there too")]
mod support;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use guest::{Console, Drive, Guest, GuestConfig};
use support::{Ask, Kitchen};

fn recipes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes")
}

fn shipped(name: &str) -> PathBuf {
    recipes().join("debian-12").join(name)
}

const SET: [&str; 4] = ["core.toml", "base.toml", "image.toml", "appliance.toml"];

/// What boots, and by which a test looks into it.
const PACKAGES: &str =
    "\"systemd-sysv\", \"udev\", \"dbus\", \"kmod\", \"linux-image-cloud-amd64\"";

#[test]
fn the_shipped_recipes_stand_on_each_other() {
    for folder in std::fs::read_dir(recipes()).unwrap() {
        for file in std::fs::read_dir(folder.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|ending| ending == "toml") {
                builder::check(&path).unwrap();
            }
        }
    }
    let mut above = None;
    for name in SET {
        let recipe = builder::check(&shipped(name)).unwrap();
        let parent = recipe.stage[0].parent.as_ref().map(|parent| parent.get_ref().clone());
        assert_eq!(parent, above, "{name}");
        above = Some(recipe.name.get_ref().clone());
    }
}

#[test]
fn the_shipped_recipes_of_rpms_stand_on_each_other() {
    for folder in ["fedora-43", "rocky-9"] {
        let of = |name: &str| {
            let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
            builder::check(&recipes.join(folder).join(name)).unwrap()
        };
        let (core, base) = (of("core.toml"), of("base.toml"));
        let parent = base.stage[0].parent.as_ref().map(|parent| parent.get_ref());
        assert_eq!(parent, Some(core.name.get_ref()), "{folder}");
    }
}

/// Takes minutes and the network, so it runs only where it is asked for.
#[test]
#[ignore = "fetches a Debian: `cargo test -p builder --test debian -- --ignored`"]
fn a_debian_of_two_recipes_boots_to_its_login_prompt() {
    let kitchen = Kitchen::new();
    for name in &SET[..2] {
        std::fs::copy(shipped(name), kitchen.path("recipe.toml")).unwrap();
        let _ = std::fs::remove_file(kitchen.path("recipe.lock"));
        kitchen.build();
        let began = Instant::now();
        let again = kitchen.build_as(Ask { locked: true, ..Ask::default() }).unwrap();
        assert!(began.elapsed() < Duration::from_secs(1), "nothing changed, and nothing runs");
        assert!(again.stages[0].cached && !again.is_new);
        kitchen.nothing_is_left();
    }
    kitchen.ask("debian-12/base", "quit");
    let image = kitchen.path("exported.raw");
    let drive = Drive::File { path: image, read_only: false };
    let config = GuestConfig::new(vec![drive], Console::Scripted);
    let guest = &mut Guest::start(&config).unwrap();
    guest.console().unwrap().wait_for("login: ", Duration::from_secs(400)).unwrap();
}

/// Builds a shipped recipe with more lines behind it; it passes its own tests, in these boots.
fn builds(kitchen: &Kitchen, recipe: &str, more: &str, boots: &[&str]) {
    let text = std::fs::read_to_string(recipes().join(recipe)).unwrap();
    kitchen.write("recipe.toml", &format!("{text}\n{more}"));
    let _ = std::fs::remove_file(kitchen.path("recipe.lock"));
    let report = kitchen.build().tests.unwrap();
    println!("{report:#?}");
    assert_eq!(report.failed(), 0);
    let found: Vec<_> = report.outcomes.iter().map(|outcome| outcome.boot.as_str()).collect();
    assert_eq!(found, boots);
    kitchen.nothing_is_left();
}

#[test]
#[ignore = "fetches a Debian: `cargo test -p builder --test debian -- --ignored`"]
fn a_debian_11_boots_by_bios_and_passes_its_tests() {
    builds(&Kitchen::new(), "debian-11/core.toml", "", &["bios"]);
}

#[test]
#[ignore = "fetches a Debian: `cargo test -p builder --test debian -- --ignored`"]
fn a_debian_13_boots_by_bios_and_uefi_and_passes_its_tests() {
    builds(&Kitchen::new(), "debian-13/core.toml", "", &["bios", "uefi"]);
}

#[test]
#[ignore = "fetches a Debian: `cargo test -p builder --test debian -- --ignored`"]
fn a_debian_of_i386_boots_by_bios_and_passes_its_tests() {
    // As released: mirrors bring what corrects a rare architecture late.
    let released = "[[archive]]\nsuite = \"bookworm\"\n";
    builds(&Kitchen::new(), "debian-12-i386/core.toml", released, &["bios"]);
}

#[test]
#[ignore = "fetches an Ubuntu; LARDER_UBUNTU names a file with its `[[archive]]` tables"]
fn an_ubuntu_boots_by_bios_and_uefi_and_passes_its_tests() {
    let archives = std::env::var("LARDER_UBUNTU").expect("LARDER_UBUNTU names a file");
    let archives = std::fs::read_to_string(archives).unwrap();
    builds(&Kitchen::new(), "ubuntu-24.04/core.toml", &archives, &["bios", "uefi"]);
}

#[test]
#[ignore = "fetches a Debian and boots it four times: `cargo test -p builder --test debian -- --ignored`"]
fn the_shipped_cloud_image_learns_who_it_is_from_every_seed() {
    let kitchen = Kitchen::new();
    std::fs::copy(shipped("core.toml"), kitchen.path("recipe.toml")).unwrap();
    kitchen.build();
    let boots = ["bios-credentials", "bios-nocloud", "bios-configdrive", "bios-ec2"];
    builds(&kitchen, "debian-12/cloud.toml", "", &boots);
}

/// The one of these that `cargo xtask test` takes.
#[test]
#[ignore = "fetches a Debian: `cargo test -p builder --test debian -- --ignored`"]
fn a_debian_of_two_stages_is_built_booted_and_passes_its_tests() {
    let kitchen = Kitchen::new();
    let text = format!(
        "name = \"out\"\n[distribution]\nid = \"debian\"\nrelease = \"bookworm\"\n\
         [[stage]]\nname = \"core\"\npackages = [{PACKAGES}]\n\
         [[stage]]\nname = \"web\"\nparent = \"core\"\npackages = [\"nginx-light\"]\n\
         files = [{{ to = \"/var/www/html/index.html\", content = \"a page\" }}]\n\
         run = [\"nginx -t\"]\n[disk]\nboot = \"bios\"\n[[test]]\nname = \"serves\"\n\
         login = true\nunits = [\"nginx\"]\nports = [80]\ntimeout = \"9m\"\n\
         command = \"echo 1..1; grep -q page /var/www/html/index.html && echo ok\"\n"
    );
    kitchen.write("recipe.toml", &text);
    let built = kitchen.build();
    let report = built.tests.unwrap();
    assert_eq!((report.passed(), report.failed()), (1, 0), "{report:#?}");
    let seconds: Vec<f64> = built.stages.iter().map(|stage| stage.seconds).collect();
    println!("stages in {seconds:.1?} s, a test in {:.1} s", report.outcomes[0].seconds);
    kitchen.nothing_is_left();
}

/// Builds a Debian that boots so, with tests; every test must pass, in these boots.
fn passes(disk: &str, boots: &[&str]) {
    let kitchen = Kitchen::new();
    let script = "echo 1..2; findmnt -no SOURCE / >&2 && echo ok 1 - a root; \
                  test -s /etc/machine-id && echo ok 2 - an id of its own";
    kitchen.write(
        "recipe.toml",
        &format!(
            "name = \"out\"\n[distribution]\nid = \"debian\"\nrelease = \"bookworm\"\n\
             [[stage]]\nname = \"core\"\npackages = [{PACKAGES}]\n[disk]\n{disk}\n\
             [[test]]\nname = \"boots\"\nlogin = true\ntimeout = \"9m\"\n\
             [[test]]\nname = \"runs\"\nunits = [\"dbus\", \"systemd-journald\"]\n\
             command = \"{script}\"\ntimeout = \"9m\"\n\
             [[test]]\nname = \"is told\"\nseed = \"credentials\"\ntimeout = \"9m\"\n"
        ),
    );
    let built = kitchen.build();
    let report = built.tests.unwrap();
    println!("{report:#?}");
    assert_eq!(report.failed(), 0);
    let found: Vec<_> = report.outcomes.iter().map(|outcome| outcome.boot.as_str()).collect();
    assert_eq!(found, boots);
    kitchen.nothing_is_left();
    // What has passed is not booted again.
    let began = Instant::now();
    assert_eq!(kitchen.build().tests.unwrap(), report);
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[test]
#[ignore = "fetches a Debian: `cargo test -p builder --test debian -- --ignored`"]
fn a_debian_for_uefi_boots_by_bios_too_and_passes_its_tests() {
    let partitions = "[{ name = \"data\", size = \"64M\", mount = \"/srv\" }]";
    let boots = ["bios", "bios", "bios-credentials", "uefi", "uefi", "uefi-credentials"];
    passes(&format!("boot = \"uefi\"\npartitions = {partitions}"), &boots);
}

#[test]
#[ignore = "fetches a Debian: `cargo test -p builder --test debian -- --ignored`"]
fn a_debian_without_partitions_boots_by_its_own_kernel_and_passes_its_tests() {
    passes("boot = \"direct\"", &["direct", "direct", "direct-credentials"]);
}
