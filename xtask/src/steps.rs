//! Named steps in a row, with how long each took.

use std::time::{Duration, Instant};

use model::Result;

/// Steps that have been taken.
#[derive(Default)]
pub struct Steps {
    taken: Vec<(&'static str, Duration)>,
}

impl Steps {
    /// Takes a step; a failed one ends the row.
    pub fn take<T>(&mut self, name: &'static str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("== {name}");
        let began = Instant::now();
        let done = step();
        if done.is_err() {
            println!("== {name}: failed after {}", seconds(began.elapsed()));
        }
        self.taken.push((name, began.elapsed()));
        done
    }

    /// Prints how long each step took.
    pub fn print(&self) {
        println!("\nstep                            took");
        for (name, took) in &self.taken {
            println!("{name:<28} {:>8}", seconds(*took));
        }
        let total = self.taken.iter().map(|(_, took)| *took).sum();
        println!("{:<28} {:>8}", "all", seconds(total));
    }
}

/// A duration for people: `12.3 s`.
pub fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
