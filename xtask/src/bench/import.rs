//! Eight images are imported one after the other, with larder and with others' tools, in one run.
//!
//! ```text
//!   for each image: larder | casync | restic | borg ...     in turn: growth, time, memory
//!   larder: all eight | zstd: what is different in them     rounds, in turn
//!   larder: all eight again | hashing them                  rounds, in turn
//!   one image: restored, and read here and there            rounds, in turn
//!   larder: 200 small images                                memory
//! ```
//!
//! Each tool has its own repository and keeps it through the run. All files are in the page cache,
//! as far as it goes; what was written before is on the disk before the next is measured.

mod keepers;
mod memory;
mod reading;
mod table;
mod yardsticks;

use std::fs;
use std::path::Path;
use std::process::Command;

use model::{Error, Kind, Result};

use self::keepers::Keeper;
use self::yardsticks::Digests;
use super::inputs::{self, Image};
use super::measure::measure;
use super::rows::{Contender, Row};
use super::{Bench, Session, Size};
use crate::process;
use crate::workspace::system_program;

pub const BENCH: Bench = Bench {
    name: "import",
    about: "Eight images with larder, casync, restic and borg: bytes, time, memory, restore, reads.",
    in_tests: true,
    tools: &["casync", "restic", "borg", "zstd"],
    run,
};

/// How many reads are made here and there.
const READ_COUNT: usize = 200;

