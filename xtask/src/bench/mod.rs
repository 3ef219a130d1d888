//! `cargo xtask bench`: what Defib costs and how fast it sees, measured on this machine beside a peer in the same run.
//!
//! * [`kernel`]: run time of the kernel programs under a storm of exits, beside peers and an empty program
//! * [`workload`]: what that costs whoever forks and exits
//! * [`peers`]: the programs that are measured beside ours
//! * [`detection`]: kernel hook to user space on an idle machine and on a busy one, beside a peer
//! * [`beside_kmsg`]: who hears of an OOM kill first, beside a reader of the kernel's log
//! * [`out_of_pool`]: from an OOM mark until a load balancer knows
//! * [`flood`]: a minute of exits as fast as they can be made, with deaths in it that must not be lost
//! * [`recovery`]: from death to serving again, beside other supervisors
//! * [`footprint`]: resident memory and CPU of an idle agent
//! * [`scale`]: the same with many services to look after
//! * [`soak`]: hours of service life, in which nothing may grow; a command of its own
//! * [`traced`]: what `defib trace` takes from a service
//! * [`attacks`]: an agent under all attacks at once
//! * [`year`]: what a year of incidents takes on disk
//! * [`forecast`]: how many leaks are found, and how many that are none, on simulated services; a command of its own
//!
//! The run writes its tables to `docs/performance.md`; no figure there is typed by hand.

mod agent;
mod attacks;
mod beside_kmsg;
mod detection;
mod empty;
mod flood;
mod footprint;
mod forecast;
mod kernel;
mod limited;
mod out_of_pool;
mod peers;
mod recovery;
mod report;
mod scale;
mod sleepers;
pub(crate) mod soak;
mod stats;
mod storms;
mod traced;
mod workload;
mod year;

use std::{
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Result, ensure};

use crate::{artifacts, privilege, say, workspace};

/// Measure cost and speed on this machine, and write the tables to docs/performance.md
///
/// Needs root, to load the programs and to have the kernel measure them (`kernel.bpf_stats_enabled`, put back at the
/// end). Takes about half an hour; leave the machine alone meanwhile. Peers that are installed are measured in the same run:
/// Debian packages libbpf-tools, bpftrace, forkstat, systemd, supervisor, monit, docker.io and busybox-static.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: Option<What>,
    /// Print the tables without writing docs/performance.md
    #[arg(long)]
    print: bool,
    /// Measure only these, and leave the other tables as they are
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Arm>,
    /// Rounds of each arm; arms take turns, and medians are shown
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
}

/// What can be measured by itself.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Arm {
    /// Run time of the kernel programs
    Kernel,
    /// What they cost whoever forks and exits
    Workload,
    /// Kernel hook to user space, idle and in a flood of exits
    Detection,
    /// From death to serving again
    Recovery,
    /// Resident memory, CPU, start and scrape, with no services and with many
    Footprint,
    /// What a year of incidents takes on disk
    Year,
    /// What a trace takes from a service
    Trace,
    /// An agent within the packaged unit's limits under all attacks at once, for five minutes
    Attacks,
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
    // Before minutes of building and measuring, not after.
    stats::Measuring::ensure_nobody()?;
    let programs = Programs {
        defib: artifacts::packaged()?,
        victim: artifacts::program(&artifacts::release()?, "victim")?.to_path_buf(),
    };
    let wanted = |arm| args.only.is_empty() || args.only.contains(&arm);
    let mut tables = report::Tables::default();
    if wanted(Arm::Kernel) {
        tables.kernel = Some(kernel::measure(&programs, args.rounds)?);
    }
    if wanted(Arm::Workload) {
        tables.workload = Some(workload::measure(&programs)?);
    }
    if wanted(Arm::Detection) {
        tables.detection = Some(report::Seen {
            told: detection::measure(&programs)?,
            beside: beside_kmsg::measure(&programs)?,
            out: out_of_pool::measure(&programs)?,
            flood: flood::measure(&programs)?,
        });
    }
    if wanted(Arm::Recovery) {
        tables.recovery = Some(recovery::measure(&programs)?);
    }
    if wanted(Arm::Footprint) {
        tables.footprint = Some((footprint::measure(&programs)?, scale::measure(&programs)?));
    }
    if wanted(Arm::Year) {
        tables.year = Some(year::measure(&programs)?);
    }
    if wanted(Arm::Trace) {
        tables.traced = Some(traced::measure(&programs)?);
    }
    if wanted(Arm::Attacks) {
        tables.attacks = Some(attacks::measure(&programs)?);
    }
    let path = workspace::root().join("docs/performance.md");
    let text = tables.text(&std::fs::read_to_string(&path)?)?;
    say::line(&text);
    if !args.print {
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
    /// A process in this cgroup that does what its first argument says, ready to start.
    fn victim_in(&self, cgroup: &Path) -> Command {
        let mut command = Command::new(&self.victim);
        command.arg("--cgroup").arg(cgroup).stdin(Stdio::null());
        command
    }

    /// A storm of `count` processes that end like this, on the last processor, in this cgroup, ready to start.
    fn storm(&self, count: u32, end: kernel::End, cgroup: Option<&Path>) -> Command {
        let last = std::thread::available_parallelism().map_or(0, |count| count.get() - 1);
        let mut command = Command::new("taskset");
        command.arg("--cpu-list").arg(last.to_string()).arg(&self.victim);
        if let Some(cgroup) = cgroup {
            command.arg("--cgroup").arg(cgroup);
        }
        command.arg("storm").arg(count.to_string()).args(end.arguments());
        command
    }
}
