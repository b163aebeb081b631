//! Many images that are like and unlike each other as those of a real site are: three releases of
//! Debian, as released and patched, with a few sets of packages. What others' tools are compared on.
//!
//! Each is a bare file system of 2 GiB, as it comes out of a builder for machines whose kernel the
//! host brings, or as one partition of a disk.
//!
//! **Failure**: a release that leaves support leaves the mirrors, too. A recipe that cannot be built
//! is said, and one in reserve takes its place.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use model::{Error, Kind, Result};

use super::recipe::{Recipe, State};
use crate::process;

/// How many images the corpus has.
pub const IMAGE_COUNT: usize = 8;

/// As many as there are cores on a small machine; each needs one, and the disk.
const BUILT_AT_ONCE: usize = 2;

/// How often a build is tried: mirrors have bad moments.
const TRIES: usize = 2;

macro_rules! recipe {
    ($name:literal, $suite:literal, $state:ident $(, $package:literal)*) => {
        Recipe {
            name: $name,
            suite: $suite,
            packages: &[
                "systemd-sysv", "udev", "dbus", "kmod", "iproute2", "linux-image-cloud-amd64",
                $($package),*
            ],
            disk_mib: 2048,
            boot_mib: 0,
            state: State::$state,
        }
    };
}

/// All recipes, in the order in which they are imported; see [`IN_RESERVE`].
static RECIPES: [Recipe; 10] = [
    recipe!("deb11-minimal", "bullseye", Released),
    recipe!("deb11-patched", "bullseye", Patched),
    recipe!("deb11-nginx", "bullseye", Released, "nginx"),
    recipe!("deb12-minimal", "bookworm", Released),
    recipe!("deb12-patched", "bookworm", Patched),
    recipe!("deb12-nginx", "bookworm", Patched, "nginx"),
    recipe!("deb12-postgresql", "bookworm", Patched, "postgresql"),
    recipe!("deb12-build", "bookworm", Patched, "build-essential", "git"),
    recipe!("deb13-minimal", "trixie", Released),
    recipe!("deb13-patched", "trixie", Patched),
];

/// Those that are built only when another cannot be.
const IN_RESERVE: [&str; 2] = ["deb11-nginx", "deb13-patched"];

/// An image of the corpus.
pub struct Member {
    /// Its name, which says what it is.
    pub name: &'static str,
    /// Where its disk is; copy it before writing to it.
    pub path: PathBuf,
}

/// Makes sure that the images exist. Whose place another took is said in sentences.
///
/// # Errors
/// `Refused`: an image has to be built and this is not root. `Unavailable`: too few can be built.
pub fn ensure() -> Result<(Vec<Member>, Vec<String>)> {
    let folder = super::folder()?;
    let is_there = |recipe: &Recipe| path(&folder, recipe).exists();
    let (reserve, regular): (Vec<_>, Vec<_>) =
        RECIPES.iter().partition(|recipe| IN_RESERVE.contains(&recipe.name));
    if choose(&is_there).len() < IMAGE_COUNT {
        super::begin(&folder)?;
        build_all(&folder, &regular);
        for recipe in reserve {
            if choose(&is_there).len() < IMAGE_COUNT {
                build_all(&folder, &[recipe]);
            }
        }
    }
    process::go_on()?;
    let chosen = choose(&is_there);
    if chosen.len() < IMAGE_COUNT {
        return Err(Error::new(Kind::Unavailable, "build", format!("{IMAGE_COUNT} images"))
            .because(format!("{} could be built", chosen.len()))
            .hint(format!("why others could not is in {}/*.log", folder.display())));
    }
    let missing = regular.into_iter().filter(|recipe| !is_there(recipe));
    let said = missing.map(|recipe| {
        format!(
            "{} could not be built from this machine's mirrors; another took its place.",
            recipe.name
        )
    });
    let member = |recipe: &Recipe| Member { name: recipe.name, path: path(&folder, recipe) };
    Ok((chosen.into_iter().map(member).collect(), said.collect()))
}

fn path(folder: &Path, recipe: &Recipe) -> PathBuf {
    folder.join(format!("{}.raw", recipe.file_stem()))
}

/// Of those that are there the regular ones, then as many in reserve as are wanting; in order.
fn choose(is_there: &dyn Fn(&Recipe) -> bool) -> Vec<&'static Recipe> {
    let (reserve, mut chosen): (Vec<_>, Vec<_>) = RECIPES
        .iter()
        .enumerate()
        .filter(|(_, recipe)| is_there(recipe))
        .partition(|(_, recipe)| IN_RESERVE.contains(&recipe.name));
    chosen.extend(reserve);
    chosen.truncate(IMAGE_COUNT);
    chosen.sort_unstable_by_key(|(position, _)| *position);
    chosen.into_iter().map(|(_, recipe)| recipe).collect()
}

/// Builds those that are missing, a few at once; says which cannot be built.
fn build_all(folder: &Path, recipes: &[&Recipe]) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..BUILT_AT_ONCE {
            scope.spawn(|| {
                while let Some(recipe) = recipes.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = build_patiently(folder, recipe) {
                        println!("{} cannot be built: {error}", recipe.name);
                    }
                }
            });
        }
    });
}

fn build_patiently(folder: &Path, recipe: &Recipe) -> Result<()> {
    let path = path(folder, recipe);
    if path.exists() {
        return Ok(());
    }
    for _ in 1..TRIES {
        match super::build(recipe, folder, &path) {
            Ok(()) => return Ok(()),
            Err(_) => process::go_on()?,
        }
    }
    super::build(recipe, folder, &path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_reserve_takes_the_place_of_one_that_is_missing() {
        let all = choose(&|_| true);
        assert_eq!(all.len(), IMAGE_COUNT);
        assert!(all.iter().all(|recipe| !IN_RESERVE.contains(&recipe.name)));
        let names: Vec<_> =
            choose(&|recipe| recipe.name != "deb11-patched").iter().map(|r| r.name).collect();
        assert_eq!(names.len(), IMAGE_COUNT);
        assert_eq!(names[..3], ["deb11-minimal", "deb11-nginx", "deb12-minimal"]);
        assert_eq!(choose(&|recipe| recipe.suite == "trixie").len(), 2);
    }
}
