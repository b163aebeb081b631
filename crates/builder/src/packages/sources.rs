//! Where packages come from: the recipe's archives, or where this machine gets its own.

use std::fs;
use std::path::Path;

use model::{Error, Kind, Result};

use crate::apt_settings::{self, Origin, parse};
use crate::recipe::{Archive, Recipe};

/// A place with packages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// Where its files are, ending with `/`.
    pub base: String,
    /// The line of `sources.list`.
    pub line: String,
    /// Which of the recipe's archives it belongs to.
    pub archive: usize,
}

/// All sources of a recipe.
///
/// # Errors
/// `NotFound` where this machine's archives are wanted and none fit.
pub(crate) fn of(recipe: &Recipe, beside: &Path) -> Result<Vec<Source>> {
    if recipe.archive.is_empty() {
        return own(recipe, 0, "main", None);
    }
    let mut sources = Vec::new();
    for (index, archive) in recipe.archive.iter().enumerate() {
        match &archive.url {
            Some(url) => sources.push(named(recipe, index, archive, url.get_ref(), beside)?),
            None => {
                let suite = archive.suite.as_deref();
                sources.extend(own(recipe, index, &archive.components.join(" "), suite)?);
            }
        }
    }
    Ok(sources)
}

fn named(
    recipe: &Recipe,
    index: usize,
    archive: &Archive,
    url: &str,
    beside: &Path,
) -> Result<Source> {
    let mut options = format!("arch={}", recipe.distribution.arch.get_ref());
    if let Some(keys) = &archive.signed_by {
        let path = keys_file(beside, keys.get_ref())?;
        options.push_str(&format!(" signed-by={path}"));
    }
    let suite = archive.suite.as_deref().unwrap_or(recipe.distribution.release.get_ref());
    let mut words = vec![suite];
    // A suite that ends with a slash is a flat archive, which has no components.
    if !suite.ends_with('/') {
        words.extend(archive.components.iter().map(String::as_str));
    }
    // apt copies nothing from `file:`, and what it did not copy may change behind it.
    let url =
        url.strip_prefix("file:").map_or_else(|| url.to_owned(), |rest| format!("copy:{rest}"));
    Ok(Source {
        base: with_slash(&url),
        line: format!("deb [{options}] {url} {}", words.join(" ")),
        archive: index,
    })
}

/// The file with an archive's keys, as an absolute path.
///
/// # Errors
/// `NotFound` where it is not there.
pub(crate) fn keys_file(beside: &Path, name: &str) -> Result<String> {
    let path = beside.join(name);
    let found = fs::canonicalize(&path);
    let found =
        found.map_err(|error| Error::io("read the keys", path.display().to_string(), error))?;
    Ok(found.display().to_string())
}

fn with_slash(uri: &str) -> String {
    // apt writes `copy:///x` and `file:///x` with one slash.
    let uri = match uri.split_once(":///") {
        Some((scheme, path)) if scheme == "copy" || scheme == "file" => format!("{scheme}:/{path}"),
        _ => uri.to_owned(),
    };
    format!("{}/", uri.trim_end_matches('/'))
}

/// This machine's own sources, for the recipe's release; of these one suite only, where it is named.
fn own(
    recipe: &Recipe,
    archive: usize,
    components: &str,
    suite: Option<&str>,
) -> Result<Vec<Source>> {
    let release = recipe.distribution.release.get_ref();
    let os = fs::read_to_string("/etc/os-release").unwrap_or_default();
    of_this_distribution(&os, recipe.distribution.id.get_ref(), release)?;
    let own = apt_settings::codename(&os).unwrap_or_default();
    let names = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];
    let mut found = Vec::new();
    for name in names.iter().chain(&["/etc/apt/sources.list.d/ubuntu.sources"]) {
        let text = fs::read_to_string(name).unwrap_or_default();
        found.extend(parse(Path::new(name), &text));
    }
    let arch = recipe.distribution.arch.get_ref();
    let sources = lines(&found, &own, (release, suite), arch, components, archive);
    if sources.is_empty() {
        return Err(Error::new(Kind::NotFound, "find packages of", suite.unwrap_or(release))
            .because("this machine's own archives have none of that release")
            .hint("say where they are with `[[archive]]` and `url`"));
    }
    Ok(sources)
}

/// Fails where this machine is of another distribution: its archives have nothing of the wanted one.
fn of_this_distribution(os_release: &str, id: &str, release: &str) -> Result<()> {
    let own = apt_settings::distribution(os_release);
    if own.as_deref() == Some(id) {
        return Ok(());
    }
    let own = own.unwrap_or_else(|| "no distribution that it names".into());
    Err(Error::new(Kind::NotFound, "find packages of", format!("{id} {release}"))
        .because(format!("this machine is {own}, and so are its archives"))
        .hint(format!(
            "give the recipe an `[[archive]]` for each of {release}, {release}-updates and \
             {release}-security, with `url`, `suite` and, in `signed_by`, the keys of {id} \
             (its package {id}-{})",
            if id == "debian" { "archive-keyring" } else { "keyring" }
        )))
}

