//! The command line: one file for each command. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.

mod audit;
mod check;
mod complete;
mod config_arg;
mod control;
mod demo;
mod doctor;
mod fleet;
mod forecast;
mod incidents;
mod manual;
mod output;
mod reload;
mod run;
mod top;
mod trace;
mod watch;

use std::{io::IsTerminal as _, path::PathBuf, process::ExitCode, sync::OnceLock};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

#[cfg(any(test, fuzzing))]
pub(crate) use forecast::{fuzz as fuzz_forecast, fuzz_prometheus};

use crate::{
    agent::Ended,
    before_oom::Aside,
    config::ConfigError,
    host::{children, inherited, memory, privilege},
    supervisor::Launch,
    symbols,
};

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
    /// Finds units and containers that would stay dead after an OOM kill, and the mend for each
    Audit(audit::Args),
    /// Shows the services that the running agent looks after
    Status(control::Agent),
    /// The same live, in a terminal, with the incidents below; q leaves
    ///
    /// For people. Programs have the same from 'defib status --json' and 'defib incidents --json', and what happens, as it
    /// happens, from /api/v1/events.
    Top(top::Args),
    /// Shows what happened: list, one record, or a root-cause report in Markdown
    Incidents(incidents::Args),
    /// Replays a memory series through the forecaster: is it a leak, do restarts hide it, when is memory out
    Forecast(forecast::Args),
    /// Shows where the memory of a service grows, by call stack: a table, a flame graph, folded stacks
    Trace(trace::Args),
    /// Shows which members of a pool are out by plan on all hosts, or takes a slot for work by hand
    Fleet(fleet::Args),
    /// Maintenance: no restarts of a service by Defib, until the time runs out
    Pause(control::PauseArgs),
    /// Ends a pause
    Resume(control::ResumeArgs),
    /// Validates a configuration file, and what it says of TLS and passwords
    Check(check::Args),
    /// Enters a cgroup and becomes a program; the agent starts its command services through this
    #[command(hide = true)]
    Launch {
        /// Directory of the cgroup
        #[arg(long)]
        cgroup: PathBuf,
        /// A right of the agent's own that the program shall have too
        #[arg(long)]
        grant: Vec<String>,
        /// Program and arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Becomes a program that looks at a service before it is out of memory; the agent runs those through this
    #[command(hide = true)]
    Aside {
        /// Bytes that a file may have which it writes
        #[arg(long)]
        file_size: u64,
        /// Program and arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Names the frames of a crash, given and returned as JSON; the agent keeps other people's files in this process
    #[command(hide = true)]
    Locate,
    /// Writes the manual pages into a directory; packages are made with it
    #[command(hide = true)]
    Manual {
        /// Where; made when it is missing
        directory: PathBuf,
    },
    /// The service of the demo: answers on a port and leaks
    #[command(hide = true)]
    DemoService(demo::ServiceArgs),
}

/// Runs the program.
pub fn main() -> ExitCode {
    complete::if_asked();
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
        // The reader of our output has what it wanted, as `head` does.
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
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
            let config = args.load()?;
            // Both take a right that is given up next.
            let protected = memory::protect();
            memory::lift_lock_limit();
            memory::share_one_pool();
            // Now, since there is one thread: the others begin with what it has.
            privilege::give_up(config.needs())?;
            let log = log_to_stderr("info");
            if let Err(error) = protected {
                tracing::info!("the agent is not protected from the OOM killer: {error:#}");
            }
            let (inherited, left) = (inherited::take(), children::left());
            let ended = on_a_worker(run::run(args, config, inherited, left))?;
            drop(log);
            match ended {
                Ended::Ended => Ok(()),
                Ended::BeginAgain { left, pin_dir } => reload::begin_again(&left, pin_dir.as_deref()),
            }
        }
        Command::Watch(args) => {
            let _log = log_to_stderr("warn");
            on_a_worker(watch::run(args))
        }
        Command::Demo(args) => {
            let _log = log_to_stderr("warn");
            runtime()?.block_on(demo::run(args))
        }
        Command::Doctor(args) => {
            let _log = log_to_stderr("warn");
            doctor::run(&args)
        }
        Command::Audit(args) => {
            let _log = log_to_stderr("warn");
            runtime()?.block_on(audit::run(args))
        }
        Command::Top(args) => runtime()?.block_on(top::run(args)),
        Command::Status(agent) => runtime()?.block_on(control::status(&agent)),
        Command::Incidents(args) => incidents::run(&args),
        Command::Forecast(args) => runtime()?.block_on(forecast::run(args)),
        Command::Trace(args) => {
            // Now, since there is one thread: the others begin with what it has.
            args.step_back()?;
            let _log = log_to_stderr("warn");
            trace::run(args)
        }
        Command::Fleet(args) => {
            let _log = log_to_stderr("error");
            runtime()?.block_on(fleet::run(args))
        }
        Command::Pause(args) => runtime()?.block_on(control::pause(args)),
        Command::Resume(args) => runtime()?.block_on(control::resume(args)),
        Command::Check(args) => check::run(&args),
        Command::Launch { cgroup, grant, command } => Launch { cgroup, grant, command }.exec(),
        Command::Aside { file_size, command } => Aside { file_size, command }.exec(),
        Command::Locate => symbols::locate(),
        Command::Manual { directory } => manual::write(&directory),
        Command::DemoService(args) => demo::serve(&args),
    }
}

/// Two workers: one may be busy while the other takes a death. HTTP has a thread of its own beside them.
fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        // A signal of ours is told by the name of the thread that sent it.
        .thread_name("defib")
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

/// Runs what follows the rings as a task: tokio lets a worker go on with what it has just woken, so that a record's reader and
/// whoever handles the record take turns on one thread. The thread that starts the runtime is no worker and would have to be
/// woken for each record.
fn on_a_worker<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    match runtime()?.block_on(async { tokio::spawn(work).await }) {
        Ok(outcome) => outcome,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(error).context("the runtime has ended the work"),
        },
    }
}

/// Counts the log lines that were dropped.
static LOG_LINES_LOST: OnceLock<ErrorCounter> = OnceLock::new();

/// Log lines that were dropped so far, because nobody took them fast enough.
fn log_lines_lost() -> u64 {
    LOG_LINES_LOST.get().map_or(0, |lost| lost.dropped_lines() as u64)
}

/// `DEFIB_LOG` (a level, or targets as tracing-subscriber's filter takes them) overrides `level`.
///
/// Lines are written by a thread of their own and dropped, counted, when nobody takes them: a journal that stalls on a
/// host without memory must not stall a restart. What waits is written when the guard is dropped.
fn log_to_stderr(level: &str) -> WorkerGuard {
    let filter = EnvFilter::try_from_env("DEFIB_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let (writer, guard) = NonBlockingBuilder::default().buffered_lines_limit(4096).finish(std::io::stderr());
    LOG_LINES_LOST.set(writer.error_counter()).ok();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(writer)
        .init();
    guard
}

/// Completes at Ctrl-C, SIGTERM or SIGHUP. The handlers stand when this returns, not only when it is waited for.
///
/// # Errors
/// When a handler cannot be installed.
fn asked_to_stop() -> Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let install = |kind| signal(kind).context("cannot handle signals");
    let mut interrupt = install(SignalKind::interrupt())?;
    let mut terminate = install(SignalKind::terminate())?;
    let mut hang_up = install(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
