//! Where packages come from: this machine's own settings of apt, also for other releases of Debian.
//!
//! ```text
//!   bookworm  bookworm-updates  bookworm-security     what the machine has
//!   trixie    trixie-updates    trixie-security       the same places, for a patched trixie
//!   trixie                                            ... for trixie as released
//! ```

use std::fs;
use std::path::PathBuf;

use builder::apt_settings::{self, Origin, parse};
use model::{Error, Kind, Result};

use super::recipe::{Recipe, State};
use crate::process;
use crate::workspace::system_program;

/// What of a place is asked for; the places' other parts differ from release to release.
const COMPONENT: &str = "main";

/// What mmdebstrap is told of the places for a recipe's packages: a file's name, or lines of one.
///
/// # Errors
/// `NotFound`: this machine has no Debian sources, or none for the release that it runs itself,
/// from which the others' follow.
pub fn of(recipe: &Recipe) -> Result<Vec<String>> {
    let (path, text) = own_file()?;
    if recipe.state == State::Own {
        return Ok(vec![path.display().to_string()]);
    }
    let sources = parse(&path, &text);
    let release = fs::read_to_string("/etc/os-release").ok();
    let own = release.and_then(|text| apt_settings::codename(&text)).unwrap_or_default();
    let lines = lines(&sources, &own, recipe.suite, recipe.state == State::Patched);
    if lines.is_empty() {
        return Err(Error::new(Kind::NotFound, "find sources for", recipe.suite)
            .because(format!("{} names no suite `{own}`", path.display())));
    }
    Ok(lines)
}

/// The file that says where this machine's Debian packages come from.
fn own_file() -> Result<(PathBuf, String)> {
    let names = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];
    for name in names {
        let text = fs::read_to_string(name).unwrap_or_default();
        let says =
            |line: &str| line.to_lowercase().starts_with("types: deb") || line.starts_with("deb ");
        if text.lines().any(says) {
            return Ok((name.into(), text));
        }
    }
    Err(Error::new(Kind::NotFound, "read", "this machine's Debian sources")
        .because(format!("neither {} nor {} holds any", names[0], names[1])))
}

/// Lines for another suite from the same places.
fn lines(origins: &[Origin], own: &str, suite: &str, patched: bool) -> Vec<String> {
    let found = apt_settings::of_release(origins, own, suite);
    let found = found.into_iter().filter(|(_, found)| patched || found == suite);
    let line = |(origin, found): (&Origin, String)| {
        let signed = origin.signed_by.as_ref();
        let signed = signed.map_or_else(String::new, |path| format!("[signed-by={path}] "));
        format!("deb {signed}{} {found} {COMPONENT}", origin.uri)
    };
    found.map(line).collect()
}

/// This machine's own settings of how packages are fetched: proxies, and whether a mirror that stands
/// still is believed.
pub fn settings() -> Result<Vec<String>> {
    let dump = process::output(system_program("apt-config").arg("dump"), "")?;
    Ok(apt_settings::fetch_settings(&dump))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const STANZAS: &str = "Types: deb\n# http://old.example/\nURIs: http://one.example/debian\n\
        Suites: bookworm bookworm-updates bookworm-backports\nComponents: main contrib\n\
        Signed-By: /keys.gpg\n\nTypes: deb deb-src\nURIs: http://two.example/security\n\
        Suites: bookworm-security\nComponents: main\n\nTypes: deb-src\nURIs: http://three\n\
        Suites: bookworm\n";

    #[test]
    fn another_releases_sources_are_at_the_same_places() {
        let sources = parse(Path::new("debian.sources"), STANZAS);
        let first = "deb [signed-by=/keys.gpg] http://one.example/debian trixie main";
        assert_eq!(lines(&sources, "bookworm", "trixie", false), [first]);
        let patched = [
            first,
            "deb [signed-by=/keys.gpg] http://one.example/debian trixie-updates main",
            "deb http://two.example/security trixie-security main",
        ];
        assert_eq!(lines(&sources, "bookworm", "trixie", true), patched);
        assert!(lines(&sources, "noble", "trixie", true).is_empty());
    }

    #[test]
    fn sources_of_both_kinds_are_read_alike() {
        let list = "# deb http://no bookworm main\n\
            deb [arch=amd64 signed-by=/keys.gpg] http://one.example/debian bookworm main contrib\n\
            deb-src http://no bookworm main\ndeb http://two.example/security bookworm-security main\n";
        let from_list =
            lines(&parse(Path::new("sources.list"), list), "bookworm", "bullseye", true);
        let stanzas = STANZAS.replace("bookworm-updates ", "");
        let from_stanzas =
            lines(&parse(Path::new("x.sources"), &stanzas), "bookworm", "bullseye", true);
        assert_eq!(from_list, from_stanzas);
        assert_eq!(from_list.len(), 2);
    }
}
