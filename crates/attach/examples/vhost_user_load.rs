//! Puts load on a vhost-user-blk server, ours or another's, as a guest would.
//!
//! `vhost_user_load SOCKET read|write random|sequential BYTES DEPTH SECONDS`; prints one line of JSON.

#![allow(clippy::print_stdout, reason = "it is a program")]
#![allow(dead_code, reason = "the tests use more of the client")]

#[path = "../tests/vhost_user/client.rs"]
mod client;

use std::path::Path;
use std::time::{Duration, Instant};

use client::{Guest, READ, WRITE};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, direction, order, bytes, depth, seconds] = &arguments[..] else {
        panic!("SOCKET read|write random|sequential BYTES DEPTH SECONDS");
    };
    let kind = if direction == "write" { WRITE } else { READ };
    let len: usize = bytes.parse().expect("bytes");
    let depth: u16 = depth.parse().expect("depth");
    let limit = Duration::from_secs_f64(seconds.parse().expect("seconds"));
    let mut guest = Guest::new();
    guest.connect(Path::new(socket)).expect("a connection");
    let config = guest.config();
    let sectors = u64::from_le_bytes(config[..8].try_into().expect("8 bytes"));
    let count = sectors * 512 / len as u64;
    for slot in 0..depth {
        guest.put(Guest::data_at(slot), &vec![slot as u8 + 1; len]);
    }
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut at = 0;
    let mut place = || {
        at += 1;
        if order != "random" {
            return at % count;
        }
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 24) % count
    };
    let begin = Instant::now();
    let mut begun = vec![begin; usize::from(depth)];
    let (mut ended, mut under_way, mut waited) = (0u64, depth, Duration::ZERO);
    for slot in 0..depth {
        guest.submit(slot, kind, place() * (len as u64 / 512), len);
    }
    guest.kick();
    while under_way > 0 {
        let answers = guest.wait(60);
        assert!(!answers.is_empty(), "no answer");
        let now = Instant::now();
        for (slot, status) in answers {
            assert_eq!(status, 0, "a request failed");
            waited += now - begun[usize::from(slot)];
            ended += 1;
            under_way -= 1;
            if now - begin < limit {
                begun[usize::from(slot)] = now;
                guest.submit(slot, kind, place() * (len as u64 / 512), len);
                under_way += 1;
            }
        }
        guest.kick();
    }
    let elapsed = begin.elapsed().as_secs_f64();
    println!(
        "{{\"requests_per_second\": {:.1}, \"mib_per_second\": {:.1}, \"mean_us\": {:.1}}}",
        ended as f64 / elapsed,
        ended as f64 * len as f64 / elapsed / f64::from(1 << 20),
        waited.as_secs_f64() * 1e6 / ended as f64,
    );
}
