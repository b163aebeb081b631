//! The shipped recipes: all can be read, and the first two make a Debian that boots.
#![allow(clippy::print_stdout, reason = "times for whoever looks")]

#[allow(dead_code, reason = "what the other tests need is there too")]
mod support;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use guest::{Console, Drive, Guest, GuestConfig};
use support::{Ask, Kitchen};

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/debian-12").join(name)
}

const SET: [&str; 4] = ["core.toml", "base.toml", "image.toml", "appliance.toml"];

#[test]
fn the_shipped_recipes_stand_on_each_other() {
    let mut above = None;
    for name in SET {
        let recipe = builder::check(&shipped(name)).unwrap();
        let parent = recipe.stage[0].parent.as_ref().map(|parent| parent.get_ref().clone());
        assert_eq!(parent, above, "{name}");
        above = Some(recipe.name.get_ref().clone());
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
