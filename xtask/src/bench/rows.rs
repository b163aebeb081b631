//! What was measured, row by row.

use std::fmt::Write;

use model::Result;
use serde_json::{Value, json};

/// One measurement of one contender.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Who was measured.
    pub contender: String,
    /// Which round, from 0.
    pub round: u32,
    /// Names with their unit last, and values; the same names in every row of a contender.
    pub columns: Vec<(&'static str, f64)>,
}

/// Every row of a run, in the order of measuring.
#[derive(Clone, Debug, Default)]
pub struct Rows(Vec<Row>);

/// A contender: its name, and one measurement of it.
pub type Contender<'a> = (String, Box<dyn FnMut() -> Result<Vec<(&'static str, f64)>> + 'a>);

impl Rows {
    /// Adds a row and prints it.
    pub fn add(&mut self, row: Row) {
        let columns: Vec<String> =
            row.columns.iter().map(|(name, value)| format!("{name} {value:.3}")).collect();
        println!("{:<28} round {}: {}", row.contender, row.round, columns.join(", "));
        self.0.push(row);
    }

    /// Measures the contenders in turn, round by round, so that whatever changes on the machine
    /// meets all of them; each round begins with another one.
    pub fn alternate(&mut self, rounds: u32, contenders: &mut [Contender<'_>]) -> Result<()> {
        for round in 0..rounds {
            for turn in 0..contenders.len() {
                let at = (turn + round as usize) % contenders.len();
                let (contender, measure) = &mut contenders[at];
                let columns = measure()?;
                self.add(Row { contender: contender.clone(), round, columns });
            }
        }
        Ok(())
    }

    /// The contenders and the columns, each in the order in which it first came.
    fn names(&self) -> (Vec<&str>, Vec<&'static str>) {
        let mut contenders = Vec::new();
        let mut columns = Vec::new();
        for row in &self.0 {
            if !contenders.contains(&row.contender.as_str()) {
                contenders.push(row.contender.as_str());
            }
            for (name, _) in &row.columns {
                if !columns.contains(name) {
                    columns.push(*name);
                }
            }
        }
        (contenders, columns)
    }

    /// The median of a contender's column; none where it has no such column.
    pub fn median(&self, contender: &str, column: &str) -> Option<f64> {
        let of_contender = self.0.iter().filter(|row| row.contender == contender);
        let values = of_contender.flat_map(|row| &row.columns).filter(|(name, _)| *name == column);
        median(values.map(|(_, value)| *value).collect())
    }

    /// The medians of all, a line for each contender.
    pub fn medians_as_text(&self) -> String {
        let (contenders, columns) = self.names();
        let mut text = format!("{:<28}", "median of");
        for column in &columns {
            let _ = write!(text, " {column:>16}");
        }
        for contender in contenders {
            let _ = write!(text, "\n{contender:<28}");
            for column in &columns {
                let value = self.median(contender, column);
                let shown = value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
                let _ = write!(text, " {shown:>16}");
            }
        }
        text
    }

    /// Every row, tab-separated, under a line of names.
    pub fn to_tsv(&self) -> String {
        let (_, columns) = self.names();
        let mut text = format!("contender\tround\t{}\n", columns.join("\t"));
        for row in &self.0 {
            let values = columns.iter().map(|column| {
                let found = row.columns.iter().find(|(name, _)| name == column);
                found.map_or_else(String::new, |(_, value)| value.to_string())
            });
            let values: Vec<String> = values.collect();
            let _ = writeln!(text, "{}\t{}\t{}", row.contender, row.round, values.join("\t"));
        }
        text
    }

    /// Every row as an object.
    pub fn to_json(&self) -> Value {
        self.0
            .iter()
            .map(|row| {
                let mut object = json!({ "contender": row.contender, "round": row.round });
                for (name, value) in &row.columns {
                    object[*name] = json!(value);
                }
                object
            })
            .collect()
    }
}

/// The value in the middle; of an even count the mean of the two in the middle.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        len if len % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn contenders_take_turns_and_each_round_begins_with_another() {
        let mut rows = Rows::default();
        let mut contenders: Vec<Contender<'_>> = vec![
            ("a".into(), Box::new(|| Ok(vec![("wall_seconds", 1.0)]))),
            ("b".into(), Box::new(|| Ok(vec![("sent_bytes", 2.0)]))),
        ];
        rows.alternate(2, &mut contenders).unwrap();
        let order: Vec<_> = rows.0.iter().map(|row| row.contender.as_str()).collect();
        assert_eq!(order, ["a", "b", "b", "a"]);
        assert_eq!(rows.median("b", "sent_bytes"), Some(2.0));
        assert_eq!(rows.median("b", "wall_seconds"), None);
        assert!(
            rows.to_tsv()
                .starts_with("contender\tround\twall_seconds\tsent_bytes\na\t0\t1\t\nb\t0\t\t2\n")
        );
        assert_eq!(rows.to_json()[1]["sent_bytes"], 2.0);
    }
}
