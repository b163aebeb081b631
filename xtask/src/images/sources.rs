//! Where packages come from: this machine's own settings of apt, also for other releases of Debian.
//!
//! ```text
//!   bookworm  bookworm-updates  bookworm-security     what the machine has
//!   trixie    trixie-updates    trixie-security       the same places, for a patched trixie
//!   trixie                                            ... for trixie as released
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use model::{Error, Kind, Result};

use super::recipe::{Recipe, State};
use crate::process;
use crate::setup;
use crate::workspace::system_program;

/// What of a place is asked for; the places' other parts differ from release to release.
const COMPONENT: &str = "main";

/// The suites that correct a released one, by their names' endings.
const CORRECTIONS: [&str; 2] = ["updates", "security"];

/// A place with packages.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    uri: String,
    suites: Vec<String>,
    /// The file with the keys that the place signs with; apt's own keys when none is named.
    signed_by: Option<String>,
}

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
    let own = release.and_then(|text| setup::codename(&text)).unwrap_or_default();
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

fn parse(path: &Path, text: &str) -> Vec<Source> {
    if path.extension().is_some_and(|ending| ending == "sources") {
        text.split("\n\n").filter_map(from_stanza).collect()
    } else {
        text.lines().filter_map(from_line).collect()
    }
}

/// `Name: value` lines, as deb822 has them.
fn from_stanza(stanza: &str) -> Option<Source> {
    let field = |name: &str| {
        stanza
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim().to_owned())
    };
    let words = |name: &str| -> Vec<String> {
        field(name).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    };
    if !words("Types").iter().any(|kind| kind == "deb") {
        return None;
    }
    let uri = words("URIs").into_iter().next()?;
    let signed_by = field("Signed-By").filter(|value| value.starts_with('/'));
    Some(Source { uri, suites: words("Suites"), signed_by })
}

/// `deb [name=value ...] URI SUITE COMPONENT ...`
fn from_line(line: &str) -> Option<Source> {
    let rest = line.strip_prefix("deb ")?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?.to_owned(), words.next()?.to_owned());
    Some(Source { uri, suites: vec![suite], signed_by: signed_by.map(str::to_owned) })
}

/// Lines for another suite from the same places.
fn lines(sources: &[Source], own: &str, suite: &str, patched: bool) -> Vec<String> {
    let mut lines = Vec::new();
    for source in sources {
        let signed = source.signed_by.as_ref();
        let signed = signed.map_or_else(String::new, |path| format!("[signed-by={path}] "));
        for found in &source.suites {
            let wanted = match found.strip_prefix(own).map(|rest| rest.strip_prefix('-')) {
                _ if found == own => Some(suite.to_owned()),
                Some(Some(what)) if patched && CORRECTIONS.contains(&what) => {
                    Some(format!("{suite}-{what}"))
                }
                _ => None,
            };
            lines.extend(
                wanted.map(|wanted| format!("deb {signed}{} {wanted} {COMPONENT}", source.uri)),
            );
        }
    }
    lines
}

/// This machine's own settings of how packages are fetched: proxies, and whether a mirror that stands
/// still is believed.
pub fn settings() -> Result<Vec<String>> {
    let dump = process::output(system_program("apt-config").arg("dump"), "")?;
    Ok(chosen_settings(&dump))
}

fn chosen_settings(dump: &str) -> Vec<String> {
    const CHOSEN: [&str; 5] = [
        "Acquire::Check-Valid-Until ",
        "Acquire::Check-Date ",
        "Acquire::http::",
        "Acquire::https::",
        "Acquire::Max-FutureTime ",
    ];
    dump.lines()
        .filter(|line| CHOSEN.iter().any(|chosen| line.starts_with(chosen)))
        .map(|line| line.trim_end_matches(';').to_owned())
        .filter(|line| !line.ends_with("\"\""))
        .collect()
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn of_apts_settings_those_about_fetching_are_taken() {
        let dump = "APT::Architecture \"amd64\";\nAcquire::Check-Valid-Until \"false\";\n\
                    Acquire::http \"\";\nAcquire::http::Proxy \"http://localhost:3142\";\n\
                    Acquire::http::Pipeline-Depth \"\";\nAcquire::Languages \"en\";\n";
        assert_eq!(
            chosen_settings(dump),
            [
                "Acquire::Check-Valid-Until \"false\"",
                "Acquire::http::Proxy \"http://localhost:3142\""
            ]
        );
    }
}
