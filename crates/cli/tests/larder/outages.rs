//! A repository that goes away and comes back: reads wait by policy, the rest goes on.

use std::collections::HashMap;

use rustix::process::Signal;

use crate::harness::{LIMIT, Larder, Random};
use crate::nbd_client::NbdClient;

const LEN: u64 = 16 << 20;
const EIO: u32 = 5;

/// A larder with an image `disk`, and its bytes.
fn with_disk() -> (Larder, Vec<u8>) {
    let larder = Larder::new();
    let bytes = Random::new(32).bytes(LEN as usize);
    larder.write("disk.raw", &bytes);
    larder.json("import disk.raw disk");
    (larder, bytes)
}

fn goes_away(larder: &Larder) {
    std::fs::rename(larder.path("repo"), larder.path("away")).unwrap();
}

fn comes_back(larder: &Larder) {
    std::fs::rename(larder.path("away"), larder.path("repo")).unwrap();
}

#[test]
fn reads_wait_for_the_repository_while_writes_flushes_and_what_is_here_go_on() {
    let (larder, bytes) = with_disk();
    let served = larder.attach("disk --mirror m --nbd ./s");
    let mut client = NbdClient::connect(&larder.path("s"), "m");
    assert!(client.read(0, 4096) == bytes[..4096]);
    goes_away(&larder);
    // More than a connection has threads for requests that wait.
    let wanted: Vec<u64> = (1..17).rev().map(|part| part * (LEN / 17) / 4096 * 4096).collect();
    let reads: HashMap<u64, u64> =
        wanted.iter().map(|offset| (client.send_read(*offset, 4096).unwrap(), *offset)).collect();
    for round in 0..20 {
        let write = client.send_write(LEN - 4096, &[round; 4096]).unwrap();
        let answer = client.answer().unwrap();
        assert_eq!((answer.cookie, answer.error), (write, 0));
        let flush = client.send_flush().unwrap();
        let answer = client.answer().unwrap();
        assert_eq!((answer.cookie, answer.error), (flush, 0));
        let read = client.send_read(0, 4096).unwrap();
        let answer = client.answer().unwrap();
        assert_eq!((answer.cookie, answer.error), (read, 0));
        assert!(client.payload(4096) == bytes[..4096]);
    }
    comes_back(&larder);
    for _ in &reads {
        let answer = client.answer().unwrap();
        assert_eq!(answer.error, 0);
        let offset = reads[&answer.cookie] as usize;
        assert!(client.payload(4096) == bytes[offset..offset + 4096]);
    }
    let log = std::fs::read_to_string(&served.log).unwrap();
    let told: Vec<&str> =
        log.lines().map(|line| line.split("repository ").nth(1).unwrap()).collect();
    let [lost, found] = told[..] else { panic!("{log}") };
    assert!(lost.starts_with("cannot be reached") && found.starts_with("can be reached again"));
    drop(client);
    served.kill();
}

#[test]
fn a_read_fails_when_its_time_is_over_and_works_when_the_repository_is_back() {
    let (larder, bytes) = with_disk();
    for (index, seconds) in [0, 1].into_iter().enumerate() {
        let served =
            larder.attach(&format!("disk --mirror m{index} --nbd ./s --fetch-timeout {seconds}"));
        let mut client = NbdClient::connect(&larder.path("s"), &format!("m{index}"));
        let offset = (index as u64 + 1) << 22;
        goes_away(&larder);
        assert_eq!(client.try_read(offset, 4096), Err(EIO));
        client.write(0, &[9; 4096]);
        comes_back(&larder);
        assert!(client.read(offset, 4096) == bytes[offset as usize..][..4096]);
        served.kill();
    }
}

#[test]
fn ctrl_c_and_detach_end_a_mirror_whose_reads_wait() {
    let (larder, bytes) = with_disk();
    for is_detached in [false, true] {
        let mut served = larder.attach("disk --mirror m --nbd ./s");
        let mut client = NbdClient::connect(&larder.path("s"), "m");
        client.write(0, &[9; 4096]);
        client.flush();
        goes_away(&larder);
        client.send_read(LEN / 2, 4096).unwrap();
        // It waits, as the log says.
        let log = served.log.clone();
        assert!(served.process.runs_until(|| std::fs::metadata(&log).unwrap().len() > 0));
        match is_detached {
            true => drop(larder.run("detach m")),
            false => served.process.signal(Signal::INT),
        }
        assert!(served.process.ends_within(LIMIT));
        assert!(served.process.child.wait().unwrap().success());
        // Nobody was told that the read failed: whoever connects again asks again.
        assert!(client.answer().is_err());
        comes_back(&larder);
        let served = larder.attach("disk --mirror m --nbd ./s");
        let mut client = NbdClient::connect(&larder.path("s"), "m");
        assert!(client.read(4096, LEN as usize / 2) == bytes[4096..][..LEN as usize / 2]);
        assert_eq!(client.read(0, 4096), [9; 4096]);
        served.stop();
        larder.run("detach m --discard");
        std::fs::remove_dir_all(larder.path("state/bases")).unwrap();
    }
}

#[test]
fn a_daemon_that_starts_without_its_repository_serves_when_it_is_there() {
    let (larder, bytes) = with_disk();
    let daemon = larder.daemon("");
    larder.run("attach disk --mirror m --nbd ./s --detach");
    goes_away(&larder);
    daemon.kill();
    let daemon = larder.daemon("");
    assert_eq!(daemon.ready["waiting"], 1);
    comes_back(&larder);
    let mut client = loop {
        match NbdClient::try_connect(&larder.path("s"), "m") {
            Ok(client) => break client,
            Err(_) => std::thread::yield_now(),
        }
    };
    assert!(client.read_all() == bytes);
    daemon.stop();
}
