//! What was typed.

use std::path::PathBuf;

use clap::{Args, Parser, ValueEnum};

use crate::commands::Command;
use crate::commands::length::Length;

/// Larder keeps virtual machine images: every byte once, every version numbered, guests booted from
/// a version before it has been copied.
#[derive(Debug, Parser)]
#[command(name = "larder", version, propagate_version = true, disable_help_subcommand = true)]
#[command(
    after_help = "A reference is `image` (its latest version), `image@version` or `image:tag`."
)]
pub struct Arguments {
    #[command(flatten)]
    pub global: GlobalArguments,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Clone, Debug, Args)]
pub struct GlobalArguments {
    /// The repository: a folder. [default: ~/.local/share/larder]
    #[arg(
        long,
        global = true,
        env = "LARDER_REPO",
        hide_env_values = true,
        value_name = "DIR",
        help_heading = "Global options"
    )]
    pub repo: Option<PathBuf>,
    /// Where this host keeps mirrors and caches. [default: ~/.local/state/larder]
    #[arg(
        long,
        global = true,
        env = "LARDER_STATE",
        hide_env_values = true,
        value_name = "DIR",
        help_heading = "Global options"
    )]
    pub state: Option<PathBuf>,
    /// How much of this host's disk local copies of versions may take; what was not read for the longest
    /// time goes first. [default: 80 % of the disk, but never its last 5 %]
    #[arg(
        long,
        global = true,
        env = "LARDER_BASE_CACHE",
        hide_env_values = true,
        value_name = "LENGTH",
        help_heading = "Global options"
    )]
    pub base_cache: Option<Length>,
    /// How much of this host's disk compressed chunks may take, kept for all versions; 0 for none.
    /// [default: none, since the repository is a folder]
    #[arg(
        long,
        global = true,
        env = "LARDER_CHUNK_CACHE",
        hide_env_values = true,
        value_name = "LENGTH",
        help_heading = "Global options"
    )]
    pub chunk_cache: Option<Length>,
    /// Tables for people, or one JSON document for programs.
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "text",
        help_heading = "Global options"
    )]
    pub format: Format,
    /// Print no progress.
    #[arg(long, short, global = true, help_heading = "Global options")]
    pub quiet: bool,
    /// How long the repository waits for a process that was stopped. For tests.
    #[arg(long, global = true, hide = true, value_name = "SECONDS")]
    pub lease_seconds: Option<u64>,
    /// Print what is going on; twice for more.
    #[arg(long, short, global = true, action = clap::ArgAction::Count, help_heading = "Global options")]
    pub verbose: u8,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Tables for people.
    Text,
    /// One JSON document on stdout, progress as JSON lines on stderr.
    Json,
}
