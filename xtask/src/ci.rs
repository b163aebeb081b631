//! Everything that is checked before a change is taken.

use model::Result;

use crate::steps::Steps;
use crate::workspace::cargo;
use crate::{process, test};

/// Runs every check and prints how long each took.
pub fn run() -> Result<()> {
    let mut steps = Steps::default();
    let done = take(&mut steps);
    steps.print();
    done
}

fn take(steps: &mut Steps) -> Result<()> {
    steps.take("format", || process::run(cargo().args(["fmt", "--all", "--check"])))?;
    steps.take("clippy", || {
        let lint = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
        process::run(cargo().args(lint))
    })?;
    test::take(steps, &[])?;
    steps.take("docs", || {
        let mut command = cargo();
        command.env("RUSTDOCFLAGS", "-D warnings");
        process::run(command.args(["doc", "--workspace", "--no-deps", "--locked"]))
    })
}
