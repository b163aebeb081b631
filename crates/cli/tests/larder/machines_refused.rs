//! What a bake, a resume or a suspend cannot do is told on one line, with the way out, and leaves nothing.

use std::path::PathBuf;
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::json;

use crate::full_disks::{SmallDisk, is_about_space};
use crate::harness::{LIMIT, Larder, Process, files_below};
use crate::machines::{
    BAKE, Copies, baked, counting_disk, end, guests_of, import, temporary_files, wait_until,
};

fn nothing_is_left(larder: &Larder) {
    assert_eq!(larder.json("mirrors")["mirrors"], json!([]), "mirrors");
    assert_eq!(temporary_files(larder), Vec::<PathBuf>::new(), "folders");
    assert_eq!(guests_of(larder), Vec::<u64>::new(), "guests");
}

/// Whether a process has worked for half a second.
fn has_worked(process: u64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let mut fields = stat.rsplit(") ").next().unwrap_or_default().split_ascii_whitespace();
    // The fourteenth field of all, in hundredths of a second.
    fields.nth(11).and_then(|ticks| ticks.parse::<u64>().ok()).is_some_and(|ticks| ticks > 50)
}

#[test]
fn a_guest_that_dies_while_it_is_baked_leaves_nothing() {
    let larder = Larder::new();
    import(&larder, &counting_disk(b"no prompt here"));
    let before = larder.inventory();
    let mut bake = Process::start(larder.command(BAKE).stderr(Stdio::piped()));
    wait_until("the guest runs", || guests_of(&larder).iter().any(|guest| has_worked(*guest)));
    guests_of(&larder).into_iter().for_each(end);
    let said = std::io::read_to_string(bake.child.stderr.take().unwrap()).unwrap();
    assert!(bake.ends_within(LIMIT));
    let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("larder: ")).collect();
    assert_eq!(errors.len(), 1, "{said}");
    assert!(errors[0].contains("guest@1: the guest ended or rebooted"), "{said}");
    assert_eq!(larder.inventory(), before);
    nothing_is_left(&larder);
}

#[test]
fn a_bake_on_a_disk_without_room_leaves_nothing() {
    let larder = Larder::new();
    let Some(disk) = SmallDisk::mount(&larder, "repo", 16) else { return };
    import(&larder, &counting_disk(b"login: "));
    let before = larder.inventory();
    let filler = disk.fill(8 << 10);
    let refused = larder.fails(BAKE);
    assert!(is_about_space(&refused.message), "{refused:?}");
    std::fs::remove_file(filler).unwrap();
    assert_eq!(larder.inventory(), before);
    nothing_is_left(&larder);
    larder.json(BAKE);
    Copies::resume(&larder, "guest-machine");
}

#[test]
fn a_machine_whose_memory_is_damaged_is_refused_by_that_name() {
    let larder = Larder::new();
    import(&larder, &counting_disk(b"login: "));
    let packs = || files_below(&larder.path("repo/packs"));
    let before = packs();
    larder.json(BAKE);
    std::fs::rename(larder.path("state"), larder.path("before")).unwrap();
    // Of the bake's packs the first bytes behind the header: where its memory begins.
    for pack in packs().into_iter().filter(|pack| !before.contains(pack)) {
        let mut bytes = std::fs::read(&pack).unwrap();
        let end = bytes.len().min(600);
        bytes[64..end].iter_mut().for_each(|byte| *byte ^= 0x55);
        std::fs::write(&pack, bytes).unwrap();
    }
    // What was logged on the way stands before it.
    let outcome = larder.attempt("resume guest-machine --no-identity --no-network");
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    let lines = outcome.stderr.lines();
    let told: Vec<&str> = lines.skip_while(|line| !line.starts_with("larder: ")).collect();
    let reason = "larder: resume guest-machine@1: its memory could not be read";
    assert!(told.len() == 2 && told[0].starts_with(reason), "{told:?}");
    assert!(told[0].contains("damaged") && told[1].contains("larder scrub"), "{told:?}");
    nothing_is_left(&larder);
}

#[test]
fn a_guest_whose_disk_the_daemon_serves_is_suspended_by_the_way_that_is_told() {
    let larder = Larder::new();
    import(&larder, &counting_disk(b"login: "));
    let daemon = larder.daemon("");
    let said = |name: &str| std::fs::File::create(larder.path(name)).unwrap();
    let has_prompt = |name: &str| larder.read(name).windows(7).any(|said| said == b"login: ");
    let start = |name: &str, options: &str| {
        let line = format!("run guest --mirror {name} --memory 32MiB --accel tcg {options}");
        let guest = Process::start(larder.command(&line).stdout(said(name)));
        wait_until("the guest runs", || has_prompt(name));
        guest
    };
    let mut served = start("served", "");
    let refused = larder.fails("suspend served");
    assert!(refused.message.contains("daemon"), "{refused:?}");
    assert!(refused.hint.as_deref().unwrap().contains("larder run --suspendable"), "{refused:?}");
    let mut own = start("own", "--suspendable");
    assert_eq!(larder.json("suspend own")["machine"], "guest-suspended@1");
    for guest in [&mut served, &mut own] {
        guest.signal(Signal::TERM);
        assert!(guest.ends_within(LIMIT));
    }
    Copies::resume(&larder, "guest-suspended");
    larder.json("detach served --discard");
    larder.json("detach own --discard");
    daemon.stop();
    nothing_is_left(&larder);
}

#[test]
fn what_nobody_can_give_a_machine_is_refused_before_a_guest_starts() {
    let larder = baked();
    for (line, word) in [
        ("resume guest-machine --no-identity --memory 16MiB", "no helper"),
        ("resume guest-machine --host-name=-x-", "host name"),
        ("resume guest-machine --ssh-keys nowhere", "nowhere"),
        ("resume guest-machine --user-data nowhere", "nowhere"),
        ("resume guest-machine@9 --no-identity", "guest-machine@9"),
        ("bake guest --memory 1TiB", "64 GiB"),
        ("bake guest --no-helper --ready helper", "no helper"),
    ] {
        let refused = larder.fails(line);
        assert!(refused.message.contains(word), "{line}: {refused:?}");
        nothing_is_left(&larder);
    }
}
