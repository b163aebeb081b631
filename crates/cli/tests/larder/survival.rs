//! `kill -9` of attach, import and commit: what was acknowledged is there, the rest is old or new.

use std::collections::HashMap;
use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::harness::{LIMIT, Larder, Process, Random};
use crate::nbd_client::NbdClient;

const SECTOR: u64 = 512;
const LEN: u64 = 8 << 20;

/// Writes in the order in which they were sent. No two that touch one sector are under way at once,
/// so for each sector this is the order of their effects.
#[derive(Default)]
struct Writes {
    writes: Vec<Write>,
    /// Counts what was sent and what was answered.
    time: u64,
    /// Flushes under way: when each was sent.
    flushes: HashMap<u64, u64>,
}

struct Write {
    first: u64,
    count: u64,
    value: u64,
    cookie: u64,
    answered: Option<u64>,
    is_durable: bool,
}

impl Writes {
    fn in_flight(&self) -> usize {
        self.writes.iter().filter(|write| write.answered.is_none()).count() + self.flushes.len()
    }

    fn touches_one_in_flight(&self, first: u64, count: u64) -> bool {
        self.writes.iter().any(|write| {
            write.answered.is_none()
                && first < write.first + write.count
                && write.first < first + count
        })
    }

    fn answered(&mut self, cookie: u64) {
        self.time += 1;
        if let Some(sent) = self.flushes.remove(&cookie) {
            // A flush covers what was answered before it was sent.
            for write in &mut self.writes {
                write.is_durable |= write.answered.is_some_and(|answered| answered < sent);
            }
            return;
        }
        let write = self.writes.iter_mut().find(|write| write.cookie == cookie).unwrap();
        write.answered = Some(self.time);
    }

    /// Checks each sector of a disk that was opened again against what it may hold.
    fn check(&self, before: &[u8], after: &[u8]) {
        let value_of = |bytes: &[u8], sector: usize| {
            let bytes = &bytes[sector * SECTOR as usize..][..SECTOR as usize];
            let value = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            let is_whole = bytes.chunks(8).all(|part| part == value.to_le_bytes());
            assert!(is_whole, "sector {sector} is torn");
            value
        };
        assert_eq!(before.len(), after.len());
        let mut certain: Vec<u64> =
            (0..before.len() / SECTOR as usize).map(|sector| value_of(before, sector)).collect();
        let mut possible: HashMap<u64, Vec<u64>> = HashMap::new();
        for write in &self.writes {
            for sector in write.first..write.first + write.count {
                match write.is_durable {
                    true => {
                        certain[sector as usize] = write.value;
                        possible.remove(&sector);
                    }
                    false => possible.entry(sector).or_default().push(write.value),
                }
            }
        }
        for (sector, &certain) in certain.iter().enumerate() {
            let value = value_of(after, sector);
            let possible = possible.get(&(sector as u64)).map_or(&[][..], |values| values);
            assert!(
                value == certain || possible.contains(&value),
                "sector {sector} holds {value}: neither the durable {certain} nor of {possible:?}"
            );
        }
    }
}

/// Sends writes and flushes, several under way at once, and returns with some unanswered.
fn disturb(client: &mut NbdClient, random: &mut Random, stamp: &mut u64) -> Writes {
    let mut sent = Writes::default();
    let request_count = 1 + random.below(150);
    let in_flight_max = 1 + random.below(12) as usize;
    for _ in 0..request_count {
        let first = random.below(LEN / SECTOR - 64);
        let count_max = if random.below(4) == 0 { 64 } else { 9 };
        let count = 1 + random.below(count_max);
        sent.time += 1;
        if random.below(6) == 0 {
            let cookie = client.send_flush().unwrap();
            sent.flushes.insert(cookie, sent.time);
        } else if !sent.touches_one_in_flight(first, count) {
            *stamp += 1;
            let data = stamp.to_le_bytes().repeat((count * SECTOR / 8) as usize);
            let cookie = client.send_write(first * SECTOR, &data).unwrap();
            let (value, answered) = (*stamp, None);
            sent.writes.push(Write { first, count, value, cookie, answered, is_durable: false });
        }
        while sent.in_flight() >= in_flight_max {
            let answer = client.answer().unwrap();
            assert_eq!(answer.error, 0);
            sent.answered(answer.cookie);
        }
    }
    sent
}

