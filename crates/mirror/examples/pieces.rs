//! What it costs to write a file in pieces, and blocks of it at random afterwards: why mirrors write at
//! most 128 KiB at once.
//!
//! `cargo run --release -p mirror --example pieces -- FOLDER`; one line for each length of pieces.

#![expect(clippy::print_stdout, reason = "its numbers are its product")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

const FILE_LEN: u64 = 390 << 20;
const BLOCK_LEN: u64 = 4096;

fn main() -> io::Result<()> {
    let folder = std::env::args().nth(1).expect("FOLDER");
    for kib in [4, 16, 64, 128, 256, 1024] {
        let path = Path::new(&folder).join("pieces");
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        std::fs::remove_file(&path)?;
        file.set_len(FILE_LEN)?;
        let first = in_order(&file, kib << 10)?;
        let again = in_order(&file, kib << 10)?;
        let random = at_random(&file, Duration::from_secs(1))?;
        println!("{kib:5} KiB: {first:5.1} GB/s, again {again:5.1}, then {random:8.0} blocks/s");
    }
    Ok(())
}

/// Bytes per nanosecond.
fn in_order(file: &File, piece_len: usize) -> io::Result<f64> {
    let piece = vec![1; piece_len];
    let began = Instant::now();
    for offset in (0..FILE_LEN).step_by(piece_len) {
        let len = piece_len.min((FILE_LEN - offset) as usize);
        file.write_all_at(&piece[..len], offset)?;
    }
    Ok(FILE_LEN as f64 / began.elapsed().as_nanos() as f64)
}

/// Blocks per second.
fn at_random(file: &File, limit: Duration) -> io::Result<f64> {
    let (began, mut count, mut state) = (Instant::now(), 0, 0x9e37_79b9_7f4a_7c15u64);
    while began.elapsed() < limit {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let block = (state >> 24) % (FILE_LEN / BLOCK_LEN);
        file.write_all_at(&[2; BLOCK_LEN as usize], block * BLOCK_LEN)?;
        count += 1;
    }
    Ok(f64::from(count) / began.elapsed().as_secs_f64())
}
