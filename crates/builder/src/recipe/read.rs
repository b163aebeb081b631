//! From text to a recipe; errors that say where and what was perhaps meant.

use std::ops::Range;
use std::path::Path;

use model::{Error, Kind, Result};

use super::Recipe;

/// More than anybody writes by hand.
const RECIPE_LEN_MAX: u64 = 1 << 20;

/// A recipe's file: what errors need to say where something stands.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// The file's name.
    pub file: String,
    text: String,
}

impl Place {
    /// A place in this text.
    pub fn new(file: impl Into<String>, text: impl Into<String>) -> Self {
        Place { file: file.into(), text: text.into() }
    }

    /// What stands in it.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The line of a byte, counted from 1.
    pub fn line(&self, at: usize) -> usize {
        self.text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
    }

    /// The column of a byte, counted from 1, in characters.
    pub fn column(&self, at: usize) -> usize {
        let before = self.text.get(..at).unwrap_or(&self.text);
        before.rsplit('\n').next().unwrap_or_default().chars().count() + 1
    }

    /// An error about what stands there.
    pub fn error(&self, operation: &'static str, at: usize, reason: impl Into<String>) -> Error {
        Error::new(Kind::Invalid, operation, &self.file).because(format!(
            "line {}, column {}: {}",
            self.line(at),
            self.column(at),
            reason.into()
        ))
    }
}

impl Recipe {
    /// Reads a recipe from a file.
    ///
    /// # Errors
    /// `NotFound` and its kin from the file; `Invalid` with line and column where it is no recipe.
    pub fn read_file(path: &Path) -> Result<(Recipe, Place)> {
        let subject = path.display().to_string();
        let failed = |error| Error::io("read the recipe", &subject, error);
        let len = std::fs::metadata(path).map_err(failed)?.len();
        if len > RECIPE_LEN_MAX {
            return Err(Error::new(Kind::Invalid, "read the recipe", subject)
                .because(format!("it has {len} bytes; a recipe has at most {RECIPE_LEN_MAX}")));
        }
        let bytes = std::fs::read(path).map_err(failed)?;
        let text = String::from_utf8(bytes).map_err(|_| {
            Error::new(Kind::Invalid, "read the recipe", &subject).because("it is not text")
        })?;
        Recipe::read(Place::new(subject, text))
    }

    /// Reads a recipe and checks it.
    ///
    /// # Errors
    /// `Invalid`, with line and column; for an unknown key the nearest one.
    pub fn read(place: Place) -> Result<(Recipe, Place)> {
        let recipe: Recipe =
            toml::from_str(&place.text).map_err(|error| explain(&place, &error))?;
        super::check::check(&recipe, &place)?;
        Ok((recipe, place))
    }
}

fn explain(place: &Place, error: &toml::de::Error) -> Error {
    let span: Range<usize> = error.span().unwrap_or(0..0);
    let message = error.message();
    let reason = message.lines().collect::<Vec<_>>().join(" ");
    let (known, unknown) = match message.strip_prefix("unknown field ") {
        Some(_) => {
            let mut words = message.split('`').skip(1).step_by(2).map(str::to_owned);
            let unknown = words.next().unwrap_or_default();
            (words.collect::<Vec<_>>(), unknown)
        }
        None => return place.error("read the recipe", span.start, reason),
    };
    let error = place.error("read the recipe", span.start, format!("unknown key `{unknown}`"));
    match nearest(&unknown, known.iter().map(String::as_str)) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None => error.hint(format!("known here: {}", known.join(", "))),
    }
}

/// The word that comes nearest, if one comes near.
pub(crate) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let best = known.map(|known| (distance(word, known), known)).min()?;
    (best.0 <= word.chars().count().max(3) / 2).then_some(best.1)
}

/// How many characters must be put, dropped or changed to make one word the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "name = \"x\"\n[distribution]\nid = \"debian\"\nrelease = \"bookworm\"\n";

    fn fails(rest: &str) -> (String, String) {
        let error = Recipe::read(Place::new("r.toml", format!("{HEAD}{rest}"))).unwrap_err();
        (error.to_string(), error.hint_text().unwrap_or_default().to_owned())
    }

    #[test]
    fn an_unknown_key_is_told_with_its_place_and_the_nearest_one() {
        let (error, hint) = fails("[[stage]]\nname = \"core\"\n  packges = []\n");
        assert_eq!(error, "read the recipe r.toml: line 7, column 3: unknown key `packges`");
        assert_eq!(hint, "did you mean `packages`?");
        let (error, hint) = fails("[[stage]]\nname = \"c\"\nrun = [{ comand = \"x\" }]\n");
        assert!(error.contains("line 7, column 10: unknown key `comand`"), "{error}");
        assert_eq!(hint, "did you mean `command`?");
        let (error, hint) = fails("[dsk]\n");
        assert!(error.contains("line 5, column 2: unknown key `dsk`"), "{error}");
        assert_eq!(hint, "did you mean `disk`?");
        let (_, hint) = fails("[system]\nentirely_else = 1\n");
        assert!(hint.starts_with("known here: hostname"), "{hint}");
    }

    #[test]
    fn what_is_no_toml_is_told_with_its_place() {
        let (error, _) = fails("[[stage]\n");
        assert!(error.contains("line 5"), "{error}");
        let (error, _) = fails("[[stage]]\nname = 7\n");
        assert!(error.contains("line 6, column 8: invalid type: integer"), "{error}");
    }

    #[test]
    fn distances_are_edits() {
        for (a, b, expected) in [("", "", 0), ("a", "", 1), ("disk", "dsk", 1), ("ab", "ba", 2)] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }
}