/// A disk of which every sector holds copies of one number.
fn numbered_disk() -> Vec<u8> {
    let sectors = (0..LEN / SECTOR).map(|sector| sector + (1 << 40));
    sectors.flat_map(|number: u64| number.to_le_bytes().repeat(SECTOR as usize / 8)).collect()
}

#[test]
fn flushed_writes_survive_kill_9_of_the_owner_and_no_sector_is_torn() {
    let larder = Larder::new();
    let mut bytes = numbered_disk();
    larder.write("disk.raw", &bytes);
    larder.json("import disk.raw disk");
    let mut random = Random::for_test(5);
    let (mut stamp, mut durable_count) = (0, 0);
    let mut version = 1;
    for round in 0..20 {
        let served = larder.attach(&format!("disk@{version} --mirror m --nbd ./s"));
        let mut client = NbdClient::connect(&larder.path("s"), "m");
        if round % 4 == 3 {
            let commit = larder.json("commit m");
            version = commit["version"].as_u64().unwrap();
        }
        let sent = disturb(&mut client, &mut random, &mut stamp);
        served.kill();
        durable_count += sent.writes.iter().filter(|write| write.is_durable).count();
        let served = larder.attach(&format!("disk@{version} --mirror m --nbd ./s"));
        let mut client = NbdClient::connect(&larder.path("s"), "m");
        let found = client.read_all();
        sent.check(&bytes, &found);
        // What was found once stays: it is read again after another kill.
        client.flush();
        served.kill();
        bytes = found;
    }
    assert!(durable_count > 100, "only {durable_count} writes were flushed: this tests little");
    let served = larder.attach(&format!("disk@{version} --mirror m --nbd ./s"));
    assert!(NbdClient::connect(&larder.path("s"), "m").read_all() == bytes);
    larder.json("commit m");
    larder.json("export disk out.raw");
    assert!(larder.read("out.raw") == bytes);
    served.stop();
}

#[test]
fn a_mount_of_a_killed_owner_is_taken_over_and_flushed_writes_are_there() {
    let larder = Larder::new();
    larder.write("disk.raw", &numbered_disk());
    larder.json("import disk.raw disk");
    std::fs::create_dir(larder.path("mount")).unwrap();
    let mut first = larder.attach("disk --mirror m --fuse mount");
    let file = first.file();
    larder.shell(&format!(
        "printf kept | dd of={} bs=1 seek=5000 conv=notrunc,fsync",
        file.display()
    ));
    first.process.kill();
    let second = larder.attach("disk --mirror m --fuse mount");
    assert_eq!(larder.read(&file)[5000..5004], *b"kept");
    second.stop();
    drop(first);
}

/// Imports from stdin, killed: after `fed` bytes, or that long after the last.
fn killed_import(larder: &Larder, bytes: &[u8], fed: usize, patience: Duration) -> bool {
    let mut command = larder.command("import - disk --quiet");
    let command = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut import = Process::start(command);
    let mut stdin = import.child.stdin.take().unwrap();
    stdin.write_all(&bytes[..fed]).unwrap();
    if fed == bytes.len() {
        drop(stdin);
        if import.ends_within(patience) {
            return import.child.wait().unwrap().success();
        }
    }
    import.kill();
    false
}

