//! The tests: what they need, the layers, every crate's tests, the examples in the docs.

use std::process::Stdio;

use model::Result;

use crate::setup::{self, For};
use crate::steps::Steps;
use crate::workspace::cargo;
use crate::{bench, images, layers, process, soak};

/// What to test.
#[derive(clap::Args)]
pub struct Options {
    /// Arguments for the test runner, such as a filter.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs the tests.
pub fn run(options: &Options) -> Result<()> {
    let mut steps = Steps::default();
    let done = take(&mut steps, &options.arguments);
    steps.print();
    done
}

/// Takes the steps of a test run.
pub fn take(steps: &mut Steps, arguments: &[String]) -> Result<()> {
    steps.take("packages", || setup::ensure(For::Test))?;
    steps.take("layers", layers::run)?;
    steps.take("tests", || run_tests(arguments))?;
    if arguments.is_empty() {
        steps.take("examples in the docs", || {
            process::run(cargo().args(["test", "--workspace", "--doc", "--quiet", "--locked"]))
        })?;
        steps.take("a Linux guest", || {
            setup::ensure(For::Images)?;
            process::run(&mut soak::guests(&["--quiet", "linux_guest::"])?)
        })?;
        steps.take("a Debian, built", || {
            setup::ensure(For::Demo)?;
            process::run(&mut built_debian())
        })?;
        steps.take("a machine of Debian", machines)?;
        steps.take("benches, small", bench::run_small)?;
    }
    Ok(())
}

/// A real Debian, baked once and kept under `target/machines`: its copies' identities and growth, and a
/// process that goes on counting after a suspend.
fn machines() -> Result<()> {
    let images = images::ensure(&[&images::MINIMAL])?;
    let mut command = cargo();
    command.args(["test", "--locked", "--workspace", "--test", "larder", "--", "--quiet"]);
    command.args(["--test-threads=1", "copies_of_a_debian", "a_debian_that_counts"]);
    process::run(command.env("LARDER_TEST_IMAGE", &images[0]))
}

fn run_tests(arguments: &[String]) -> Result<()> {
    let mut command = cargo();
    if nextest_is_there() {
        // The runner's lines of what passed are left out; failures and its summary stay.
        command.args(["nextest", "run", "--workspace", "--locked", "--status-level", "fail"]);
    } else {
        command.args(["test", "--workspace", "--all-targets", "--locked", "--quiet"]);
    }
    process::run(command.args(arguments))
}

/// The test that builds a Debian 12 of two stages and boots it.
fn built_debian() -> std::process::Command {
    let mut command = cargo();
    command.args(["test", "--locked", "--workspace", "--test", "debian", "--"]);
    command.args(["--ignored", "--nocapture", "a_debian_of_two_stages_"]);
    command
}

fn nextest_is_there() -> bool {
    let asked =
        cargo().args(["nextest", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    asked.is_ok_and(|status| status.success())
}
