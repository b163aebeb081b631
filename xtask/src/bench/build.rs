//! How long a build takes: when nothing changed, when little did, from nothing; and what it stores.
//!
//! ```text
//!   core, top            nothing changed | files of top changed | one package more in top
//!   core, one of ten     stored bytes, beside each built alone
//!   core, from nothing   beside mmdebstrap alone
//! ```
//!
//! Small, the packages are tiny ones that are made for it, and programs that need a whole Debian are
//! left out.

mod kitchen;
mod yardsticks;

use std::path::Path;
use std::time::Instant;

use model::{Error, Result};

use self::kitchen::Kitchen;
use super::rows::{Contender, Row};
use super::{Bench, Session, Size, inputs};

pub const BENCH: Bench = Bench {
    name: "build",
    about: "Builds of a recipe: nothing changed, files, one package more, ten recipes, from nothing.",
    in_tests: true,
    tools: &["mmdebstrap", "mke2fs", "bwrap"],
    run,
};

const NOTHING: &str = "nothing changed";
const FILES: &str = "files of the last stage";
const PACKAGED: &str = "files, four packages there";
const MORE: &str = "one package more";
const APT: &str = "apt-get in a chroot";
const ONE_SHOT: &str = "the same in one stage";
const SCRATCH: &str = "a Debian from nothing";
const ALONE: &str = "mmdebstrap alone";

type Columns = Vec<(&'static str, f64)>;

fn run(session: &mut Session) -> Result<()> {
    let kitchen = Kitchen::new(session)?;
    kitchen.build("core", &kitchen.core())?;
    little(session, &kitchen)?;
    one_more(session, &kitchen)?;
    ten(session, &kitchen)?;
    if session.size == Size::Full {
        from_nothing(session)?;
    }
    session.notes.push(
        "The core is a Debian 12 that boots, on a disk of 2 GiB with some 300 MB of files. Times are \
         from the command's start to its end, the version committed. Packages are on the host already, \
         but for those from nothing, which both fetch. `apt-get in a chroot` is the package manager's \
         own time: `apt-get update` and `apt-get install` of the same packages, into the same parent, \
         mounted from a plain file, with the indexes and the packages of the round before."
            .to_owned(),
    );
    Ok(())
}

/// Nothing changed, and files of the last stage changed.
fn little(session: &mut Session, kitchen: &Kitchen) -> Result<()> {
    let rounds = if session.size == Size::Full { 7 } else { 1 };
    kitchen.build("still", &kitchen.top(&[], "one"))?;
    let few = kitchen.few();
    kitchen.build("files", &kitchen.top(&[], "one"))?;
    kitchen.build("packaged", &kitchen.top(&few, "one"))?;
    let mut number = 0;
    let mut next = || {
        number += 1;
        format!("text {number}")
    };
    let mut texts: Vec<String> = Vec::new();
    for _ in 0..2 * rounds {
        texts.push(next());
    }
    let mut of_files = texts.clone().into_iter();
    let mut of_packaged = texts.into_iter();
    let still = || kitchen.build("still", &kitchen.top(&[], "one"));
    let files = || kitchen.build("files", &kitchen.top(&[], &of_files.next().unwrap_or_default()));
    let packaged =
        || kitchen.build("packaged", &kitchen.top(&few, &of_packaged.next().unwrap_or_default()));
    let mut contenders: Vec<Contender<'_>> = vec![
        (NOTHING.to_owned(), Box::new(still)),
        (FILES.to_owned(), Box::new(files)),
        (PACKAGED.to_owned(), Box::new(packaged)),
    ];
    session.rows.alternate(rounds, &mut contenders)?;
    drop(contenders);
    goal(session, NOTHING, "wall_seconds", 1.0);
    goal(session, FILES, "wall_seconds", 3.0);
    goal(session, PACKAGED, "wall_seconds", 3.0);
    goal(session, FILES, "root_ms", 200.0);
    Ok(())
}

/// Notes whether the median of a column is below its goal.
fn goal(session: &mut Session, contender: &str, column: &str, most: f64) {
    let found = session.rows.median(contender, column).unwrap_or(f64::NAN);
    session.notes.push(format!("{contender}: {column} {found:.3} (goal: {most} at most)."));
}

