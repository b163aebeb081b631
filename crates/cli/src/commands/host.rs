use std::sync::Arc;

use attach::nbd::Address;
use clap::{Subcommand, ValueEnum};
use env::RealFileSystem;
use host::scrape::ScrapeServer;
use host::{Daemon, DaemonOptions, metrics};
use model::{Error, Result};
use sd_notify::NotifyState;
use serde_json::json;

use crate::arguments::Format;
use crate::commands::attach::{limited_state_folder, parse_address};
use crate::commands::length::Length;
use crate::context::{Context, open_repository};
use crate::interrupt::Waiter;
use crate::output::{Log, print_json, print_line};

/// Run this host's daemon.
#[derive(Debug, clap::Args)]
pub struct Host {
    #[command(subcommand)]
    command: HostCommand,
}

#[derive(Debug, Subcommand)]
enum HostCommand {
    Run(HostRun),
}

/// Serve all mirrors of this host in one process.
///
/// While it runs, `attach`, `detach`, `commit` and `run` with the same state folder go through it,
/// and its mirrors share one copy and one fetch of what they have in common. It notes what it serves:
/// killed or ended by a signal, and started again, it serves the same mirrors at the same doors, and
/// guests that reconnect go on. So a new larder is put in place by a restart.
#[derive(Debug, clap::Args)]
struct HostRun {
    /// Tell metrics over HTTP, as Prometheus reads them, at `/metrics` on a loopback address
    /// (127.0.0.1:9100) or a Unix socket (a path).
    #[arg(long, value_name = "SOCKET_OR_ADDR", value_parser = parse_address)]
    metrics: Option<Address>,
    /// Keep the boot working sets of all images on this host, within this much of its disk: see
    /// `larder boot-set sync`.
    #[arg(long, value_name = "SIZE")]
    stock_limit: Option<Length>,
    /// How the log on stderr looks.
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    log: LogFormat,
}

/// How the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON document a line.
    Json,
}

impl Host {
    /// How its log looks.
    pub fn log(&self) -> Log {
        let HostCommand::Run(run) = &self.command;
        match run.log {
            LogFormat::Text => Log::Events,
            LogFormat::Json => Log::JsonEvents,
        }
    }

    pub fn run(self, context: &Context) -> Result<()> {
        let HostCommand::Run(run) = self.command;
        run.run(context)
    }
}

impl HostRun {
    fn run(self, context: &Context) -> Result<()> {
        env::memory::keep_little();
        // From here on a signal ends it as it should.
        let mut waiter = Waiter::new()?;
        let repo = context.repo.path.clone();
        let trusted = context.trusted()?;
        let repository = std::path::absolute(&repo)
            .map_err(|error| Error::io("open the repository", repo.display().to_string(), error))?;
        context.refuse_urls()?;
        let daemon = Daemon::start(DaemonOptions {
            file_system: Arc::new(RealFileSystem),
            state: limited_state_folder(context)?,
            repository: repository.clone(),
            stock_len_max: self.stock_limit.map(|limit| limit.0),
            open_repository: Box::new(move || Ok(open_repository(&repository)?.trusting(&trusted))),
        })?;
        let scrape = self
            .metrics
            .as_ref()
            .map(|address| ScrapeServer::start(address, metrics::CONTENT_TYPE, daemon.metrics()));
        let scrape = scrape.transpose()?;
        print_ready(context, &daemon, scrape.as_ref().map(ScrapeServer::address))?;
        tell_service_manager(NotifyState::Ready);
        waiter.wait();
        tell_service_manager(NotifyState::Stopping);
        // Ctrl-C after that ends it at once, as `kill -9` does: nothing that was answered is lost.
        std::thread::spawn(move || {
            if waiter.wait_for_interrupt() {
                std::process::exit(130);
            }
        });
        daemon.stop();
        Ok(())
    }
}

/// Tells systemd, where it started this and asked to be told.
fn tell_service_manager(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(false, &[state]) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}

fn print_ready(context: &Context, daemon: &Daemon, metrics: Option<&Address>) -> Result<()> {
    let status = daemon.status();
    match context.format {
        Format::Json => print_json(&json!({
            "event": "ready",
            "process": status.process,
            "repository": status.repository,
            "state": context.state.path,
            "served": status.served_count,
            "waiting": status.waiting_count,
            "metrics": metrics.map(ToString::to_string),
        })),
        Format::Text => print_line(&format!(
            "ready: {} mirrors served, {} waiting; repository {}, state {}",
            status.served_count,
            status.waiting_count,
            status.repository.display(),
            context.state.path.display()
        )),
    }
}
