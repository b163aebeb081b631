//! One file per command. The doc comment of a command's arguments is its manual.

mod attach;
mod background;
mod bake;
mod boot_set;
mod build;
mod clone;
mod collect;
mod commit;
mod completions;
mod create;
mod detach;
mod diff;
mod export;
mod guests;
mod host;
mod import;
mod key;
mod label;
pub mod length;
mod list;
mod man;
mod mirrors;
mod pin;
mod read;
mod recipe;
mod remove;
mod report;
mod resize;
mod resume;
mod run;
mod scrub;
mod seed;
mod settings;
mod show;
mod sign;
mod stages;
mod stats;
mod stream;
mod suspend;
mod tag;
mod terminal;
mod test;
mod write;

pub use sign::read_key;

use clap::Subcommand;
use model::Result;

use crate::arguments::Arguments;
use crate::context::Context;
use crate::output::Log;

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    Import(import::Import),
    Export(export::Export),
    Create(create::Create),
    Write(write::Write),
    Append(write::Append),
    Read(read::Read),
    List(list::List),
    Show(show::Show),
    Diff(diff::Diff),
    Label(label::Label),
    Tag(tag::Tag),
    Clone(clone::Clone),
    Remove(remove::Remove),
    Key(key::Key),
    Sign(sign::Sign),
    Verify(sign::Verify),
    Attach(attach::Attach),
    Detach(detach::Detach),
    Mirrors(mirrors::Mirrors),
    Commit(commit::Commit),
    Resize(resize::Resize),
    Run(run::Run),
    Build(build::Build),
    Test(test::Test),
    Recipe(recipe::Recipe),
    Stages(stages::Stages),
    Bake(bake::Bake),
    Resume(resume::Resume),
    Suspend(suspend::Suspend),
    Host(host::Host),
    Scrub(scrub::Scrub),
    BootSet(boot_set::BootSet),
    Pin(pin::Pin),
    Unpin(pin::Unpin),
    Report(report::Report),
    Collect(collect::Collect),
    Stats(stats::Stats),
    Settings(settings::Settings),
    Completions(completions::Completions),
    Man(man::Man),
}

impl Command {
    /// How its log is to look; most commands have nothing to log but warnings.
    pub fn log(&self) -> Log {
        match self {
            Command::Host(host) => host.log(),
            _ => Log::Warnings,
        }
    }
}

/// Runs what was typed.
pub fn run(arguments: Arguments) -> Result<()> {
    let context = Context::new(&arguments.global)?;
    match arguments.command {
        Command::Import(command) => command.run(&context),
        Command::Export(command) => command.run(&context),
        Command::Create(command) => command.run(&context),
        Command::Write(command) => command.run(&context),
        Command::Append(command) => command.run(&context),
        Command::Read(command) => command.run(&context),
        Command::List(command) => command.run(&context),
        Command::Show(command) => command.run(&context),
        Command::Diff(command) => command.run(&context),
        Command::Label(command) => command.run(&context),
        Command::Tag(command) => command.run(&context),
        Command::Clone(command) => command.run(&context),
        Command::Remove(command) => command.run(&context),
        Command::Key(command) => command.run(&context),
        Command::Sign(command) => command.run(&context),
        Command::Verify(command) => command.run(&context),
        Command::Attach(command) => command.run(&context),
        Command::Detach(command) => command.run(&context),
        Command::Mirrors(command) => command.run(&context),
        Command::Commit(command) => command.run(&context),
        Command::Resize(command) => command.run(&context),
        Command::Run(command) => command.run(&context),
        Command::Build(command) => command.run(&context),
        Command::Test(command) => command.run(&context),
        Command::Recipe(command) => command.run(&context),
        Command::Stages(command) => command.run(&context),
        Command::Bake(command) => command.run(&context),
        Command::Resume(command) => command.run(&context),
        Command::Suspend(command) => command.run(&context),
        Command::Host(command) => command.run(&context),
        Command::Scrub(command) => command.run(&context),
        Command::BootSet(command) => command.run(&context),
        Command::Pin(command) => command.run(&context),
        Command::Unpin(command) => command.run(&context),
        Command::Report(command) => command.run(&context),
        Command::Collect(command) => command.run(&context),
        Command::Stats(command) => command.run(&context),
        Command::Settings(command) => command.run(&context),
        Command::Completions(command) => command.run(),
        Command::Man(command) => command.run(),
    }
}
