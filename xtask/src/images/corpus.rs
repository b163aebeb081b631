//! Many images that are like and unlike each other as those of a real site are: three releases of
//! Debian, as released and patched, with a few sets of packages. What others' tools are compared on.
//!
//! Each is a bare file system of 2 GiB, as it comes out of a builder for machines whose kernel the
//! host brings, or as one partition of a disk.
//!
//! **Failure**: a release that leaves support leaves the mirrors, too. A recipe that cannot be built
//! is said, and one in reserve takes its place.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use model::{Error, Kind, Result};

use super::recipe::{Recipe, State};

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

/// Makes sure that the images exist. What was left out, and why, are sentences.
///
/// # Errors
/// `Refused`: an image has to be built and this is not root. `Unavailable`: too few can be built.
pub fn ensure() -> Result<(Vec<Member>, Vec<String>)> {
    let folder = super::folder()?;
    let path = |recipe: &Recipe| folder.join(format!("{}.raw", recipe.file_stem()));
    let is_there = |recipe: &Recipe| path(recipe).exists();
    let mut left_out = Vec::new();
    let (reserve, regular): (Vec<_>, Vec<_>) =
        RECIPES.iter().partition(|recipe| IN_RESERVE.contains(&recipe.name));
    if RECIPES.iter().filter(|recipe| is_there(recipe)).count() < IMAGE_COUNT {
        super::begin(&folder)?;
        left_out = build_all(&regular);
        for recipe in reserve {
            if RECIPES.iter().filter(|recipe| is_there(recipe)).count() < IMAGE_COUNT {
                left_out.extend(build_all(&[recipe]));
            }
        }
    }
    let members: Vec<_> = RECIPES
        .iter()
        .filter(|recipe| is_there(recipe))
        .take(IMAGE_COUNT)
        .map(|recipe| Member { name: recipe.name, path: path(recipe) })
        .collect();
    if members.len() < IMAGE_COUNT {
        return Err(Error::new(Kind::Unavailable, "build", format!("{IMAGE_COUNT} images"))
            .because(left_out.join("; ")));
    }
    crate::process::go_on()?;
    Ok((members, left_out))
}

/// Builds those that are missing, a few at once; says which could not be built.
fn build_all(recipes: &[&Recipe]) -> Vec<String> {
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..BUILT_AT_ONCE {
            scope.spawn(|| {
                while let Some(recipe) = recipes.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = build_patiently(recipe) {
                        println!("{} cannot be built: {error}", recipe.name);
                        let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
                        failures.push(format!("{} could not be built", recipe.name));
                    }
                }
            });
        }
    });
    failures.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn build_patiently(recipe: &Recipe) -> Result<()> {
    let folder = super::folder()?;
    let path = folder.join(format!("{}.raw", recipe.file_stem()));
    let mut tried = 1;
    loop {
        if path.exists() {
            return Ok(());
        }
        match super::build(recipe, &folder, &path) {
            Err(_) if tried < TRIES => {
                crate::process::go_on()?;
                tried += 1;
            }
            done => return done,
        }
    }
}
