//! `cargo xtask`: everything about the project that is not the product.
//!
//! | Module | Holds |
//! |---|---|
//! | [`setup`] | which program comes from which Debian package, and how it is installed |
//! | [`layers`] | imports go down only |
//! | [`test`](mod@test) | the tests |
//! | [`soak`] | tests that go on for long |
//! | [`ci`] | everything that is checked before a change is taken |
//! | [`images`] | real Debian disk images, made once and kept |
//! | [`demo`] | the main job, from a disk file to a booted guest and back |
//! | [`bench`](mod@bench) | measurements |
//! | [`process`] | running programs, and ending them when we are told to end |
//! | [`workspace`] | where things are |

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a task talks to the person who started it"
)]

mod bench;
mod ci;
mod demo;
mod images;
mod layers;
mod process;
mod setup;
mod soak;
mod steps;
mod test;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use model::Result;

/// Tasks of the Larder project.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run the main job on two real Debian images, within ten minutes.
    Demo(demo::Options),
    /// Install what the tests need, then run them.
    Test(test::Options),
    /// Run everything that is checked before a change is taken.
    Ci,
    /// Check that imports go down only.
    Layers,
    /// Measure.
    Bench(bench::Options),
    /// Run a test for as long as it takes to be believed.
    Soak(soak::Options),
    /// Build the Debian images that demo, tests and benches use, or say where they are.
    Images(images::Options),
    /// Install what the tasks need.
    Setup(setup::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = process::end_children_on_signals().and_then(|()| run(arguments.task));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Whatever failed then failed because of it.
        Err(_) if process::go_on().is_err() => {
            eprintln!("xtask: stopped, as told");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("xtask: {}", error_text(&error));
            if let Some(hint) = error.hint_text() {
                eprintln!("hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Demo(options) => demo::run(&options),
        Task::Test(options) => test::run(&options),
        Task::Ci => ci::run(),
        Task::Layers => layers::run(),
        Task::Bench(options) => bench::run(&options),
        Task::Soak(options) => soak::run(&options),
        Task::Images(options) => images::run(&options),
        Task::Setup(options) => setup::run(&options),
    }
}

/// The chain of an error, with its lines kept: a console's last words are easier to read so.
fn error_text(error: &model::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
