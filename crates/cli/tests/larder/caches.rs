//! What stays on a host, and how much of it: limits and pins.

use std::sync::atomic::{AtomicBool, Ordering};

use format::kept_chunk::KEPT_CHUNK_HEADER_LEN;
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Larder, Process, Random};
use crate::nbd_client::NbdClient;

const LEN: usize = 8 << 20;

/// A larder with images `a`, `b`, ... of 8 MiB each, and their bytes.
fn with_images(count: u8) -> (Larder, Vec<Vec<u8>>) {
    let larder = Larder::new();
    let images = (0..count).map(|number| {
        let bytes = Random::new(100 + u64::from(number)).bytes(LEN);
        larder.write("disk.raw", &bytes);
        larder.json(&format!("import disk.raw {}", char::from(b'a' + number)));
        bytes
    });
    let images = images.collect();
    (larder, images)
}

pub fn bytes_of_bases(larder: &Larder) -> u64 {
    let text = larder.shell("du -sB1 --apparent-size state/bases >/dev/null; du -sB1 state/bases");
    text.split_whitespace().next().unwrap().parse().unwrap()
}

/// Folders and files without data take a little, which no limit knows of.
pub const BESIDE: u64 = 64 << 10;

fn number(document: &Value, key: &str) -> u64 {
    document[key].as_u64().unwrap_or_else(|| panic!("{key} in {document}"))
}

#[test]
fn a_pinned_version_is_complete_and_read_without_its_repository() {
    let (larder, images) = with_images(2);
    let pinned = larder.json("pin a --quiet");
    assert_eq!(number(&pinned, "blocks"), LEN as u64 / 4096);
    assert_eq!(number(&pinned, "plain_bytes"), LEN as u64);
    assert!(number(&pinned, "stored_bytes") >= LEN as u64 && pinned["complete"] == true);
    assert_eq!(pinned["version"], "a@1");
    // Once more brings nothing.
    assert!(number(&larder.json("pin a@1 --quiet"), "fetched_bytes") < 1 << 20);
    let list = larder.json("pin --list");
    assert_eq!(list["pins"].as_array().unwrap().len(), 1, "{list}");
    assert!(larder.run("pin --list").contains("a@1"));
    // Its version may go: a pin holds it.
    let served = larder.attach("a --mirror m --nbd ./m.sock");
    larder.run("remove a");
    larder.run("collect --apply --quiet");
    std::fs::rename(larder.path("repo/packs"), larder.path("away")).unwrap();
    assert!(NbdClient::connect(&larder.path("m.sock"), "m").read_all() == images[0]);
    std::fs::rename(larder.path("away"), larder.path("repo/packs")).unwrap();
    served.stop();
    larder.run("detach m --discard");
    let removable = || number(&larder.json("collect"), "removable_bytes");
    assert_eq!(removable(), 0, "held still");
    assert!(larder.fails("unpin b").message.contains("not pinned"));
    larder.run("unpin a@1");
    assert!(removable() >= LEN as u64);
    assert_eq!(larder.json("pin --list")["pins"].as_array().unwrap().len(), 0);
}

#[test]
fn a_pin_that_was_interrupted_goes_on_where_it_was() {
    let (larder, _) = with_images(1);
    let mut command = larder.command("pin a --format json");
    command.env("LARDER_LINK", "rate=2MB,delay=1ms").stderr(std::process::Stdio::null());
    let mut pin = Process::start(command.stdout(std::process::Stdio::null()));
    let is_under_way = || larder.path("state/bases").exists() && bytes_of_bases(&larder) > 2 << 20;
    assert!(pin.runs_until(is_under_way), "it got through");
    pin.signal(Signal::INT);
    assert!(!pin.child.wait().unwrap().success());
    assert_eq!(larder.json("pin --list")["pins"][0]["complete"], false);
    let again = larder.json("pin a --quiet");
    assert!(number(&again, "fetched_bytes") < LEN as u64 - (1 << 20), "{again}");
    assert_eq!(again["complete"], true);
}