type Columns = Vec<(&'static str, f64)>;

fn run(session: &mut Session) -> Result<()> {
    let images = inputs::corpus(session)?;
    let folder = session.folder.path().to_path_buf();
    let keepers = keepers::all(inputs::larder(session, "larder")?, &folder);
    for keeper in &keepers {
        keeper.begin()?;
    }
    let growth = grow(session, &images, &keepers)?;
    // The one with the most in it.
    let chosen = most_data(&images)?;
    restore(session, chosen, &keepers)?;
    let silent = read(session, chosen, &keepers)?;
    again(session, &images, &*keepers[0])?;
    against_zstd(session, &images, &*keepers[0])?;
    memory::run(session, &*keepers[0])?;
    let names: Vec<_> = keepers.iter().map(|keeper| keeper.name()).collect();
    table::say(session, &names, &silent, &chosen.name);
    session.attachments.push(("growth.svg", growth.to_svg()?));
    Ok(())
}

/// Every tool imports every image; the tools take turns.
fn grow(
    session: &mut Session,
    images: &[Image],
    keepers: &[Box<dyn Keeper>],
) -> Result<super::chart::LineChart> {
    let mut sums = vec![Sum::default(); keepers.len()];
    let mut growth = String::from(
        "after\ttool\tbytes_on_disk\tbytes_of_files\twall_seconds\tcpu_seconds\tpeak_mib\n",
    );
    for (number, image) in images.iter().enumerate() {
        for turn in 0..keepers.len() {
            let at = (turn + number) % keepers.len();
            let keeper = &*keepers[at];
            let measured = keepers::import(keeper, image)?;
            inputs::settle();
            let (files, disk) = inputs::size_of(&keeper.kept())?;
            let sum = &mut sums[at];
            sum.wall += measured.wall.as_secs_f64();
            sum.cpu += (measured.user + measured.system).as_secs_f64();
            sum.peak = sum.peak.max(measured.peak_bytes);
            sum.stored.push((files, disk));
            growth += &format!("{}\t{}\t{disk}\t{files}", image.name, keeper.name());
            for (_, value) in measured.columns() {
                growth += &format!("\t{value}");
            }
            growth += "\n";
            println!(
                "{:<18} {:<30} {:.2} s, {:.1} MB",
                image.name,
                keeper.name(),
                measured.wall.as_secs_f64(),
                disk as f64 / 1e6
            );
        }
    }
    for (keeper, sum) in keepers.iter().zip(&sums) {
        let (files, disk) = sum.stored.last().copied().unwrap_or_default();
        let columns = vec![
            ("stored_mb", disk as f64 / 1e6),
            ("files_mb", files as f64 / 1e6),
            ("cpu_seconds", sum.cpu),
            ("wall_seconds", sum.wall),
            ("peak_mib", sum.peak as f64 / (1 << 20) as f64),
        ];
        session.rows.add(Row { contender: keeper.name().to_owned(), round: 0, columns });
    }
    session.attachments.push(("growth.tsv", growth));
    Ok(table::growth_chart(keepers.iter().map(|keeper| keeper.name()).zip(&sums)))
}

/// What one tool used for all images so far.
#[derive(Clone, Default)]
struct Sum {
    wall: f64,
    cpu: f64,
    peak: u64,
    /// After each image: bytes of its files, bytes on the disk.
    stored: Vec<(u64, u64)>,
}

fn most_data(images: &[Image]) -> Result<&Image> {
    let mut most = None;
    for image in images {
        let data_len = inputs::size_of(&image.path)?.1;
        if most.is_none_or(|(len, _)| data_len > len) {
            most = Some((data_len, image));
        }
    }
    most.map(|(_, image)| image).ok_or_else(|| Error::new(Kind::Bug, "choose", "an image"))
}

fn rounds(size: Size) -> u32 {
    if size == Size::Full { 3 } else { 1 }
}

fn name_of(keeper: &dyn Keeper, what: &str) -> String {
    format!("{}: {what}", keeper.name())
}

/// Every tool writes one image to a file.
fn restore(session: &mut Session, image: &Image, keepers: &[Box<dyn Keeper>]) -> Result<()> {
    let folder = session.folder.path().join("restored");
    let mut contenders: Vec<Contender<'_>> = Vec::new();
    for keeper in keepers {
        let folder = &folder;
        let measure_one = move || {
            empty(folder)?;
            let (mut command, file) = keeper.restore(image, folder)?;
            inputs::settle();
            let columns = measure(keepers::quiet(&mut command))?.columns();
            keepers::compare(&image.path, &file)?;
            inputs::remove(folder)?;
            Ok(columns)
        };
        contenders.push((name_of(&**keeper, "restore"), Box::new(measure_one)));
    }
    session.rows.alternate(rounds(session.size), &mut contenders)
}

fn empty(folder: &Path) -> Result<()> {
    inputs::remove(folder)?;
    fs::create_dir(folder).map_err(|source| Error::io("make", folder.display().to_string(), source))
}

/// Every tool that can shows one image, which is read here and there. Returns why others cannot.
fn read(
    session: &mut Session,
    image: &Image,
    keepers: &[Box<dyn Keeper>],
) -> Result<Vec<(&'static str, String)>> {
    let places = reading::places(&image.path, READ_COUNT)?;
    let folder = session.folder.path().join("shown");
    let mut silent = Vec::new();
    let mut contenders: Vec<Contender<'_>> = Vec::new();
    for keeper in keepers {
        let (folder, places) = (&folder, &places);
        empty(folder)?;
        // Once to see whether it works here; the first places are enough for that.
        match reading::read(&**keeper, image, folder, &places[..places.len().min(3)]) {
            Err(error) if error.kind() == Kind::Unavailable => {
                process::go_on()?;
                silent.push((keeper.name(), error.to_string()));
                continue;
            }
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        let measure_one = move || -> Result<Columns> {
            empty(folder)?;
            let read = reading::read(&**keeper, image, folder, places)?;
            inputs::remove(folder)?;
            Ok(vec![
                ("opened_seconds", read.opened.as_secs_f64()),
                ("read_seconds", read.read.as_secs_f64()),
            ])
        };
        contenders.push((name_of(&**keeper, "reads"), Box::new(measure_one)));
    }
    session.rows.alternate(rounds(session.size), &mut contenders)?;
    Ok(silent)
}

/// Imports what is there already, beside hashing it.
fn again(session: &mut Session, images: &[Image], larder: &dyn Keeper) -> Result<()> {
    let import = || import_all(images, larder);
    let hash = |digests| {
        let (took, len) = yardsticks::hash(images, digests)?;
        Ok(vec![("wall_seconds", took.as_secs_f64()), ("data_mb", len as f64 / 1e6)])
    };
    let mut contenders: Vec<Contender<'_>> = vec![
        (table::AGAIN.into(), Box::new(import)),
        (table::HASH_PIECES.into(), Box::new(|| hash(Digests::OfPieces))),
        (table::HASH_BLOCKS.into(), Box::new(|| hash(Digests::OfBlocks))),
    ];
    session.rows.alternate(rounds(session.size), &mut contenders)
}

/// All images into a new repository, beside compressing what is different in them.
fn against_zstd(session: &mut Session, images: &[Image], larder: &dyn Keeper) -> Result<()> {
    let folder = session.folder.path().to_path_buf();
    let (unique, compressed) = (folder.join("unique"), folder.join("unique.zst"));
    let unique_len = yardsticks::write_unique(images, &unique)?;
    session.notes.push(format!(
        "The images hold {:.1} MB in different blocks of 4 KiB. `zstd` gets them as one file, in the \
         order of importing; it does not sync what it writes, larder does, image by image.",
        unique_len as f64 / 1e6
    ));
    let import = || {
        larder.begin()?;
        import_all(images, larder)
    };
    let zstd = || {
        let mut command = system_program("zstd");
        command.args(["-3", "-T2", "-q", "-f", "-o"]).arg(&compressed).arg(&unique);
        one(&mut command)
    };
    let mut contenders: Vec<Contender<'_>> =
        vec![(table::ANEW.into(), Box::new(import)), (table::ZSTD.into(), Box::new(zstd))];
    session.rows.alternate(rounds(session.size), &mut contenders)?;
    inputs::remove(&unique)?;
    inputs::remove(&compressed)
}

fn one(command: &mut Command) -> Result<Columns> {
    inputs::settle();
    Ok(measure(command)?.columns())
}

/// The sums of importing each image.
fn import_all(images: &[Image], larder: &dyn Keeper) -> Result<Columns> {
    let (mut wall, mut cpu, mut peak) = (0.0, 0.0, 0);
    for image in images {
        let measured = keepers::import(larder, image)?;
        wall += measured.wall.as_secs_f64();
        cpu += (measured.user + measured.system).as_secs_f64();
        peak = measured.peak_bytes.max(peak);
    }
    let peak_mib = peak as f64 / (1 << 20) as f64;
    Ok(vec![("cpu_seconds", cpu), ("wall_seconds", wall), ("peak_mib", peak_mib)])
}
