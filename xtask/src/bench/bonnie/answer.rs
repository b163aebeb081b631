//! bonnie++'s answer: one line of comma-separated values.

use model::{Error, Kind, Result};

/// A value of the answer.
pub struct Column {
    /// Its name here.
    pub name: &'static str,
    /// What it measures.
    pub about: &'static str,
    at: usize,
}

const fn column(name: &'static str, about: &'static str, at: usize) -> Column {
    Column { name, about, at }
}

/// What is taken from it.
pub const COLUMNS: &[Column] = &[
    column("write_char_kib_per_second", "written byte by byte", 9),
    column("write_block_kib_per_second", "written in blocks", 11),
    column("rewrite_kib_per_second", "read and written again", 13),
    column("read_char_kib_per_second", "read byte by byte", 15),
    column("read_block_kib_per_second", "read in blocks", 17),
    column("seeks_per_second", "seeks, every tenth with a write", 19),
    column("create_per_second", "files made in order", 26),
    column("delete_per_second", "files removed in order", 30),
    column("random_create_per_second", "files made at random", 32),
    column("random_delete_per_second", "files removed at random", 36),
];

/// The line's fields as of this format.
const FORMAT: &str = "1.98,";

/// Reads the line. What was done in less than half a second has no value.
///
/// # Errors
/// `Invalid`: there is no such line.
pub fn columns(text: &str) -> Result<Vec<(&'static str, f64)>> {
    let line = text.lines().map(str::trim).find(|line| line.starts_with(FORMAT));
    let line = line.ok_or_else(|| {
        Error::new(Kind::Invalid, "read", "bonnie++'s answer").because(text.trim().to_owned())
    })?;
    let fields: Vec<&str> = line.split(',').collect();
    let value = |column: &Column| Some((column.name, fields.get(column.at)?.parse().ok()?));
    Ok(COLUMNS.iter().filter_map(value).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_and_what_was_too_quick_is_left_out() {
        let line = "1.98,2.00a,x,1,1795258926,16M,,8192,5,154,4,+++++,+++,700,1,303,6,+++++,+++,+++++,\
                    +++,1,,,,,276,3,+++++,+++,1576,3,345,5,+++++,+++,99,+++,243ms";
        let found = columns(&format!("noise\n{line}\n")).unwrap();
        let expected = [
            ("write_char_kib_per_second", 154.0),
            ("rewrite_kib_per_second", 700.0),
            ("read_char_kib_per_second", 303.0),
            ("create_per_second", 276.0),
            ("delete_per_second", 1576.0),
            ("random_create_per_second", 345.0),
            ("random_delete_per_second", 99.0),
        ];
        assert_eq!(found, expected);
        assert!(columns("Can't write() - disk full?").is_err());
    }
}
