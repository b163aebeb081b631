//! What apt on this machine is set to: where packages come from, and how they are fetched.
//!
//! ```text
//!   bookworm  bookworm-updates  bookworm-security     what the machine has
//!   trixie    trixie-updates    trixie-security       the same places, for another release
//! ```
//!
//! **Source**: sources.list(5), apt.conf(5).

use std::path::Path;

/// The suites that correct a released one, by their names' endings.
const CORRECTIONS: [&str; 2] = ["updates", "security"];

/// A place with packages, as apt's settings name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Where it is.
    pub uri: String,
    /// What is taken from there.
    pub suites: Vec<String>,
    /// The file with the keys that the place signs with; apt's own keys where none is named.
    pub signed_by: Option<String>,
}

/// The places that a file of apt's settings names; its ending says which of apt's two forms it has.
pub fn parse(path: &Path, text: &str) -> Vec<Origin> {
    if path.extension().is_some_and(|ending| ending == "sources") {
        text.split("\n\n").filter_map(from_stanza).collect()
    } else {
        text.lines().filter_map(from_line).collect()
    }
}

/// `Name: value` lines, as deb822 has them.
fn from_stanza(stanza: &str) -> Option<Origin> {
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
    Some(Origin { uri, suites: words("Suites"), signed_by })
}

/// `deb [name=value ...] URI SUITE COMPONENT ...`
fn from_line(line: &str) -> Option<Origin> {
    let rest = line.strip_prefix("deb ")?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?.to_owned(), words.next()?.to_owned());
    Some(Origin { uri, suites: vec![suite], signed_by: signed_by.map(str::to_owned) })
}

/// A release at the same places: for each suite of this machine's `own` release, and of those that
/// correct it, the place and the suite of the other release.
pub fn of_release<'a>(
    origins: &'a [Origin],
    own: &str,
    release: &str,
) -> Vec<(&'a Origin, String)> {
    let wanted = |suite: &String| match suite.strip_prefix(own).map(|rest| rest.strip_prefix('-')) {
        _ if suite == own => Some(release.to_owned()),
        Some(Some(what)) if CORRECTIONS.contains(&what) => Some(format!("{release}-{what}")),
        _ => None,
    };
    let all =
        origins.iter().flat_map(|origin| origin.suites.iter().map(move |suite| (origin, suite)));
    all.filter_map(|(origin, suite)| Some((origin, wanted(suite)?))).collect()
}

/// Of what `apt-config dump` prints those about fetching: proxies, and whether a mirror that stands
/// still is believed. Without the semicolons at their ends.
pub fn fetch_settings(dump: &str) -> Vec<String> {
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

/// The release's name in the text of `/etc/os-release`.
pub fn codename(os_release: &str) -> Option<String> {
    field(os_release, "VERSION_CODENAME=")
}

/// The distribution's name in the text of `/etc/os-release`.
pub fn distribution(os_release: &str) -> Option<String> {
    field(os_release, "ID=")
}

fn field(os_release: &str, name: &str) -> Option<String> {
    let value = os_release.lines().find_map(|line| line.strip_prefix(name))?;
    let value = value.trim().trim_matches('"');
    (!value.is_empty()).then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_apts_settings_those_about_fetching_are_taken() {
        let dump = "APT::Architecture \"amd64\";\nAcquire::Check-Valid-Until \"false\";\n\
                    Acquire::http \"\";\nAcquire::http::Proxy \"http://localhost:3142\";\n\
                    Acquire::http::Pipeline-Depth \"\";\nAcquire::Languages \"en\";\n";
        assert_eq!(
            fetch_settings(dump),
            [
                "Acquire::Check-Valid-Until \"false\"",
                "Acquire::http::Proxy \"http://localhost:3142\""
            ]
        );
    }

    #[test]
    fn the_codename_is_read_with_and_without_quotes() {
        assert_eq!(codename("ID=debian\nVERSION_CODENAME=bookworm\n").unwrap(), "bookworm");
        assert_eq!(codename("VERSION_CODENAME=\"noble\"\n").unwrap(), "noble");
        assert_eq!(codename("VERSION_CODENAME=\n"), None);
        assert_eq!(codename("ID=x\n"), None);
        assert_eq!(distribution("VERSION_ID=12\nID=debian\n").unwrap(), "debian");
    }
}
