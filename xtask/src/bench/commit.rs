//! A mirror's changes become a version: how long that takes, for how long it holds the guest up, and
//! what it stores.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use model::{BLOCK_LEN, Error, Result};

use super::rows::Contender;
use super::{Bench, Session, Size, inputs};
use crate::process;
use crate::workspace::system_program;

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
    for len in lens {
        let measure = || {
            let changes = folder.join("changes");
            salt += 1;
            write_changes(&changes, *len, salt)?;
            let mut command = system_program("qemu-io");
            let write = format!("write -q -s {} 4194304 {len}", inputs::text(&changes)?);
            command.args(["-f", "raw", "-c", &write, "-c", "flush"]);
            process::output(command.arg(inputs::nbd_uri(&socket)), "")?;
            inputs::settle();
            let commit = larder.json(&["commit", "bench"])?;
            Ok(vec![
                ("commit_seconds", commit.seconds()?.as_secs_f64()),
                ("pause_ms", commit.fraction("pause_ms")?),
                ("new_bytes", commit.number("new_bytes")? as f64),
                ("stored_bytes", commit.number("stored_bytes")? as f64),
            ])
        };
        let mut contenders: Vec<Contender<'_>> =
            vec![(format!("{len} bytes changed"), Box::new(measure))];
        session.rows.alternate(rounds, &mut contenders)?;
    }
    mirror.detach()?;
    session.notes.push(
        "The changes are from the bench's own program file, each block made unlike any before. \
         The pause is how long writes of the guest wait."
            .to_owned(),
    );
    Ok(())
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
