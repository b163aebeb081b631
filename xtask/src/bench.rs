//! Measurements: a bench in each file, with what they share.
//!
//! | Module | Holds |
//! |---|---|
//! | [`aging`] | a mirror after a hundred commits, beside one after none |
//! | [`measure`] | a program's wall time, CPU time and peak memory |
//! | [`rows`] | what was measured, row by row; medians; contenders taken in turn |
//! | [`machine`] | where it was measured, and with what |
//! | [`chart`] | lines over two axes, as an SVG |
//! | [`publish`] | `bench/runs/<date>-<what>/` |
//! | [`inputs`] | the disks that are measured on, and larder itself |
//! | [`qemu_nbd`] | the peer of a mirror's NBD door |
//! | [`blob`] | many writers and readers of byte ranges at once |
//! | [`blocks`] | a disk's blocks, holes and zeros left out |
//! | [`bonnie`] | bonnie++ through each door, beside the raw file and a qcow2 overlay |
//! | [`build`] | builds of a recipe, and what they store |
//! | [`boot`] | which machine boots soonest |
//! | [`caches`] | the boot working sets of many images in a host's stock |
//! | [`collect`] | what a collect does after many commits |
//! | [`commit`] | a mirror's changes become a version |
//! | [`corpus`] | eight images, and what is in them |
//! | [`dedup`] | duplicates that the bounded index finds, against its memory |
//! | [`doors`] | each door with everything present, beside its peers and the raw file |
//! | [`host`] | a host's daemon: attach to first byte, many attaches at once, memory |
//! | [`import`] | eight images, with larder and with others' tools |
//! | [`login`] | a guest's login prompt from a mirror, beside the plain file |
//! | [`one_image`] | how fast a disk file becomes a version, and in how much memory |
//! | [`ratio`] | what is there once, by how it is cut |
//! | [`replay`] | the disk of a boot without think times, beside qemu-nbd |
//! | [`resume`] | how soon copies of a baked machine answer, and what machines take |
//! | [`soak`] | a long random life of a repository |
//! | [`storage_daemon`] | the peer of a mirror's vhost-user door |
//! | [`stored`] | how many bytes two like images take |
//! | [`vhost`] | reads and writes as a guest does them, beside qemu-storage-daemon |
//! | [`yardstick`] | what the system's own tools do with an image's bytes |
//!
//! To add a bench: a file with `pub const BENCH: Bench`, a row in [`BENCHES`].

mod aging;
mod blob;
mod blocks;
mod bonnie;
mod boot;
mod build;
mod caches;
#[allow(dead_code, reason = "some ticks are for charts that come with other benches")]
mod chart;
mod collect;
mod commit;
mod corpus;
mod dedup;
mod doors;
mod host;
mod import;
mod inputs;
mod login;
mod machine;
mod measure;
mod one_image;
mod publish;
mod qemu_nbd;
mod ratio;
mod replay;
mod resume;
mod rows;
mod soak;
mod storage_daemon;
mod stored;
mod vhost;
mod yardstick;

use clap::ValueEnum;
use model::{Error, Kind, Result};

pub use rows::Rows;

use crate::setup::{self, For};

/// Every bench.
const BENCHES: &[Bench] = &[
    corpus::BENCH,
    import::BENCH,
    one_image::BENCH,
    stored::BENCH,
    dedup::BENCH,
    ratio::BENCH,
    doors::BENCH,
    vhost::BENCH,
    bonnie::BENCH,
    replay::BENCH,
    caches::BENCH,
    login::BENCH,
    resume::BENCH,
    commit::BENCH,
    aging::BENCH,
    host::BENCH,
    collect::BENCH,
    soak::BENCH,
    blob::BENCH,
    build::BENCH,
    boot::BENCH,
    yardstick::BENCH,
];

/// A bench.
pub struct Bench {
    /// Its name on the command line and in the name of its runs.
    name: &'static str,
    /// One sentence on what it shows.
    about: &'static str,
    /// Whether every test run takes it at its small size.
    in_tests: bool,
    /// The programs whose versions matter.
    tools: &'static [&'static str],
    /// Measures, row by row.
    run: fn(&mut Session) -> Result<()>,
}

/// How much a bench measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Size {
    /// Seconds, on made-up data: shows that the bench works.
    Small,
    /// As published.
    Full,
}

/// What to measure.
#[derive(clap::Args)]
pub struct Options {
    /// Which bench; a list when left out.
    name: Option<String>,
    /// How much; a full run is published under `bench/runs/`.
    #[arg(long, value_enum, default_value = "full")]
    size: Size,
}

/// One run of one bench.
pub struct Session {
    /// How much to measure.
    pub size: Size,
    /// A folder that goes when the bench ends.
    pub folder: tempfile::TempDir,
    /// What was measured.
    pub rows: Rows,
    /// Sentences for the run's README.
    pub notes: Vec<String>,
    /// Further files of a published run: names and texts.
    pub attachments: Vec<(&'static str, String)>,
}

/// Runs a bench, or lists them.
pub fn run(options: &Options) -> Result<()> {
    let Some(name) = &options.name else {
        for bench in BENCHES {
            println!("{:<12} {}", bench.name, bench.about);
        }
        return Ok(());
    };
    let bench = BENCHES.iter().find(|bench| bench.name == name).ok_or_else(|| {
        let names: Vec<_> = BENCHES.iter().map(|bench| bench.name).collect();
        Error::new(Kind::NotFound, "run the bench", name.clone())
            .hint(format!("there are: {}", names.join(", ")))
    })?;
    setup::ensure(For::Bench)?;
    run_one(bench, options.size)
}

/// Runs at their small size the benches that every test run takes.
pub fn run_small() -> Result<()> {
    for bench in BENCHES.iter().filter(|bench| bench.in_tests) {
        run_one(bench, Size::Small)?;
    }
    Ok(())
}

fn run_one(bench: &Bench, size: Size) -> Result<()> {
    println!("{}: {}", bench.name, bench.about);
    let target = crate::workspace::target();
    let folder = tempfile::Builder::new()
        .prefix("larder-bench-")
        .tempdir_in(&target)
        .map_err(|source| Error::io("make a folder in", target.display().to_string(), source))?;
    let mut session =
        Session { size, folder, rows: Rows::default(), notes: Vec::new(), attachments: Vec::new() };
    (bench.run)(&mut session)?;
    println!("\n{}", session.rows.medians_as_text());
    if size == Size::Full {
        let folder = publish::publish(bench, &session)?;
        println!("published in {}", folder.display());
    }
    Ok(())
}