/// Each round another package more in the last stage.
fn one_more(session: &mut Session, kitchen: &Kitchen) -> Result<()> {
    let full = session.size == Size::Full;
    let added = kitchen.added();
    let parent = session.folder.path().join("parent.raw");
    kitchen.larder.json(&["export", "core", inputs::text(&parent)?])?;
    for (round, package) in (0_u32..).zip(&added) {
        let mut packages = kitchen.few();
        packages.push(package);
        let row = |contender: &str, columns| Row { contender: contender.into(), round, columns };
        let staged = kitchen.build("packaged", &kitchen.top(&packages, "one"))?;
        session.rows.add(row(MORE, staged));
        if full {
            let own = yardsticks::apt(session.folder.path(), &parent, &packages)?;
            session.rows.add(row(APT, own));
        }
        let one_shot = kitchen.build("one-shot", &kitchen.one_shot(&packages))?;
        session.rows.add(row(ONE_SHOT, one_shot));
    }
    inputs::remove(&parent)?;
    let wall = |name: &str| session.rows.median(name, "wall_seconds").unwrap_or(f64::NAN);
    session.notes.push(format!(
        "One package more takes {:.2} s more than the package manager's own time (goal: 2 at most), \
         and the build in one stage takes {:.1} times as long (goal: 3 at least).",
        wall(MORE) - wall(APT),
        wall(ONE_SHOT) / wall(MORE)
    ));
    Ok(())
}

/// Ten recipes in one repository, and each alone in one that has the core.
fn ten(session: &mut Session, kitchen: &Kitchen) -> Result<()> {
    let folder = session.folder.path().to_path_buf();
    let core = folder.join("only-core");
    let first = Kitchen::at(session, "ten", &core)?;
    let cores = first.build_stored("core", &first.core())?;
    let mut adds = 0.0;
    for package in kitchen.ten() {
        let alone = folder.join("alone");
        copy(&core, &alone)?;
        let own = Kitchen::at(session, "ten", &alone)?;
        let stored = own.build_stored(package, &own.top(&[package], "one"))?;
        adds += stored - cores;
        inputs::remove(&alone)?;
        let columns = vec![("adds_mb", (stored - cores) / 1e6)];
        session.rows.add(Row { contender: format!("alone: {package}"), round: 0, columns });
    }
    let mut stored = cores;
    for package in kitchen.ten() {
        stored = first.build_stored(package, &first.top(&[package], "one"))?;
    }
    inputs::remove(&core)?;
    let columns = vec![
        ("core_mb", cores / 1e6),
        ("adds_mb", adds / 1e6),
        ("stored_mb", stored / 1e6),
        ("stored_over_sum", stored / (cores + adds)),
    ];
    session.rows.add(Row { contender: "ten recipes".to_owned(), round: 0, columns });
    session.notes.push(format!(
        "Ten recipes that share a core: {:.1} MB are stored; the core alone is {:.1} MB, and what each \
         adds in a repository that has only the core is {:.1} MB together: {:.2} of the sum (goal: 1.1 \
         at most).",
        stored / 1e6,
        cores / 1e6,
        adds / 1e6,
        stored / (cores + adds)
    ));
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut command = crate::workspace::system_program("cp");
    crate::process::run(command.arg("-a").arg(from).arg(to))
}

/// A build of the core with nothing on the host, beside mmdebstrap.
fn from_nothing(session: &mut Session) -> Result<()> {
    let folder = session.folder.path().join("nothing");
    let sources = Kitchen::at(session, "nothing", &folder)?;
    let scratch = || -> Result<Columns> {
        inputs::remove(&folder)?;
        sources.build("core", &sources.core())
    };
    let alone = || -> Result<Columns> {
        inputs::remove(&folder)?;
        std::fs::create_dir_all(&folder)
            .map_err(|source| Error::io("make", folder.display().to_string(), source))?;
        let began = Instant::now();
        crate::images::unpack_alone(&folder.join("root"), &folder.join("log"))?;
        Ok(vec![("wall_seconds", began.elapsed().as_secs_f64())])
    };
    let mut contenders: Vec<Contender<'_>> =
        vec![(ALONE.to_owned(), Box::new(alone)), (SCRATCH.to_owned(), Box::new(scratch))];
    session.rows.alternate(2, &mut contenders)?;
    drop(contenders);
    inputs::remove(&folder)?;
    let wall = |name: &str| session.rows.median(name, "wall_seconds").unwrap_or(f64::NAN);
    let most = 1.15 * wall(ALONE) + 8.0;
    session.notes.push(format!(
        "From nothing: {:.1} s; mmdebstrap alone {:.1} s (goal: 1.15 times that and 8 s, {most:.1} s).",
        wall(SCRATCH),
        wall(ALONE)
    ));
    Ok(())
}
