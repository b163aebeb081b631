//! Measurements.
use model::Result;
/// Options.
#[derive(clap::Args)]
pub struct Options {}
/// Runs it.
pub fn run(_options: &Options) -> Result<()> {
    Ok(())
}
/// Runs them small.
pub fn run_small() -> Result<()> {
    Ok(())
}
