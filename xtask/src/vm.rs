//! `cargo xtask vm`: runs a command on another kernel, in a virtual machine with real systemd as PID 1.
//!
//! ```text
//! kernel (downloaded) ──────────────┐
//! root file system (mmdebstrap) ────┼─▶ qemu ─▶ output and exit status of the command
//! programs, --with files ─▶ payload ┘
//! ```
//! Kernels and root file systems are kept in `target/vm` and shared by parallel runs; no run writes to them. Output and
//! logs of a run stay in `target/vm/runs`. Every run ends by itself: when it is done, when it prints nothing for too
//! long ([`patience`]), or at its deadline.

mod apt;
mod boot;
mod cache;
mod console;
mod disk;
mod host;
mod image;
mod initramfs;
mod kernel;
mod logged;
mod modules;
mod patience;
mod payload;
mod programs;
mod run;

use std::{io, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use clap::ValueEnum as _;

pub(crate) use self::{
    boot::Outcome,
    kernel::Kernel,
    patience::Patience,
    programs::Program,
    run::{Harness, Job},
};
use crate::{dist, say};

/// Run a command or a test on another kernel, in a virtual machine with systemd
///
/// Says what is missing on this machine and why it is needed, and installs it. The first run downloads a kernel and
/// builds a root file system (as root); later ones take both from target/vm. The agent and the victims are built and
/// lie in /payload of the guest. Ends with the exit status of the command, or 125 when the machine did not get to one.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Kernel series to boot; may be given more than once
    #[arg(long, value_enum, required_unless_present = "all")]
    kernel: Vec<Kernel>,
    /// Boot every kernel, one after another
    #[arg(long, conflicts_with = "kernel")]
    all: bool,
    /// Commands for bash, run in /payload of the guest; without them, the machine checks itself
    #[arg(long, value_name = "COMMAND", conflicts_with = "test")]
    exec: Option<String>,
    /// Run a test program of the package `tests`
    #[arg(long, value_name = "NAME", conflicts_with = "no_build")]
    test: Option<String>,
    /// Copy a file or directory into /payload; may be given more than once
    #[arg(long, value_name = "PATH")]
    with: Vec<PathBuf>,
    /// Have this Debian package in the guest beside the usual ones; may be given more than once
    #[arg(long, value_name = "PACKAGE")]
    include: Vec<String>,
    /// Run only tests of that program whose names contain one of these
    #[arg(last = true, value_name = "FILTER", requires = "test")]
    filters: Vec<String>,
    /// Seconds without a line of output after which a machine is stopped; also the limit for its boot
    #[arg(long, value_name = "SECONDS", default_value_t = patience::SILENCE.as_secs())]
    silence: u64,
    /// Seconds after which a machine is always stopped, boot included
    #[arg(long, value_name = "SECONDS", default_value_t = patience::WHOLE.as_secs())]
    deadline: u64,
    /// Memory of the machine in MiB
    #[arg(long, value_name = "MIB", default_value_t = MEMORY_MIB)]
    memory: u32,
    /// Processors of the machine
    #[arg(long, value_name = "COUNT", default_value_t = CPUS)]
    cpus: u32,
    /// Build nothing; take the agent and the victims as they are in target/release, or go without
    #[arg(long)]
    no_build: bool,
    /// Install nothing; where something is missing, list it with the commands that bring it, and fail
    #[arg(long)]
    no_install: bool,
}

/// Memory of a machine, in MiB, unless said otherwise: the guest's own daemons leave two thirds of it free.
pub(crate) const MEMORY_MIB: u32 = 1024;
/// Its processors.
pub(crate) const CPUS: u32 = 2;

/// The test that installs our packages, which it finds beside it.
pub(crate) const INSTALL: &str = "install";

/// Exit status for a machine that did not get to a status of its own.
const NO_STATUS: u8 = 125;

pub(crate) fn execute(args: &Args) -> Result<ExitCode> {
    let harness = Harness::prepare(&args.include, !args.no_install)?;
    let programs = if args.no_build {
        programs::built_earlier()?
    } else {
        programs::build(args.test.as_deref(), !args.no_install)?
    };
    let script = script(args);
    let mut with = args.with.clone();
    if args.test.as_deref() == Some(INSTALL) {
        let defib = programs.iter().find(|program| program.name == "defib").context("the agent is not built")?;
        with.extend(dist::for_upgrade(&defib.path)?);
    }
    let job = Job {
        programs: &programs,
        with: &with,
        script: script.as_deref(),
        memory_mib: args.memory,
        cpus: args.cpus,
        patience: Patience { silence: Duration::from_secs(args.silence), whole: Duration::from_secs(args.deadline) },
    };

    let kernels = if args.all { Kernel::value_variants() } else { args.kernel.as_slice() };
    let mut results = Vec::new();
    for &kernel in kernels {
        // One that fails does not keep the others from running.
        let result = harness.run(kernel, &job, &mut io::stdout());
        if let Err(error) = &result {
            say::error(error);
        }
        results.push((kernel, result.ok()));
    }

    let mut first_failure = 0;
    for (kernel, outcome) in results {
        say::line(format_args!("vm: kernel {:>4}: {}", kernel.name(), summary(outcome)));
        let status = outcome.map_or(NO_STATUS, |outcome| outcome.status);
        first_failure = if first_failure == 0 { status } else { first_failure };
    }
    Ok(ExitCode::from(first_failure))
}

fn script(args: &Args) -> Option<String> {
    args.test.as_ref().map(|name| test_script(name, &args.filters)).or_else(|| args.exec.clone())
}

/// Runs a test program of the package `tests` in the guest, with these words beside the usual ones.
pub(crate) fn test_script(name: &str, words: &[String]) -> String {
    let mut script = format!("DEFIB_BINARY=/payload/defib ./tests-{name} --test-threads=1 --nocapture");
    for word in words {
        script.push(' ');
        script.push_str(word);
    }
    script
}

fn summary(outcome: Option<Outcome>) -> String {
    let Some(Outcome { status, boot, total }) = outcome else { return "no status, see above".to_owned() };
    format!("status {status}, booted in {:.1} s, all in {:.1} s", boot.as_secs_f64(), total.as_secs_f64())
}