/// Sources of another release at the same places.
fn lines(
    origins: &[Origin],
    own: &str,
    (release, suite): (&str, Option<&str>),
    arch: &str,
    components: &str,
    archive: usize,
) -> Vec<Source> {
    let mut sources: Vec<Source> = Vec::new();
    let all = apt_settings::of_release(origins, own, release);
    let chosen = match suite {
        None => all,
        Some(suite) if all.iter().any(|(_, known)| known == suite) => {
            all.into_iter().filter(|(_, known)| known == suite).collect()
        }
        // Another one of the release, as its backports: it is where the release is.
        Some(suite) if suite.strip_prefix(release).is_some_and(|rest| rest.starts_with('-')) => {
            let places = all.into_iter().filter(|(_, known)| known == release);
            places.map(|(origin, _)| (origin, suite.to_owned())).collect()
        }
        Some(_) => Vec::new(),
    };
    for (origin, suite) in chosen {
        let signed = origin.signed_by.as_ref();
        let signed = signed.map_or_else(String::new, |path| format!(" signed-by={path}"));
        let line = format!("deb [arch={arch}{signed}] {} {suite} {components}", origin.uri);
        if sources.iter().all(|source| source.line != line) {
            sources.push(Source { base: with_slash(&origin.uri), line, archive });
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANZAS: &str = "Types: deb\n# http://old.example/\nURIs: http://one.example/debian\n\
        Suites: bookworm bookworm-updates bookworm-backports\nComponents: main contrib\n\
        Signed-By: /keys.gpg\n\nTypes: deb deb-src\nURIs: http://two.example/security\n\
        Suites: bookworm-security\nComponents: main\n\nTypes: deb-src\nURIs: http://three\n\
        Suites: bookworm\n";

    fn own_lines(text: &str, path: &str, own: &str, release: &str) -> Vec<String> {
        let sources = parse(Path::new(path), text);
        let sources = lines(&sources, own, (release, None), "amd64", "main", 0);
        sources.into_iter().map(|source| source.line).collect()
    }

    #[test]
    fn another_releases_sources_are_at_the_same_places() {
        let found = own_lines(STANZAS, "debian.sources", "bookworm", "trixie");
        let expected = [
            "deb [arch=amd64 signed-by=/keys.gpg] http://one.example/debian trixie main",
            "deb [arch=amd64 signed-by=/keys.gpg] http://one.example/debian trixie-updates main",
            "deb [arch=amd64] http://two.example/security trixie-security main",
        ];
        assert_eq!(found, expected);
        assert!(own_lines(STANZAS, "debian.sources", "noble", "trixie").is_empty());
    }

    #[test]
    fn one_suite_of_this_machines_places_can_be_asked_for() {
        let sources = parse(Path::new("debian.sources"), STANZAS);
        let of = |suite: &str| -> Vec<String> {
            let wanted = ("trixie", Some(suite));
            let found = lines(&sources, "bookworm", wanted, "amd64", "main", 0);
            found.into_iter().map(|source| source.line).collect()
        };
        let one = "deb [arch=amd64 signed-by=/keys.gpg] http://one.example/debian";
        assert_eq!(of("trixie"), [format!("{one} trixie main")]);
        assert_eq!(of("trixie-backports"), [format!("{one} trixie-backports main")]);
        let security = "deb [arch=amd64] http://two.example/security trixie-security main";
        assert_eq!(of("trixie-security"), [security]);
        assert!(of("bullseye").is_empty());
    }

    #[test]
    fn sources_of_both_kinds_are_read_alike() {
        let list = "# deb http://no bookworm main\n\
            deb [arch=amd64 signed-by=/keys.gpg] http://one.example/debian bookworm main contrib\n\
            deb-src http://no bookworm main\ndeb http://two.example/security bookworm-security main\n";
        let stanzas = STANZAS.replace("bookworm-updates ", "");
        let lines = own_lines(list, "sources.list", "bookworm", "bullseye");
        assert_eq!(lines, own_lines(&stanzas, "x.sources", "bookworm", "bullseye"));
        assert_eq!(lines.len(), 2);
    }

    #[test]
    fn a_machine_has_no_archives_of_another_distribution() {
        let os = "ID=debian\nVERSION_CODENAME=bookworm\n";
        of_this_distribution(os, "debian", "trixie").unwrap();
        let error = of_this_distribution(os, "ubuntu", "noble").unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.to_string().contains("ubuntu noble: this machine is debian"), "{error}");
        let hint = error.hint_text().unwrap();
        assert!(hint.contains("noble-security") && hint.contains("ubuntu-keyring"), "{hint}");
        assert!(of_this_distribution("", "debian", "trixie").is_err());
    }

    #[test]
    fn a_base_is_written_as_apt_writes_it() {
        for (uri, base) in [
            ("copy:///srv/x", "copy:/srv/x/"),
            ("http://one.example/debian/", "http://one.example/debian/"),
        ] {
            assert_eq!(with_slash(uri), base);
        }
    }
}
