//! Archives that break off, disks that are filled, builds that are in each other's way: offline.

#[allow(dead_code, reason = "what the other tests need is there too")]
mod support;

use model::Kind;
use support::server::{ALWAYS, Server};
use support::{Ask, Kitchen};

const CORE: &str = "disk.size = \"64M\"\n[[stage]]\nname = \"core\"\npackages = [\"tiny\"]\n";

/// A kitchen whose recipe takes its packages from a server.
fn served(server: &Server, stages: &str) -> Kitchen {
    let kitchen = Kitchen::new();
    kitchen.recipe(stages);
    let text = std::fs::read_to_string(kitchen.path("recipe.toml")).unwrap();
    let archive = format!("file://{}", kitchen.archive.display());
    kitchen.write("recipe.toml", &text.replace(&archive, &server.url()));
    kitchen
}

#[test]
fn an_archive_that_breaks_off_is_asked_again() {
    let server = Server::start(&support::archive());
    let kitchen = served(&server, CORE);
    server.break_off(2);
    kitchen.build();
    assert_eq!(server.broken(), 2);
    assert_eq!(kitchen.ask("out", "cat /usr/share/tiny/version"), "one\n");
}

#[test]
fn an_archive_that_always_breaks_off_is_a_transient_error_and_the_lock_is_kept() {
    let server = Server::start(&support::archive());
    let kitchen = served(&server, CORE);
    server.break_off(ALWAYS);
    let error = kitchen.fails();
    assert_eq!(error.kind(), Kind::Unavailable, "{}", error.chain());
    let text = error.chain();
    assert!(text.contains("stage `core`") && text.contains("fetch the package "), "{text}");
    assert!(error.hint_text().unwrap().contains("try again later"), "{:?}", error.hint_text());
    assert!(server.broken() > 2);
    let lock = std::fs::read_to_string(kitchen.path("recipe.lock")).unwrap();
    server.break_off(0);
    kitchen.build_as(Ask { locked: true, ..Ask::default() }).unwrap();
    assert_eq!(std::fs::read_to_string(kitchen.path("recipe.lock")).unwrap(), lock);
}

#[test]
fn an_archive_that_does_not_answer_is_a_transient_error() {
    let server = Server::start(&support::archive());
    let kitchen = served(&server, CORE);
    drop(server);
    let error = kitchen.fails();
    assert_eq!(error.kind(), Kind::Unavailable, "{}", error.chain());
    assert!(error.chain().contains("stage `core`"), "{}", error.chain());
}

#[test]
fn a_step_of_a_first_stage_cannot_fill_the_disk_of_the_host() {
    let kitchen = Kitchen::new();
    kitchen.recipe(
        &CORE.replace("\"tiny\"]", "\"tiny\"]\nrun = [\"dd if=/dev/zero of=/full bs=1M\"]"),
    );
    let error = kitchen.fails();
    assert_eq!(error.kind(), Kind::Full, "{}", error.chain());
    assert!(error.to_string().contains("line 6, stage `core`"), "{error}");
    assert!(error.hint_text().unwrap().contains("`size`"));
    kitchen.recipe(&CORE.replace(
        "\"tiny\"]",
        "\"tiny\"]\nrun = [\"for i in $(seq 1 9999); do dd if=/dev/zero of=/full$i bs=1M count=20; done\"]",
    ));
    let error = kitchen.fails();
    assert_eq!(error.kind(), Kind::Full, "{}", error.chain());
}
