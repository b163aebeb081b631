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
        return own(recipe, 0, "main");
    }
    let mut sources = Vec::new();
    for (index, archive) in recipe.archive.iter().enumerate() {
        match &archive.url {
            Some(url) => sources.push(named(recipe, index, archive, url.get_ref(), beside)?),
            None => sources.extend(own(recipe, index, &archive.components.join(" "))?),
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

/// This machine's own sources, for the recipe's release.
fn own(recipe: &Recipe, archive: usize, components: &str) -> Result<Vec<Source>> {
    let release = recipe.distribution.release.get_ref();
    let os = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let own = apt_settings::codename(&os).unwrap_or_default();
    let names = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];
    let mut found = Vec::new();
    for name in names.iter().chain(&["/etc/apt/sources.list.d/ubuntu.sources"]) {
        let text = fs::read_to_string(name).unwrap_or_default();
        found.extend(parse(Path::new(name), &text));
    }
    let arch = recipe.distribution.arch.get_ref();
    let sources = lines(&found, &own, release, arch, components, archive);
    if sources.is_empty() {
        return Err(Error::new(Kind::NotFound, "find packages of", release)
            .because("this machine's own archives have none of that release")
            .hint("say where they are with `[[archive]]` and `url`"));
    }
    Ok(sources)
}

/// Sources of another release at the same places.
fn lines(
    origins: &[Origin],
    own: &str,
    release: &str,
    arch: &str,
    components: &str,
    archive: usize,
) -> Vec<Source> {
    let mut sources: Vec<Source> = Vec::new();
    for (origin, suite) in apt_settings::of_release(origins, own, release) {
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
        let sources = lines(&parse(Path::new(path), text), own, release, "amd64", "main", 0);
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
    fn a_base_is_written_as_apt_writes_it() {
        for (uri, base) in [
            ("copy:///srv/x", "copy:/srv/x/"),
            ("http://one.example/debian/", "http://one.example/debian/"),
        ] {
            assert_eq!(with_slash(uri), base);
        }
    }
}