#[test]
fn a_pin_that_is_larger_than_the_limit_is_refused_with_the_numbers() {
    let (larder, _) = with_images(2);
    let refused = larder.fails("pin a --quiet --base-cache 4MiB");
    assert!(refused.message.contains(&LEN.to_string()), "{refused:?}");
    assert!(refused.message.contains(&(4 << 20).to_string()), "{refused:?}");
    assert!(refused.hint.is_some() && larder.run("pin --list").contains("no version"));
    larder.run("pin a --quiet --base-cache 12MiB");
    let refused = larder.fails("pin b --quiet --base-cache 12MiB");
    assert!(refused.message.contains(&format!("{LEN} are pinned")), "{refused:?}");
}

#[test]
fn a_daemon_whose_limit_is_smaller_than_one_image_reads_right_and_stays_within_it() {
    let (larder, images) = with_images(3);
    let daemon = larder.daemon("--base-cache 5MiB");
    for name in ["a", "b", "c"] {
        larder.run(&format!("attach {name} --mirror {name} --nbd ./{name}.sock --detach"));
    }
    std::thread::scope(|scope| {
        for (name, bytes) in ["a", "b", "c"].iter().zip(&images) {
            let larder = &larder;
            scope.spawn(move || {
                let mut client = NbdClient::connect(&larder.path(format!("{name}.sock")), name);
                for _ in 0..3 {
                    assert!(client.read_all() == *bytes, "{name}");
                }
            });
        }
    });
    assert!(bytes_of_bases(&larder) <= (5 << 20) + BESIDE);
    daemon.stop();
}

#[test]
fn fio_finds_what_it_wrote_while_the_base_is_evicted_under_it() {
    const LIMIT: u64 = 2 << 20;
    let (larder, images) = with_images(2);
    let daemon = larder.daemon("--base-cache 2MiB");
    larder.run("attach a --mirror a --nbd ./a.sock --detach");
    larder.run("attach b --mirror b --nbd ./b.sock --detach");
    let socket = larder.path("a.sock");
    let is_over = AtomicBool::new(false);
    let reads = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let mut reads = 0;
            while !is_over.load(Ordering::SeqCst) || reads < 2 {
                assert!(NbdClient::connect(&larder.path("b.sock"), "b").read_all() == images[1]);
                reads += 1;
            }
            reads
        });
        // Parts of blocks, so that most writes need the base; and what is verified was read again.
        let (done, text) = larder.try_shell(&format!(
            "fio --name=verify --ioengine=nbd --uri='nbd+unix:///a?socket={}' --rw=randwrite \
             --bsrange=512-16k --blockalign=512 --size={LEN} --io_size={} --iodepth=8 --fsync=64 \
             --verify=crc32c --verify_fatal=1 --do_verify=1 --randseed=7",
            socket.display(),
            LEN / 2,
        ));
        is_over.store(true, Ordering::SeqCst);
        assert!(done, "{text}");
        other.join().unwrap()
    });
    let taken = bytes_of_bases(&larder);
    assert!(taken <= LIMIT + BESIDE, "{taken} bytes after {reads} readings of the other");
    let now = NbdClient::connect(&socket, "a").read_all();
    assert!(now != images[0]);
    larder.json("commit a");
    larder.json("export a@2 out.raw");
    assert!(larder.read("out.raw") == now);
    daemon.stop();
}

#[test]
fn processes_that_share_a_state_folder_stay_within_the_limit_together() {
    let (larder, images) = with_images(2);
    let mut served = Vec::new();
    for (mirror, image) in [("m", "a"), ("n", "a"), ("o", "b")] {
        served.push(
            larder.attach(&format!(
                "{image} --mirror {mirror} --nbd ./{mirror}.sock --base-cache 6MiB"
            )),
        );
    }
    std::thread::scope(|scope| {
        for (mirror, bytes) in [("m", &images[0]), ("n", &images[0]), ("o", &images[1])] {
            let larder = &larder;
            scope.spawn(move || {
                let mut client = NbdClient::connect(&larder.path(format!("{mirror}.sock")), mirror);
                for _ in 0..3 {
                    assert!(client.read_all() == *bytes, "{mirror}");
                }
            });
        }
    });
    assert!(bytes_of_bases(&larder) <= (6 << 20) + BESIDE);
    served.into_iter().for_each(|served| served.stop());
}

