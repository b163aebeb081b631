//! Tests that every run takes for seconds, taken for as long as it takes to be believed.

use clap::ValueEnum;
use model::Result;

use crate::process;
use crate::setup::{self, For};
use crate::workspace::cargo;

/// What to run, and for how long.
#[derive(clap::Args)]
pub struct Options {
    /// Which.
    #[arg(value_enum)]
    what: What,
    /// How long each kind of disturbance goes on.
    #[arg(long, default_value = "600")]
    seconds: u64,
}

/// What can be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// `fio --verify` while daemons are killed and upgraded, and the repository goes away.
    Survival,
}

/// Runs one.
pub fn run(options: &Options) -> Result<()> {
    let What::Survival = options.what;
    setup::ensure(For::Test)?;
    let mut command = cargo();
    command.args(["test", "--locked", "--package", "cli", "--test", "larder", "soak::"]);
    command.args(["--", "--nocapture"]).env("LARDER_SOAK_SECONDS", options.seconds.to_string());
    process::run(&mut command)
}
