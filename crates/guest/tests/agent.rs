//! Speaking with an agent at a real socket: frozen, thawed, and thawed by the guard.

#[path = "support/fake_agent.rs"]
mod fake_agent;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fake_agent::{FakeAgent, OnFreeze};
use guest::GuestAgent;
use model::Kind;

const SYNC: &str = "guest-sync-delimited";
const FREEZE: &str = "guest-fsfreeze-freeze";
const THAW: &str = "guest-fsfreeze-thaw";

fn agent(on_freeze: OnFreeze) -> (tempfile::TempDir, PathBuf, FakeAgent) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent");
    let agent = FakeAgent::listen(UnixListener::bind(&path).unwrap(), on_freeze);
    (folder, path, agent)
}

fn greet(path: &Path) -> GuestAgent {
    GuestAgent::greet(UnixStream::connect(path).unwrap()).unwrap()
}

#[test]
fn file_systems_stand_still_until_they_are_thawed_or_forgotten() {
    let (_folder, path, agent) = agent(OnFreeze::Freeze);
    for is_forgotten in [false, true, false] {
        let frozen = greet(&path).freeze().unwrap();
        assert_eq!(frozen.file_system_count(), 2);
        match is_forgotten {
            true => drop(frozen),
            false => drop(frozen.thaw().unwrap()),
        }
        assert_eq!([agent.next(), agent.next(), agent.next()], [SYNC, FREEZE, THAW]);
    }
}

#[test]
fn a_refused_freeze_is_told_in_the_agents_words_and_thawed_all_the_same() {
    let (_folder, path, agent) = agent(OnFreeze::Refuse);
    let error = greet(&path).freeze().map(drop).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused);
    assert!(error.chain().contains("the command is disabled"), "{}", error.chain());
    assert_eq!([agent.next(), agent.next(), agent.next()], [SYNC, FREEZE, THAW]);
}

/// Set in the process that is to be killed while it waits for a frozen guest.
const DOOMED: &str = "LARDER_TEST_DOOMED_SOCKET";

#[test]
fn a_guest_is_thawed_when_whoever_froze_it_is_killed() {
    const NAME: &str = "a_guest_is_thawed_when_whoever_froze_it_is_killed";
    if let Some(path) = std::env::var_os(DOOMED) {
        let agent = greet(Path::new(&path));
        writeln!(std::io::stdout(), "\nfreezing").unwrap();
        // It never returns: the agent freezes and says nothing.
        drop(agent.freeze());
        return;
    }
    let (_folder, path, agent) = agent(OnFreeze::FreezeSilently);
    let mut doomed = Command::new(std::env::current_exe().unwrap())
        .args([NAME, "--exact", "--nocapture"])
        .env(DOOMED, &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(doomed.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "freezing"));
    assert_eq!([agent.next(), agent.next()], [SYNC, FREEZE]);
    doomed.kill().unwrap();
    doomed.wait().unwrap();
    assert_eq!(agent.next(), THAW);
}