#[test]
fn an_import_that_is_killed_anywhere_leaves_no_version_or_a_whole_one() {
    let larder = Larder::new();
    let bytes = Random::new(77).bytes(24 << 20);
    larder.write("disk.raw", &bytes);
    let start = Instant::now();
    assert!(killed_import(&larder, &bytes, bytes.len(), LIMIT));
    let whole = start.elapsed();
    std::fs::remove_dir_all(larder.path("repo")).unwrap();
    let mut version_count = 0;
    for step in 0..20 {
        // Half of the kills while it is fed, the others from then to its end.
        let fed = (bytes.len() / 10 * step as usize).min(bytes.len());
        let patience = whole.mul_f64(f64::from(step.max(10) - 10) / 12.0);
        killed_import(&larder, &bytes, fed, patience);
        if !larder.path("repo/repository.toml").exists() {
            assert_eq!(version_count, 0);
            continue;
        }
        let list = larder.json("list");
        let found = list["images"].as_array().unwrap().first();
        let found = found.map_or(0, |image| image["versions"].as_array().unwrap().len());
        assert!(found == version_count || found == version_count + 1, "{list}");
        if found > version_count {
            version_count = found;
            larder.json("export disk out.raw");
            assert!(larder.read("out.raw") == bytes, "step {step}");
        }
    }
    let imported = larder.json("import disk.raw disk");
    assert_eq!(imported["version"], version_count + 1);
    larder.json("export disk out.raw");
    assert!(larder.read("out.raw") == bytes);
}

/// Who is killed in the middle of a commit.
#[derive(Clone, Copy, PartialEq)]
enum Victim {
    Owner,
    OwnerlessCommand,
}

/// Kills commits at moments from their first to their last; each must leave the old version or a
/// whole new one, and a mirror with all that was flushed.
fn kill_commits(victim: Victim, seed: u64) {
    let larder = Larder::new();
    let mut bytes = Random::new(seed).bytes(LEN as usize);
    larder.write("disk.raw", &bytes);
    larder.json("import disk.raw disk");
    let mut random = Random::for_test(seed);
    let mut usual = None;
    let mut killed_count = 0;
    for step in 0..12_u32 {
        let base = larder.json("mirrors")["mirrors"][0]["base"].clone();
        let base = base.as_str().unwrap_or("disk@1").to_string();
        let mut served = Some(larder.attach(&format!("{base} --mirror m --nbd ./s")));
        let mut client = NbdClient::connect(&larder.path("s"), "m");
        assert!(client.read_all() == bytes, "step {step}: the mirror holds what was flushed");
        for _ in 0..40 {
            let (offset, len) = (random.below(LEN - 65536), random.below(65536) as usize);
            let data = random.bytes(len);
            client.write(offset, &data);
            bytes[offset as usize..][..len].copy_from_slice(&data);
        }
        client.flush();
        drop(client);
        if victim == Victim::OwnerlessCommand {
            served.take().unwrap().stop();
        }
        let version_count = larder.json("show disk")["latest"].as_u64().unwrap();
        let mut command = larder.command("commit m --format json --quiet");
        let start = Instant::now();
        let mut commit = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
        let Some(usual) = usual else {
            // The first one gets through, and tells how long that takes.
            assert!(commit.child.wait().unwrap().success());
            usual = Some(start.elapsed());
            continue;
        };
        let is_over = commit.ends_within(Duration::mul_f64(usual, f64::from(step) / 11.0));
        killed_count += usize::from(!is_over);
        match &mut served {
            Some(served) => served.process.kill(),
            None => commit.kill(),
        }
        assert!(commit.ends_within(LIMIT), "who asked a dead owner does not wait for ever");
        let latest = larder.json("show disk")["latest"].as_u64().unwrap();
        assert!((version_count..=version_count + 1).contains(&latest));
        larder.json(&format!("export disk@{version_count} old.raw"));
        if latest > version_count {
            larder.json("export disk new.raw");
            assert!(larder.read("new.raw") == bytes, "step {step}: a new version is whole");
        }
    }
    assert!(killed_count >= 3, "only {killed_count} were killed in the middle: this tests little");
    let commit = larder.json("commit m");
    assert_eq!(larder.json("show disk")["digest"], commit["digest"]);
    larder.json("export disk out.raw");
    assert!(larder.read("out.raw") == bytes);
}

#[test]
fn a_commit_whose_owner_is_killed_leaves_the_old_version_or_the_new_one() {
    kill_commits(Victim::Owner, 21);
}

#[test]
fn a_commit_command_that_is_killed_leaves_the_old_version_or_the_new_one() {
    kill_commits(Victim::OwnerlessCommand, 22);
}
