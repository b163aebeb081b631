//! bonnie++ on an ext4 through each door, beside the raw file and a qcow2 overlay.
//!
//! ```text
//! here:      bonnie++ ── ext4 ── loop ──► larder's FUSE file | raw file | qemu-storage-daemon's
//!                                         FUSE file of a qcow2 overlay
//! in guests: bonnie++ ── ext4 ── virtio ──► larder by NBD, by vhost-user | raw file | qcow2 overlay
//! ```
//!
//! All begin with the same file system, which mke2fs has made, and all have the same parameters. The
//! system has no driver for NBD, so that door and vhost-user are measured from inside a guest, whose
//! processor is emulated where there is no KVM.
//!
//! **Not here**: reads from the disk itself: files are no larger than memory.

mod answer;
mod guests;
mod here;

use std::path::{Path, PathBuf};

use model::Result;

use super::{Bench, Session, Size, doors, inputs};
use crate::process;
use crate::workspace::system_program;

pub const BENCH: Bench = Bench {
    name: "bonnie",
    about: "bonnie++ through each door, beside the raw file and a qcow2 overlay.",
    in_tests: true,
    tools: &["bonnie++", "qemu-storage-daemon", "qemu-system-x86_64"],
    run,
};

/// What bonnie++ is given: MiB of its file, of them MiB byte by byte, and 1024 times as many small files.
#[derive(Clone, Copy)]
struct Load {
    file_mib: u32,
    byte_mib: u32,
    files: u32,
}

impl Load {
    fn arguments(self, folder: &str) -> Vec<String> {
        let Load { file_mib: size, byte_mib, files } = self;
        let memory = size / 2;
        let text =
            format!("-q -u root -m disk -d {folder} -s {size} -r {memory} -f{byte_mib} -n {files}");
        text.split(' ').map(str::to_owned).collect()
    }
}

/// The disks that all begin as the same file system.
struct Disks {
    /// Never written to.
    original: PathBuf,
    raw: PathBuf,
    overlay: PathBuf,
}

fn run(session: &mut Session) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        session.notes.push("Only root may mount: nothing was measured.".to_owned());
        return Ok(());
    }
    let full = session.size == Size::Full;
    let folder = session.folder.path().to_path_buf();
    let original = folder.join("original");
    make_file_system(&original, if full { 3072 } else { 64 })?;
    let larder = inputs::larder(session, "larder")?;
    larder.json(&["import", inputs::text(&original)?, "disk"])?;
    let disks = |name: &str| -> Result<Disks> {
        let raw = folder.join(format!("{name}.raw"));
        let mut command = system_program("cp");
        process::run(command.args(["--sparse=always", "--"]).arg(&original).arg(&raw))?;
        let overlay = doors::overlay(&original, &format!("{name}.qcow2"))?;
        Ok(Disks { original: original.clone(), raw, overlay })
    };
    let (load, rounds) = if full {
        (Load { file_mib: 1024, byte_mib: 20, files: 2 }, 3)
    } else {
        (Load { file_mib: 8, byte_mib: 1, files: 1 }, 1)
    };
    here::run(session, &larder, &disks("here")?, load, rounds)?;
    compare(session, "here", &["larder FUSE"]);
    if full {
        // Byte by byte is a system call for each, slow where the processor is emulated.
        let load = Load { file_mib: 192, byte_mib: 1, files: 1 };
        guests::run(session, &larder, &disks("guest")?, load, rounds)?;
        compare(session, "guest", &["larder NBD", "larder vhost-user"]);
    }
    Ok(())
}

/// An empty ext4 in a sparse file.
fn make_file_system(path: &Path, mib: u64) -> Result<()> {
    let mut command = system_program("mke2fs");
    command.args(["-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0"]);
    process::run(command.arg(path).arg(format!("{mib}M")))
}

/// Says what came out, as multiples of the qcow2 overlay and of the raw file.
fn compare(session: &mut Session, place: &str, ours: &[&str]) {
    let mut text = format!(
        "{place}: each as a multiple of the qcow2 overlay (goal for writes: 1.0 at least) and of \
         the raw file:\n\n| | |"
    );
    ours.iter().for_each(|who| text += &format!(" {who} / qcow2 | / raw |"));
    text += "\n|---|---|";
    ours.iter().for_each(|_| text += "---|---|");
    for column in answer::COLUMNS {
        let median = |who: &str| session.rows.median(&format!("{place}, {who}"), column.name);
        let shown = |ours: Option<f64>, theirs: Option<f64>| match (ours, theirs) {
            (Some(ours), Some(theirs)) => format!("{:.2}", ours / theirs),
            _ => "-".to_owned(),
        };
        text += &format!("\n| {} | {} |", column.name, column.about);
        for who in ours {
            let mine = median(who);
            text += &format!(
                " {} | {} |",
                shown(mine, median("qcow2 overlay")),
                shown(mine, median("raw file"))
            );
        }
    }
    session.notes.push(text);
}
