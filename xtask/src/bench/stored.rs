//! How many bytes two like disks take, everything counted.

use std::path::{Path, PathBuf};

use model::Result;

use super::rows::Contender;
use super::{Bench, Session, inputs};
use crate::process;
use crate::workspace::system_program;

pub const BENCH: Bench = Bench {
    name: "stored",
    about: "Bytes that two like images take in a repository, and with others' tools.",
    in_tests: true,
    tools: &["casync", "qemu-img", "zstd"],
    run,
};

fn run(session: &mut Session) -> Result<()> {
    let disks = inputs::disks(session)?;
    let folder = session.folder.path().to_path_buf();
    let larder = inputs::larder(session, "larder")?;
    let import = |count: usize| {
        inputs::remove(&folder.join("larder"))?;
        for (number, disk) in disks.iter().take(count).enumerate() {
            larder.json(&["import", inputs::text(disk)?, &format!("image{number}")])?;
        }
        columns(&[folder.join("larder")])
    };
    let casync = |count: usize| {
        let store = folder.join("store.castr");
        let mut made = vec![store.clone()];
        for (number, disk) in disks.iter().take(count).enumerate() {
            let index = folder.join(format!("image{number}.caibx"));
            let mut command = system_program("casync");
            command.arg("make").arg(format!("--store={}", store.display()));
            process::output(command.arg(&index).arg(disk), "")?;
            made.push(index);
        }
        columns(&made)
    };
    let each = |one: &dyn Fn(&Path, &Path) -> Result<()>| {
        let mut made = Vec::new();
        for (number, disk) in disks.iter().enumerate() {
            let to = folder.join(format!("image{number}"));
            one(disk, &to)?;
            made.push(to);
        }
        columns(&made)
    };
    let qcow2 = |disk: &Path, to: &Path| {
        let mut command = system_program("qemu-img");
        command.args(["convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", "-f", "raw"]);
        process::run(command.arg(disk).arg(to))
    };
    let zstd = |disk: &Path, to: &Path| {
        let mut command = system_program("zstd");
        process::run(command.args(["-3", "-T2", "-q", "-f", "-o"]).arg(to).arg(disk))
    };
    let copy = |disk: &Path, to: &Path| {
        let mut command = system_program("cp");
        process::run(command.args(["--sparse=always", "--reflink=never"]).arg(disk).arg(to))
    };
    let mut contenders: Vec<Contender<'_>> = vec![
        ("larder, both".into(), Box::new(|| import(2))),
        ("casync make, both".into(), Box::new(|| casync(2))),
        ("larder, the first alone".into(), Box::new(|| import(1))),
        ("casync make, the first alone".into(), Box::new(|| casync(1))),
        ("qcow2 -c zstd, each".into(), Box::new(|| each(&qcow2))),
        ("zstd -3, each".into(), Box::new(|| each(&zstd))),
        ("raw sparse files".into(), Box::new(|| each(&copy))),
    ];
    // Bytes are the same in every round.
    session.rows.alternate(1, &mut contenders)?;
    drop(contenders);
    let ratio = |column| {
        let of = |contender: &str| session.rows.median(contender, column).unwrap_or(0.0);
        of("larder, both") / of("casync make, both")
    };
    let note = format!(
        "Both images take {:.2} times what casync makes of them by the lengths of all files, {:.2} \
         times by what the file system gives (goal: 0.8 at most). Larder's folder is counted whole: \
         packs, catalog, settings, index; casync's is its store and the two index files.",
        ratio("apparent_bytes"),
        ratio("allocated_bytes")
    );
    session.notes.push(note);
    Ok(())
}

/// The sizes of what was made, which goes.
fn columns(made: &[PathBuf]) -> Result<Vec<(&'static str, f64)>> {
    let mut sum = (0, 0);
    // What was written a moment ago may not have its place on the disk yet.
    inputs::settle();
    for path in made {
        let (apparent, allocated) = inputs::size_of(path)?;
        sum = (sum.0 + apparent, sum.1 + allocated);
        inputs::remove(path)?;
    }
    Ok(vec![("apparent_bytes", sum.0 as f64), ("allocated_bytes", sum.1 as f64)])
}
