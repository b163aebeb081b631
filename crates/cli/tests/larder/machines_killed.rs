//! `larder resume` and `larder suspend`, killed at one step after the other: no guest is left, no half of a
//! machine, and what lies about goes with the next.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::harness::{Larder, Process};
use crate::machines::{
    Copies, baked, end, guests_of, is_alive, said_until, temporary_files, wait_until,
};

/// How far one kill is from the next.
const STEP: Duration = Duration::from_millis(40);

fn nothing_is_left(larder: &Larder) {
    assert_eq!(larder.json("mirrors")["mirrors"], serde_json::json!([]), "mirrors");
    assert_eq!(temporary_files(larder), Vec::<PathBuf>::new(), "folders");
    assert_eq!(guests_of(larder), Vec::<u64>::new(), "guests");
}

#[test]
fn a_resume_that_is_killed_at_any_step_leaves_no_guest_and_the_next_tidies_up() {
    let larder = baked();
    let line = "resume guest-machine --no-identity --no-network";
    for step in 0.. {
        // Half of them while the machine is still on its way to this host.
        if step % 2 == 0 {
            let _ = std::fs::remove_dir_all(larder.path("state/bases"));
        }
        let said = std::fs::File::create(larder.path("said")).unwrap();
        let mut resume = Process::start(larder.command(line).stdout(said));
        let (began, moment) = (Instant::now(), STEP * step);
        assert!(resume.runs_until(|| began.elapsed() >= moment), "it runs until it is ended");
        resume.kill();
        wait_until("no guest is left", || guests_of(&larder).is_empty());
        // It was resumed and goes on: there are no more steps.
        if !larder.read("said").is_empty() {
            break;
        }
    }
    let copies = Copies::resume(&larder, "guest-machine");
    assert_eq!(said_until(&mut copies.console(0), b'b'), b"b");
    drop(copies);
    nothing_is_left(&larder);
}

#[test]
fn a_suspend_that_is_killed_at_any_step_leaves_a_whole_machine_or_none() {
    let larder = baked();
    let mut was_done = false;
    for step in 0.. {
        let copies = Copies::resume(&larder, "guest-machine --suspendable --mirror own");
        let owner = copies.told["larder_pid"].as_u64().unwrap();
        let mut suspend = Process::start(
            larder
                .command("suspend own --to kept")
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null()),
        );
        let (began, moment) = (Instant::now(), STEP * step);
        was_done |= !suspend.runs_until(|| began.elapsed() >= moment);
        // The guest and its memory are that process's; who asked has only asked.
        end(owner);
        wait_until("its larder has ended", || !is_alive(owner));
        wait_until("no guest is left", || guests_of(&larder).is_empty());
        drop((suspend, copies));
        larder.json("detach own --discard");
        let images = larder.json("list")["images"].clone();
        let names = images.as_array().unwrap().iter().map(|image| image["name"].as_str().unwrap());
        let kept: Vec<&str> = names.filter(|name| name.starts_with("kept")).collect();
        assert!(kept.is_empty() || kept == ["kept", "kept/disk"], "step {step}: {kept:?}");
        if !kept.is_empty() {
            let copies = Copies::resume(&larder, "kept");
            assert_eq!(said_until(&mut copies.console(0), b'c'), b"c");
            drop(copies);
            let machine = larder.json("show kept");
            larder.json(&format!("remove kept@{}", machine["version"]));
            larder.json(&format!("remove {}", machine["parent"].as_str().unwrap()));
        }
        if was_done {
            break;
        }
    }
    Copies::resume(&larder, "guest-machine");
    nothing_is_left(&larder);
    larder.json("scrub");
}
