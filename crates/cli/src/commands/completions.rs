use std::io::Write;

use clap::CommandFactory;
use clap_complete::Shell;
use model::{Error, Result};

use crate::arguments::Arguments;

/// Print a completion script for a shell.
///
/// For bash: `larder completions bash > /etc/bash_completion.d/larder`.
#[derive(Debug, clap::Args)]
pub struct Completions {
    /// The shell.
    shell: Shell,
}

impl Completions {
    pub fn run(self) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Arguments::command(), "larder", &mut script);
        std::io::stdout()
            .write_all(&script)
            .map_err(|error| Error::io("print", "the completions", error))
    }
}
