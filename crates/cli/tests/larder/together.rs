//! Several larders at once on one repository and one state folder.

use std::process::Stdio;

use crate::harness::{LIMIT, Larder, Process, Random};
use crate::nbd_client::NbdClient;

fn start(larder: &Larder, line: &str) -> Process {
    let mut command = larder.command(line);
    Process::start(command.stdout(Stdio::null()))
}

fn succeeds(mut process: Process) {
    assert!(process.ends_within(LIMIT));
    assert_eq!(process.child.wait().unwrap().code(), Some(0));
}

#[test]
fn imports_at_once_into_a_repository_that_is_not_there_yet_all_arrive() {
    let larder = Larder::new();
    let shared = Random::new(1).bytes(2 << 20);
    let disks: Vec<Vec<u8>> =
        (2..6).map(|seed| [shared.clone(), Random::new(seed).bytes(1 << 20)].concat()).collect();
    for (index, disk) in disks.iter().enumerate() {
        larder.write(&format!("{index}.raw"), disk);
    }
    // Two images with two versions each, in whichever order.
    let imports: Vec<Process> = (0..4)
        .map(|index| start(&larder, &format!("import {index}.raw image-{} --quiet", index % 2)))
        .collect();
    imports.into_iter().for_each(succeeds);
    for image in 0..2 {
        let mut found: Vec<Vec<u8>> = (1..3)
            .map(|version| {
                larder.json(&format!("export image-{image}@{version} out.raw"));
                larder.read("out.raw")
            })
            .collect();
        let mut expected = vec![disks[image].clone(), disks[image + 2].clone()];
        found.sort();
        expected.sort();
        assert!(found == expected, "image-{image}");
    }
}

#[test]
fn commits_of_several_mirrors_and_an_import_at_once_all_arrive() {
    let larder = Larder::new();
    let base = Random::new(1).bytes(2 << 20);
    larder.write("base.raw", &base);
    larder.json("import base.raw base");
    let names = ["a", "b", "c"];
    let served: Vec<_> = names
        .iter()
        .map(|name| larder.attach(&format!("base --mirror {name} --nbd ./{name}.sock")))
        .collect();
    for (index, name) in names.iter().enumerate() {
        let mut client = NbdClient::connect(&larder.path(format!("{name}.sock")), name);
        client.write(4096 * index as u64, &[index as u8 + 1; 4096]);
    }
    let mut all: Vec<Process> =
        names.iter().map(|name| start(&larder, &format!("commit {name} --to {name}"))).collect();
    all.push(start(&larder, "import base.raw again --quiet"));
    // The same mirror twice: one after the other.
    all.push(start(&larder, "commit a --tag twice"));
    let codes: Vec<Option<i32>> = all
        .into_iter()
        .map(|mut process| {
            assert!(process.ends_within(LIMIT));
            process.child.wait().unwrap().code()
        })
        .collect();
    assert_eq!(codes, [Some(0); 5]);
    for (index, name) in names.iter().enumerate() {
        let mut expected = base.clone();
        expected[4096 * index..4096 * (index + 1)].fill(index as u8 + 1);
        larder.json(&format!("export {name} out.raw"));
        assert!(larder.read("out.raw") == expected || *name == "a", "{name}");
    }
    for one in served {
        one.stop();
    }
}

#[test]
fn an_attach_ends_when_asked_though_a_client_stays_connected() {
    let larder = Larder::new();
    larder.write("base.raw", &Random::new(1).bytes(1 << 20));
    larder.json("import base.raw base");
    let served = larder.attach("base --mirror m --nbd ./s");
    let mut client = NbdClient::connect(&larder.path("s"), "m");
    client.write(0, &[7; 512]);
    let detached = larder.json("detach m");
    assert_eq!(detached["was_served"], true);
    // Whoever asks for it next gets it at once, with what was written.
    let again = larder.attach("base --mirror m --nbd ./s");
    assert_eq!(NbdClient::connect(&larder.path("s"), "m").read(0, 512), [7; 512]);
    served.stop_by_itself();
    let idle = NbdClient::connect(&larder.path("s"), "m");
    again.stop();
    drop((client, idle));
}

#[test]
fn a_mirror_that_is_thrown_away_while_it_is_served_is_gone() {
    let larder = Larder::new();
    larder.write("base.raw", &Random::new(1).bytes(1 << 20));
    larder.json("import base.raw base");
    std::fs::create_dir(larder.path("mount")).unwrap();
    let served = larder.attach("base --mirror m --nbd ./s --fuse mount");
    NbdClient::connect(&larder.path("s"), "m").write(0, &[7; 512]);
    larder.json("detach m --discard");
    served.stop_by_itself();
    assert_eq!(larder.json("mirrors")["mirrors"], serde_json::json!([]));
    assert_eq!(std::fs::read_dir(larder.path("state/mirrors")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(larder.path("mount")).unwrap().count(), 0);
    assert!(!larder.path("s").exists(), "the socket is gone too");
}