#[test]
fn a_pin_has_the_daemon_evict_what_only_that_can() {
    let (larder, images) = with_images(2);
    let daemon = larder.daemon("--base-cache 12MiB");
    larder.run("attach a --mirror m --nbd ./m.sock --detach");
    let mut client = NbdClient::connect(&larder.path("m.sock"), "m");
    assert!(client.read_all() == images[0]);
    let pinned = larder.json("pin b --quiet --base-cache 12MiB");
    assert_eq!(pinned["complete"], true);
    assert!(bytes_of_bases(&larder) <= (12 << 20) + BESIDE);
    for _ in 0..2 {
        assert!(client.read_all() == images[0]);
    }
    assert!(bytes_of_bases(&larder) <= (12 << 20) + BESIDE);
    larder.json("pin b --quiet --base-cache 12MiB");
    drop(client);
    larder.run("detach m --discard");
    daemon.stop();
}

#[test]
fn chunks_that_are_kept_compressed_serve_when_their_base_is_gone() {
    let (larder, images) = with_images(1);
    let read = |line: &str| {
        let served = larder.attach(&format!("a --mirror m --nbd ./m.sock {line}"));
        assert!(NbdClient::connect(&larder.path("m.sock"), "m").read_all() == images[0]);
        let fetched = number(&larder.json("mirrors")["mirrors"][0], "fetched_bytes");
        served.stop();
        larder.run("detach m --discard");
        std::fs::remove_dir_all(larder.path("state/bases")).unwrap();
        fetched
    };
    assert!(read("") >= LEN as u64 && !larder.path("state/chunks").exists(), "off by itself");
    assert!(read("--chunk-cache 128MiB") >= LEN as u64);
    assert!(read("--chunk-cache 128MiB") < LEN as u64 / 4, "most of it was near");
    let kept = larder.shell("du -sB1 state/chunks");
    assert!(kept.split_whitespace().next().unwrap().parse::<u64>().unwrap() <= 128 << 20);
    for file in std::fs::read_dir(larder.path("state/chunks")).unwrap() {
        let file = file.unwrap().path();
        let mut bytes = std::fs::read(&file).unwrap();
        bytes.iter_mut().step_by(5000).for_each(|byte| *byte ^= 1);
        std::fs::write(&file, bytes).unwrap();
    }
    assert!(read("--chunk-cache 128MiB") >= LEN as u64, "damaged, it is fetched again");
}

#[test]
fn chunks_are_kept_as_they_came() {
    let larder = Larder::new();
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    larder.write("disk.raw", &program[..LEN]);
    larder.json("import disk.raw a");
    let served = larder.attach("a --mirror m --nbd ./m.sock --chunk-cache 128MiB");
    assert!(NbdClient::connect(&larder.path("m.sock"), "m").read_all() == program[..LEN]);
    served.stop();
    let contents = |folder: &str| -> Vec<Vec<u8>> {
        let files = std::fs::read_dir(larder.path(folder)).unwrap();
        files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect()
    };
    // What was compressed once is not compressed again while a guest waits.
    let kept = contents("state/chunks").into_iter().find(|kept| !kept.is_empty()).unwrap();
    let chunk = &kept[KEPT_CHUNK_HEADER_LEN..KEPT_CHUNK_HEADER_LEN + 1000];
    let holds = |pack: &Vec<u8>| pack.windows(chunk.len()).any(|bytes| bytes == chunk);
    assert!(contents("repo/packs").iter().any(holds), "it was compressed anew");
    larder.run("detach m --discard");
}

#[test]
fn settings_say_how_much_caches_may_take() {
    let larder = Larder::new();
    let settings = larder.json("settings show --base-cache 3GiB");
    let settings = &settings["settings"];
    assert_eq!(settings["base_cache"]["value"], 3u64 << 30);
    assert_eq!(settings["chunk_cache"]["value"], 0);
    assert_eq!(settings["chunk_cache"]["origin"], "default");
    let default = larder.json("settings show");
    assert!(number(&default["settings"]["base_cache"], "value") > 0);
    std::fs::create_dir_all(larder.path("home/.config/larder")).unwrap();
    larder.write("home/.config/larder/settings.toml", b"base_cache = \"5GiB\"\n");
    let filed = larder.json("settings show");
    assert_eq!(filed["settings"]["base_cache"]["value"], 5u64 << 30);
    larder.write("home/.config/larder/settings.toml", b"base_cache = \"5 bananas\"\n");
    assert!(larder.fails("settings show").message.contains("bananas"));
}
