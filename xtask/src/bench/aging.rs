//! Reads and writes of a mirror that was committed a hundred times, beside one that never was.

use std::path::Path;

use model::Result;

use super::doors::fio::{Job, Target};
use super::rows::Contender;
use super::{Bench, Session, Size, inputs};
use crate::process;
use crate::workspace::system_program;

pub const BENCH: Bench = Bench {
    name: "aging",
    about: "Reads and writes of a mirror after a hundred commits, beside one after none.",
    in_tests: true,
    tools: &["fio", "nbdcopy"],
    run,
};

const NONE: &str = "no commit";
const MANY: &str = "many commits";
const ANEW: &str = "attached anew after many commits";

/// The least that a mirror after many commits may have of the speed of one after none: what two equal
/// mirrors differ by in a run.
const GOAL: f64 = 0.95;

const READS: &[Job] = &[
    Job::new("seq read 1M x4", "read", "1M", 4),
    Job::new("random read 4k x1", "randread", "4k", 1),
    Job::new("random read 4k x16", "randread", "4k", 16),
];
const WRITES: &[Job] = &[
    Job::new("random write 4k x16", "randwrite", "4k", 16),
    Job::new("seq write 1M x4", "write", "1M", 4),
];

fn run(session: &mut Session) -> Result<()> {
    let disk = inputs::disks(session)?.remove(0);
    let data = session.folder.path().join("data");
    inputs::write_data_of(&disk, &data)?;
    let sockets = inputs::sockets()?;
    let at = |name: &str| sockets.path().join(name);
    let larder = inputs::larder(session, "larder")?;
    larder.json(&["import", inputs::text(&data)?, "data"])?;
    let none = larder.attach("data", "none", &at("none"))?;
    let many = larder.attach("data", "many", &at("many"))?;
    let (commits, rounds, seconds) = match session.size {
        Size::Small => (5, 1, 0.2),
        Size::Full => (100, 7, 1.0),
    };
    // Both guests write the same; one of them is committed each time.
    for round in 0..commits {
        for mirror in ["none", "many"] {
            scatter(&at(mirror), round)?;
        }
        // The first makes the image, and the mirror is one of it from then on.
        let to: &[&str] = if round == 0 { &["--to", "aged"] } else { &[] };
        larder.json(&[&["commit", "many"], to].concat())?;
    }
    let anew = larder.attach("aged", "anew", &at("anew"))?;
    let names = [(NONE, at("none")), (MANY, at("many")), (ANEW, at("anew"))];
    for (_, socket) in &names {
        let mut command = system_program("nbdcopy");
        process::output(command.arg(inputs::nbd_uri(socket)).arg("null:"), "")?;
    }
    let mut lines = format!(
        "{commits} commits of 1 MiB in random blocks of 4 KiB. Speed as a multiple of the mirror's after \
         none (goal: {GOAL} at least, which is as fast as far as a run can tell):\n\n"
    );
    for job in READS.iter().chain(WRITES) {
        let mut contenders: Vec<Contender<'_>> = Vec::new();
        for (name, socket) in &names {
            let measure = move || job.run(&Target::Nbd(socket), seconds);
            contenders.push((format!("{}, {name}", job.name), Box::new(measure)));
        }
        session.rows.alternate(rounds, &mut contenders)?;
        drop(contenders);
        let speed = |name: &str| {
            let contender = format!("{}, {name}", job.name);
            session.rows.median(&contender, "requests_per_second").unwrap_or(f64::NAN)
        };
        let ratios = [MANY, ANEW].map(|name| speed(name) / speed(NONE));
        lines += &format!(
            "- {}: {:.2} the mirror that was committed, {:.2} attached anew{}\n",
            job.name,
            ratios[0],
            ratios[1],
            if ratios.iter().all(|ratio| *ratio >= GOAL) { "" } else { ", **missed**" }
        );
    }
    for mirror in [none, many, anew] {
        mirror.detach()?;
    }
    session.notes.push(lines);
    Ok(())
}

/// Writes 1 MiB in random blocks, and flushes.
fn scatter(socket: &Path, seed: u32) -> Result<()> {
    let mut command = system_program("fio");
    command.args(["--name=scatter", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--iodepth=16"]);
    command.args(["--io_size=1m", "--norandommap", "--end_fsync=1"]);
    command.arg(format!("--randseed={seed}")).arg(format!("--buffer_pattern={}", seed + 1));
    process::output(command.arg(format!("--uri={}", inputs::nbd_uri(socket))), "").map(drop)
}
