//! The `larder` binary: reads the command line, calls one verb, prints what came of it.
//!
//! | Module | Holds |
//! |---|---|
//! | [`arguments`] | what was typed |
//! | [`context`] | what it means: flags over environment over settings file over defaults |
//! | [`commands`] | one file per command; its doc comment is its manual |
//! | [`output`] | tables for people, JSON for programs, errors for both |
//! | [`progress_bar`] | progress on stderr |
//! | [`interrupt`] | Ctrl-C |

mod arguments;
mod commands;
mod context;
mod interrupt;
mod output;
mod progress_bar;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = arguments::Arguments::parse();
    output::start_logging(arguments.global.verbose, arguments.command.log());
    match commands::run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::print_error(&error);
            ExitCode::from(1)
        }
    }
}
