//! Rows of a run beside what they are held against.

use std::fmt::Write;

use crate::bench::Rows;

/// What a ratio is to be.
#[derive(Clone, Copy)]
pub enum Goal {
    /// This at least.
    AtLeast(f64),
    /// Shown only.
    None,
}

/// One comparison: a job, who does it, beside whom.
struct Comparison {
    job: String,
    ours: &'static str,
    theirs: &'static str,
    goal: Goal,
}

/// Comparisons of medians of requests per second.
#[derive(Default)]
pub struct Table(Vec<Comparison>);

impl Table {
    /// Adds a comparison.
    pub fn add(&mut self, job: &str, ours: &'static str, theirs: &'static str, goal: Goal) {
        self.0.push(Comparison { job: job.to_owned(), ours, theirs, goal });
    }

    /// As a table; what misses its goal is set in bold.
    pub fn as_text(&self, rows: &Rows) -> String {
        let mut text =
            "Medians of requests per second:\n\n| job | who | | beside | | ratio | goal \
                        |\n|---|---|---|---|---|---|---|\n"
                .to_owned();
        for Comparison { job, ours, theirs, goal } in &self.0 {
            let median = |who: &str| {
                rows.median(&format!("{job}, {who}"), "requests_per_second").unwrap_or(f64::NAN)
            };
            let (mine, other) = (median(ours), median(theirs));
            let ratio = mine / other;
            let (ratio, goal) = match goal {
                Goal::AtLeast(goal) if ratio >= *goal => (format!("{ratio:.2}"), goal.to_string()),
                Goal::AtLeast(goal) => (format!("**{ratio:.2}**"), goal.to_string()),
                Goal::None => (format!("{ratio:.2}"), String::new()),
            };
            let _ = writeln!(
                text,
                "| {job} | {ours} | {mine:.1} | {theirs} | {other:.1} | {ratio} | {goal} |"
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::rows::Row;

    #[test]
    fn what_misses_its_goal_is_bold() {
        let mut rows = Rows::default();
        for (who, value) in [("a", 90.0), ("b", 100.0)] {
            let columns = vec![("requests_per_second", value)];
            rows.add(Row { contender: format!("job, {who}"), round: 0, columns });
        }
        let mut table = Table::default();
        table.add("job", "a", "b", Goal::AtLeast(1.0));
        table.add("job", "b", "a", Goal::AtLeast(1.0));
        table.add("job", "a", "b", Goal::None);
        let text = table.as_text(&rows);
        let last: Vec<_> = text.lines().rev().take(3).collect();
        assert_eq!(last[0], "| job | a | 90.0 | b | 100.0 | 0.90 |  |");
        assert_eq!(last[1], "| job | b | 100.0 | a | 90.0 | 1.11 | 1 |");
        assert_eq!(last[2], "| job | a | 90.0 | b | 100.0 | **0.90** | 1 |");
    }
}
