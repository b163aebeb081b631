//! Builds from a tiny signed archive, offline.

mod support;

use model::Kind;
use support::{Ask, Kitchen};

const CORE: &str = "disk.size = \"64M\"\n[[stage]]\nname = \"core\"\npackages = [\"tiny\"]\n";

#[test]
fn a_first_stage_is_made_of_exactly_the_lock_and_found_again() {
    let kitchen = Kitchen::new();
    kitchen.recipe(CORE);
    let built = kitchen.build();
    assert!(built.is_new);
    assert_eq!(built.version.to_string(), "out@1");
    assert_eq!(built.stages.len(), 1);
    assert!(!built.stages[0].cached);
    assert_eq!(kitchen.ask("out", "cat /usr/share/tiny/version"), "one\n");
    assert_eq!(kitchen.ask("out", "cat /var/lib/misc/tiny"), "configured\n");
    assert_eq!(kitchen.ask("out", "cat /etc/apt/sources.list"), "");
    let lock = std::fs::read_to_string(kitchen.path("recipe.lock")).unwrap();
    assert!(
        lock.contains("name = \"tools\"")
            && lock.contains("path = \"pool/bookworm/tiny_1.0_all.deb\""),
        "{lock}"
    );
    kitchen.nothing_is_left();

    let again = kitchen.build();
    assert!(!again.is_new && again.stages[0].cached);
    assert_eq!(again.version, built.version);
    assert_eq!(std::fs::read_to_string(kitchen.path("recipe.lock")).unwrap(), lock);
}

#[test]
fn the_same_lock_gives_the_same_content_in_another_repository() {
    let (one, two) = (Kitchen::new(), Kitchen::new());
    one.recipe(CORE);
    let first = one.build();
    two.recipe(CORE);
    std::fs::copy(one.path("recipe.lock"), two.path("recipe.lock")).unwrap();
    let second = two.build_as(Ask { locked: true, ..Ask::default() }).unwrap();
    assert_eq!(first.stages[0].key, second.stages[0].key);
    assert_eq!(first.content, second.content);
}

#[test]
fn a_derived_stage_changes_its_parent_in_place() {
    let kitchen = Kitchen::new();
    kitchen.write("motd", "welcome\n");
    kitchen.recipe(&format!(
        "{CORE}[[stage]]\nname = \"more\"\nparent = \"core\"\npackages = [\"more\"]\n\
         files = [{{ to = \"/etc/motd\", from = \"motd\", mode = \"0600\", owner = \"ann:staff\" }}]\n\
         users = [{{ name = \"ann\", groups = [\"staff\"], ssh_keys = [\"ssh-ed25519 AAAA ann\"] }}]\n\
         services = {{ enable = [\"more\"] }}\n\
         run = [\"cat /etc/motd > /etc/step\", {{ command = \"id -u >> /etc/step\", timeout = \"20s\" }}]\n\
         [system]\nhostname = \"box\"\nlocale = \"C.UTF-8\"\nroot_password = \"\"\n"
    ));
    let built = kitchen.build();
    assert_eq!(built.stages.iter().map(|stage| stage.cached).collect::<Vec<_>>(), [false, false]);
    kitchen.nothing_is_left();
    assert_eq!(kitchen.ask("out", "cat /etc/step"), "welcome\n0\n");
    assert_eq!(kitchen.ask("out", "cat /etc/hostname"), "box\n");
    assert_eq!(kitchen.ask("out", "cat /etc/systemd/system/more.enable"), "enable\n");
    assert!(
        kitchen.ask("out", "cat /etc/passwd").contains("ann:x:1000:1000::/home/ann:/bin/bash\n")
    );
    assert!(kitchen.ask("out", "cat /etc/group").contains("staff:x:50:ann\n"));
    assert!(kitchen.ask("out", "cat /etc/shadow").starts_with("root::"));
    let motd = kitchen.ask("out", "stat /etc/motd");
    assert!(motd.contains("Mode:  0600") && motd.contains("User:  1000   Group:    50"), "{motd}");
    // What the package made on its way is gone; the folder of its log is not.
    assert_eq!(kitchen.ask("out", "cat /etc/machine-id"), "");
    assert!(!kitchen.ask("out", "ls /etc/ssh").contains("ssh_host"));
    assert!(kitchen.ask("out", "stat /var/log/more").contains("Type: directory"));
    assert!(!kitchen.ask("out", "ls /var/log/more").contains(" log"));
    // The parent is what it was.
    let core = format!("stages/{}", built.stages[0].key);
    assert_eq!(kitchen.ask(&core, "cat /etc/motd"), "");

    // Another text in a file: the core is there, the second stage is made again, and says why.
    kitchen.write("motd", "hello\n");
    let again = kitchen.build();
    assert!(again.stages[0].cached);
    assert_eq!(again.stages[1].why, "the files that it copies changed");
    assert_eq!(again.version.to_string(), "out@2");
    assert_eq!(kitchen.ask("out", "cat /etc/step"), "hello\n0\n");
}

#[test]
fn a_recipe_may_stand_on_a_version() {
    let kitchen = Kitchen::new();
    kitchen.recipe(CORE);
    kitchen.build();
    kitchen.recipe("[[stage]]\nname = \"upper\"\nparent = \"out@1\"\npackages = [\"more\"]\n");
    let built = kitchen.build();
    assert_eq!(built.version.to_string(), "out@2");
    assert!(kitchen.ask("out", "stat /usr/share/more/data").contains("Size: 65536"));
    let lock = std::fs::read_to_string(kitchen.path("recipe.lock")).unwrap();
    assert!(
        !lock.contains("name = \"tiny\""),
        "what the parent has is not installed again: {lock}"
    );
}

#[test]
fn a_lock_that_does_not_fit_is_refused_where_it_must_fit() {
    let kitchen = Kitchen::new();
    kitchen.recipe(CORE);
    let locked = || kitchen.build_as(Ask { locked: true, ..Ask::default() });
    let error = locked().unwrap_err();
    assert_eq!(error.kind(), Kind::Stale);
    assert!(error.to_string().ends_with("recipe.lock: there is no lock"), "{error}");
    kitchen.build();
    locked().unwrap();
    kitchen.recipe(&CORE.replace("\"tiny\"", "\"more\""));
    let error = locked().unwrap_err();
    assert!(error.to_string().ends_with("the lock is not for what stage `core` asks"), "{error}");
}
