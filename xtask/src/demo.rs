//! The main job.
use model::Result;
/// Options.
#[derive(clap::Args)]
pub struct Options {}
/// Runs it.
pub fn run(_options: &Options) -> Result<()> {
    Ok(())
}
