//! `cargo xtask bench`: what Defib costs and how fast it sees, measured on this machine beside a peer in the same run.
//!
//! * [`storm`]: run time of the kernel programs under a storm of exits, beside libbpf-tools' `exitsnoop`
//! * [`detection`]: kernel hook to user space on an otherwise idle machine
//! * [`footprint`]: resident memory and CPU of an idle agent
//! * [`scale`]: the same with many services to look after
//! * [`forecast`]: how many leaks are found, and how many that are none, on simulated services; a command of its own
//!
//! The run writes its tables to `docs/performance.md`; no figure there is typed by hand.

mod agent;
mod detection;
mod footprint;
mod forecast;
mod report;
mod scale;
mod stats;
mod storm;

use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};

use crate::{artifacts, privilege, say, workspace};

/// Measure cost and speed on this machine, and write the tables to docs/performance.md
///
/// Needs root, to load the programs and to have the kernel measure them (`kernel.bpf_stats_enabled`, put back at the
/// end). Takes about nine minutes; leave the machine alone meanwhile. With `exitsnoop` (Debian package libbpf-tools)
/// installed, it is measured in the same run.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: Option<What>,
    /// Print the tables without writing docs/performance.md
    #[arg(long)]
    print: bool,
    /// Rounds of each arm; arms take turns, and medians are shown
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
}

#[derive(clap::Subcommand)]
enum What {
    Forecast(forecast::Args),
}

pub(crate) fn execute(args: &Args) -> Result<ExitCode> {
    if let Some(What::Forecast(args)) = &args.what {
        return forecast::execute(args);
    }
    ensure!(privilege::is_root(), "cargo xtask bench needs root, to load the kernel programs and have them measured");
    let built = artifacts::release()?;
    let programs = Programs {
        defib: artifacts::program(&built, "defib")?.to_path_buf(),
        victim: artifacts::program(&built, "victim")?.to_path_buf(),
    };
    let storm = storm::measure(&programs, args.rounds)?;
    let detection = detection::measure(&programs)?;
    let footprint = footprint::measure(&programs)?;
    let scale = scale::measure(&programs)?;
    let text = report::write(&storm, &detection, &footprint, &scale);
    say::line(&text);
    if !args.print {
        let path = workspace::root().join("docs/performance.md");
        std::fs::write(&path, &text)?;
        say::line(format_args!("written to {}", path.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// What is run.
struct Programs {
    defib: std::path::PathBuf,
    victim: std::path::PathBuf,
}

impl Programs {
    /// A storm of `count` processes that each exit with `code`, on the last processor, ready to start.
    fn storm(&self, count: u32, code: u8) -> Command {
        let last = std::thread::available_parallelism().map_or(0, |count| count.get() - 1);
        let mut command = Command::new("taskset");
        command.arg("--cpu-list").arg(last.to_string()).arg(&self.victim);
        command.arg("storm").arg(count.to_string()).arg(code.to_string());
        command
    }
}
