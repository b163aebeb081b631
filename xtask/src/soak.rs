//! Tests that every run takes for seconds, taken for as long as it takes to be believed.

use clap::ValueEnum;
use model::{Error, Kind, Result};

use crate::images;
use crate::process;
use crate::setup::{self, For};
use crate::workspace::cargo;

/// What to run, and for how long.
#[derive(clap::Args)]
pub struct Options {
    /// Which.
    #[arg(value_enum)]
    what: What,
    /// How long all of it goes on: kills and upgrades share what the repository's absence leaves.
    #[arg(long, default_value = "30")]
    minutes: u64,
    /// For how long the repository is away.
    #[arg(long, default_value = "10")]
    outage_minutes: u64,
}

/// What can be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// `fio --verify`, on a host and in a Linux guest, while daemons are killed and upgraded, and the
    /// repository goes away.
    Survival,
}

/// Runs one.
pub fn run(options: &Options) -> Result<()> {
    let What::Survival = options.what;
    if options.minutes * 2 < options.outage_minutes * 3 {
        return Err(Error::new(Kind::Invalid, "soak for", format!("{} minutes", options.minutes))
            .because("the repository's absence may take two thirds of it at most")
            .hint("name less with `--outage-minutes`, or more with `--minutes`"));
    }
    setup::ensure(For::Test)?;
    let mut command = guests(&["--nocapture", "soak::", "linux_guest::"])?;
    command.env("LARDER_SOAK_SECONDS", (options.minutes * 60).to_string());
    command.env("LARDER_SOAK_OUTAGE_SECONDS", (options.outage_minutes * 60).to_string());
    process::run(&mut command)
}

/// The command that runs those of larder's own tests that need the image which verifies.
///
/// # Errors
/// As those of making images.
pub fn guests(arguments: &[&str]) -> Result<std::process::Command> {
    let images = images::ensure(&[&images::VERIFY])?;
    let mut command = cargo();
    // Of the whole workspace: for one package alone its dependencies were built again, with other features.
    command.args(["test", "--locked", "--workspace", "--test", "larder"]);
    command.args(["--", "--include-ignored"]).args(arguments);
    command.env("LARDER_VERIFY_IMAGE", &images[0]);
    Ok(command)
}
