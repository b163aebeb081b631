//! The machines of many images on one host, within a limit of bytes; and one on a terminal.

use std::io::Write;

use crate::caches::{BESIDE, bytes_of_bases};
use crate::guests::Terminal;
use crate::harness::{LIMIT, Larder};
use crate::machines::{Copies, counting_disk, said_until};

/// Images, and what of their machines fits.
const IMAGE_COUNT: usize = 8;
const LIMIT_LEN: u64 = 1 << 20;

#[test]
fn machines_of_many_images_stay_within_the_limit_and_each_goes_on_from_where_it_was() {
    let larder = Larder::new();
    for index in 0..IMAGE_COUNT {
        // Each its own letter to begin with, so that nobody is taken for another.
        let mut disk = counting_disk(b"login: ");
        disk[0x1f0] = b'a' + 2 * index as u8;
        larder.write("disk.raw", &disk);
        larder.json(&format!("import disk.raw guest{index}"));
        larder.json(&format!(
            "bake guest{index} --memory 32MiB --accel tcg --keep-free-memory --no-helper"
        ));
    }
    std::fs::remove_dir_all(larder.path("state")).unwrap();
    let limit = format!("--base-cache {LIMIT_LEN}");
    for _round in 0..2 {
        for index in 0..IMAGE_COUNT {
            let copies = Copies::resume(&larder, &format!("guest{index}-machine {limit}"));
            let first = b'b' + 2 * index as u8;
            let mut console = copies.console(0);
            assert_eq!(said_until(&mut console, first), [first]);
            console.write_all(b"x").unwrap();
            assert_eq!(said_until(&mut console, first + 1), [first + 1]);
            drop((console, copies));
        }
    }
    // One more, so that the last has been looked at.
    Copies::resume(&larder, &format!("guest0-machine {limit}"));
    let taken = bytes_of_bases(&larder);
    assert!(taken <= LIMIT_LEN + BESIDE, "{taken} bytes of {LIMIT_LEN}");
    // What a resume needs of each is known, and is not thrown away with it.
    for index in 0..IMAGE_COUNT {
        larder.json(&format!("boot-set show guest{index}-machine --name resume"));
    }
}

#[test]
fn a_single_copy_talks_on_the_terminal_and_ends_with_it() {
    let larder = crate::machines::baked();
    let line = "resume guest-machine --no-identity --no-network";
    let mut terminal = Terminal::run(&larder, line);
    terminal.wait_for("console at", LIMIT);
    terminal.wait_for("b", LIMIT);
    terminal.send(b"x");
    terminal.wait_for("c", LIMIT);
    terminal.send(b"\x01x");
    assert_eq!(terminal.ends(), 0);
    assert_eq!(larder.json("mirrors")["mirrors"], serde_json::json!([]));
}
