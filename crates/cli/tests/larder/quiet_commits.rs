//! `commit --quiesce`, with an agent that plays the part of QEMU's.

#[path = "../../../guest/tests/support/fake_agent.rs"]
mod fake_agent;

use std::os::unix::net::UnixListener;
use std::process::Stdio;

use fake_agent::{FakeAgent, OnFreeze};

use crate::harness::{LIMIT, Larder, Process, Random};
use crate::nbd_client::NbdClient;

const SYNC: &str = "guest-sync-delimited";
const FREEZE: &str = "guest-fsfreeze-freeze";
const THAW: &str = "guest-fsfreeze-thaw";

fn with_disk() -> Larder {
    let larder = Larder::new();
    larder.write("disk.raw", &Random::new(5).bytes(1 << 20));
    larder.json("import disk.raw disk");
    larder
}

fn agent(larder: &Larder, on_freeze: OnFreeze) -> FakeAgent {
    FakeAgent::listen(UnixListener::bind(larder.path("agent")).unwrap(), on_freeze)
}

#[test]
fn a_guest_is_frozen_before_its_disk_is_sealed_and_thawed_whatever_comes_of_the_commit() {
    let larder = with_disk();
    let agent = agent(&larder, OnFreeze::Freeze);
    let served = larder.attach("disk --mirror m --nbd ./s");
    NbdClient::connect(&larder.path("s"), "m").write(0, &[1; 4096]);
    let commit = larder.json("commit m --quiesce --agent-socket ./agent");
    assert_eq!((&commit["version"], &commit["frozen_file_systems"]), (&2.into(), &2.into()));
    assert!(commit["frozen_ms"].as_f64().unwrap() >= commit["pause_ms"].as_f64().unwrap());
    assert_eq!([agent.next(), agent.next(), agent.next()], [SYNC, FREEZE, THAW]);
    let text = larder.run("commit m --quiesce --agent-socket ./agent");
    assert!(text.contains("2 file systems for "), "{text}");
    assert_eq!([agent.next(), agent.next(), agent.next()], [SYNC, FREEZE, THAW]);
    // It cannot be published: its image is gone.
    larder.json("remove disk --all");
    larder.fails("commit m --quiesce --agent-socket ./agent");
    assert_eq!([agent.next(), agent.next(), agent.next()], [SYNC, FREEZE, THAW]);
    served.stop();
}

#[test]
fn nothing_is_committed_where_no_agent_answers_or_it_refuses() {
    let larder = with_disk();
    let failure = larder.fails("commit m --quiesce");
    assert!(failure.message.contains("no such mirror"), "{failure:?}");
    let served = larder.attach("disk --mirror m --nbd ./s");
    let failure = larder.fails("commit m --quiesce --to other");
    assert!(failure.message.contains("nobody listens there"), "{failure:?}");
    assert!(failure.hint.unwrap().contains("--agent-socket"));
    let agent = agent(&larder, OnFreeze::Refuse);
    let failure = larder.fails("commit m --quiesce --agent-socket ./agent");
    assert!(failure.message.contains("the command is disabled"), "{failure:?}");
    assert_eq!([agent.next(), agent.next(), agent.next()], [SYNC, FREEZE, THAW]);
    assert_eq!(larder.json("list")["images"].as_array().unwrap().len(), 1);
    assert_eq!(larder.json("show disk")["version"], 1);
    assert_eq!(larder.json("commit m")["frozen_ms"], serde_json::Value::Null);
    served.stop();
    let failure = larder.fails("commit m --quiesce --agent-socket ./agent");
    assert!(failure.message.contains("nobody serves it"), "{failure:?}");
}

#[test]
fn a_guest_is_thawed_where_its_larder_is_killed_while_it_is_frozen() {
    let larder = with_disk();
    let agent = agent(&larder, OnFreeze::FreezeSilently);
    let served = larder.attach("disk --mirror m --nbd ./s");
    let line = "commit m --quiesce --agent-socket ./agent";
    let mut commit = Process::start(larder.command(line).stderr(Stdio::null()));
    assert_eq!([agent.next(), agent.next()], [SYNC, FREEZE]);
    served.kill();
    assert_eq!(agent.next(), THAW);
    assert!(commit.ends_within(LIMIT));
}
