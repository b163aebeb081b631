//! Imports go down only: a crate names its layer, and imports crates of lower layers, never a
//! sibling. Tests may import the crate itself too.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use model::{Error, Kind, Result};
use toml::{Table, Value};

use crate::workspace;

/// What a crate's `Cargo.toml` says about layers.
#[derive(Debug)]
struct Crate {
    name: String,
    layer: Option<i64>,
    /// Names of the packages it imports, also in build scripts.
    imports: Vec<String>,
    /// Names of the packages that only its tests import.
    test_imports: Vec<String>,
}

/// Checks the workspace.
///
/// # Errors
/// `Invalid`: a line for each import that is not downwards.
pub fn run() -> Result<()> {
    let crates = read(&workspace::root())?;
    let wrong = check(&crates);
    if wrong.is_empty() {
        println!("{} crates: imports go down only", crates.len());
        return Ok(());
    }
    Err(Error::new(Kind::Invalid, "check the layers", "")
        .because(format!("\n{}", wrong.join("\n"))))
}

/// Reads every crate under `crates/`, and `xtask`.
fn read(root: &Path) -> Result<Vec<Crate>> {
    let folder = root.join("crates");
    let failed = |source| Error::io("list", folder.display().to_string(), source);
    let mut paths = vec![root.join("xtask/Cargo.toml")];
    for entry in fs::read_dir(&folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path().join("Cargo.toml");
        if path.exists() {
            paths.push(path);
        }
    }
    paths.sort();
    paths
        .iter()
        .map(|path| {
            let subject = path.display().to_string();
            let text = fs::read_to_string(path)
                .map_err(|source| Error::io("read", subject.clone(), source))?;
            parse(&text)
                .map_err(|reason| Error::new(Kind::Invalid, "read", subject).because(reason))
        })
        .collect()
}

fn parse(text: &str) -> std::result::Result<Crate, String> {
    let table: Table = text.parse().map_err(|error| format!("{error}"))?;
    let name = at(&table, &["package", "name"]).and_then(Value::as_str).ok_or("no package.name")?;
    let layer = at(&table, &["package", "metadata", "house", "layer"]).and_then(Value::as_integer);
    let mut found =
        Crate { name: name.to_owned(), layer, imports: Vec::new(), test_imports: Vec::new() };
    found.take(&table);
    for target in table.get("target").and_then(Value::as_table).into_iter().flat_map(Table::values)
    {
        if let Some(target) = target.as_table() {
            found.take(target);
        }
    }
    Ok(found)
}

impl Crate {
    /// Takes the imports of a table that holds dependencies.
    fn take(&mut self, table: &Table) {
        self.imports.extend(packages(table, "dependencies"));
        self.imports.extend(packages(table, "build-dependencies"));
        self.test_imports.extend(packages(table, "dev-dependencies"));
    }
}

/// The packages that a table of dependencies names; a renamed one counts by its own name.
fn packages(table: &Table, key: &str) -> Vec<String> {
    let dependencies = table.get(key).and_then(Value::as_table);
    dependencies
        .into_iter()
        .flatten()
        .map(|(name, value)| {
            let renamed = value.as_table().and_then(|table| table.get("package"));
            renamed.and_then(Value::as_str).unwrap_or(name).to_owned()
        })
        .collect()
}

fn at<'a>(table: &'a Table, path: &[&str]) -> Option<&'a Value> {
    let (last, folders) = path.split_last()?;
    let mut table = table;
    for folder in folders {
        table = table.get(*folder)?.as_table()?;
    }
    table.get(*last)
}

/// Says what is wrong, a line for each.
fn check(crates: &[Crate]) -> Vec<String> {
    let layers: BTreeMap<&str, Option<i64>> =
        crates.iter().map(|each| (each.name.as_str(), each.layer)).collect();
    let mut wrong = Vec::new();
    for importer in crates {
        let Some(layer) = importer.layer else {
            wrong.push(format!("{}: no layer in [package.metadata.house]", importer.name));
            continue;
        };
        let in_code = importer.imports.iter().map(|name| (name, ""));
        let in_tests = importer.test_imports.iter().map(|name| (name, " in its tests"));
        for (imported, place) in in_code.chain(in_tests) {
            // A crate from elsewhere has no layer; one of ours without a layer is told above.
            let Some(Some(of)) = layers.get(imported.as_str()) else { continue };
            let is_itself = *imported == importer.name && !place.is_empty();
            if *of >= layer && !is_itself {
                let word = if *of == layer { "a sibling" } else { "upwards" };
                wrong.push(format!(
                    "{} (layer {layer}) imports {imported} (layer {of}){place}: {word}",
                    importer.name
                ));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: &str = "[package]\nname = \"words\"\n[package.metadata.house]\nlayer = 0\n";
    const BYTES: &str = "[package]\nname = \"bytes\"\n[package.metadata.house]\nlayer = 1\n";

    fn complaints(texts: &[&str]) -> Vec<String> {
        check(&texts.iter().map(|text| parse(text).unwrap()).collect::<Vec<_>>())
    }

    #[test]
    fn an_import_downwards_is_well() {
        let bytes = format!("{BYTES}[dependencies]\nwords.workspace = true\nserde = \"1\"\n");
        assert_eq!(complaints(&[WORDS, &bytes]), [""; 0]);
    }

    #[test]
    fn an_import_upwards_or_of_a_sibling_names_both() {
        let words = format!("{WORDS}[dependencies]\nbytes.workspace = true\n");
        assert_eq!(
            complaints(&[&words, BYTES]),
            ["words (layer 0) imports bytes (layer 1): upwards"]
        );
        let store = BYTES.replace("bytes", "store") + "[dependencies]\nbytes = { path = \"x\" }\n";
        assert_eq!(
            complaints(&[BYTES, &store]),
            ["store (layer 1) imports bytes (layer 1): a sibling"]
        );
    }

    #[test]
    fn tests_may_import_lower_layers_and_the_crate_itself_only() {
        let bytes =
            format!("{BYTES}[dev-dependencies]\nbytes = {{ path = \".\" }}\nwords = \"1\"\n");
        assert_eq!(complaints(&[WORDS, &bytes]), [""; 0]);
        let words = format!("{WORDS}[dev-dependencies]\nbytes.workspace = true\n");
        let expected = "words (layer 0) imports bytes (layer 1) in its tests: upwards";
        assert_eq!(complaints(&[&words, BYTES]), [expected]);
    }

    #[test]
    fn renamed_build_and_target_imports_count() {
        let renamed =
            format!("{WORDS}[dependencies]\nx = {{ package = \"bytes\", path = \"y\" }}\n");
        let build = format!("{WORDS}[build-dependencies]\nbytes = \"1\"\n");
        let target = format!("{WORDS}[target.'cfg(unix)'.dependencies]\nbytes = \"1\"\n");
        for words in [renamed, build, target] {
            assert_eq!(complaints(&[&words, BYTES]).len(), 1, "{words}");
        }
    }

    #[test]
    fn a_crate_without_a_layer_is_told() {
        assert_eq!(
            complaints(&["[package]\nname = \"lost\"\n"]),
            ["lost: no layer in [package.metadata.house]"]
        );
    }

    #[test]
    fn this_workspace_keeps_the_rule() {
        assert_eq!(check(&read(&workspace::root()).unwrap()), [""; 0]);
    }
}
