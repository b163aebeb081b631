use std::path::PathBuf;

use clap::CommandFactory;
use model::{Error, Result};

use crate::arguments::Arguments;
use crate::output::print_line;

/// Write a manual page for each command into a folder.
#[derive(Debug, clap::Args)]
pub struct Man {
    /// The folder; made if it is not there.
    folder: PathBuf,
}

impl Man {
    pub fn run(self) -> Result<()> {
        let failed =
            |error| Error::io("write manual pages to", self.folder.display().to_string(), error);
        std::fs::create_dir_all(&self.folder).map_err(failed)?;
        clap_mangen::generate_to(Arguments::command(), &self.folder).map_err(failed)?;
        print_line(&format!("wrote manual pages to {}", self.folder.display()))
    }
}
