//! A mirror's changes become a version: how long that takes, for how long it holds the guest up, and
//! what it stores; beside what nobody can do without: compressing, writing and syncing the same bytes.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use model::{BLOCK_LEN, Error, Result};

use super::rows::{Contender, Row};
use super::{Bench, Session, Size, inputs};
use crate::process;
use crate::workspace::system_program;

/// The length that a goal is set for.
const GOAL_LEN: u64 = 15_000_000;

pub const BENCH: Bench = Bench {
    name: "commit",
    about: "Some changed megabytes of a mirror become a version: time, pause, stored bytes.",
    in_tests: true,
    tools: &["qemu-io"],
    run,
};

fn run(session: &mut Session) -> Result<()> {
    let disk = inputs::disks(session)?.remove(0);
    let folder = session.folder.path().to_path_buf();
    let sockets = inputs::sockets()?;
    let socket = sockets.path().join("mirror");
    let larder = inputs::larder(session, "larder")?;
    larder.json(&["import", inputs::text(&disk)?, "image"])?;
    let mirror = larder.attach("image", "bench", &socket)?;
    let (rounds, lens): (u32, &[u64]) = match session.size {
        Size::Small => (1, &[1_000_000]),
        Size::Full => (7, &[4096, 1_000_000, 15_000_000, 150_000_000]),
    };
    let mut salt = 0_u64;
    let changes = folder.join("changes");
    for len in lens {
        let measure = || {
            salt += 1;
            write_changes(&changes, *len, salt)?;
            let mut command = system_program("qemu-io");
            let write = format!("write -q -s {} 4194304 {len}", inputs::text(&changes)?);
            command.args(["-f", "raw", "-c", &write, "-c", "flush"]);
            process::output(command.arg(inputs::nbd_uri(&socket)), "")?;
            inputs::settle();
            let began = Instant::now();
            let commit = larder.json(&["commit", "bench"])?;
            Ok(vec![
                ("wall_seconds", began.elapsed().as_secs_f64()),
                ("commit_seconds", commit.seconds()?.as_secs_f64()),
                ("pause_ms", commit.fraction("pause_ms")?),
                ("new_bytes", commit.number("new_bytes")? as f64),
                ("stored_bytes", commit.number("stored_bytes")? as f64),
            ])
        };
        let bare = || {
            let bytes = fs::read(&changes)
                .map_err(|source| Error::io("read", changes.display().to_string(), source))?;
            inputs::settle();
            let to = folder.join("bare");
            let began = Instant::now();
            let stored_len = compress_write_sync(&bytes, &to)?;
            let wall = began.elapsed().as_secs_f64();
            inputs::remove(&to)?;
            Ok(vec![("wall_seconds", wall), ("stored_bytes", stored_len as f64)])
        };
        let mut contenders: Vec<Contender<'_>> =
            vec![(changed(*len), Box::new(measure)), (bare_name(*len), Box::new(bare))];
        // In turn, but the commit first, whose changes the other takes.
        for round in 0..rounds {
            for (contender, measure) in &mut contenders {
                let columns = measure()?;
                session.rows.add(Row { contender: contender.clone(), round, columns });
            }
        }
        drop(contenders);
        let wall = |name: &str| session.rows.median(name, "wall_seconds").unwrap_or(f64::NAN);
        let ratio = wall(&changed(*len)) / wall(&bare_name(*len));
        session.notes.push(format!(
            "{len} bytes: the commit, from the command's start to its end, takes {ratio:.2} times what \
             compressing, writing and syncing them does{}.",
            if *len == GOAL_LEN { " (goal: 2 at most)" } else { "" }
        ));
    }
    mirror.detach()?;
    session.notes.push(
        "The changes are from the bench's own program file, each block made unlike any before. \
         The pause is how long writes of the guest wait. For comparison two threads compress the \
         same bytes by 256 KiB with zstd's level 3, in this process; one writes and syncs one file."
            .to_owned(),
    );
    Ok(())
}

fn changed(len: u64) -> String {
    format!("{len} bytes changed")
}

fn bare_name(len: u64) -> String {
    format!("{len} bytes, zstd and sync")
}

/// Compresses bytes on two threads by pieces of a chunk's size, writes them to one file, syncs it.
/// Returns how many bytes that were.
fn compress_write_sync(bytes: &[u8], to: &Path) -> Result<u64> {
    let failed = |source| Error::io("compress to", to.display().to_string(), source);
    let pieces: Vec<&[u8]> = bytes.chunks(256 << 10).collect();
    let done: Vec<_> = pieces.iter().map(|_| Mutex::new(Vec::new())).collect();
    let next = AtomicUsize::new(0);
    let work = || -> std::io::Result<()> {
        let mut compressor = zstd::bulk::Compressor::new(3)?;
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(piece) = pieces.get(at) else { return Ok(()) };
            let compressed = compressor.compress(piece)?;
            *done[at].lock().unwrap_or_else(std::sync::PoisonError::into_inner) = compressed;
        }
    };
    thread::scope(|scope| {
        let other = scope.spawn(work);
        let own = work();
        let other = other.join().unwrap_or_else(|_| Err(std::io::Error::other("a thread ended")));
        own.and(other)
    })
    .map_err(failed)?;
    let mut file = File::create(to).map_err(failed)?;
    let mut sum = 0;
    for piece in done {
        let piece = piece.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        sum += piece.len() as u64;
        file.write_all(&piece).map_err(failed)?;
    }
    file.sync_all().map_err(failed)?;
    Ok(sum)
}

/// Writes bytes as programs have them, with every block unlike all others.
fn write_changes(to: &Path, len: u64, salt: u64) -> Result<()> {
    let failed = |source| Error::io("write", to.display().to_string(), source);
    let program = std::env::current_exe().map_err(failed)?;
    let mut from = File::open(&program).map_err(failed)?;
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < len {
        let before = bytes.len();
        let rest = len - before as u64;
        (&mut from).take(rest).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() == before {
            from = File::open(&program).map_err(failed)?;
        }
    }
    for (number, block) in bytes.chunks_mut(BLOCK_LEN).enumerate() {
        let mark = (salt << 32 | number as u64).to_le_bytes();
        let count = mark.len().min(block.len());
        block[..count].copy_from_slice(&mark[..count]);
    }
    fs::write(to, &bytes).map_err(failed)
}
