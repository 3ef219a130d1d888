//! The command line: one file for each command. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.

mod check;
mod demo;
mod doctor;
mod output;
mod run;
mod watch;

use std::{io::IsTerminal as _, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::{config::ConfigError, supervisor::Launch};

/// An eBPF OOM and crash monitor that brings back what died and was not respawned.
#[derive(Parser)]
#[command(
    name = "defib",
    version,
    after_help = "Start with 'defib doctor' (what works here), 'defib demo' (see it work) and 'defib watch' (live deaths).\n\
                  Exit codes: 0 done; 1 failed, with one line on stderr; 2 wrong usage or configuration."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the agent in the foreground: metrics, and restarts as configured
    Run(run::Args),
    /// Shows deaths live, straight from the kernel; needs no agent and no configuration
    Watch(watch::Args),
    /// Shows on this machine, for real, how a service is OOM-killed and brought back
    Demo(demo::Args),
    /// Says what works on this machine, what does not, and how to mend it
    Doctor(doctor::Args),
    /// Validates a configuration file
    Check(check::Args),
    /// Enters a cgroup and becomes a program; the agent starts its command services through this
    #[command(hide = true)]
    Launch {
        /// Directory of the cgroup
        #[arg(long)]
        cgroup: PathBuf,
        /// Program and arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// The service of the demo: answers on a port and leaks
    #[command(hide = true)]
    DemoService(demo::ServiceArgs),
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; both come this way.
            let code = if error.use_stderr() { 2 } else { 0 };
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    match dispatch(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            let usage = error.downcast_ref::<ConfigError>().is_some();
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

fn dispatch(command: Command) -> Result<()> {
    match command {
        Command::Run(args) => {
            log_to_stderr("info");
            runtime()?.block_on(run::run(args))
        }
        Command::Watch(args) => {
            log_to_stderr("warn");
            runtime()?.block_on(watch::run(args))
        }
        Command::Demo(args) => {
            log_to_stderr("warn");
            runtime()?.block_on(demo::run(args))
        }
        Command::Doctor(args) => doctor::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Launch { cgroup, command } => Launch { cgroup, command }.exec(),
        Command::DemoService(args) => demo::serve(&args),
    }
}

/// Two workers: one may be busy with a scrape while the other takes a death.
fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

/// `DEFIB_LOG` (a level, or targets as tracing-subscriber's filter takes them) overrides `level`.
fn log_to_stderr(level: &str) {
    let filter = EnvFilter::try_from_env("DEFIB_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
}

/// Completes at Ctrl-C or SIGTERM.
async fn asked_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        },
        Err(error) => {
            tracing::warn!("SIGTERM will end this program without a clean-up: {error}");
            // Nothing to wait for either way.
            drop(tokio::signal::ctrl_c().await);
        }
    }
}
